"""Batches of an epoch that are decided elsewhere: by the sampler of a DataLoader, or by an iterable of batches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixvae._failures import plain_errors
from mixvae._resources import check, short
from mixvae.datasets._lazy import own_noise, seed

POINTER = 8
"""Minimum number of bytes per entry of a list."""
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Plan:
    """The batches of a DataLoader with its sampler, batch size and `drop_last`; or batches of given sizes, in order.

    Args:
        of: the DataLoader, or the sizes.

    Raises:
        ValueError: the sampler gives no batches, different ones with the same seeds, too many for memory, or numbers
            that the data set does not have.
    """

    def __init__(self, of: DataLoader[Any] | Sequence[int]):
        self.of = of
        count = 0
        with suppress(TypeError, NotImplementedError):  # a sampler without a length
            count = len(of)
        check(POINTER * count, f"the list of the DataLoader's {short(count)} batches", "check the sampler's length")
        first = self.batches(0)
        if not first:
            raise ValueError("the DataLoader gives no batches: give it more examples, or drop_last=False")
        again = self.batches(0)
        if len(first) != len(again) or not all(map(torch.equal, first, again)):
            raise ValueError(
                "the DataLoader's sampler gives different batches with the same random seeds, so that no training on "
                "it could be resumed: let it draw from its generator, or from the global ones of torch, NumPy or Python"
            )
        self.batch = max(map(len, first))
        self.sha256 = hashlib.sha256(b" ".join(rows.numpy().tobytes() for rows in first)).hexdigest()

    def rows(self) -> Tensor:
        """All examples of an epoch, in the order of their numbers."""
        return torch.cat(self.batches(0)).sort().values

    def batches(self, key: int) -> list[Tensor]:
        """The examples of every batch of an epoch.

        Args:
            key: seeds the sampler, such as the epoch's number.
        """
        if not isinstance(self.of, DataLoader):
            ends = list(itertools.accumulate(self.of, initial=0))
            return [torch.arange(low, high) for low, high in itertools.pairwise(ends)]
        generators = {
            id(g): g
            for part in (self.of, self.of.sampler, self.of.batch_sampler)
            if isinstance(g := getattr(part, "generator", None), torch.Generator)
        }
        source: Any = self.of.dataset
        before = [(generator, generator.get_state()) for generator in generators.values()]
        with own_noise(), plain_errors("the sampler of the DataLoader cannot be used"):
            seed(key)
            for generator, _ in before:
                generator.manual_seed(key)
            try:
                return [_checked(list(rows), len(source)) for rows in self.of.batch_sampler or ()]
            finally:
                for generator, state in before:
                    generator.set_state(state)


def _checked(rows: list[Any], examples: int) -> Tensor:
    """Numbers of the examples of one batch.

    Raises:
        ValueError: there are none, or some are not numbers of examples.
    """
    if not rows:
        raise ValueError("the sampler of the DataLoader gives an empty batch: let it skip that batch")
    numbers = torch.zeros(())
    with suppress(TypeError, ValueError, RuntimeError):  # texts, lists of different lengths, numbers beyond 64 bits
        numbers = torch.as_tensor(rows)
    whole = numbers.ndim == 1 and numbers.dtype in INTEGERS
    wrong = numbers[(numbers < 0) | (numbers >= examples)].tolist() if whole else rows
    if wrong:
        raise ValueError(
            f"the sampler of the DataLoader gives the numbers {short(wrong)} in a batch, but the data set has "
            f"{examples} examples: it must give whole numbers from 0 to {examples - 1}"
        )
    return numbers.long()
