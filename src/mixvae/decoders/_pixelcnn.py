"""Decoders that describe an image pixel by pixel."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from mixvae._failures import at_least
from mixvae.decoders._factorised import Likelihood, Shaped, output_shape
from mixvae.distributions import Autoregressive, Bernoulli
from mixvae.networks import GatedLinear, PixelCNN
from mixvae.networks._conv import image_shape
from mixvae.parts import Part


class PixelCNNDecoder(Part):
    """Autoregressive decoder p(x|z) = Π_i p(x_i | x_1 … x_{i−1}, z) by masked convolutions, given z at every pixel.

    It has no BatchNorm: an image's likelihood depends on that image and z alone, in training as in evaluation.

    Args:
        latent: latent size D.
        shape: (C, H, W) of x.
        layers: number of masked layers.
        width: channels of each.
        maps: feature maps that z becomes.
        likelihood: `Bernoulli` for binary images, or a `LogisticMixture` for 8-bit ones.
        checkpoint: recompute the layers in the backward pass instead of storing their maps: slower, less memory.

    Raises:
        ValueError: the data are not images, or have colour with a Bernoulli likelihood, or the likelihood cannot be
            sampled pixel by pixel.

    References:
        van den Oord et al., Conditional Image Generation with PixelCNN Decoders (2016),
        https://arxiv.org/abs/1606.05328

    Example:
        >>> import torch
        >>> from mixvae.decoders import PixelCNNDecoder
        >>> p = PixelCNNDecoder(2, (1, 4, 4), layers=2, width=4)(torch.zeros(5, 2))
        >>> p.log_prob(torch.ones(5, 1, 4, 4)).shape, p.sample().shape
        (torch.Size([5]), torch.Size([5, 1, 4, 4]))
    """

    def __init__(
        self,
        latent: int,
        shape: Sequence[int],
        layers: int = 8,
        width: int = 64,
        maps: int = 1,
        likelihood: Likelihood = Bernoulli,
        *,
        checkpoint: bool = False,
    ):
        super().__init__()
        at_least(1, layers=layers, width=width, maps=maps)
        channels, height, columns = image_shape(shape, "a PixelCNN decoder")
        if likelihood is Bernoulli and channels > 1:
            raise ValueError(
                f"a Bernoulli likelihood describes binary images of one channel; got {channels} channels: "
                "use LogisticMixture"
            )
        parameters = output_shape(likelihood, shape)
        if not isinstance(likelihood, Shaped) and likelihood is not Bernoulli:
            name = likelihood.__name__ if inspect.isclass(likelihood) else type(likelihood).__name__
            raise ValueError(f"a PixelCNN decoder takes Bernoulli or LogisticMixture as its likelihood; got {name}")
        self.shape, self.parameters_shape = tuple(shape), parameters
        self.likelihood = likelihood
        self.conditioning = nn.Sequential(
            GatedLinear(latent, maps * height * columns), nn.Unflatten(-1, (maps, height, columns))
        )
        self.network = PixelCNN(channels, maps, parameters[0], layers, width, checkpoint=checkpoint)

    def forward(self, z: Float[Tensor, "... D"]) -> Autoregressive:
        """Return p(x|z) with batch shape z.shape[:-1] and event shape (C, H, W)."""
        return Autoregressive(self.network, self.conditioning(z), self.likelihood, self.shape, self.parameters_shape)
