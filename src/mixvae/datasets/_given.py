"""How training examples were given, which a run records so that new data are compared with them and treated alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mixvae.datasets._splits import Split

Binarize = Literal["stochastic", "fixed", "threshold", "none"]


@dataclass(frozen=True)
class Given:
    """How training examples were given and processed, with which new data for a trained model are compared.

    Args:
        dtype: type of the values as they are held, `uint8` or `float32`.
        levels: what bytes are divided by to give intensities in [0, 1]; 1 for real numbers.
        low: the smallest value as seen by a model, before any binarising; None if unknown.
        high: the largest.
        binarize: how the examples were binarised.
        seed: seed of the binarisation.
        labels: whether they have labels.

    Example:
        >>> import torch
        >>> from mixvae.datasets import as_dataset
        >>> given = as_dataset(torch.arange(40.0).view(20, 2) / 50, binarize="threshold").given
        >>> given.low, round(given.high, 2), given.binarize
        (0.0, 0.78, 'threshold')
    """

    dtype: str = "float32"
    levels: int = 1
    low: float | None = None
    high: float | None = None
    binarize: Binarize = "none"
    seed: int = 0
    labels: bool = False

    @classmethod
    def of(cls, split: Split, binarize: Binarize | None = None, seed: int = 0) -> Given:
        """How a split was given; unless `binarize` is given, it was binarised at every step or not at all."""
        low, high = split.ends() or (None, None)
        dtype = str(split.x.dtype).removeprefix("torch.")
        made = binarize or ("stochastic" if split.resample else "none")
        return cls(dtype, split.levels, low, high, made, seed, split.y is not None)

    @property
    def real(self) -> bool:
        """Whether they were real numbers, rather than intensities or truth values in bytes."""
        return "float" in self.dtype
