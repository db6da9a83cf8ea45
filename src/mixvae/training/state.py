"""Where a training stands, when it is over, and where its checkpoints go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass
class State:
    """Where a training stands, apart from tensors.

    Args:
        epoch: epochs completed.
        step: steps completed of the current epoch.
        total: sum of the bound over this epoch's examples so far.
        best: best validation MISELBO so far.
        best_epoch: the epoch, from 1, that reached it.
        seconds: time trained, over all sessions.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def is_over(epoch: int, best_epoch: int, epochs: int, warmup: int, patience: int | None) -> bool:
    """Whether a training ends after so many epochs: all are done, or patience since warm-up and best epoch is out."""
    waited = epoch - max(best_epoch, warmup)
    return epoch >= epochs or (patience is not None and waited >= patience)


@runtime_checkable
class Store(Protocol):
    """Where checkpoints go. Only the first process of a training reads and writes."""

    @property
    def path(self) -> Path:
        """Folder, for messages."""
        ...

    @property
    def is_stale(self) -> bool:
        """Whether what was asked for now is not what was committed, so that the first thing to do is to commit it."""
        ...

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None before the first one."""
        ...

    def save(
        self, state: dict[str, Any], weights: dict[str, Tensor] | None, rows: list[dict[str, Any]], progress: State
    ) -> None:
        """Commit a checkpoint; weights are the best ones where they are newer than the last that were saved."""
        ...

    def log(self, row: dict[str, Any]) -> None:
        """Show the newest epoch to who looks on."""
        ...
