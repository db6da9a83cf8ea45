"""Examples in memory: one split, and a data set of three."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae._resources import check
from mixvae.datasets._given import Given
from mixvae.datasets._kinds import check_kind, check_labels, held_as
from mixvae.datasets._lazy import InOrder, Lazy
from mixvae.datasets._plan import Plan

READ = 500
"""Number of examples read at a time where there are no batches."""
Values = TypeVar("Values", Tensor, np.ndarray)


def with_channel(x: Values) -> Values:
    """Grey images (N, H, W) as (N, 1, H, W); anything else as it is."""
    return x[:, None] if x.ndim == 3 else x


@dataclass(frozen=True, repr=False)
class Split:
    """Some examples of a data set.

    Args:
        x: examples (N, *shape), bytes or real numbers; in memory, or read when a batch asks for them.
        y: class labels (N,), if there are any.
        levels: what a byte is divided by to give an intensity in [0, 1].
        resample: whether a batch is binarised afresh each time, with its intensities as probabilities.
        flip: whether each image of a batch is mirrored with probability ½.
        plan: the batches of every epoch, where they are decided elsewhere; random ones by default.

    Example:
        >>> import torch
        >>> from mixvae import Split
        >>> split = Split(torch.tensor([[0, 1], [2, 4], [3, 3]], dtype=torch.uint8), levels=4)
        >>> split.batch(torch.tensor([0, 1])).tolist()
        [[0.0, 0.25], [0.5, 1.0]]
        >>> len(split.head(1)), split.shape
        (1, (2,))
        >>> split
        Split(3 examples of shape (2,), bytes up to 4)
    """

    x: Tensor | Lazy
    y: Int[Tensor, " N"] | None = None
    levels: int = 1
    resample: bool = False
    flip: bool = False
    plan: Plan | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Split({len(self)} examples of {self.kind})"

    @property
    def kind(self) -> str:
        """What an example is, in words: shape, type of its numbers, and whether it has a label or is streamed."""
        words = [f"shape {self.shape}", "real numbers" if self.x.is_floating_point() else f"bytes up to {self.levels}"]
        words += ["with labels"] if self.y is not None else []
        words += ["streamed"] if isinstance(self.x, Lazy) else []
        words += ["binarised at every step"] if self.resample else []
        words += ["mirrored at random"] if self.flip else []
        words += [f"in batches of {self.plan.batch}"] if self.plan is not None else []
        return ", ".join(words)

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of one example."""
        return tuple(self.x.shape[1:])

    def ends(self) -> tuple[float, float] | None:
        """Smallest and largest value as seen by a model, before any binarising; None if they are unknown."""
        x = self.x.values if isinstance(self.x, Lazy) else self.x
        if x is None or not x.numel():
            return None
        low, high = x.aminmax()
        return float(low) / self.levels, float(high) / self.levels

    def to(self, device: torch.device | str) -> Split:
        """The same examples on a device."""
        return replace(self, x=self.x.to(device), y=None if self.y is None else self.y.to(device))

    def batch(
        self, index: Int[Tensor, " B"] | slice, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B ..."]:
        """Examples by index, ready for a model: float32, and binarised if the split calls for it.

        Args:
            index: which examples.
            generator: source of the noise of binarising and mirroring, on the examples' device.
        """
        return self._ready(self.x[index], generator)

    def batches(
        self, rows: Sequence[Int[Tensor, " B"]], generator: torch.Generator | None = None, *, key: int = 0
    ) -> Iterator[Float[Tensor, "B ..."]]:
        """Batches of examples, ready for a model; those that are not in memory are read ahead.

        Args:
            rows: the examples of each batch.
            generator: source of the noise of binarising and mirroring, drawn from as each batch is asked for.
            key: seeds whatever is random in reading examples, such as transforms.
        """
        raw = self.x.batches(rows, key) if isinstance(self.x, Lazy) else (self.x[each] for each in rows)
        return (self._ready(values, generator) for values in raw)

    def lasting(self) -> AbstractContextManager[None]:
        """Keep what reads examples that are not in memory from one epoch to the next, where possible."""
        return self.x.lasting() if isinstance(self.x, Lazy) else nullcontext()

    def epoch(self, batch: int, generator: torch.Generator, *, key: int = 0) -> list[Int[Tensor, " B"]]:
        """The examples of every batch of an epoch: in random order, unless they come in an order of their own.

        Args:
            batch: examples per batch, unless a plan decides it.
            generator: source of the order.
            key: seeds a plan.
        """
        order = torch.randperm(len(self), generator=generator)
        if self.plan is not None:
            return self.plan.batches(key)
        if isinstance(self.x, InOrder):
            order = torch.arange(len(self))
        return list((order if isinstance(self.x, Lazy) else order.to(self.x.device)).split(batch))

    def _ready(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        """Raw values in the form that a model takes."""
        x = values.float() / self.levels
        if self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if self.resample:
            noise = torch.rand(x.shape, generator=generator, device=x.device)
            x = (noise < x).float()
        return x

    def fixed(self, seed: int = 0) -> Float[Tensor, "N ..."]:
        """All examples, ready for a model: binarised by a fixed seed, if they are at every step, and never mirrored."""
        generator = torch.Generator(self.x.device).manual_seed(seed)
        return replace(self, flip=False).batch(slice(None), generator)

    def in_order(self, batch: int, seed: int = 0) -> Iterator[Float[Tensor, "B ..."]]:
        """The same as `fixed`, in batches."""
        generator = torch.Generator(self.x.device).manual_seed(seed)
        return replace(self, flip=False).batches(torch.arange(len(self)).split(batch), generator)

    def divided(self, sizes: tuple[int, int], seed: int) -> tuple[Split, Split, Split]:
        """The examples in random order as training, validation and test examples; `sizes` are those of the last two."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self)))
        validation, test = sizes
        cut = len(self) - validation - test
        return self.take(order[:cut]), self.take(order[cut : cut + validation]), self.take(order[cut + validation :])

    def head(self, n: int | None) -> Split:
        """The first n examples, all if n is None."""
        return self if n is None else self.take(slice(n))

    def take(self, index: Int[Tensor, " B"] | slice) -> Split:
        """Some examples by number, without the plan, which is for all of them."""
        x = self.x.take(index) if isinstance(self.x, Lazy) else self.x[index]
        return replace(self, x=x, y=None if self.y is None else self.y[index], plan=None)

    def raw(self) -> Iterator[Tensor]:
        """All examples in order, in batches, as stored: neither scaled nor binarised."""
        rows = torch.arange(len(self)).split(READ)
        return self.x.batches(rows, 0) if isinstance(self.x, Lazy) else iter(self.x.split(READ))

    def probes(self, most: int) -> Iterator[Float[Tensor, "B ..."]]:
        """Batches that contain every value that examples may have, to check a model's likelihood.

        All examples, if they are in memory; of others, the distinct values that were found when they were first read,
        each as one constant example.

        Args:
            most: maximum number of examples at a time.
        """
        generator = torch.Generator(self.x.device)  # a separate one: binarising and mirroring draw
        if isinstance(self.x, Lazy) and self.x.values is not None:
            ones = torch.ones(1, *self.shape, device=self.x.device)
            for values in self.x.values.to(self.x.device).split(READ):
                yield self._ready(values.view(-1, *[1] * len(self.shape)) * ones, generator)
            return
        for rows in torch.arange(len(self), device=self.x.device).split(most):
            yield self.batch(rows, generator)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Training, validation and test examples.

    Args:
        name: name of the data set.
        train: examples to fit.
        validation: examples that choose the epoch.
        test: examples to report.
        origin: arguments of `load_dataset` that load it again, paths absolute; None if it was not loaded that way.
        given: how its training examples were given; by default as they are.

    Example:
        >>> import torch
        >>> from mixvae import Dataset, Split
        >>> x = torch.rand(100, 3)
        >>> data = Dataset("mine", Split(x[:80]), Split(x[80:90]), Split(x[90:]))
        >>> data.shape, len(data.split("test")), data.labels_sha256()
        ((3,), 10, None)
        >>> data
        Dataset('mine': 80 training, 10 validation and 10 test examples of shape (3,), real numbers)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    origin: Mapping[str, Any] | None = field(default=None, kw_only=True)
    given: Given | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} training, {len(self.validation)} validation and {len(self.test)} test examples"
        return f"Dataset({self.name!r}: {sizes} of {self.train.kind})"

    def record(self) -> dict[str, Any]:
        """How its training examples were given, as recorded by a run."""
        return asdict(self.given or Given.of(self.train))

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
        """Checksum of all examples as trained on and evaluated, without labels. Computed once."""
        if "_sha256" not in self.__dict__:
            digest = hashlib.sha256()
            for split in (self.train, self.validation, self.test):
                digest.update(f"{tuple(split.x.shape)} {split.x.dtype} {split.levels}".encode())
                if isinstance(split.x, Lazy) and split.x.sha256 is not None:
                    digest.update(split.x.sha256.encode())
                    continue
                for values in split.raw():
                    digest.update(values.cpu().contiguous().numpy().data)
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
    check_kind(x, name)
    if y is not None:
        check_labels(y, len(x), name)
    whole = x.dtype.kind in "bui" and x.size > 0
    low, high = (int(x.min()), int(x.max())) if whole else (0, 0)
    kept = held_as(x, low, high, name)
    check(2 * x.size * kept.itemsize, f"{name} of shape {x.shape}", "give fewer or smaller examples")
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        values = x.astype(kept, copy=not isinstance(x, np.memmap))
    levels = 255 if kept == np.uint8 and high > 1 else 1
    labels = None if y is None else torch.from_numpy(np.unique(y, return_inverse=True)[1].astype(np.int64))
    tensor = torch.from_numpy(np.ascontiguousarray(with_channel(values)))
    return Split(tensor, labels, levels)
