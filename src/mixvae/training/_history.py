"""The course of a training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from matplotlib.figure import Figure

from mixvae import figures
from mixvae._tables import Row, Tabular


class Epoch(TypedDict):
    """One epoch: bounds in nats per example; `validation` is the MISELBO with one draw per component."""

    epoch: int
    bound: float
    validation: float
    beta: float
    learning_rate: float
    best_epoch: int
    seconds: float


class History(Tabular, list[Epoch]):
    """The epochs of a training, which prints as a table.

    Args:
        epochs: one row per epoch.

    Example:
        >>> from mixvae.training import Epoch, History
        >>> rest = {"bound": -50.0, "beta": 1.0, "learning_rate": 5e-4, "seconds": 0.25}
        >>> history = History(Epoch(epoch=e, validation=e - 50.0, best_epoch=e, **rest) for e in (1, 2))
        >>> history
        2 epochs, bounds in nats
        epoch  validation  best_epoch   bound  beta  learning_rate  seconds
            1      -49.00           1  -50.00  1.00         0.0005     0.25
            2      -48.00           2  -50.00  1.00         0.0005     0.25
        >>> history[-1]["best_epoch"]
        2
    """

    def __init__(self, epochs: Iterable[Epoch] = ()):
        super().__init__(epochs)

    @property
    def title(self) -> str:
        """Number of epochs."""
        return f"{len(self)} epoch{'' if len(self) == 1 else 's'}, bounds in nats"

    @property
    def table(self) -> list[Row]:
        """The epochs as rows."""
        return [dict(epoch) for epoch in self]

    @property
    def figure(self) -> Figure:
        """Learning curve: the negative validation bound."""
        return figures.learning_curves({"validation": self})


def in_words(row: Epoch, epochs: int) -> str:
    """An epoch in one line, with the number of all epochs."""
    return (
        f"epoch {row['epoch']}/{epochs}  bound {row['bound']:.2f}  validation {row['validation']:.2f}"
        f"  best {row['best_epoch']}  β {row['beta']:.2f}"
    )
