"""Progress of a training, when it is over, and where its checkpoints go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mixvae.training._history import Epoch

Checkpoint = dict[str, Any]
"""Everything from which a training resumes: tensors and plain values."""


@dataclass
class State:
    """Progress of a training, apart from tensors.

    Args:
        epoch: epochs completed.
        step: steps completed of the current epoch.
        total: sum of the bound over this epoch's examples so far.
        best: best validation bound so far.
        best_epoch: the epoch, from 1, that reached it.
        seconds: training time, over all sessions.
        norms: sum of the gradient's norm over the steps of this epoch where it was finite.
        normed: number of those steps.

    Example:
        >>> from mixvae.training import State
        >>> State(epoch=3, best=-48.5, best_epoch=2)
        State(epoch=3, step=0, total=0.0, best=-48.5, best_epoch=2, seconds=0.0, norms=0.0, normed=0)
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    norms: float = 0.0
    normed: int = 0


def is_over(epoch: int, best_epoch: int, epochs: int, warmup: int, patience: int | None) -> bool:
    """Whether a training ends after `epoch` epochs: all are done, or patience since warm-up and best epoch ran out.

    Example:
        >>> from mixvae.training import is_over
        >>> [is_over(epoch, best_epoch=3, epochs=100, warmup=0, patience=5) for epoch in (7, 8, 100)]
        [False, True, True]
    """
    waited = epoch - max(best_epoch, warmup)
    return epoch >= epochs or (patience is not None and waited >= patience)


@runtime_checkable
class Store(Protocol):
    """Where checkpoints go. Only the first process of a training reads and writes them."""

    @property
    def path(self) -> Path:
        """Folder, for messages."""
        ...

    @property
    def is_stale(self) -> bool:
        """Whether the current request differs from what was committed, and so has to be committed first."""
        ...

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or None before the first one."""
        ...

    def save(
        self, state: Checkpoint, weights: dict[str, Tensor] | None, rows: Sequence[Epoch], progress: State
    ) -> None:
        """Commit a checkpoint; `weights` are the best ones, if newer than the last saved."""
        ...

    def log(self, row: Epoch) -> None:
        """Record the newest epoch for anyone watching."""
        ...
