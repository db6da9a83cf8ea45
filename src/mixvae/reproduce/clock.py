"""How long trainings took, and the same trainings at equal wall-clock, read from their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mixvae._tables import Row
from mixvae.reports import Column
from mixvae.reproduce.contrasts import Key, named
from mixvae.reproduce.measured import Cell, Measured, between

AT = "at_equal_seconds"
"""Name of the validation bound at equal seconds."""
STEADY = 1.2
"""Largest ratio of the seconds per epoch of two trainings of one variant that leaves seconds comparable."""


def pace(cell: Cell) -> float:
    """Seconds of training and validation per epoch: the median over epochs, which a short disturbance leaves alone."""
    return float(np.median(np.diff([row["seconds"] for row in cell.run.metrics], prepend=0.0)))


def least(cells: Sequence[Cell]) -> float:
    """Seconds of the quickest of a variant's trainings, which other work on the machine disturbed least."""
    return min(cell.evaluation.results["train_seconds"] for cell in cells)


def disturbed(measured: Measured) -> list[str]:
    """A note on variants of which one training had more seconds per epoch than another, or none."""
    ratios = {named(key): max(paces) / min(paces) for key, paces in _paces(measured).items()}
    busy = ", ".join(f"{name} {ratio:.1f} times" for name, ratio in ratios.items() if ratio > STEADY)
    told = (
        f"Nothing is compared at equal seconds, as those per epoch differ between trainings of one model ({busy}): "
        "train again on an idle machine, one at a time."
    )
    return [told] if busy else []


def at_equal_seconds(measured: Measured) -> Measured:
    """Measurements with the best validation bound of every training within the time that the quickest one took.

    Time is counted in epochs of `pace` seconds. The bound is NaN for a training whose first epoch took longer, and for
    all of them if they are `disturbed`.
    """
    seconds = math.nan if disturbed(measured) else quickest(measured)
    return {
        key: [
            replace(cell, more={**cell.more, AT: max(_within(cell, seconds), default=math.nan)}) for cell in cells
        ]
        for key, cells in measured.items()
    }  # fmt: skip


def quickest(measured: Measured) -> float:
    """Seconds that the quickest training took."""
    return min(len(cell.run.metrics) * pace(cell) for cells in measured.values() for cell in cells)


def add_clock(rows: Sequence[Row], measured: Measured) -> list[Column]:
    """Put epochs, and the bound at equal seconds with its error between trainings, into rows; returns their columns."""
    trainings = between(measured, AT)
    for row in rows:
        key = row["model"], row["size"]
        row["epochs"] = float(np.mean([len(cell.run.metrics) for cell in measured[key]]))
        row |= {AT: trainings.means[key], f"{AT}_margin": trainings.margin(key)}
    about = f"best validation bound within {quickest(measured):.0f} s, which the quickest training took, nats"
    error = "half width of its 95 % interval between trainings"
    return [
        Column("epochs", "epochs", digits=0, about="epochs trained, mean"),
        Column("validation at equal seconds", AT, f"{AT}_margin", 2, about, error_about=error),
    ]


def _paces(measured: Measured) -> dict[Key, list[float]]:
    return {key: [pace(cell) for cell in cells] for key, cells in measured.items()}


def _within(cell: Cell, seconds: float) -> list[float]:
    """Validation bounds of the epochs that ended within some seconds."""
    each = pace(cell)
    return [row["validation"] for epoch, row in enumerate(cell.run.metrics, 1) if epoch * each <= seconds]
