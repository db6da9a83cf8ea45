"""The same trainings at equal wall-clock, read from their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixvae._tables import Row
from mixvae.reports import BetweenTrainings, Column
from mixvae.reproduce.contrasts import Key
from mixvae.reproduce.measured import Measured
from mixvae.training import Epoch

AT = "at_equal_seconds"
"""Name of the validation bound at equal seconds."""


def at_equal_seconds(measured: Measured) -> Measured:
    """Measurements with the best validation bound of every training within the time that the quickest one took.

    It is NaN for a training whose first epoch took longer. Seconds are those of training and validating, on whatever
    machine each training ran: they are comparable only if it was the same machine, equally busy.
    """
    seconds = _quickest(measured)
    return {
        key: [
            replace(cell, more={**cell.more, AT: max(_within(cell.run.metrics, seconds), default=math.nan)})
            for cell in cells
        ]
        for key, cells in measured.items()
    }


def _quickest(measured: Measured) -> float:
    """Seconds that the quickest training took."""
    return min(cell.run.metrics[-1]["seconds"] for cells in measured.values() for cell in cells)


def _within(metrics: Sequence[Epoch], seconds: float) -> list[float]:
    """Validation bounds of the epochs that ended within some seconds."""
    return [row["validation"] for row in metrics if row["seconds"] <= seconds]


def add_clock(rows: Sequence[Row], measured: Measured, trainings: BetweenTrainings[Key]) -> list[Column]:
    """Put epochs, and the bound at equal seconds with its error between trainings, into rows; returns their columns."""
    for row in rows:
        key = row["model"], row["size"]
        row["epochs"] = float(np.mean([len(cell.run.metrics) for cell in measured[key]]))
        row |= {AT: trainings.means[key], f"{AT}_margin": trainings.margin(key)}
    about = f"best validation bound within {_quickest(measured):.0f} s, which the quickest training took, nats"
    error = "half width of its 95 % interval between trainings"
    return [
        Column("epochs", "epochs", digits=0, about="epochs trained, mean"),
        Column("validation at equal seconds", AT, f"{AT}_margin", 2, about, error_about=error),
    ]
