"""What all plots share: colours, blank axes, and rendering."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
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
    """Render a figure as PNG.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.png(figures.images(np.zeros((1, 1, 8, 8))), dpi=20)[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    _plain_text(figure)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _plain_text(figure: Figure) -> None:
    """Keep TeX off, which a matplotlibrc in the working folder may request, and draw names with $ literally."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_usetex(False)
        try:
            MathTextParser("agg").parse(text.get_text())
        except ValueError:
            text.set_parse_math(False)


def gif(pictures: Sequence[Figure], seconds: float = 0.15, dpi: int = 80) -> bytes:
    """Render figures as the frames of an animated GIF; the last one stays for a while.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.gif([figures.images(np.full((1, 1, 8, 8), grey)) for grey in (0, 1)], dpi=20)[:6]
        b'GIF89a'
    """
    frames = []
    for picture in pictures:
        buffer = io.BytesIO()
        _plain_text(picture)
        picture.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        frames.append(Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE))
    out = io.BytesIO()
    durations = [int(1000 * seconds)] * (len(frames) - 1) + [2500]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return out.getvalue()


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure with one plot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    return figure, axes


def bare(axes: Axes) -> None:
    """Remove what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def colours(n: int) -> list[str]:
    """Return n colours of the palette, cycling through it."""
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def scatter(axes: Axes, groups: Sequence[tuple[str, np.ndarray]], title: str) -> None:
    """Scatter groups of points, each in its own colour and marker, with a legend."""
    for i, ((label, points), colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(*points.T, s=9, color=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
    if len(groups) <= len(PALETTE):
        legend = axes.legend(
            title=title, fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
        for handle in legend.legend_handles:
            handle.set(alpha=1, sizes=[20])  # pyright: ignore[reportOptionalMemberAccess]


def spread_labels(axes: Axes, gap: float = 0.06) -> None:
    """Move labels at the ends of lines apart, so that none covers another."""
    low, high = axes.get_ylim()
    labels = sorted(axes.texts, key=lambda text: text.xy[1])  # pyright: ignore[reportAttributeAccessIssue]
    height = axes.figure.get_size_inches()[1] * 72  # pyright: ignore[reportAttributeAccessIssue]
    previous = -math.inf
    for text in labels:
        at = min(max((text.xy[1] - low) / (high - low), 0), 1)  # pyright: ignore[reportAttributeAccessIssue]
        placed = max(at, previous + gap)
        text.set_position((6, (placed - (text.xy[1] - low) / (high - low)) * height * 0.8))  # pyright: ignore
        previous = placed
