"""Decoders that give every value of x its own distribution, and likelihoods for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from mixvae._failures import at_least
from mixvae.distributions import Bernoulli, DiscretizedLogisticMixture, full_precision
from mixvae.networks import GatedDeconv, gated_mlp
from mixvae.networks._conv import image_shape
from mixvae.parts import Part

Likelihood = Callable[[Tensor], Distribution]
"""Maps a network's output to one distribution per value of x: a distribution class, or a module."""


@runtime_checkable
class Shaped(Protocol):
    """A likelihood that does not have one parameter per value of x."""

    output_shape: tuple[int, ...]
    """Shape of its parameters for one example."""

    def __call__(self, parameters: Tensor, /) -> Distribution:
        """Return the distribution."""
        ...


class GaussianLikelihood(Part):
    """Gaussian likelihood with a learned variance per value, N(x_d; m_d(z), σ_d²), for real data.

    σ has a floor, so that a constant column cannot drive the likelihood to infinity.

    Args:
        shape: event shape of x.
        minimum: smallest standard deviation, in the units of x.

    Example:
        >>> import torch
        >>> from mixvae.decoders import GaussianLikelihood, MLPDecoder
        >>> decoder = MLPDecoder(2, (4,), (8,), likelihood=GaussianLikelihood((4,)))
        >>> p = decoder(torch.zeros(5, 2))
        >>> p.log_prob(torch.zeros(5, 4)).shape, p.stddev[0].detach()  # σ starts at 1
        (torch.Size([5]), tensor([1.0010, 1.0010, 1.0010, 1.0010]))
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


class LogisticMixture(Part):
    """Discretised mixture of logistics for 8-bit grey or RGB images, channels autoregressive.

    Args:
        shape: (C, H, W) of x.
        mixtures: number of logistics per pixel.
        levels: number of levels minus one, 255 for 8 bits.

    Raises:
        ValueError: the data are not images.

    References:
        Salimans et al., PixelCNN++ (2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> import torch
        >>> from mixvae.decoders import ConvDecoder, LogisticMixture
        >>> decoder = ConvDecoder(2, (3, 8, 8), width=4, likelihood=LogisticMixture((3, 8, 8), mixtures=2))
        >>> p = decoder(torch.zeros(5, 2))
        >>> p.event_shape, p.log_prob(torch.ones(5, 3, 8, 8)).shape
        (torch.Size([3, 8, 8]), torch.Size([5]))
    """

    def __init__(self, shape: Sequence[int], mixtures: int = 3, levels: int = 255):
        super().__init__()
        at_least(1, mixtures=mixtures, levels=levels)
        self.channels, height, width = image_shape(shape, "a mixture of logistics")
        self.levels = levels
        per_mixture = 1 + 2 * self.channels + self.channels * (self.channels - 1) // 2
        self.output_shape = (mixtures * per_mixture, height, width)

    def forward(self, parameters: Tensor) -> DiscretizedLogisticMixture:
        """Return the distribution of the image."""
        return DiscretizedLogisticMixture(parameters, self.channels, self.levels)


def output_shape(likelihood: Likelihood, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the parameters that a likelihood needs: one per value of x unless it declares another.

    Raises:
        ValueError: the likelihood is Bernoulli and the images have three colours, or it is torch's own class.
    """
    if likelihood in (torch.distributions.Bernoulli, torch.distributions.ContinuousBernoulli):
        name = getattr(likelihood, "__name__", "")
        raise ValueError(
            f"torch.distributions.{name} takes probabilities first, and a decoder's network gives logits: use "
            f"mixvae.decoders.{name}"
        )
    if likelihood is Bernoulli and len(shape) == 3 and shape[0] == 3:
        raise ValueError(
            f"a Bernoulli likelihood describes binary images; got RGB images of shape {tuple(shape)}: use "
            "LogisticMixture and data.binarize none"
        )
    return tuple(likelihood.output_shape if isinstance(likelihood, Shaped) else shape)


class Decoder(Part):
    """Any network with a likelihood: p(x|z) = Π_d p(x_d | network(z)_d).

    Args:
        network: maps (N, D) to (N, *shape): one parameter, such as a logit or a mean, per value of x.
        likelihood: maps that output to a distribution per value: `Bernoulli`, `ContinuousBernoulli`,
            a `GaussianLikelihood(shape)` module, or any callable that returns a torch Distribution.

    Example:
        >>> import torch
        >>> from mixvae.decoders import ContinuousBernoulli, Decoder
        >>> decoder = Decoder(torch.nn.Linear(2, 4), ContinuousBernoulli)
        >>> p = decoder(torch.zeros(3, 5, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([3, 5]), torch.Size([4]))
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood = Bernoulli):
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    def forward(self, z: Float[Tensor, "... D"]) -> Distribution:
        """Return p(x|z) with batch shape z.shape[:-1] and event shape x.shape[1:]."""
        batch = z.shape[:-1]
        output = self.network(z.reshape(-1, z.shape[-1]))
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the network of a Decoder must return a tensor of parameters, such as logits; "
                f"{type(self.network).__name__} returned {type(output).__name__}: a network that returns a joint "
                "distribution of the values of x is a decoder by itself"
            )
        output = output.reshape(*batch, *output.shape[1:])
        p = self.likelihood(output)
        single = len(p.batch_shape) - len(batch)  # axes of x that the likelihood treats as independent
        return Independent(p, single, validate_args=False) if single else p


class MLPDecoder(Decoder):
    """Gated fully connected decoder of the paper.

    Args:
        latent: latent size D.
        shape: event shape of x.
        hidden: widths of the gated layers.
        likelihood: distribution of a value given the network's output.

    Example:
        >>> import torch
        >>> from mixvae.decoders import MLPDecoder
        >>> decoder = MLPDecoder(2, (1, 8, 8), hidden=(16,))
        >>> decoder(torch.zeros(3, 5, 2)).log_prob(torch.ones(5, 1, 8, 8)).shape  # 3 latents for each of 5 images
        torch.Size([3, 5])
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        hidden: Sequence[int] = (300, 300),
        likelihood: Likelihood = Bernoulli,
    ):
        parameters = output_shape(likelihood, shape)
        network = nn.Sequential(
            gated_mlp(latent, hidden), nn.Linear(hidden[-1], math.prod(parameters)), nn.Unflatten(-1, parameters)
        )
        super().__init__(network, likelihood)


class ConvDecoder(Decoder):
    """Gated convolutional decoder.

    Args:
        latent: latent size D.
        shape: (C, H, W) of x, H and W divisible by 4.
        width: channels of the layers.
        likelihood: distribution of a value given the network's output.

    Raises:
        ValueError: the data are not images, or their height or width is not divisible by 4.

    Example:
        >>> import torch
        >>> from mixvae.decoders import ConvDecoder
        >>> decoder = ConvDecoder(2, (1, 8, 8), width=4)
        >>> decoder(torch.zeros(3, 5, 2)).log_prob(torch.ones(5, 1, 8, 8)).shape  # 3 latents for each of 5 images
        torch.Size([3, 5])
    """

    def __init__(self, latent: int, shape: Sequence[int], width: int = 64, likelihood: Likelihood = Bernoulli):
        super().__init__(GatedDeconv(latent, output_shape(likelihood, shape), width), likelihood)
