"""Noise keyed by what it is for, not by when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator, Philox
from torch import Tensor

DRAW_BLOCK = 16
"""Draws that share one key of the counter-based generator in `keyed_normal`."""


def keyed_normal(
    seed: int, examples: Sequence[int] | np.ndarray, start: int, stop: int, event: tuple[int, int], stream: int = 0
) -> Float[Tensor, "L S B D"]:
    """Standard normal noise keyed by (seed, example, stream, draw block): the same in any chunk or batch.

    Draw l of example b comes from a counter-based stream of its own, so a result computed from it depends neither on
    the other examples nor on how many draws were taken at once.

    Args:
        seed: seed of the evaluation.
        examples: indices of the examples in the data set.
        start: first draw.
        stop: one past the last draw.
        event: number of components S and latent size D.
        stream: which independent stream of noise to use; draws for different purposes must not coincide.

    Returns:
        Noise of stop − start draws in float64, on the CPU.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), https://doi.org/10.1145/2063384.2063405

    Example:
        >>> import torch
        >>> from mixvae.distributions import keyed_normal
        >>> noise = keyed_normal(0, [5, 7], 0, 20, (3, 2))
        >>> noise.shape  # draws, components, examples, latent size
        torch.Size([20, 3, 2, 2])
        >>> torch.equal(noise[16:, :, 1:], keyed_normal(0, [7], 16, 20, (3, 2)))
        True
    """
    noise = np.empty((len(examples), stop - start, *event))
    bits = Philox(key=[seed, 0])
    generator, state = Generator(bits), bits.state  # setting a state takes a tenth of the time of a new generator
    key, counter = state["state"]["key"], state["state"]["counter"]
    for row, example in zip(noise, examples, strict=True):
        for block in range(start // DRAW_BLOCK, -(-stop // DRAW_BLOCK)):
            low, first = block * DRAW_BLOCK, max(start, block * DRAW_BLOCK)
            last = min(stop, low + DRAW_BLOCK)
            key[1], counter[:] = int(example), (0, 0, stream, block)
            bits.state = state
            row[first - start : last - start] = generator.standard_normal((last - low, *event))[first - low :]
    return torch.from_numpy(noise).permute(1, 2, 0, 3).contiguous()
