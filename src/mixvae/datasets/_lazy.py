"""Examples that are read when a batch asks for them: from disk, or from a user's own data set.

What is random in reading them, such as a transform that crops, is seeded by epoch and example. So an epoch is the same
whatever the number of workers, and a training resumes in the middle of an epoch without reading what came before.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixvae._failures import plain_errors, said

Labelled = tuple[Tensor, Any]
"""Values (B, *shape) of some examples, and an array of their labels (B,), or None."""
AHEAD = 4
"""Batches that each worker reads ahead."""
LEAST_URGENT = 19
"""By how much the priority of readers is lowered."""


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], key: int) -> Labelled:
        """Read some examples; `key` seeds whatever is random in reading them."""
        ...


class Lazy(ABC):
    """N examples (N, *shape) that are read batch by batch, in place of a `Split`'s tensor.

    Args:
        examples: how many there are.
        like: one example or more, (B, *shape), which have the shape and type of all.

    Attributes:
        sha256: checksum of all values in order, if they were read to compute it.
        values: their distinct values, if these were collected: all, or many, including the smallest and largest.
    """

    def __init__(self, examples: int, like: Tensor):
        self.shape, self.dtype = torch.Size((examples, *like.shape[1:])), like.dtype
        self.device = torch.device("cpu")
        self.sha256: str | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def is_floating_point(self) -> bool:
        """Whether the values are real numbers, rather than bytes."""
        return self.dtype.is_floating_point

    def to(self, device: torch.device | str) -> Lazy:
        """The same examples, with batches moved to a device."""
        moved = copy(self)
        moved.device = torch.device(device)
        return moved

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return next(self.batches([self._rows(index)], 0))

    def batches(self, batches: Sequence[Tensor], key: int) -> Iterator[Tensor]:
        """Examples of every batch, in order.

        Args:
            batches: numbers of the examples of each batch.
            key: seeds whatever is random in reading them, such as an epoch's number.
        """
        for values in self._read(batches, key):
            if values.dtype != self.dtype or values.shape[1:] != self.shape[1:]:
                raise ValueError(
                    f"an example is {values.dtype} of shape {tuple(values.shape[1:])}, but all were {self.dtype} of "
                    f"shape {tuple(self.shape[1:])} when first read: the data have changed since"
                )
            yield values.to(self.device, non_blocking=True)

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Keep what reads the examples from one pass to the next, where possible."""
        yield

    @abstractmethod
    def _read(self, batches: Sequence[Tensor], key: int) -> Iterator[Tensor]:
        """Values of every batch, on the CPU."""

    @abstractmethod
    def take(self, index: Tensor | slice) -> Lazy:
        """Some of the examples, still to be read."""

    def _rows(self, index: Tensor | slice) -> Tensor:
        """Positions among these examples."""
        return torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]


class ByNumber(Lazy):
    """Examples of a source that can read any of them.

    Args:
        source: reads them.
        rows: which ones, in which order; all by default.
        workers: processes that read them ahead; with 0 they are read on demand.
        fixed: whether the source never changes, so that its workers can outlast a pass.
    """

    def __init__(self, source: Source, rows: Tensor | None = None, *, workers: int = 0, fixed: bool = False):
        self.source, self.workers, self.fixed = source, workers, fixed
        self._last, self._idle = False, None
        self.rows = torch.arange(len(source)) if rows is None else rows
        super().__init__(len(self.rows), source.read([0], 0)[0])

    def _read(self, batches: Sequence[Tensor], key: int) -> Iterator[Tensor]:
        return (values for values, _ in self.labelled(batches, key))

    def labelled(self, batches: Sequence[Tensor], key: int) -> Iterator[Labelled]:
        """Values and labels of every batch."""
        asked = [(self.rows[rows.cpu()].tolist(), key) for rows in batches]
        if not self.workers or len(asked) < 2:
            yield from (self.source.read(*each) for each in asked)
            return
        done = 0
        try:
            for read in self._ahead(asked):
                if isinstance(read, str):
                    raise ValueError(read)
                yield read
                done += 1
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            warnings.warn("a process that reads data ahead has died; this one goes on alone", stacklevel=2)
            yield from (self.source.read(*each) for each in asked[done:])

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Keep the workers of one pass for the next, if the source never changes: each takes 50 ms or more to start."""
        self._last = self.fixed
        try:
            yield
        finally:
            self._last, self._idle = False, None

    def _ahead(self, asked: list[tuple[list[int], int]]) -> Iterator[Labelled | str]:
        """Batches that workers read ahead, or what went wrong."""
        loader, self._idle = self._idle or self._loader(min(self.workers, len(asked))), None
        loader.sampler[:] = asked  # pyright: ignore[reportIndexIssue]
        yield from loader
        self._idle = loader if self._last else None

    def _loader(self, workers: int) -> DataLoader[Any]:
        """Workers that read whatever is put into the loader's sampler."""
        return DataLoader(
            _Batches(self.source),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=[],
            num_workers=workers,
            prefetch_factor=AHEAD,
            persistent_workers=self._last,
            generator=torch.Generator(),  # not torch's own, which the training draws from
            worker_init_fn=_serve,
            pin_memory=self.device.type == "cuda",
        )

    def to(self, device: torch.device | str) -> ByNumber:
        moved = copy(self)
        moved.device, moved._last, moved._idle = torch.device(device), False, None
        return moved

    def take(self, index: Tensor | slice) -> ByNumber:
        chosen = self.to(self.device)
        chosen.rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        chosen.shape, chosen.sha256 = torch.Size((len(chosen.rows), *self.shape[1:])), None
        return chosen


class _Batches:
    """Whole batches by the numbers of their examples and a key, for a worker."""

    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, asked: tuple[Sequence[int], int]) -> Labelled | str:
        try:
            return self.source.read(*asked)
        except Exception as error:  # noqa: BLE001  (torch would add the worker's traceback to the message)
            return said(error)


def _serve(worker: int) -> None:
    """Read with the processor time that the training leaves, and leave Ctrl-C to it: it saves and ends its workers.

    Readers of full priority would take turns with the threads of one operation, all of which wait for the slowest.
    """
    del worker
    if hasattr(os, "nice"):
        os.nice(LEAST_URGENT)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class InOrder(Lazy):
    """Examples of an iterable, which can only be read in its own order, from the first one at every pass.

    Args:
        begin: begins a pass: values and labels of one example or more at a time.
        examples: number of examples in a pass.
        like: one example or more.
    """

    def __init__(self, begin: Callable[[], Iterator[Labelled]], examples: int, like: Tensor):
        self.begin, self.whole = begin, examples
        super().__init__(examples, like)

    def _read(self, batches: Sequence[Tensor], key: int) -> Iterator[Tensor]:
        single = (example for x, _ in apart(self.begin, key) for example in x)
        at = 0
        for rows in batches:
            chosen: list[Tensor] = []
            for row in rows.tolist():
                if row < at:
                    raise ValueError("the examples of an iterable can only be read in its own order")
                skipped = itertools.islice(single, row - at, None)
                example = next(skipped, None)
                if example is None:
                    raise ValueError(f"the data gave {self.whole} examples at first, and fewer later: {SAME}")
                at = row + 1
                chosen.append(example)
            yield torch.stack(chosen)
        if at == self.whole and next(single, None) is not None:
            raise ValueError(f"the data gave {self.whole} examples at first, and more in a later pass: {SAME}")

    def take(self, index: Tensor | slice) -> InOrder:
        rows = self._rows(index)
        if not torch.equal(rows, torch.arange(len(rows))):
            raise ValueError("of the examples of an iterable only the first ones can be taken")
        chosen = copy(self)
        chosen.shape, chosen.sha256 = torch.Size((len(rows), *self.shape[1:])), None
        return chosen


SAME = "give an iterable that yields the same examples every time it is iterated over"


def seed(key: int, number: int = 0) -> None:
    """Seed the random generators of torch, NumPy and Python."""
    mixed = (key * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    torch.default_generator.manual_seed(mixed >> 1)
    np.random.seed(mixed >> 32)  # noqa: NPY002  (what transforms use)
    random.seed(mixed)


State = tuple[Tensor, Any, Any]


def _state() -> State:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(state: State) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])


@contextmanager
def own_noise() -> Iterator[None]:
    """Restore the random generators of torch, NumPy and Python afterwards."""
    before = _state()
    try:
        yield
    finally:
        _restore(before)


def apart(begin: Callable[[], Iterable[Any]], key: int) -> Iterator[Any]:
    """Iterate with random generators that are seeded at the beginning and shared with nothing else."""
    with own_noise():
        seed(key)
        with plain_errors("the data cannot be read"):
            source = iter(begin())
        own = _state()
    while True:
        with own_noise():
            _restore(own)
            with plain_errors("the data cannot be read"):
                item = next(source, None)
            own = _state()
        if item is None:
            return
        yield item
