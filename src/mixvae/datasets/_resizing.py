"""Images of another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from mixvae._arrays import FEWER
from mixvae._resources import check
from mixvae.datasets._splits import Split

Size = int | Sequence[int]
"""Height and width, or one number for both."""


def height_and_width(size: Size) -> tuple[int, int]:
    """The requested height and width.

    Raises:
        ValueError: they are not one or two whole numbers, at least 1.
    """
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"resize must be one number of pixels, or [height, width], each at least 1; got {size}")
    return sides[0], sides[1]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale one image by Pillow's antialiased bilinear filter.

    Along each axis, first the width and then the height, with s = old/new sides and pixel i of the new image,

        y_i = Σ_j w_ij x_j / Σ_j w_ij,  w_ij = max(0, 1 − |(j + ½) − (i + ½) s| / max(1, s)),

    a weighted mean, so that no value leaves the range of the old ones. Bytes are rounded to bytes along each axis.

    Args:
        image: (H, W, C), bytes or real numbers.
        size: new height and width.

    Example:
        >>> import numpy as np
        >>> from mixvae.datasets._resizing import resized
        >>> resized(np.array([[0, 100], [100, 200]], np.uint8)[..., None], (1, 1)).item()
        100
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    planes = np.moveaxis(image if image.dtype == np.uint8 else image.astype(np.float32), -1, 0)
    scaled = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
        for plane in planes
    ]
    return np.stack(scaled, -1)


def resized_split(split: Split, size: tuple[int, int], name: str) -> Split:
    """Scale all images of a split. 8 bits stay 8 bits; coarser levels, such as binary images', become real numbers.

    Raises:
        ValueError: the examples are not images, or too many for memory.
    """
    if len(split.shape) != 3:
        raise ValueError(f"only images can be resized; {name} has examples of shape {split.shape}: leave resize out")
    if split.shape[1:] == size:
        return split
    assert isinstance(split.x, torch.Tensor)
    fine = split.levels == 255
    check(len(split) * split.shape[0] * size[0] * size[1] * (1 if fine else 4), f"{name}, resized to {size},", FEWER)
    new = torch.empty(len(split), split.shape[0], *size, dtype=torch.uint8 if fine else torch.float32)
    for i, image in enumerate(split.x):
        values = image if fine else image.float() / split.levels
        new[i] = torch.from_numpy(resized(values.numpy().transpose(1, 2, 0), size)).permute(2, 0, 1)
    return replace(split, x=new, levels=split.levels if fine else 1)
