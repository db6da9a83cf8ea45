"""Bounds and costs as lines and points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mixvae._tables import Row, counted
from mixvae.figures._style import MARKERS, PALETTE, WIDTH, bare, blank, colours, ink, wrapped

NAMED = 1.7
"""Maximum width in inches of the name of a gain."""
HALF_LABEL = 0.2
"""Half of the width of a label of a gain, as a share of the width of its axes."""


def scaling(curves: dict[str, list[tuple[int, float]]], across: str, up: str) -> Figure:
    """Curves over a size that doubles, on logarithmic axes, each labelled at its end.

    Args:
        curves: points (size, value) by name.
        across: label of the horizontal axis.
        up: label of the vertical one.

    Example:
        >>> from mixvae import figures
        >>> figures.scaling({"GPU": [(1, 1.0), (2, 1.5)]}, "components S", "cost").axes[0].texts[0].get_text()
        'GPU: ×1.5 at 2'
    """
    figure, axes = blank(WIDTH, 3.6)
    for (name, points), colour, marker in zip(curves.items(), colours(len(curves)), MARKERS, strict=False):
        sizes, values = zip(*points, strict=True)
        axes.loglog(sizes, values, color=colour, marker=marker, markersize=4, linewidth=1.6)
        right = sizes[-1] ** 2 > max(
            points[-1][0] for points in curves.values()
        )  # in the right half: label to the left
        axes.annotate(
            f"{name}: ×{values[-1]:.1f} at {sizes[-1]}", (sizes[-1], values[-1]), xytext=(0, 6),
            textcoords="offset points", color=ink(colour), ha="right" if right else "left", va="bottom",
        )  # fmt: skip
    axes.axhline(1, color="#888888", linewidth=1)
    axes.set(xlabel=across, ylabel=up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([1, 2, 5, 10, 20])
    axes.minorticks_off()
    axes.margins(y=0.15)
    ends = "; ".join(f"{name} ×{points[-1][1]:.1f} at {points[-1][0]}" for name, points in curves.items())
    figure.set_label(f"{up} over {across}, both axes logarithmic. {ends}.")
    return figure


def growth(rows: Sequence[Row]) -> Figure:
    """Gain of each added component over continued training without it, with its standard error over examples.

    Args:
        rows: one per step, with components, gain and gain_se in nats, and accepted.

    Example:
        >>> from mixvae import figures
        >>> rows = [{"components": 2, "gain": 0.5, "gain_se": 0.1, "accepted": True}]
        >>> figures.growth(rows).axes[0].texts[0].get_text()
        '+0.500'
    """
    figure, axes = blank(WIDTH, 3.2)
    for row in rows:
        colour = PALETTE[0] if row["accepted"] else PALETTE[1]
        axes.errorbar(row["components"], row["gain"], row["gain_se"], fmt="o", color=colour, capsize=4)
        note = f"{row['gain']:+.3f}" + ("" if row["accepted"] else "  stop")
        axes.annotate(
            note,
            (row["components"], row["gain"]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=ink(colour),
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xlabel("components S")
    axes.set_ylabel("gain over continuing with S − 1 (nats)\nbars: standard error over examples of one training")
    axes.set_xticks([row["components"] for row in rows])
    axes.set_xlim(rows[0]["components"] - 0.5, rows[-1]["components"] + 0.9)
    steps = "; ".join(
        f"S = {row['components']}: {_signed(row['gain'], row['gain_se'])}, {'kept' if row['accepted'] else 'not kept'}"
        for row in rows
    )
    figure.set_label(f"Gain of each added component in nats. {steps}.")
    return figure


def scores(values: Mapping[str, Mapping[str, Sequence[float]]], up: str) -> Figure:
    """Scores of repetitions as points: metrics along the axis, one colour and marker per method.

    Args:
        values: every repetition's value, by method and metric.
        up: label of the vertical axis, with its unit.

    Example:
        >>> from mixvae import figures
        >>> figure = figures.scores({"means": {"knn": [0.9, 0.95], "svm": [0.85, 0.9]}}, "accuracy")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['KNN', 'SVM']
    """
    metrics = list(next(iter(values.values())))
    figure, axes = blank(max(WIDTH, 1.6 + 0.75 * len(metrics)), 3.4)
    for i, (method, by_metric) in enumerate(values.items()):
        shift = 0.6 * ((i + 0.5) / len(values) - 0.5)
        for j, metric in enumerate(metrics):
            axes.plot(
                [j + shift] * len(by_metric[metric]), by_metric[metric], linestyle="", marker=MARKERS[i % len(MARKERS)],
                color=PALETTE[i % len(PALETTE)], markersize=5, alpha=0.75, label=method if j == 0 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(metrics)), [metric.upper() for metric in metrics])
    axes.set(ylabel=up, ylim=(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1])))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    figure.legend(frameon=False, loc="outside upper left", ncols=min(3, len(values)))
    means = "; ".join(
        f"{method}: " + ", ".join(f"{name.upper()} {np.mean(each):.2f}" for name, each in by_metric.items())
        for method, by_metric in values.items()
    )
    figure.set_label(f"{up} of every repetition. Means: {means}.")
    return figure


def likelihoods(bound: np.ndarray, pareto_k: np.ndarray, unreliable: float) -> Figure:
    """Negative log-likelihood of every example as a histogram, and Pareto k̂ against it if there is any.

    Args:
        bound: log p(x) of every example, or a bound on it, in nats.
        pareto_k: Pareto k̂ of every example, NaN if unknown.
        unreliable: k̂ above which a bound is not tight.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figure = figures.likelihoods(np.array([-50.0, -60.0]), np.array([0.3, 0.9]), 0.7)
        >>> figure.axes[1].get_title(loc="left")
        '50% above 0.7: valid, but not tight'
    """
    known = ~np.isnan(pareto_k)
    figure = Figure(figsize=(WIDTH, 4.6 if known.any() else 2.6), layout="constrained")
    axes = figure.subplots(2 if known.any() else 1, sharex=True, squeeze=False)[:, 0]
    for each in axes:
        bare(each)
    axes[0].hist(-bound, bins=min(40, 5 + len(bound) // 10), color=PALETTE[0])
    axes[0].axvline(-bound.mean(), color="#222222", linewidth=1)
    axes[0].annotate(
        f"mean {-bound.mean():.2f}", (-bound.mean(), 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
        textcoords="offset points", va="top",
    )  # fmt: skip
    axes[0].set_ylabel("examples")
    axes[-1].set_xlabel("NLL of an example (nats)")
    if known.any():
        high = pareto_k[known] > unreliable
        for chosen, colour in ((~high, PALETTE[0]), (high, PALETTE[1])):
            axes[1].plot(-bound[known][chosen], pareto_k[known][chosen], ".", color=colour, markersize=4, alpha=0.6)
        axes[1].axhline(unreliable, color="#888888", linewidth=1)
        axes[1].set_ylabel("Pareto k̂")
        loose = ": valid, but not tight" if high.any() else ""
        axes[1].set_title(f"{high.mean():.0%} above {unreliable:.2g}{loose}", fontsize="medium", loc="left")
    spread = f"from {-bound.max():.1f} to {-bound.min():.1f} nats"
    description = f"Histogram of the NLL of {counted(len(bound), 'example')}, {spread}, mean"
    beside = f"; Pareto k̂ against it, {axes[1].get_title(loc='left')}" if known.any() else ""
    figure.set_label(f"{description} {-bound.mean():.2f}{beside}.")
    return figure


def gains(
    rows: Sequence[tuple[str, float, float]],
    across: str,
    bars: str = "standard errors",
    *,
    decided: Sequence[bool] | None = None,
) -> Figure:
    r"""Gains as points with error bars, one row each.

    Args:
        rows: name, gain and half length of the bar of each; NaN for a gain without an error.
        across: label of the axis, with its unit.
        bars: what the bars are, such as "standard error over examples".
        decided: whether the sign of each gain is established: then such gains are blue, losses orange, others grey.

    Raises:
        ValueError: `decided` has another length than `rows`.

    Example:
        >>> from mixvae import figures
        >>> axes = figures.gains([("S = 4", 0.5, 0.1)], "gain (nats)", "standard error over examples").axes[0]
        >>> axes.texts[0].get_text(), axes.get_xlabel()
        ('+0.500 ± 0.100', 'gain (nats)\nbars: standard error over examples')
    """
    if decided is not None and len(decided) != len(rows):
        raise ValueError(f"decided must have one value for each of the {len(rows)} gains; got {len(decided)}")
    names = [wrapped(name, NAMED) for name, _, _ in rows]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure, axes = blank(WIDTH, 1.0 + max(0.42, 0.19 * lines) * len(rows))
    for i, (_, gain, error) in enumerate(rows):
        known = not math.isnan(error)
        sure = decided is not None and decided[i]
        colour = (PALETTE[0] if gain > 0 else PALETTE[1]) if sure else "#555555"
        axes.errorbar(gain, i, xerr=error if known else None, fmt="o", color=colour, capsize=3, markersize=5)
        axes.annotate(
            _signed(gain, error), (gain, i), xytext=(0, 6), textcoords="offset points", ha="center", color=ink(colour),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set_xlim(*_with_room([(gain, error) for _, gain, error in rows]))
    legend = "\nblue: gain, orange: loss, grey: undecided" if decided is not None else ""
    axes.set_xlabel(wrapped(f"{across}\nbars: {bars}{legend}", WIDTH - 0.9))
    values = "; ".join(f"{name} {_signed(gain, error)}" for name, gain, error in rows)
    figure.set_label(" ".join(f"{across}: {values}. Bars: {bars}.".split()))
    return figure


def _with_room(gains: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Limits between which all bars fit, and the label of every gain, centred above it."""
    low, high = _range(gains)
    margin = 0.05 * (high - low or 1.0)
    low, high = low - margin, high + margin
    room = HALF_LABEL * (high - low) / (1 - 2 * HALF_LABEL)
    points = [gain for gain, _ in gains] or [0.0]
    return min(low, min(points) - room), max(high, max(points) + room)


def _range(gains: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """From the lowest to the highest end of all bars, and zero."""
    ends = [0.0, *(gain + way * (0 if math.isnan(error) else error) for gain, error in gains for way in (-1, 1))]
    return min(ends), max(ends)


def splits(rows: Mapping[str, Sequence[tuple[float, float]]], bars: str, across: str = "gain over the first") -> Figure:
    r"""Gains in the ELBO, each with its two parts: the gain of the model and that of the posterior.

    Args:
        rows: Δ ELBO, Δ log p(x) and −Δ KL by name, each with the half length of its bar, NaN if it has none, in nats.
        bars: what the bars are, such as "standard error over examples".
        across: what the gains are over.

    Example:
        >>> from mixvae import figures
        >>> axes = figures.splits({"S = 4": [(1.02, 0.02), (0.59, 0.02), (0.43, 0.01)]}, "standard error").axes[0]
        >>> [text.get_text() for text in axes.texts]
        ['+1.020 ± 0.020', '+0.590 ± 0.020', '+0.430 ± 0.010']
    """
    kinds = (
        ("ΔELBO, their sum", "#AAAAAA"),
        ("Δ log p(x): a better model", PALETTE[0]),
        ("−ΔKL(q ‖ p(z|x)): a better posterior", PALETTE[4]),
    )
    figure, axes = blank(WIDTH, 1.7 + 0.65 * len(rows))
    low, high = _range(part for each in rows.values() for part in each)
    for i, each in enumerate(rows.values()):
        for j, ((gain, error), (kind, colour)) in enumerate(zip(each, kinds, strict=True)):
            known, at = not math.isnan(error), i + 0.26 * (j - 1)
            axes.barh(
                at, gain, 0.22, color=colour, alpha=0.85, xerr=error if known else None, capsize=3,
                error_kw={"elinewidth": 1}, label=kind if i == 0 else None,
            )  # fmt: skip
            beyond = max(gain + (error if known else 0), 0)
            axes.annotate(_signed(gain, error), (beyond, at), xytext=(5, 0), textcoords="offset points", va="center")
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(rows)), [wrapped(name, NAMED) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    span = high - low or 1.0
    axes.set_xlim(low - 0.05 * span, high + 0.45 * span)
    axes.set_xlabel(wrapped(f"{across} (nats)\nbars: {bars}", WIDTH - 0.9))
    figure.legend(frameon=False, loc="outside upper left")
    values = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{kind.split(',')[0].split(':')[0]} {_signed(*part)}" for part, (kind, _) in zip(each, kinds, strict=True)
        )
        for name, each in rows.items()
    )
    figure.set_label(" ".join(f"{across[0].upper()}{across[1:]} in nats. {values}. Bars: {bars}.".split()))
    return figure


def _signed(gain: float, error: float) -> str:
    """A gain with its sign, and its error if that is known."""
    return (f"{gain:+.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")).replace("-", "−")
