"""Components of a mixture, in the style of torch.distributions.

A `Components` object is a batch of distributions with batch shape (S, B): S components for each of B examples.
One rule holds throughout: the component axis of z is −3. Size S there means "each under its own",
size 1 means "each under every component".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, constraints

Points = Float[Tensor, "... #S #B D"]
"""Points to score: component axis −3 of size S means each component's own, of size 1 shared by all."""


class OnReals(Distribution):
    """A distribution on all of R^D, whose parameters are checked where they are created."""

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: torch would check every parameter at every step."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.real_vector


class Components(OnReals):
    """S component distributions for each of B examples: batch shape (S, B), event shape (D,).

    A subclass implements `rsample`, `log_prob` and `select`; the rest is derived, and can be overridden
    with something faster.

    Args:
        batch_shape: (S, B).
        event_shape: (D,).
        log_pi: log mixture weights of the S components; uniform by default. For a subset of S of the
            A components of a posterior these are log(A/S · π_s), the only unbiased choice.

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiagonalGaussian
        >>> q = DiagonalGaussian(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2))  # S = 3, B = 5, D = 2
        >>> z = q.rsample((7,))
        >>> q.log_prob(z).shape, q.cross_log_prob(z).shape  # each under its own, each under every component
        (torch.Size([7, 3, 5]), torch.Size([7, 3, 3, 5]))
    """

    has_rsample = True
    scores_anywhere: bool = True
    """Whether the density at any point, not only at its own draws, is exact."""
    log_pi: Float[Tensor, " S"]

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, log_pi: Float[Tensor, " S"] | None = None):
        if log_pi is None:
            log_pi = torch.full((batch_shape[0],), -math.log(batch_shape[0]))
        if log_pi.shape != batch_shape[:1]:
            raise ValueError(f"log_pi must have shape {tuple(batch_shape[:1])}; got {tuple(log_pi.shape)}")
        self.log_pi = log_pi
        super().__init__(batch_shape, event_shape, validate_args=False)

    @abstractmethod
    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw from every component with gradients: (*sample_shape, S, B, D).

        Args:
            sample_shape: leading shape of the draws.
            noise: standard normal noise of the result's shape; drawn from torch's generator by default.
        """

    @abstractmethod
    def log_prob(self, value: Points) -> Float[Tensor, "... S B"]:
        """Log-density in nats; component axis −3 of size S scores each under its own, of size 1 under all."""

    @abstractmethod
    def select(self, index: Int[Tensor, " K"]) -> Components:
        """Return the components with these positions, in this order."""

    def drawn(self, own: Int[Tensor, " S"] | None) -> Components:
        """Return the components to draw from: those at these positions, all by default."""
        return self if own is None else self.select(own)

    def noise_of(self, value: Points) -> Float[Tensor, "... S B D"]:
        """Noise from which each component would draw a value: `rsample` with it returns the value.

        Raises:
            NotImplementedError: this kind of component cannot be inverted.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be inverted: it does not implement noise_of")

    def mixture(self) -> Mixture:
        """All components as one distribution with batch shape (B,) and event shape (D,)."""
        return Mixture(self)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component j of its own example."""
        return self.log_prob(z.unsqueeze(-3))

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example."""
        return self.log_prob(z[:, None, None])

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None = None, noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw from the components `own`, all by default, and score each draw under all components.

        A family whose densities are cheaper at its own draws overrides this method.
        """
        z = self.drawn(own).rsample(sample_shape, noise)
        return z, self.cross_log_prob(z)


class Mixture(OnReals):
    """q(z|x_b) = Σ_s π_s q_s(z|x_b) as one distribution for each of B examples: batch shape (B,), event shape (D,).

    Args:
        components: the components and their weights, which are normalised: the weights of a subset need not sum to one.

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiagonalGaussian
        >>> from mixvae.priors import StandardNormal
        >>> q = DiagonalGaussian(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2)).mixture()
        >>> z = q.rsample((7,))
        >>> z.shape, q.log_prob(z).shape, q.responsibilities(z).shape
        (torch.Size([7, 5, 2]), torch.Size([7, 5]), torch.Size([7, 3, 5]))
        >>> q.kl(StandardNormal(2)(), draws_per_component=100).abs().max() < 1e-5
        tensor(True)
    """

    has_rsample = True

    def __init__(self, components: Components):
        self.components = components
        self.log_pi = components.log_pi.log_softmax(0)
        super().__init__(components.batch_shape[1:], components.event_shape, validate_args=False)

    def log_prob(self, value: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-density in nats."""
        return self._joint(value).logsumexp(-2)

    def responsibilities(self, value: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L S B"]:
        """Probability r_s(z) = π_s q_s(z) / q(z) that z came from each component."""
        return self._joint(value).softmax(-2)

    def _joint(self, value: Tensor) -> Tensor:
        """Log π_s q_s(z), (*L, S, B)."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        points = value.expand(shape).reshape(-1, 1, *shape[-2:])
        scored = self.components.cross_log_prob(points)[:, 0]
        scored = scored + self.log_pi.to(scored)[:, None]
        return scored.reshape(*shape[:-2], *self.components.batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the mixture, with the implicit gradient dz = Σ_s r_s(z) dT_s.

        T_s moves a draw of component s when its parameters change, at fixed noise. The field Σ_s r_s dT_s moves the
        whole mixture, Gaussians, flows and chains alike, as each π_s q_s is carried along by its own dT_s.

        Raises:
            ValueError: the weights are learned, which this gradient does not reach.

        References:
            Figurnov et al., Implicit Reparameterization Gradients (2018), https://arxiv.org/abs/1805.08498
        """
        if torch.is_grad_enabled() and self.log_pi.requires_grad:
            raise ValueError(
                "draws of a mixture have no gradient in its weights, which are learned here: draw from every component "
                "with components.rsample and weight the draws, or fix the weights"
            )
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        flat = z.reshape(-1, 1, *z.shape[-2:])  # (L, 1, B, D): the same point for every component
        with torch.no_grad():
            noise = self.components.noise_of(flat)
            share = self.responsibilities(flat[:, 0]).unsqueeze(-1)  # (L, S, B, 1)
        moved = self.components.rsample(flat.shape[:1], noise)  # every row equals z, by its own component's path
        return z + (share * (moved - moved.detach())).sum(-3).reshape(z.shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the mixture: choose a component for every draw and example, then draw from it."""
        shape, batch = torch.Size(sample_shape), self.batch_shape[0]
        with torch.no_grad():
            n = shape.numel()
            chosen = torch.multinomial(self.log_pi.exp(), n * batch, replacement=True).reshape(n, 1, batch, 1)
            draws = self.components.rsample((n,))  # (n, S, B, D)
            return draws.take_along_dim(chosen.to(draws.device), 1)[:, 0].reshape(
                *shape, *self.batch_shape, *self.event_shape
            )

    def kl(self, other: Distribution, draws_per_component: int = 1) -> Float[Tensor, " B"]:
        """Kullback–Leibler divergence KL(q ‖ other) in nats, estimated by draws from every component.

        Σ_s π_s 1/L Σ_l [log q(z_sl) − log other(z_sl)], with gradients; a single estimate may be negative.

        Args:
            other: a distribution with event shape (D,) and batch shape () or (B,).
            draws_per_component: draws L per component.
        """
        z = self.components.rsample((draws_per_component,))
        log_ratio = self.log_prob(z) - other.log_prob(z)  # (L, S, B)
        return self.log_pi.to(log_ratio).exp() @ log_ratio.mean(0)

    @property
    def mean(self) -> Tensor:
        """Mean, Σ_s π_s E_s[z], if the components have one in closed form."""
        mean = self.components.mean
        return torch.einsum("s,sbd->bd", self.log_pi.to(mean).exp(), mean)

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, Σ_s π_s (Var_s[z] + (E_s[z] − E[z])²): within the components and between."""
        each = self.components.variance + (self.components.mean - self.mean).square()
        return torch.einsum("s,sbd->bd", self.log_pi.to(each).exp(), each)
