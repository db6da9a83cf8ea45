"""Components of a mixture, as torch.distributions does distributions.

A `Components` object is a batch of distributions with batch shape (S, B): S components for each of B examples.
One rule carries everything: the component axis of z is −3. Size S there means "each its own",
size 1 means "score under every component".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, constraints


class OnReals(Distribution):
    """A distribution on all of R^D, whose parameters are checked where they are made."""

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: torch's checks would visit every parameter at every step."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.real_vector


class Components(OnReals):
    """S component distributions for each of B examples: batch shape (S, B), event shape (D,).

    A subclass gives `rsample`, `log_prob` and `select`; the rest is derived, and may be overridden where
    there is a faster way.

    Args:
        batch_shape: (S, B).
        event_shape: (D,).
        log_pi: log mixture weights of the S components; uniform by default. For a subset of S of the
            A components of a posterior these are log(A/S · π_s), the only unbiased choice.
    """

    has_rsample = True
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
            noise: standard normal noise of the result's shape; drawn from torch's generator if not given.
        """

    @abstractmethod
    def log_prob(
        self,
        value: Float[
            Tensor,
            (
                ...  # S #B D
            ),
        ],
    ) -> Float[Tensor, "... S B"]:
        """Log-density in nats; component axis −3 of size S scores each under its own, of size 1 under all."""

    @abstractmethod
    def select(self, index: Int[Tensor, " K"]) -> Components:
        """Return the components with these positions, in this order."""

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component j of its own example."""
        return self.log_prob(z.unsqueeze(-3))

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example."""
        return self.log_prob(z[:, None, None])

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw from the components `own` and score each draw under all components.

        A family whose densities are cheaper at its own draws overrides this one.
        """
        z = self.select(own).rsample(sample_shape, noise)
        return z, self.cross_log_prob(z)
