"""Images side by side."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixvae._tables import counted
from mixvae.figures._style import PHOTOGRAPH, WIDTH, blank

MOST_TICKS = 8
"""Maximum number of steps of a path that are all labelled."""


def images(pictures: np.ndarray, columns: int | None = None, title: str | None = None) -> Figure:
    """Show pictures on a grid.

    Args:
        pictures: (N, C, H, W), intensities in [0, 1].
        columns: pictures per row; a square by default.
        title: what they are.

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.images(np.zeros((6, 1, 8, 8)), title="digits").axes[0].get_title(loc="left")
        'digits'
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    canvas = tile(pictures, columns)
    rows = math.ceil(len(pictures) / columns)
    width = min(WIDTH, 0.75 * columns)
    figure, axes = blank(width, width * rows / columns)
    _picture(axes, canvas)
    if title:
        axes.set_title(title, fontsize="medium", loc="left")
    figure.set_label(f"{counted(len(pictures), 'picture')}{f' of {title}' if title else ''}, {columns} in a row.")
    return figure


def tile(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures (N, C, H, W) side by side, one pixel apart: (height, width, C).

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> figures.tile(np.zeros((6, 1, 8, 8)), columns=3).shape
        (17, 26, 1)
    """
    n, channels, height, width = pictures.shape
    rows = math.ceil(n / columns)
    canvas = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    return canvas.clip(0, 1)


def reconstructions(originals: np.ndarray, by_component: np.ndarray) -> Figure:
    """Show originals in the first row, and their reconstructions by every component below.

    Args:
        originals: (B, C, H, W).
        by_component: (S, B, C, H, W).

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> axes = figures.reconstructions(np.zeros((5, 1, 8, 8)), np.zeros((2, 5, 1, 8, 8))).axes[0]
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['data', 'component 0', 'component 1']
    """
    rows = [originals, *by_component]
    labels = ["data", *(f"component {s}" for s in range(len(by_component)))]
    figure, axes = blank(WIDTH, WIDTH / len(originals) * len(rows))
    _picture(axes, tile(np.concatenate(rows), len(originals)))
    height = originals.shape[2] + 1
    axes.set_yticks([height * (i + 0.5) - 1 for i in range(len(rows))], labels)
    axes.tick_params(length=0)
    figure.set_label(
        f"{counted(len(originals), 'original')} in a row, and below each its reconstruction by component "
        f"{', '.join(map(str, range(len(by_component))))}."
    )
    return figure


def interpolations(a: np.ndarray, b: np.ndarray, paths: np.ndarray) -> Figure:
    """Show a path between two pictures for every component: the two at the ends of each row, and the path in between.

    Args:
        a: the picture on the left, (C, H, W).
        b: the picture on the right.
        paths: (S, T, C, H, W).

    Example:
        >>> import numpy as np
        >>> from mixvae import figures
        >>> black = np.zeros((1, 8, 8))
        >>> axes = figures.interpolations(black, black, np.zeros((2, 5, 1, 8, 8))).axes[0]
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['data', '0', '0.25', '0.5', '0.75', '1', 'data']
    """
    rows, steps = paths.shape[:2]
    ends = (np.broadcast_to(end, (rows, 1, *end.shape)) for end in (a, b))
    left, right = ends
    canvas = tile(np.concatenate([left, paths, right], 1).reshape(-1, *a.shape), steps + 2)
    height, width = a.shape[1] + 1, a.shape[2] + 1
    figure, axes = blank(WIDTH, WIDTH * canvas.shape[0] / canvas.shape[1])
    _picture(axes, canvas)
    axes.set_yticks([height * (s + 0.5) - 1 for s in range(rows)], [f"component {s}" for s in range(rows)])
    named = ["data", *(f"{t:.2g}" for t in np.linspace(0, 1, steps)), "data"]
    shown = [i for i in range(steps + 2) if i in (0, steps + 1) or steps <= MOST_TICKS or i in (1, steps)]
    axes.set_xticks([width * (i + 0.5) - 1 for i in shown], [named[i] for i in shown])
    for place in (width - 1, canvas.shape[1] - width):
        axes.axvline(place, color="#222222", linewidth=1)
    axes.tick_params(length=0)
    figure.set_label(
        f"Two originals at the ends of each row, and between them {counted(steps, 'step')} from the reconstruction of "
        f"the one to that of the other, by component {', '.join(map(str, range(rows)))}."
    )
    return figure


def _picture(axes: Axes, canvas: np.ndarray) -> None:
    """Show one picture, grey or coloured, without axes."""
    cast(Figure, axes.figure).set_gid(PHOTOGRAPH)
    if canvas.shape[-1] == 1:
        axes.imshow(canvas[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
