"""Examples in memory: one split, and a data set of three."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae._resources import check


@dataclass(frozen=True)
class Split:
    """Some examples of a data set.

    Args:
        x: examples (N, *shape), bytes or real numbers.
        y: class labels (N,), if there are any.
        levels: what a byte is divided by to give an intensity in [0, 1].
        resample: whether a batch is binarised anew each time, with its intensities as probabilities.
        flip: whether each image of a batch is mirrored with probability ½.

    Example:
        >>> import torch
        >>> from mixvae import Split
        >>> split = Split(torch.tensor([[0, 1], [2, 4], [3, 3]], dtype=torch.uint8), levels=4)
        >>> split.batch(torch.tensor([0, 1])).tolist()
        [[0.0, 0.25], [0.5, 1.0]]
        >>> len(split.head(1)), split.shape
        (1, (2,))
    """

    x: Tensor
    y: Int[Tensor, " N"] | None = None
    levels: int = 1
    resample: bool = False
    flip: bool = False

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of one example."""
        return tuple(self.x.shape[1:])

    def to(self, device: torch.device | str) -> Split:
        """The same examples on a device."""
        return replace(self, x=self.x.to(device), y=None if self.y is None else self.y.to(device))

    def batch(
        self, index: Int[Tensor, " B"] | slice, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B ..."]:
        """Examples by index, ready for a model: float32, and binarised if the split is to be.

        Args:
            index: which examples.
            generator: source of the noise of binarising and mirroring, on the examples' device.
        """
        x = self.x[index].float() / self.levels
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if self.resample:
            noise = torch.rand(x.shape, generator=generator, device=x.device)
            x = (noise < x).float()
        return x

    def divided(self, sizes: tuple[int, int], seed: int) -> tuple[Split, Split, Split]:
        """The examples in random order as training, validation and test ones; `sizes` are those of the last two."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        validation, test = sizes
        cut = len(self) - validation - test
        return self.take(order[:cut]), self.take(order[cut : cut + validation]), self.take(order[cut + validation :])

    def head(self, n: int | None) -> Split:
        """The first n examples, all if n is None."""
        return self.take(slice(n))

    def take(self, index: Int[Tensor, " B"] | slice) -> Split:
        """Some examples by number."""
        return replace(self, x=self.x[index], y=None if self.y is None else self.y[index])


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test examples.

    Args:
        name: name of the data set.
        train: examples to fit.
        validation: examples that choose the epoch.
        test: examples to report.
        origin: arguments of `load_dataset` that give it again, paths absolute; None if it was not loaded by that.

    Example:
        >>> import torch
        >>> from mixvae import Dataset, Split
        >>> x = torch.rand(100, 3)
        >>> data = Dataset("mine", Split(x[:80]), Split(x[80:90]), Split(x[90:]))
        >>> data.shape, len(data.split("test")), data.labels_sha256()
        ((3,), 10, None)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    origin: Mapping[str, Any] | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of one example, (C, H, W) for images."""
        return self.train.shape

    def split(self, name: str) -> Split:
        """One of the splits by name.

        Raises:
            ValueError: there is no such split.
        """
        if name not in ("train", "validation", "test"):
            raise ValueError(f"unknown split {name!r}: choose train, validation or test")
        return getattr(self, name)

    def sha256(self) -> str:
        """Checksum of all examples as they are trained on and evaluated, labels aside. Computed once."""
        if "_sha256" not in self.__dict__:
            digest = hashlib.sha256()
            for split in (self.train, self.validation, self.test):
                digest.update(f"{tuple(split.x.shape)} {split.x.dtype} {split.levels}".encode())
                digest.update(split.x.cpu().contiguous().numpy().tobytes())
            self.__dict__["_sha256"] = digest.hexdigest()
        return self.__dict__["_sha256"]

    def labels_sha256(self) -> str | None:
        """Checksum of all labels, if there are any."""
        labels = [split.y for split in (self.train, self.validation, self.test)]
        if any(y is None for y in labels):
            return None
        return hashlib.sha256(b" ".join(y.cpu().numpy().tobytes() for y in labels if y is not None)).hexdigest()


def as_split(x: np.ndarray, y: np.ndarray | None = None, *, name: str = "x") -> Split:
    """Turn an array into a split: bytes stay bytes, grey images gain a channel axis.

    Args:
        x: examples (N, H, W), (N, C, H, W) or (N, D).
        y: class labels (N,).
        name: what errors call the array.

    Raises:
        ValueError: the shape, type or number of labels is wrong.

    Example:
        >>> import numpy as np
        >>> from mixvae.datasets import as_split
        >>> split = as_split(np.full((5, 8, 8), 255, np.uint8), np.array(list("abcab")))
        >>> split.x.shape, split.levels, split.y.tolist()
        (torch.Size([5, 1, 8, 8]), 255, [0, 1, 2, 0, 1])
    """
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(f"{name} must have shape (N, D), (N, H, W) or (N, C, H, W); got {x.shape}")
    if x.ndim == 4 and x.shape[1] > 4 and x.shape[-1] in (1, 3, 4):
        raise ValueError(f"{name} has its channels last, {x.shape}: transpose it to (N, C, H, W)")
    if y is not None and y.shape != (len(x),):
        raise ValueError(f"{name} has {len(x)} examples, its labels have shape {y.shape}: give one label each")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers or booleans; got {x.dtype}")
    if y is not None:
        _check_labels(y, name)
    bytes_fit = x.dtype.kind in "bui" and x.size > 0 and x.min() >= 0 and x.max() <= 255
    if x.dtype.kind in "bui" and x.ndim > 2 and x.size and not bytes_fit:
        raise ValueError(f"{name} holds whole numbers from {x.min()} to {x.max()}; 8-bit images have 0 to 255")
    as_bytes = bytes_fit and (x.ndim > 2 or x.max() <= 1)  # a table's whole numbers are no intensities
    kept = np.dtype(np.uint8 if as_bytes else np.float32)
    check(2 * x.size * kept.itemsize, f"{name} of shape {x.shape}", "give fewer or smaller examples")
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        values = x.astype(kept)
    levels = 255 if as_bytes and x.max() > 1 else 1
    labels = None if y is None else torch.from_numpy(np.unique(y, return_inverse=True)[1].astype(np.int64))
    tensor = torch.from_numpy(np.ascontiguousarray(values[:, None] if x.ndim == 3 else values))
    return Split(tensor, labels, levels)


def _check_labels(y: np.ndarray, name: str) -> None:
    """Refuse labels that do not name a class.

    Raises:
        ValueError: they are neither numbers nor text, or some are NaN or infinite.
    """
    if y.dtype.kind not in "buifUS":
        raise ValueError(f"the labels of {name} must be numbers or text; got {y.dtype}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int((~np.isfinite(y)).sum())
        raise ValueError(f"the labels of {name} hold {bad} values that are NaN or infinite: give every example a class")
