"""What all plots share: colours, blank axes, and rendering."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Annotation, Text
from PIL import Image

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#150055",
    "#95EA80",
    "#95002A",
    "#9595FF",
    "#554000",
)
"""Ten colours that colour-blind readers can tell apart, inverted too: five of Okabe and Ito (2008), then those farthest
from them and from each other."""
MARKERS = "osD^vPX*<>"
OPACITY = 0.75
"""Opacity of points, which lets those below show through."""
SMALLEST, LARGEST, DENSE = 9.0, 36.0, 9000.0
"""Areas of a marker in square points, and the total area of a plot's markers, which sets their size in between."""
WIDTH = 4.8
"""Width in inches: 10-point text is then as large as the text of a page that shows the figure at 108 dpi."""
SEQUENTIAL = "Blues"
"""Colours of heat maps, from white at zero: one hue, of decreasing lightness."""
PLOT, PHOTOGRAPH = "plot", "photograph"
"""Kinds of figures: lines and areas on white, whose colours may be inverted, and data, whose colours may not."""
RGB = tuple[float, float, float]
AA = 4.5
"""Contrast of text that the Web Content Accessibility Guidelines 2.1 require at level AA."""


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Render a figure as PNG: its Description is the figure's label, which says what is seen; its Comment is the kind.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.png(figures.images(np.zeros((1, 1, 8, 8))), dpi=20)[1:4]
        b'PNG'
    """
    buffer = io.BytesIO()
    _plain_text(figure)
    description = {"Description": figure.get_label(), "Comment": figure.get_gid() or PLOT}
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata=description)
    return buffer.getvalue()


def _plain_text(figure: Figure) -> None:
    """Keep TeX off, which a matplotlibrc in the working folder may request, and draw names with $ literally."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_usetex(False)
        try:
            if "$" in text.get_text():
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


def colours(n: int) -> list[str]:
    """Return n colours of the palette, cycling through it."""
    return [PALETTE[i % len(PALETTE)] for i in range(n)]


def contrast(one: str | RGB, other: str | RGB = "white") -> float:
    """Contrast of two colours by their relative luminances, (L₁ + 0.05) / (L₂ + 0.05), from 1 to 21.

    References:
        Web Content Accessibility Guidelines 2.1 (2018), https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio
    """
    linear = [np.where((c := np.array(to_rgb(each))) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
              for each in (one, other)]  # fmt: skip
    dark, light = sorted(float(each @ (0.2126, 0.7152, 0.0722)) for each in linear)
    return (light + 0.05) / (dark + 0.05)


def ink(colour: str) -> RGB:
    """The colour, darkened until text of it can be read on white."""
    shade = to_rgb(colour)
    while contrast(shade) < AA:
        red, green, blue = shade
        shade = (0.95 * red, 0.95 * green, 0.95 * blue)
    return shade


def wrapped(text: str, width: float) -> str:
    """Text wrapped into lines that fit into `width` inches at 10 points, never at an equals sign."""
    kept = text.replace(" = ", "\u00a0=\u00a0")
    lines = (textwrap.wrap(line, max(10, int(12.5 * width))) for line in kept.splitlines())
    return "\n".join(part for line in lines for part in line)


def heat(axes: Axes, values: np.ndarray, norm: Normalize, texts: Mapping[tuple[int, int], str]) -> AxesImage:
    """Show a matrix (rows, columns) as colours, with texts in cells (row, column), black or white."""
    shown = axes.imshow(values, cmap=SEQUENTIAL, norm=norm, aspect="auto", interpolation="nearest")
    for (i, j), text in texts.items():
        cell = shown.cmap(norm(values[i, j]))[:3]
        black = contrast("black", cell) > contrast("white", cell)
        axes.text(j, i, text, ha="center", va="center", color="black" if black else "white")
    return shown


def scatter(axes: Axes, groups: Sequence[tuple[str, np.ndarray]], title: str) -> None:
    """Scatter groups of points, each in its own colour and marker (larger if there are fewer points), with a legend."""
    size = min(max(DENSE / max(sum(len(points) for _, points in groups), 1), SMALLEST), LARGEST)
    for i, ((label, points), colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
        marker = MARKERS[i % len(MARKERS)]
        axes.scatter(*points.T, s=size, color=colour, marker=marker, alpha=OPACITY, linewidths=0, label=label)
    if len(groups) <= len(PALETTE):
        legend = axes.legend(
            title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.1, borderaxespad=0
        )
        for handle in legend.legend_handles:
            handle.set(sizes=[LARGEST])  # pyright: ignore[reportOptionalMemberAccess]


def spread_labels(axes: Axes, labels: Sequence[Annotation], gap: float = 0.07) -> None:
    """Move labels at the ends of lines apart, so that none covers another."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_size_inches()[1] * 72  # pyright: ignore[reportAttributeAccessIssue]
    previous = -math.inf
    for text in sorted(labels, key=lambda text: text.xy[1]):
        at = (text.xy[1] - low) / (high - low)
        placed = max(min(max(at, 0), 1), previous + gap)
        text.set_position((6, (placed - at) * height))
        previous = placed
