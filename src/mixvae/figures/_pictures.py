"""Images side by side."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixvae.figures._style import blank


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
    figure, axes = blank(min(6.4, 0.75 * columns), min(6.4, 0.75 * columns) * rows / columns)
    _picture(axes, canvas)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
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
    figure, axes = blank(6.4, 6.4 / len(originals) * len(rows))
    _picture(axes, tile(np.concatenate(rows), len(originals)))
    height = originals.shape[2] + 1
    axes.set_yticks([height * (i + 0.5) - 1 for i in range(len(rows))], labels, fontsize=8)
    axes.tick_params(length=0)
    return figure


def _picture(axes: Axes, canvas: np.ndarray) -> None:
    """Show one picture, grey or coloured, without axes."""
    if canvas.shape[-1] == 1:
        axes.imshow(canvas[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
