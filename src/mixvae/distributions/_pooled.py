"""One mixture over the components of several examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae.distributions._components import Components, OnReals

NEGLIGIBLE = 60.0
"""A component this many nats below the largest cannot change a mixture's density in float64, e⁻⁶⁰ = 10⁻²⁶.

Left in, its weight and gradient are denormal numbers, which processors multiply a hundred times more slowly."""


class Pooled(OnReals):
    """One mixture over all K·S components of K examples: batch shape (), event shape (D,).

    p(z) = 1/K Σ_k Σ_s π_s q_s(z | u_k): the VampPrior of pseudo-inputs u, or a Gaussian mixture.

    Args:
        components: the components, batch shape (S, K).

    References:
        Tomczak and Welling, VAE with a VampPrior (2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiagonalGaussian, Pooled
        >>> p = Pooled(DiagonalGaussian(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2)))  # 15 equal components
        >>> p.sample((7,)).shape, p.log_prob(torch.zeros(1, 2))  # −log 2π
        (torch.Size([7, 2]), tensor([-1.8379]))
    """

    def __init__(self, components: Components):
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def log_pi(self) -> Float[Tensor, "S K"]:
        """Log weight of every component; the weights sum to one."""
        return (self.components.log_pi - math.log(self.components.batch_shape[1]))[:, None].expand(
            self.components.batch_shape
        )

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, ...]:
        """Log-density of the mixture in nats."""
        points = value.reshape(-1, value.shape[-1])
        scored = (self.components.pairwise_log_prob(points) + self.log_pi).flatten(1)
        negligible = scored < scored.detach().amax(1, keepdim=True) - NEGLIGIBLE
        return scored.masked_fill(negligible, -math.inf).logsumexp(1).reshape(value.shape[:-1])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the mixture: choose a component, then draw from it."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            weights = self.log_pi.flatten().exp()
            chosen = torch.multinomial(weights, shape.numel(), replacement=True)
            most = int(chosen.bincount().max())
            draws = self.components.rsample((most,)).flatten(1, 2)  # (most, S·K, D)
            return draws[_rank_within(chosen), chosen].reshape(*shape, *self.event_shape)


def _rank_within(group: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Number of earlier entries that belong to the same group."""
    order = group.argsort(stable=True)
    counts = group.bincount()
    starts = (counts.cumsum(0) - counts)[group[order]]
    ranks = torch.empty_like(group)
    ranks[order] = torch.arange(len(group), device=group.device) - starts
    return ranks
