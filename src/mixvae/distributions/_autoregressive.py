"""Distributions of images, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from mixvae.progress import SILENT, Progress


@runtime_checkable
class PixelNetwork(Protocol):
    """A network in which the output at a pixel depends on earlier pixels only, and on the context."""

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        """Parameters (*, P, H, W) of every pixel, from an image (*, C, H, W) and its context (*, F, H, W)."""
        ...

    def sample(
        self, context: Tensor, likelihood: Any, channels: int, uniforms: Tensor | None, progress: Progress = SILENT
    ) -> Tensor:
        """Images (N, C, H, W) drawn pixel by pixel for contexts (N, F, H, W), reported row by row."""
        ...


class Autoregressive(Distribution):
    """p(x) = Π_i p(x_i | x_1 … x_{i−1}, context), over images in raster order.

    An image is scored in one masked pass and sampled pixel by pixel.

    Args:
        network: computes each pixel's parameters from the pixels before it.
        context: features at every pixel, (*, F, H, W).
        likelihood: maps parameters to a distribution of pixels.
        shape: event shape (C, H, W).
        parameters: shape of an image's parameters; the event shape by default.

    References:
        van den Oord et al., Conditional Image Generation with PixelCNN Decoders (2016),
        https://arxiv.org/abs/1606.05328

    Example:
        >>> import torch
        >>> from mixvae.distributions import Autoregressive, Bernoulli
        >>> from mixvae.networks import PixelCNN
        >>> network = PixelCNN(channels=1, context=2, outputs=1, layers=2, width=4)
        >>> p = Autoregressive(network, torch.zeros(3, 2, 4, 4), Bernoulli, (1, 4, 4))
        >>> x = p.sample()
        >>> x.shape, p.log_prob(x).shape
        (torch.Size([3, 1, 4, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        network: PixelNetwork,
        context: Tensor,
        likelihood: Any,
        shape: Sequence[int],
        parameters: Sequence[int] | None = None,
    ):
        self.network, self.context, self.likelihood = network, context, likelihood
        self.parameters = tuple(parameters or shape)
        super().__init__(context.shape[:-3], torch.Size(shape), validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: the context may be any tensor."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """Images whose pixels lie in the likelihood's support."""
        empty = self.context.new_zeros(self.parameters)
        inner = self.likelihood(empty).support
        return constraints.independent(inner, 3 - inner.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of whole images in nats."""
        log_p = self.likelihood(self.network(value, self.context)).log_prob(value)
        return log_p.flatten(len(self.batch_shape)).sum(-1) if log_p.dim() > len(self.batch_shape) else log_p

    def sample(
        self, sample_shape: Sequence[int] = (), uniforms: Tensor | None = None, progress: Progress = SILENT
    ) -> Tensor:
        """Draw images pixel by pixel.

        Args:
            sample_shape: leading shape of the draws.
            uniforms: uniform numbers (N, U, H, W) to draw with, N counting all images; drawn by default.
            progress: where to report how many rows of the images are drawn; silent by default.
        """
        shape = (*sample_shape, *self.batch_shape)
        context = self.context.expand(*shape, *self.context.shape[-3:]).flatten(0, -4)
        if not shape:
            context = self.context[None]
        with torch.no_grad():
            images = self.network.sample(context, self.likelihood, self.event_shape[0], uniforms, progress)
        return images.reshape(*shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """One draw: the mean of p(x) has no closed form, and a draw is unbiased for it."""
        return self.sample()
