"""Decoders p(x|z): modules whose `forward` maps z to a distribution over x, and likelihoods for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from mixvae.distributions import Bernoulli, ContinuousBernoulli, full_precision
from mixvae.networks import gated_mlp

__all__ = ["MLP", "Bernoulli", "ContinuousBernoulli", "Decoder", "Gaussian", "Likelihood"]

Likelihood = Callable[[Tensor], Distribution]
"""Maps a network's output to one distribution per value of x: a distribution's class, or a module."""


class Gaussian(nn.Module):
    """Gaussian likelihood with a learned variance per value, N(x_d; m_d(z), σ_d²), for real data.

    σ has a floor, so that a constant column cannot drive the likelihood to infinity.

    Args:
        shape: event shape of x.
        minimum: least standard deviation, in the units of x.
    """

    def __init__(self, shape: Sequence[int], minimum: float = 1e-3):
        super().__init__()
        self.minimum = minimum
        self.raw_scale = nn.Parameter(torch.full(tuple(shape), math.log(math.expm1(1.0))))  # σ starts at 1

    def forward(self, mean: Tensor) -> Normal:
        """Return the distribution of every value."""
        scale = F.softplus(self.raw_scale) + self.minimum
        mean = full_precision(mean)
        return Normal(mean, scale.to(mean).expand_as(mean), validate_args=False)


class Decoder(nn.Module):
    """Any network with a likelihood: p(x|z) = Π_d p(x_d | network(z)_d).

    Args:
        network: maps (N, D) to (N, *shape): one parameter, such as a logit or a mean, per value of x.
        likelihood: maps that output to a distribution per value: `Bernoulli`, `ContinuousBernoulli`,
            a `Gaussian(shape)` module, or any callable that returns a torch Distribution.
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood = Bernoulli):
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    def forward(self, z: Float[Tensor, "... D"]) -> Distribution:
        """Return p(x|z) with batch shape z.shape[:-1] and event shape x.shape[1:]."""
        batch = z.shape[:-1]
        output = self.network(z.reshape(-1, z.shape[-1]))
        output = output.reshape(*batch, *output.shape[1:])
        return Independent(self.likelihood(output), output.dim() - len(batch), validate_args=False)


class MLP(Decoder):
    """Gated fully connected decoder of the paper.

    Args:
        latent: latent size D.
        shape: event shape of x.
        hidden: widths of the gated layers.
        likelihood: distribution of a value given the network's output.
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        hidden: Sequence[int] = (300, 300),
        likelihood: Likelihood = Bernoulli,
    ):
        network = nn.Sequential(
            gated_mlp(latent, hidden), nn.Linear(hidden[-1], math.prod(shape)), nn.Unflatten(-1, tuple(shape))
        )
        super().__init__(network, likelihood)
