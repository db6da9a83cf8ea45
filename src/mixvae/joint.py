"""The joint density of observations and latents as a function of the latents: what proposals and annealing use."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from mixvae.distributions import Natural, least_precision, natural_parameters
from mixvae.model import MixtureVAE


class Joint(ABC):
    """log p(x_b, z) of B observations as a function of their latents z (*L, B, D), in nats.

    Implement it for a model that is not a `MixtureVAE`, to evaluate that model by the same proposals.

    Attributes:
        size: number of observations B.
        latent: latent size D.
        like: a tensor whose dtype and device latents have.
    """

    size: int
    latent: int
    like: Tensor

    @abstractmethod
    def log_prior(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-density of the prior, log p(z), in nats."""

    @abstractmethod
    def log_likelihood(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-likelihood of each observation at its latents, log p(x_b | z), in nats."""

    @abstractmethod
    def sample_prior(self, draws: int) -> Float[Tensor, "L B D"]:
        """Latents drawn from the prior by torch's generator."""

    @abstractmethod
    def least_precision(self) -> float:
        """Smallest precision of the prior in any direction, which bounds how wide a proposal can usefully be."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Joint:
        """The same for some of the observations."""

    @abstractmethod
    def simulated(self, z: Float[Tensor, "B D"]) -> Joint:
        """The same for observations drawn from p(x|z) at these latents by torch's generator."""

    def natural(self, z: Float[Tensor, "B D"]) -> Natural | None:
        """Natural parameters of the likelihood and their information, if it is an exponential family; else None."""
        del z
        return None

    def log_prob(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-density log p(x_b, z) in nats."""
        return self.log_likelihood(z) + self.log_prior(z)


class ModelJoint(Joint):
    """Joint density of a `MixtureVAE`, which must be in evaluation mode.

    Args:
        model: the model.
        x: B observations.
        prior: the prior, `model.prior()`; computed by default.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.joint import ModelJoint
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> joint = ModelJoint(model, torch.ones(5, 4))
        >>> joint.log_prob(torch.zeros(7, 5, 2)).shape, joint.natural(torch.zeros(5, 2)).parameters.shape
        (torch.Size([7, 5]), torch.Size([5, 4]))
    """

    def __init__(self, model: MixtureVAE, x: Float[Tensor, "B ..."], prior: Distribution | None = None):
        self.model, self.x = model, x
        self.prior = model.prior() if prior is None else prior
        self.size, self.latent = len(x), self.prior.event_shape[0]
        self.like = x.new_empty(0)

    def log_prior(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-density of the prior, log p(z), in nats."""
        return self.prior.log_prob(z)

    def log_likelihood(self, z: Float[Tensor, "*L B D"]) -> Float[Tensor, "*L B"]:
        """Log-likelihood of each observation at its latents, log p(x_b | z), in nats."""
        return self.model.log_likelihood(self.x, z)

    def sample_prior(self, draws: int) -> Float[Tensor, "L B D"]:
        """Latents drawn from the prior by torch's generator."""
        return self.prior.sample(torch.Size([draws, self.size]))

    def least_precision(self) -> float:
        """Smallest precision of the prior in any direction, which bounds how wide a proposal can usefully be."""
        return least_precision(self.prior)

    def part(self, start: int, stop: int) -> ModelJoint:
        """The same for some of the observations."""
        return ModelJoint(self.model, self.x[start:stop], self.prior)

    def simulated(self, z: Float[Tensor, "B D"]) -> ModelJoint:
        """The same for observations drawn from p(x|z) at these latents by torch's generator."""
        return ModelJoint(self.model, self.model.decoder(z).sample().to(self.x), self.prior)

    def natural(self, z: Float[Tensor, "B D"]) -> Natural | None:
        """Natural parameters of the likelihood and their information, if it is an exponential family; else None."""
        return natural_parameters(self.model.decoder(z), self.x)
