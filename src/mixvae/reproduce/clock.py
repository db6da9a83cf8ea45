"""How long trainings took, and the same trainings at equal wall-clock, read from their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixvae._tables import Row
from mixvae.reports import Column
from mixvae.reproduce.contrasts import named
from mixvae.reproduce.measured import Cell, Measured, between

MACHINE = ("machine", "device", "threads", "processes", "nodes")
"""What runs record of the hardware that they were trained on."""
AT = "at_equal_seconds"
"""Name of the validation bound at equal seconds."""
ROUNDING = 1e-9
"""Share of an epoch by which times that are equal may seem to differ."""
STEADY = 1.2
"""Seconds are not compared if trainings of one variant differ by more than this factor in seconds per epoch."""


def pace(cell: Cell) -> float:
    """Seconds of training and validation per epoch: the median over epochs, which a short disturbance leaves alone."""
    return float(np.median(np.diff([row["seconds"] for row in cell.run.metrics], prepend=0.0)))


def least(results: Sequence[Mapping[str, Any]], name: str = "train_seconds") -> float:
    """Seconds of one training: the mean number of epochs, at the seconds per epoch of the quickest training.

    Other work on the machine disturbed that one least.

    Args:
        results: results of a variant's evaluations.
        name: name of the seconds in them.
    """
    epochs = [result.get("epochs") or 1 for result in results]
    return min(result[name] / n for result, n in zip(results, epochs, strict=True)) * float(np.mean(epochs))


def unconfirmed(results: Mapping[str, Sequence[Mapping[str, Any]]], name: str = "train_seconds") -> list[str]:
    """A note on models whose quickest training was more than `STEADY` times as quick as the next, or none.

    Args:
        results: results of the evaluations of every model's trainings, by the model's name.
        name: name of the seconds in them.

    Example:
        >>> from mixvae.reproduce.clock import unconfirmed
        >>> each = [{"train_seconds": seconds, "epochs": 10} for seconds in (20, 31, 22)]
        >>> unconfirmed({"S = 1": each, "S = 2": each[:2]})
        ['Seconds that no second training confirms, as other work slowed it: S = 2 (the next took 1.6 times as long).']
    """
    slower = {}
    for model, each in results.items():
        first, *others = sorted(result[name] / (result.get("epochs") or 1) for result in each)
        if others and others[0] > STEADY * first:
            slower[model] = others[0] / first
    listed = ", ".join(f"{model} (the next took {ratio:.2g} times as long)" for model, ratio in slower.items())
    return [f"Seconds that no second training confirms, as other work slowed it: {listed}."] if slower else []


def elsewhere(measured: Measured) -> list[str]:
    """A note on variants that were trained on another machine than the first, or in other threads, or none."""
    runtimes = [(named(key), cell.run.manifest.get("runtime", {})) for key, cells in measured.items() for cell in cells]
    _, first = runtimes[0]
    differing: dict[str, str] = {}
    for variant, own in runtimes:
        for name in MACHINE:
            if own.get(name) != first.get(name):
                differing.setdefault(variant, f"{name} {own.get(name)}, not {first.get(name)}")
    listed = "; ".join(f"{variant}: {what}" for variant, what in differing.items())
    return [f"Seconds cannot be compared, as trainings ran on different machines ({listed})."] if differing else []


def disturbed(measured: Measured) -> list[str]:
    """A note on variants whose trainings differ in their seconds per epoch, or in their machine, or none."""
    if found := elsewhere(measured):
        return [f"Nothing is compared at equal seconds. {found[0]}"]
    paces = {named(key): sorted(map(pace, cells)) for key, cells in measured.items()}
    busy = ", ".join(f"{name} {p[0]:.2g} to {p[-1]:.2g} s" for name, p in paces.items() if p[-1] > STEADY * p[0])
    note = (
        f"Nothing is compared at equal seconds, as those per epoch differ between trainings of one model ({busy}): "
        "train again on an idle machine, one at a time."
    )
    return [note] if busy else []


def at_equal_seconds(measured: Measured) -> Measured:
    """Measurements with the best validation bound of every training within the time that the quickest one took.

    Time is counted in epochs of `pace` seconds, of the quickest training of each variant. The bound is NaN for a
    variant whose first epoch took longer, and for all if they are `disturbed`.
    """
    seconds = math.nan if disturbed(measured) else quickest(measured)
    return {
        key: [
            replace(cell, more={**cell.more, AT: max(_within(cell, seconds / _pace(cells)), default=math.nan)})
            for cell in cells
        ]
        for key, cells in measured.items()
    }


def quickest(measured: Measured) -> float:
    """Seconds that the quickest training took."""
    return min(len(cell.run.metrics) * _pace(cells) for cells in measured.values() for cell in cells)


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


def _pace(cells: Sequence[Cell]) -> float:
    """Seconds per epoch of a variant's quickest training."""
    return min(map(pace, cells))


def _within(cell: Cell, epochs: float) -> list[float]:
    """Validation bounds of the first `epochs` epochs, rounded down."""
    return [row["validation"] for epoch, row in enumerate(cell.run.metrics, 1) if epoch <= epochs * (1 + ROUNDING)]
