"""Batches of an epoch that somebody else decides: the sampler of a DataLoader, or an iterable of batches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mixvae._failures import plain_errors
from mixvae.datasets._lazy import own_noise, seed


class Plan:
    """The batches of a DataLoader with its sampler, batch size and `drop_last`; or batches of given sizes, in order.

    Args:
        of: the DataLoader, or the sizes.
    """

    def __init__(self, of: DataLoader[Any] | Sequence[int]):
        self.of = of
        first = self.batches(0)
        if not first:
            raise ValueError("the DataLoader gives no batches: give it more examples, or drop_last=False")
        if not all(map(torch.equal, first, self.batches(0))):
            raise ValueError(
                "the DataLoader's sampler gives other batches with the same random seeds, so that no training on it "
                "could be resumed: let it draw from its generator, or from the global ones of torch, NumPy or Python"
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
        before = [(generator, generator.get_state()) for generator in generators.values()]
        with own_noise(), plain_errors("the sampler of the DataLoader cannot be used"):
            seed(key)
            for generator, _ in before:
                generator.manual_seed(key)
            try:
                return [torch.as_tensor(list(rows)) for rows in self.of.batch_sampler or ()]
            finally:
                for generator, state in before:
                    generator.set_state(state)
