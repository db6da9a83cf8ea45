"""Every plot, from plain arrays: functions that return a matplotlib figure and draw nothing on a screen."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from PIL import Image

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A5195",
    "#5C5C5C",
    "#B2A000",
    "#000000",
)
"""Colours that colour-blind readers can tell apart (after Okabe and Ito, 2008), then darker companions."""
MARKERS = "osD^vPX*<>"


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def learning_curves(metrics: dict[str, list[dict[str, Any]]]) -> Figure:
    """Validation NLL bound against epochs, one line per run, its best epoch marked.

    The axis starts where most of the training happens: the first epochs, far above, are cut off.

    Args:
        metrics: rows of `metrics.jsonl`, by the run's label.
    """
    figure, axes = _figure(6.4, 3.6)
    heights = []
    for (label, rows), colour in zip(metrics.items(), _colours(len(metrics)), strict=True):
        if not rows:
            continue
        epochs, values = [row["epoch"] for row in rows], np.array([-row["validation"] for row in rows])
        axes.plot(epochs, values, color=colour, linewidth=1.6)
        best = int(values.argmin())
        axes.plot(epochs[best], values[best], "o", color=colour, markersize=5)
        axes.annotate(
            label,
            (epochs[-1], values[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
        )
        heights.append(values)
    if heights:
        low = min(values.min() for values in heights)
        high = max(np.quantile(values, 0.9) for values in heights)
        axes.set_ylim(low - 0.08 * (high - low + 1e-6), high + 0.05 * (high - low + 1e-6))
        _spread_labels(axes)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("validation −MISELBO (nats)")
    axes.margins(x=0.02)
    return figure


def overlap(kl: np.ndarray, share: np.ndarray, redundant: Collection[int] = ()) -> Figure:
    """Pairwise KL of components as a matrix, and the share of the posterior that each covers beside it.

    Args:
        kl: KL(q_i ‖ q_j) in nats, (S, S).
        share: share of each component, (S,).
        redundant: components to mark.
    """
    s = len(share)
    side = min(7.0, 2.4 + 0.35 * s)
    figure = Figure(figsize=(side + 3.2, side), layout="constrained")
    matrix, bars = figure.subplots(1, 2, width_ratios=(side, 2.4), sharey=True)
    apart = np.ma.masked_array(np.log10(kl.clip(1e-3)), np.eye(s, dtype=bool))  # no component is apart from itself
    shown = matrix.imshow(apart, cmap="cividis", aspect="auto")
    matrix.set(xlabel="component j", ylabel="component i")
    matrix.set_title("KL(i ‖ j) in nats", fontsize=10, loc="left")
    if s <= 12:
        light = apart > (apart.min() + apart.max()) / 2
        for i, j in np.ndindex(s, s):
            if i != j:
                ink = "black" if light[i, j] else "white"
                matrix.text(j, i, f"{kl[i, j]:.3g}", ha="center", va="center", fontsize=8, color=ink)
        matrix.set_xticks(range(s))
        matrix.set_yticks(range(s))
    else:
        bar = figure.colorbar(shown, ax=matrix, location="top", shrink=0.5)
        ticks = [t for t in bar.get_ticks() if t == round(t)]
        bar.set_ticks(ticks, labels=[f"{10.0**t:g}" for t in ticks])
        bar.set_label("KL (nats)")
    colours = [PALETTE[1] if j in redundant else PALETTE[0] for j in range(s)]
    bars.barh(range(s), 100 * share, color=colours, height=0.8)
    bars.axvline(100 / s, color="#888888", linewidth=1, linestyle="--")
    bars.set_xlabel("share of the posterior (%)\ndashed: equal shares")
    if redundant:
        bars.set_title("orange: redundant", fontsize=10, loc="left", color=PALETTE[1])
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def scaling(curves: dict[str, list[tuple[int, float]]], across: str, up: str) -> Figure:
    """Curves over a size that doubles, on logarithmic axes, each labelled at its end.

    Args:
        curves: points (size, value) by name.
        across: label of the horizontal axis.
        up: label of the vertical one.
    """
    figure, axes = _figure(6.4, 3.6)
    for (name, points), colour, marker in zip(curves.items(), _colours(len(curves)), MARKERS, strict=False):
        sizes, values = zip(*points, strict=True)
        axes.loglog(sizes, values, color=colour, marker=marker, markersize=4, linewidth=1.6)
        right = sizes[-1] ** 2 > max(
            points[-1][0] for points in curves.values()
        )  # in the right half: label to the left
        axes.annotate(
            f"{name}: ×{values[-1]:.1f} at {sizes[-1]}", (sizes[-1], values[-1]), xytext=(0, 6),
            textcoords="offset points", color=colour, ha="right" if right else "left", va="bottom",
        )  # fmt: skip
    axes.axhline(1, color="#888888", linewidth=1)
    axes.set(xlabel=across, ylabel=up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([1, 2, 5, 10, 20])
    axes.minorticks_off()
    axes.margins(y=0.15)
    return figure


def plane(
    density: np.ndarray,
    span: float,
    titles: Sequence[str],
    gaussians: Sequence[tuple[np.ndarray, np.ndarray] | None],
    draws: Sequence[np.ndarray],
    heading: str,
) -> Figure:
    """A density on the plane, and over it the ellipses of Gaussians at two standard deviations, or draws.

    Args:
        density: values on a square grid, rows along the second coordinate.
        span: the square reaches from −span to span.
        titles: what each panel shows.
        gaussians: mean and standard deviation (S, 2) for each panel, or None to show its draws.
        draws: points (N, 2) for each panel.
        heading: title of all.
    """
    columns = min(3, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(2.7 * columns, 2.85 * rows + 0.3), layout="constrained")
    figure.suptitle(heading, fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    shown = zip(titles, gaussians, draws, strict=True)
    for axes, (title, parameters, points) in zip(panels, shown, strict=False):
        axes.imshow(density**0.5, extent=(-span, span, -span, span), origin="lower", cmap="Greys", aspect="equal")
        if parameters is None:
            axes.plot(*points.T, ".", color=PALETTE[1], markersize=2.5, alpha=0.6)
        else:
            for j, (mean, std) in enumerate(zip(*parameters, strict=True)):
                colour = PALETTE[j % len(PALETTE)]
                axes.add_patch(Ellipse(mean, *(4 * std), fill=False, edgecolor=colour, linewidth=1.3))
                axes.plot(*mean, ".", color=colour, markersize=3)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set(xlim=(-span, span), ylim=(-span, span))
    for axes in figure.axes[len(titles) :]:
        axes.axis("off")
    figure.supxlabel("z₁", fontsize=9)
    figure.supylabel("z₂", fontsize=9)
    return figure


def gif(pictures: Sequence[Figure], seconds: float = 0.15, dpi: int = 80) -> bytes:
    """Render figures as the frames of an animated GIF; the last one stays for a while."""
    frames = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        frames.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE))
    out = io.BytesIO()
    durations = [int(1000 * seconds)] * (len(frames) - 1) + [2500]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return out.getvalue()


def growth(rows: Sequence[dict[str, Any]]) -> Figure:
    """Gain of each added component over training on without it, with its standard error.

    Args:
        rows: one per step, with components, gain and gain_se in nats, and accepted.
    """
    figure, axes = _figure(6.4, 3.2)
    for row in rows:
        colour = PALETTE[0] if row["accepted"] else PALETTE[1]
        axes.errorbar(row["components"], row["gain"], row["gain_se"], fmt="o", color=colour, capsize=4)
        note = f"{row['gain']:+.3f}" + ("" if row["accepted"] else "  stop")
        axes.annotate(
            note, (row["components"], row["gain"]), xytext=(8, 0), textcoords="offset points", va="center", color=colour
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xlabel("components S")
    axes.set_ylabel("gain over S − 1 trained on (nats)")
    axes.set_xticks([row["components"] for row in rows])
    axes.set_xlim(rows[0]["components"] - 0.5, rows[-1]["components"] + 0.9)
    return figure


def images(pictures: np.ndarray, columns: int | None = None, title: str | None = None) -> Figure:
    """Show pictures on a grid.

    Args:
        pictures: (N, C, H, W), intensities in [0, 1].
        columns: pictures per row; a square by default.
        title: what they are.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    canvas = tile(pictures, columns)
    rows = math.ceil(len(pictures) / columns)
    figure, axes = _figure(min(6.4, 0.75 * columns), min(6.4, 0.75 * columns) * rows / columns)
    _picture(axes, canvas)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    return figure


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures (N, C, H, W) side by side, one pixel apart: (height, width, C)."""
    n, channels, height, width = pictures.shape
    rows = math.ceil(n / columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    return canvas.clip(0, 1)


def reconstructions(originals: np.ndarray, by_component: np.ndarray) -> Figure:
    """Show originals in the first row, and below it their reconstruction by every component.

    Args:
        originals: (B, C, H, W).
        by_component: (S, B, C, H, W).
    """
    rows = [originals, *by_component]
    labels = ["data", *(f"component {s + 1}" for s in range(len(by_component)))]
    figure, axes = _figure(6.4, 6.4 / len(originals) * len(rows))
    _picture(axes, tile(np.concatenate(rows), len(originals)))
    height = originals.shape[2] + 1
    axes.set_yticks([height * (i + 0.5) - 1 for i in range(len(rows))], labels, fontsize=8)
    axes.tick_params(length=0)
    return figure


def latent_means(means: np.ndarray, labels: np.ndarray | None) -> Figure:
    """Posterior means of all components in the plane of their two largest principal components.

    Args:
        means: mean of every component, (N, S, D).
        labels: class of every example (N,), if there are any.
    """
    examples, components, _ = means.shape
    plane, share = principal_plane(means.reshape(examples * components, -1))
    plane = plane.reshape(examples, components, -1)
    names = ["every component's mean"] + (["the mixture's mean"] if labels is not None else [])
    figure = Figure(figsize=(4.3 * len(names), 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharex=True, sharey=True))
    _scatter(panels[0], [(str(s + 1), plane[:, s]) for s in range(components)], "component")
    if labels is not None:
        overall = plane.mean(1)
        _scatter(panels[1], [(str(c), overall[labels == c]) for c in np.unique(labels)], "label")
    for panel, name in zip(panels, names, strict=True):
        panel.set_title(name, fontsize=10, loc="left")
        panel.set_xlabel(f"first principal component ({share[0]:.0%})")
        _bare(panel)
    panels[0].set_ylabel(f"second principal component ({share[1]:.0%})")
    return figure


def embedding(points: np.ndarray, labels: Mapping[str, np.ndarray], axis: str) -> Figure:
    """Points in the plane, one panel for each way to label them.

    Args:
        points: (N, 2).
        labels: labels of the points (N,) by what they tell.
        axis: name of the axes, such as UMAP.
    """
    figure = Figure(figsize=(5.2 * len(labels), 3.8), layout="constrained")
    for panel, (title, values) in zip(np.atleast_1d(figure.subplots(1, len(labels))), labels.items(), strict=True):
        _scatter(panel, [(str(value), points[values == value]) for value in np.unique(values)], "")
        panel.set_title(title, fontsize=10, loc="left")
        panel.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[])
        _bare(panel)
    return figure


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of points in the plane that holds most of their variance, and the share along each axis."""
    centred = points - points.mean(0)
    if centred.shape[1] == 1:
        centred = np.concatenate([centred, np.zeros_like(centred)], 1)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    share = scale**2 / max((scale**2).sum(), 1e-12)
    return centred @ axes[:2].T, share[:2]


def _scatter(axes: Axes, groups: Sequence[tuple[str, np.ndarray]], title: str) -> None:
    """Scatter groups of points in colours and markers of their own, with a legend."""
    for i, ((label, points), colour) in enumerate(zip(groups, _colours(len(groups)), strict=True)):
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(*points.T, s=9, color=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
    if len(groups) <= len(PALETTE):
        legend = axes.legend(
            title=title, fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
        for handle in legend.legend_handles:
            handle.set(alpha=1, sizes=[20])  # pyright: ignore[reportOptionalMemberAccess]


def _colours(n: int) -> list[str]:
    """Return n colours of the palette, in turn."""
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure with one plot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _bare(axes)
    return figure, axes


def _bare(axes: Axes) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _picture(axes: Axes, canvas: np.ndarray) -> None:
    """Show one picture, grey or coloured, without axes."""
    if canvas.shape[-1] == 1:
        axes.imshow(canvas[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _spread_labels(axes: Axes, gap: float = 0.06) -> None:
    """Move labels at the lines' ends apart, so that none covers another."""
    low, high = axes.get_ylim()
    labels = sorted(axes.texts, key=lambda text: text.xy[1])  # pyright: ignore[reportAttributeAccessIssue]
    height = axes.figure.get_size_inches()[1] * 72  # pyright: ignore[reportAttributeAccessIssue]
    previous = -math.inf
    for text in labels:
        at = min(max((text.xy[1] - low) / (high - low), 0), 1)  # pyright: ignore[reportAttributeAccessIssue]
        placed = max(at, previous + gap)
        text.set_position((6, (placed - (text.xy[1] - low) / (high - low)) * height * 0.8))  # pyright: ignore
        previous = placed
