"""Two levels of latents: a distribution of the upper one, and the lower one given it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from mixvae.distributions._components import Components, OnReals, Points
from mixvae.distributions._gaussian import normal_log_prob, normal_noise

Lower = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps z2 (…, D2) to mean and log-variance of z1 given z2, (…, D1) each."""


class Chain(OnReals):
    """z = [z2, z1] with z2 ~ top and z1 ~ N(μ(z2), diag σ²(z2)): the prior p(z2) p(z1|z2).

    Args:
        top: distribution of z2, event shape (D2,).
        lower: maps z2 to mean and log-variance of z1.
        latent: size D1 of z1.

    Example:
        >>> import torch
        >>> from mixvae.distributions import Chain
        >>> from mixvae.priors import StandardNormal
        >>> p = Chain(StandardNormal(1)(), lambda z2: (z2, torch.zeros_like(z2)), latent=1)  # z1 ~ N(z2, 1)
        >>> p.log_prob(torch.zeros(1, 2))  # −log 2π
        tensor([-1.8379])
    """

    def __init__(self, top: Distribution, lower: Lower, latent: int):
        self.top, self.lower = top, lower
        self.split = top.event_shape[0]
        super().__init__(top.batch_shape, torch.Size([self.split + latent]), validate_args=False)

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, ...]:
        """Log-density of the pair, log p(z2) + log p(z1|z2), in nats."""
        z2, z1 = value[..., : self.split], value[..., self.split :]
        return self.top.log_prob(z2) + normal_log_prob(z1, *self.lower(z2))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw z2, then z1 given it."""
        with torch.no_grad():
            z2 = self.top.sample(torch.Size(sample_shape))
            mean, log_var = self.lower(z2)
            return torch.cat([z2, mean + (0.5 * log_var).exp() * torch.randn_like(mean)], -1)


@runtime_checkable
class ComponentLower(Protocol):
    """Lower level of several components: component j's own network at its own z2 or at one shared by all."""

    def __call__(self, z2: Points) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (…, S, B, D1) each."""
        ...

    def select(self, index: Int[Tensor, " K"]) -> ComponentLower:
        """Return the components with these positions."""
        ...


class ChainComponents(Components):
    """Components of two levels, q_s(z2|x) q_s(z1|z2, x): component j is scored at whole pairs drawn from s.

    Args:
        top: components over z2.
        lower: every component's lower level.
        latent: size D1 of z1.

    Example:
        >>> import torch
        >>> from mixvae import TwoLevelPosterior
        >>> from mixvae.networks import TwoLevelDense
        >>> posterior = TwoLevelPosterior(lambda: TwoLevelDense((4,), 2, (8,)), 3)
        >>> q = posterior(torch.ones(5, 4))  # a ChainComponents
        >>> q.batch_shape, q.event_shape, q.top.event_shape
        (torch.Size([3, 5]), torch.Size([4]), torch.Size([2]))
    """

    def __init__(self, top: Components, lower: ComponentLower, latent: int):
        self.top, self.lower, self.latent = top, lower, latent
        self.split = top.event_shape[0]
        super().__init__(top.batch_shape, torch.Size([self.split + latent]), top.log_pi)

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw z2, then z1, from every component: (*sample_shape, S, B, D2 + D1)."""
        upper = None if noise is None else noise[..., : self.split]
        z2 = self.top.rsample(sample_shape, upper)
        mean, log_var = self.lower(z2)
        rest = normal_noise(None if noise is None else noise[..., self.split :], mean.shape, mean)
        return torch.cat([z2, torch.addcmul(mean, (0.5 * log_var).exp(), rest)], -1)

    def log_prob(self, value: Points) -> Float[Tensor, "... S B"]:
        """Log-density of the pair under every component, in nats."""
        z2, z1 = value[..., : self.split], value[..., self.split :]
        return self.top.log_prob(z2) + normal_log_prob(z1, *self.lower(z2))

    def noise_of(self, value: Points) -> Float[Tensor, "... S B D"]:
        """Noise of a pair: the noise of z2, and that of z1 given z2."""
        z2, z1 = value[..., : self.split], value[..., self.split :]
        mean, log_var = self.lower(z2)
        return torch.cat([self.top.noise_of(z2), (z1 - mean) * (-0.5 * log_var).exp()], -1)

    def select(self, index: Int[Tensor, " K"]) -> ChainComponents:
        """Return the components with these positions."""
        return ChainComponents(self.top.select(index), self.lower.select(index), self.latent)
