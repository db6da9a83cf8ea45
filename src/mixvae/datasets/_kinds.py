"""Kinds of numbers and labels that examples may have, and how they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np

EXACT = 2**24
"""Largest number up to which float32 holds every whole number."""
BLUR = 1e-3
"""Largest rounding, in standard deviations, that is taken for harmless."""
JUDGED = 30
"""Fewest examples whose spread says how far apart numbers are."""
SAME_IN_DOUBLE = 1e-12
"""Standard deviation, relative to the largest number, below which differences are the rounding of double precision."""


def check_kind(x: np.ndarray, name: str) -> None:
    """Refuse arrays that cannot be examples.

    Raises:
        ValueError: the shape or type is wrong.
    """
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(f"{name} must have shape (N, D), (N, H, W) or (N, C, H, W); got {x.shape}")
    if x.ndim == 4 and x.shape[1] > 4 and x.shape[-1] in (1, 3, 4):
        raise ValueError(f"{name} has its channels last, {x.shape}: transpose it to (N, C, H, W)")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers or booleans; got {x.dtype}")


def held_as(x: np.ndarray, low: int, high: int, name: str) -> np.dtype[Any]:
    """How numbers are stored: bytes of images as bytes, and all others as float32.

    Args:
        x: examples (N, …).
        low: the smallest number, if they are whole.
        high: the largest.
        name: what errors call the array.

    Raises:
        ValueError: an image holds whole numbers that are not bytes, or numbers lie closer than float32 tells apart.
    """
    if len(x) >= JUDGED and (x.dtype.itemsize > 4 if x.dtype.kind == "f" else max(-low, high) > EXACT):
        check_blur(x, name)
    if x.dtype.kind not in "bui" or not x.size:
        return np.dtype(np.float32)
    fit = low >= 0 and high <= 255
    if x.ndim > 2 and not fit:
        raise ValueError(f"{name} holds whole numbers from {low} to {high}; 8-bit images have 0 to 255")
    return np.dtype(np.uint8 if fit and (x.ndim > 2 or high <= 1) else np.float32)  # in tables they are not intensities


def check_blur(x: np.ndarray, name: str) -> None:
    """Refuse numbers that rounding to float32 would move by more than `BLUR` of their column's standard deviation.

    A column is that of a table; all pixels of images are one. It is read some rows at a time.

    Args:
        x: examples (N, …).
        name: what errors call the array.

    Raises:
        ValueError: there are such; the error names the first column.
    """
    columns = 1 if x.ndim > 2 else x.shape[1]
    error, largest, total, squares = np.zeros((4, columns))
    first = np.asarray(x[0], np.float64).reshape(-1, columns)[:1]
    rows = max(1, 2**20 // max(1, x[0].size))
    with np.errstate(all="ignore"):  # what is or becomes infinite is refused later
        for start in range(0, len(x), rows):
            values = np.asarray(x[start : start + rows], np.float64).reshape(-1, columns)
            error = np.fmax(error, np.abs(values - values.astype(np.float32)).max(0))
            largest = np.fmax(largest, np.abs(values).max(0))
            total, squares = total + (values - first).sum(0), squares + ((values - first) ** 2).sum(0)
        each = x.size // columns
        deviation = np.sqrt(squares / each - (total / each) ** 2)
        least = SAME_IN_DOUBLE * largest if x.dtype.kind == "f" else 0.0
        bad = np.isfinite(error) & (error > BLUR * deviation) & (deviation > least)
    if bad.any():
        at = int(bad.argmax())
        what = name if x.ndim > 2 else f"value {at + 1} of {name}"
        raise ValueError(
            f"{what} has a standard deviation of {deviation[at]:.3g} and reaches {largest[at]:.10g}, where float32 "
            f"rounds by {error[at]:.1g}: subtract the mean of that column first"
        )


def check_labels(y: np.ndarray, examples: int, name: str) -> None:
    """Refuse labels that do not give every example a class.

    Raises:
        ValueError: there are more or fewer, they are neither numbers nor text, or some are missing, NaN or infinite.
    """
    if y.shape != (examples,):
        raise ValueError(f"{name} has {examples} examples, its labels have shape {y.shape}: give one label each")
    check_present(y, name)
    if y.dtype.kind not in "buifUS":
        raise ValueError(f"the labels of {name} must be numbers or text; got {y.dtype}")


def check_present(y: np.ndarray, name: str) -> None:
    """Refuse labels (N,) if some are missing: None, NaN or infinite.

    Raises:
        ValueError: some are; the error names the first one.
    """
    if y.dtype.kind == "f":
        missing = ~np.isfinite(y)
    elif y.dtype.kind == "O":
        missing = np.array([label is None or label != label for label in y.tolist()], bool)
    else:
        return
    if missing.any():
        at = int(missing.argmax())
        raise ValueError(
            f"the labels of {name} hold {int(missing.sum())} values that are NaN, infinite or missing, the first "
            f"{y[at]} of example {at}: give every example a class, or none"
        )
