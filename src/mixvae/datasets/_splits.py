"""Examples in memory: one split, and a data set of three."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
