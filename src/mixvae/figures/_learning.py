"""The course of trainings, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mixvae._tables import counted
from mixvae.figures._style import WIDTH, bare, colours, ink, spread_labels

PANELS = {
    "kl": "KL (nats)",
    "used_components": "components\nused",
    "gradient_norm": "gradient norm",
}
"""Columns drawn below the bounds where rows have them."""
LOGARITHMIC = ("gradient_norm",)
SHORT = 12
"""Characters of a label that still fit beside the end of a line; longer labels go into a legend."""
FEW = 10
"""Trainings of at most this many epochs are shown whole."""
FAR = 3.0
"""How many times higher than the rest of a training its first epochs must be to be cut off."""

Epochs = Sequence[Mapping[str, Any]]


def learning_curves(metrics: Mapping[str, Epochs]) -> Figure:
    """Negative bounds over epochs, one colour per run, with the best epoch by the validation bound marked.

    The validation bound is solid, the training bound dashed from the end of the warm-up on: a bound under β < 1 is
    another objective. Where the first epochs are far above the rest they are cut off, and the figure says so.

    Args:
        metrics: rows of `metrics.jsonl` by the run's label; kl, used_components and gradient_norm are drawn below
            where rows have them.

    Example:
        >>> from mixvae import figures
        >>> rows = [{"epoch": 1, "validation": -50.0}, {"epoch": 2, "validation": -48.0}]
        >>> figures.learning_curves({"S = 4": rows}).get_label()
        'Negative bounds over epochs. S = 4: validation from 50.00 to 48.00 nats, best 48.00 at epoch 2 of 2.'
    """
    shown = {label: rows for label, rows in metrics.items() if rows}
    below = [key for key in PANELS if any(row.get(key) is not None for rows in shown.values() for row in rows)]
    short = max(map(len, shown), default=0) <= SHORT
    height = 3.6 + 1.5 * len(below) + (0 if short else 0.2 * len(shown))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1 + len(below), 1, sharex=True, squeeze=False, height_ratios=[3.2] + [1.5] * len(below))
    top, *others = panels[:, 0]
    lines: list[tuple[np.ndarray, np.ndarray]] = []
    labels, descriptions = [], []
    for (label, rows), colour in zip(shown.items(), colours(len(shown)), strict=True):
        epochs = np.array([row["epoch"] for row in rows])
        values = -_column(rows, "validation")
        training = np.where(_column(rows, "beta", 1.0) >= 1, -_column(rows, "bound"), math.nan)
        point = "." if len(rows) <= 2 * FEW else ""
        top.plot(epochs, values, color=colour, linewidth=1.6, marker=point)
        top.plot(epochs, training, color=colour, linewidth=1, linestyle="--", marker=point, markersize=3)
        best = int(values.argmin())
        top.plot(epochs[best], values[best], "o", color=colour, markersize=6)
        if short:
            end = (epochs[-1], values[-1])
            labels.append(top.annotate(label, end, (6, 0), textcoords="offset points", color=ink(colour), va="center"))
        lines += [(epochs, values), (epochs, training)]
        descriptions.append(
            f"{label}: validation from {values[0]:.2f} to {values[-1]:.2f} nats, best {values[best]:.2f} at epoch "
            f"{epochs[best]} of {epochs[-1]}"
        )
        for axes, key in zip(others, below, strict=True):
            axes.plot(epochs, _column(rows, key), color=colour, linewidth=1.2, marker=point)
            axes.set_yscale("log" if key in LOGARITHMIC else "linear")
    for axes, name in zip((top, *others), ("−bound (nats)", *(PANELS[key] for key in below)), strict=True):
        bare(axes)
        axes.set_ylabel(name)
        axes.margins(x=0.02)
    panels[-1, 0].set_xlabel("epoch")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_warmup([top, *others], shown)
    if lines:
        descriptions += _fit_range(top, lines)
        spread_labels(top, labels)
    kinds = {"validation bound": Line2D([], [], color="#555555")}
    if any(np.isfinite(values).any() for _, values in lines[1::2]):
        kinds["training"] = Line2D([], [], color="#555555", linewidth=1, linestyle="--")
    kinds["kept"] = Line2D([], [], color="#555555", linestyle="", marker="o")
    figure.legend(
        list(kinds.values()), list(kinds), loc="outside upper left", ncols=3, frameon=False, handlelength=1.6,
        columnspacing=1, borderpad=0,
    )  # fmt: skip
    if not short:
        named = [Line2D([], [], color=colour) for colour in colours(len(shown))]
        figure.legend(named, list(shown), loc="outside lower left", frameon=False, borderpad=0, labelspacing=0.2)
    figure.set_label(". ".join(["Negative bounds over epochs", *descriptions]) + ".")
    return figure


def _column(rows: Epochs, key: str, missing: float = math.nan) -> np.ndarray:
    """Values of a column as floats."""
    return np.array([missing if row.get(key) is None else row[key] for row in rows], dtype=float)


def _mark_warmup(panels: Sequence[Axes], runs: Mapping[str, Epochs]) -> None:
    """Mark up to which epoch β was below one."""
    ends = {max((row["epoch"] for row in rows if row.get("beta", 1) < 1), default=0) for rows in runs.values()} - {0}
    for end in sorted(ends):
        for axes in panels:
            axes.axvspan(0.5, end + 0.5, color="#888888", alpha=0.12 / len(ends), linewidth=0)
            axes.axvline(end + 0.5, color="#888888", linewidth=1, linestyle=":")
    if ends:
        word = f"warm-up, β < 1, to epoch {' or '.join(map(str, sorted(ends)))}"
        panels[0].annotate(
            word,
            (0, 0),
            xycoords="axes fraction",
            xytext=(3, 3),
            textcoords="offset points",
            va="bottom",
            color="#444444",
        )


def _fit_range(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Show everything, or most of it and how much is cut off; returns what is cut off in words."""
    known = [(epochs[np.isfinite(v)], v[np.isfinite(v)]) for epochs, v in lines if np.isfinite(v).any()]
    low, high = min(v.min() for _, v in known), max(v.max() for _, v in known)
    most = max(np.quantile(v, 0.9) for _, v in known)
    cut = max(len(v) for _, v in known) > FEW and high - low > FAR * (most - low)
    top = most if cut else high
    room = top - low + 1e-6
    axes.set_ylim(low - 0.08 * room, top + (0.12 if cut else 0.05) * room)
    if not cut:
        return []
    beyond = {int(e) for epochs, v in known for e in epochs[v > axes.get_ylim()[1]]}
    count = counted(len(beyond), "epoch")
    axes.annotate(
        f"↑ cut off: {count}, up to {high:.1f} nats", (1, 1), xycoords="axes fraction", ha="right", va="top",
        color="#444444", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
    )  # fmt: skip
    return [f"The axis ends at {axes.get_ylim()[1]:.1f}, which cuts off {count}, up to {high:.1f} nats"]
