"""The course of a training, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from matplotlib.figure import Figure

from mixvae import figures
from mixvae._tables import Row, Tabular


class Epoch(TypedDict):
    """One epoch: what was trained, and what validation measured, in nats per example unless stated otherwise.

    Validation draws one z_s ~ q_s(z|x) of each component, or `validation_draws` of all together, with the same noise at
    every epoch, at β = 1 and without free bits; q = Σ_s π_s q_s is the mixture, or that of `validation_components`. Its
    columns are means over the examples:

        reconstruction          E_q[log p(x|z)] ≈ Σ_s π_s log p(x|z_s)
        kl                      KL(q(z|x) ‖ p(z)) ≈ Σ_s π_s [log q(z_s|x) − log p(z_s)]
        validation              by default the MISELBO, with one draw the ELBO: reconstruction − kl
        jsd                     Σ_s π_s [log q_s(z_s|x) − log q(z_s|x)], `bounds.jsd`: 0 to H(π) in expectation
        used_components         exp H(r̄), r̄_j the mean over examples of `analysis.shares`: 1 to S, a number

    The other columns: `bound` is what was maximised (at the epoch's β), `gradient_norm` the mean over the steps of its
    gradient's norm before clipping, None if it was never finite; `beta` the weight of the KL part; `learning_rate` that
    of the epoch, or its final value if the schedule steps at every step; `best_epoch` the epoch with the best
    validation so far; `seconds` the training time so far. Runs older than a column lack it.
    """

    epoch: int
    bound: float
    validation: float
    beta: float
    learning_rate: float
    best_epoch: int
    seconds: float
    reconstruction: NotRequired[float]
    kl: NotRequired[float]
    jsd: NotRequired[float]
    used_components: NotRequired[float]
    gradient_norm: NotRequired[float | None]


class History(Tabular, list[Epoch]):
    """The epochs of a training, which prints as a table; `Epoch` defines its columns, with their units.

    Where a run lacks a column, as runs of earlier versions may, it shows "–", and NaN in `to_frame`.

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


def within(epoch: int, epochs: int, what: str, last: Epoch | None) -> str:
    """Position of a training within an epoch, in one line, with the validation of the previous epoch."""
    before = "" if last is None else f"  validation {last['validation']:.2f}  best {last['best_epoch']}"
    return f"epoch {epoch}/{epochs}  {what}{before}"
