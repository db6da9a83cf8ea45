"""What samples and reconstructions show of p(x|z), and seeded draws that leave torch's generators unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import singledispatch
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Cauchy, Distribution, HalfCauchy, Independent

from mixvae._failures import at_least

SampleKind = Literal["means", "draws"]
AT_ONCE = 32
"""Samples that are drawn at once; the seed of each batch is drawn from the seed of all."""
LARGEST_SEED = 2**62
MEANLESS = (
    "the likelihood {} has no mean: draw samples of kind draws, or register what stands for it with "
    "mixvae.sampling.mean_of.register"
)


@singledispatch
def mean_of(p: Distribution) -> Tensor:
    """One observation that represents p(x|z): its mean, or the mode of a distribution that has no mean.

    Category numbers are only names, so their mean is meaningless, and a Cauchy distribution has none. An
    autoregressive p(x|z), whose mean has no closed form, gives one draw. A distribution of your own defines `mean`, or
    registers a function for its type with `@mean_of.register`.

    Args:
        p: a likelihood, batch shape (...) and event shape `shape`.

    Returns:
        An observation for each z, (..., *shape).

    Raises:
        ValueError: it has no mean.

    Example:
        >>> import torch
        >>> from torch.distributions import Categorical, Independent, Normal
        >>> from mixvae.sampling import mean_of
        >>> mean_of(Normal(torch.tensor([2.0]), 1.0))
        tensor([2.])
        >>> mean_of(Independent(Categorical(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])), 1))
        tensor([2, 0])
    """
    try:
        return p.mean
    except (NotImplementedError, AttributeError):
        raise ValueError(MEANLESS.format(type(p).__name__)) from None


@mean_of.register(Categorical)
@mean_of.register(Cauchy)
@mean_of.register(HalfCauchy)
def _(p: Categorical | Cauchy | HalfCauchy) -> Tensor:
    return p.mode


@mean_of.register
def _(p: Independent) -> Tensor:
    return mean_of(p.base_dist)


def _mean(p: Distribution) -> Tensor:
    """The mean, unless it is NaN, which torch returns where there is none."""
    mean = mean_of(p)
    if bool(mean.isnan().any()):
        base = p.base_dist if isinstance(p, Independent) else p
        raise ValueError(MEANLESS.format(type(base).__name__))
    return mean


SHOWN: dict[str, Callable[[Distribution], Tensor]] = {"means": _mean, "draws": lambda p: p.sample()}
"""What a sample shows of p(x|z), by kind."""


def shown(kind: str) -> Callable[[Distribution], Tensor]:
    """Function that computes what samples of a kind show of p(x|z).

    Raises:
        ValueError: there is no such kind.

    Example:
        >>> import torch
        >>> from torch.distributions import Bernoulli
        >>> from mixvae.sampling import shown
        >>> shown("means")(Bernoulli(torch.tensor([0.25])))
        tensor([0.2500])
    """
    if kind not in SHOWN:
        raise ValueError(f"samples are {' or '.join(SHOWN)}; got kind {kind!r}")
    return SHOWN[kind]


def batches(n: int, seed: int | None) -> Iterator[tuple[int, int]]:
    """Size and seed of each batch of n samples.

    Args:
        n: samples.
        seed: seed of all of them; drawn from torch's generator by default.

    Raises:
        ValueError: n is not a positive whole number, or the seed is negative.

    Example:
        >>> from mixvae.sampling import batches
        >>> [size for size, _ in batches(70, seed=0)]
        [32, 32, 6]
    """
    if not isinstance(n, Integral):
        raise ValueError(f"n is the number of samples, a whole number; got {n}: examples have the model's own shape")
    at_least(1, n=n)
    at_least(0, seed=seed)
    seeds = None if seed is None else torch.Generator().manual_seed(seed)
    return (
        (min(AT_ONCE, n - first), int(torch.randint(LARGEST_SEED, (), generator=seeds)))
        for first in range(0, n, AT_ONCE)
    )


@contextmanager
def seeded(seed: int, module: nn.Module) -> Iterator[None]:
    """Seed draws on the CPU and on the module's GPU, and leave torch's generators as they were.

    Example:
        >>> import torch
        >>> from mixvae.sampling import seeded
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = torch.get_rng_state()
        >>> with seeded(0, layer):
        ...     first = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    tensors = (*module.parameters(), *module.buffers())
    devices = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
