"""The models of an experiment, and which of them start from another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixvae import sweeps
from mixvae.reproduce.contrasts import Key


@dataclass(frozen=True)
class Variant:
    """One model of an experiment.

    Args:
        model: its name.
        size: number of components S, or the size that it is compared with.
        preset: the configuration that it starts from.
        options: its changes to the preset.
        against: model and size of its baseline; the same model at the experiment's first size by default.
        trainings: train it only with the first N seeds of the experiment; with all by default.
        start: model and size whose training of the same seed it starts from; random weights by default.
        share: share of the experiment's epochs that it trains for.
    """

    model: str
    size: int
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    against: Key | None = None
    trainings: int | None = None
    start: Key | None = None
    share: float = 1.0

    @property
    def key(self) -> Key:
        """Model and size."""
        return self.model, self.size

    @property
    def name(self) -> str:
        """Name for files and folders."""
        return f"{re.sub(r'[^a-zA-Z0-9_]+', '-', self.model).strip('-')}-S{self.size}"


def refuse_other_starts(grid: sweeps.Grid) -> None:
    """Check all cells before anything is trained, and that no model from which others have started trains further.

    Raises:
        ValueError: a cell's folder holds something else, or its start is missing or would train further.
    """
    states = grid.standing()
    for name, cell in grid.cells.items():
        start = cell.start.run
        if start is not None and states[name] != "new" and states[Path(start).name] != "trained":
            raise ValueError(
                f"{grid.out / name} started from {start}, which is missing or would be trained on: choose another --out"
            )
