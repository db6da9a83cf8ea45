"""Gated convolutions, and masked ones that treat images pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mixvae._resources import make
from mixvae.networks._dense import LOG_VAR_RANGE, GatedLinear, checked_range, mean_and_log_var
from mixvae.parts import Part
from mixvae.progress import SILENT, Progress

PAPER_LAYERS = ((32, 7, 1), (32, 3, 2), (64, 5, 1), (64, 3, 2), (6, 3, 1))
"""Channels, kernel and stride of each layer of the paper's gated convolutional encoder."""


class GatedConv2d(Part):
    """Gated convolution, (W ∗ x + b) ⊙ σ(V ∗ x + c), as one convolution; keeps H and W up to the stride.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd size of the kernel.
        stride: step of the kernel.

    References:
        van den Oord et al., Conditional Image Generation with PixelCNN Decoders (2016),
        https://arxiv.org/abs/1606.05328
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, kernel, stride, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O h w"]:
        """Apply the layer."""
        return F.glu(self.conv(x), 1)


def image_shape(shape: Sequence[int], what: str) -> tuple[int, int, int]:
    """Channels, height and width, if the data are images.

    Raises:
        ValueError: they are not.
    """
    if len(shape) != 3:
        raise ValueError(f"{what} needs images of shape (C, H, W); got data of shape {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


class GatedConvTrunk(Part):
    """Stack of gated convolutions, flattened: x (B, C, H, W) ↦ (B, features).

    Args:
        shape: (C, H, W) of x.
        layers: (channels, kernel, stride) of every layer.

    Raises:
        ValueError: x is not an image, or a stride does not divide its height or width.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedConvTrunk
        >>> trunk = GatedConvTrunk((1, 28, 28))
        >>> trunk.features, trunk(torch.ones(2, 1, 28, 28)).shape  # 6 channels of 7×7
        (294, torch.Size([2, 294]))
    """

    def __init__(self, shape: Sequence[int], layers: Sequence[Sequence[int]] = PAPER_LAYERS):
        super().__init__()
        channels, height, width = image_shape(shape, "a convolutional encoder")
        whole = math.prod(stride for _, _, stride in layers)
        if height % whole or width % whole:
            raise ValueError(
                f"the strides of the convolutions divide by {whole} in total; images of {height}×{width} pixels are "
                f"not divisible by it: crop or pad them to multiples of {whole}, or choose other layers"
            )
        widths = [channels, *(layer[0] for layer in layers)]
        self.convs = nn.Sequential(
            *(GatedConv2d(i, o, k, s) for i, (o, k, s) in zip(widths[:-1], layers, strict=True))
        ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.features = widths[-1] * (height // whole) * (width // whole)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """Apply the layers."""
        return self.convs(x.contiguous(memory_format=torch.channels_last)).flatten(1)


class GatedConvEncoder(Part):
    """Gated convolutional encoder of the paper: x ↦ mean and log-variance of one Gaussian.

    Args:
        shape: (C, H, W) of x.
        latent: latent size D.
        layers: (channels, kernel, stride) of every layer.
        log_var_range: smallest and largest log σ².

    Raises:
        ValueError: x is not an image, a stride does not divide its size, or log_var_range is not two increasing
            numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedConvEncoder
        >>> mean, log_var = GatedConvEncoder((1, 8, 8), 2, layers=((4, 3, 2), (4, 3, 2)))(torch.ones(5, 1, 8, 8))
        >>> mean.shape, log_var.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        layers: Sequence[Sequence[int]] = PAPER_LAYERS,
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        super().__init__()
        self.log_var_range = checked_range(log_var_range)
        self.trunk = GatedConvTrunk(shape, layers)
        self.head = nn.Linear(self.trunk.features, 2 * latent)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return mean and log-variance, the latter clamped to `log_var_range`."""
        return mean_and_log_var(self.head(self.trunk(x)), self.log_var_range)


class CausalNorm(Part):
    """Normalise over channels at one position, with a scale and a shift per channel.

    No other pixel or example enters, so that a pixel's distribution depends on earlier pixels only.
    GroupNorm over space would see the future, BatchNorm other images too.

    Args:
        channels: number of channels.

    References:
        Ba et al., Layer Normalization (2016), https://arxiv.org/abs/1607.06450

    Example:
        >>> import torch
        >>> from mixvae.networks import CausalNorm
        >>> x = torch.randn(2, 4, 4, 3)
        >>> CausalNorm(3)(x).mean(-1).abs().max() < 1e-5  # over the channels of every pixel
        tensor(True)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Apply the layer over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class MaskedConv2d(Part):
    """Convolution that sees pixels earlier in raster order, and optionally the pixel itself.

    Weights below are never read; weights to the right are masked in `forward`.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd size of the kernel.
        sees_itself: whether it sees the pixel itself: no in the first layer, yes in all later ones.

    References:
        van den Oord et al., Pixel Recurrent Neural Networks (2016), https://arxiv.org/abs/1601.06759

    Example:
        >>> from mixvae.networks import MaskedConv2d
        >>> MaskedConv2d(1, 1, kernel=3, sees_itself=False).mask  # rows up to the pixel
        tensor([[1., 1., 1.],
                [1., 0., 0.]])
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, sees_itself: bool):
        super().__init__()
        self.weight = nn.Conv2d(inputs, outputs, kernel, bias=False).weight
        self.reach = kernel // 2
        mask = torch.ones(self.reach + 1, kernel)
        mask[-1, self.reach + int(sees_itself) :] = 0
        self.register_buffer("mask", mask, persistent=False)

    @property
    def kernel(self) -> Float[Tensor, "O I h w"]:
        """The rows of the kernel at and above the pixel, masked."""
        return self.weight[:, :, : self.reach + 1] * self.mask

    def forward(self, x: Float[Tensor, "N I H W"]) -> Float[Tensor, "N O H W"]:
        """Apply the layer."""
        padded = F.pad(x, (self.reach, self.reach, self.reach, 0))
        return F.conv2d(padded, self.kernel.to(x.dtype).contiguous(memory_format=torch.channels_last))

    def at(self, padded: Float[Tensor, "N I h w"], row: int, column: int) -> Float[Tensor, "N O 1 1"]:
        """Apply the layer at one pixel of an already padded image."""
        patch = padded[:, :, row : row + self.reach + 1, column : column + 2 * self.reach + 1]
        return F.linear(patch.flatten(1), self.kernel.flatten(1))[..., None, None]


class PixelCNN(Part):
    """Masked convolutions from an image and its context to the parameters of every pixel.

    The context enters unmasked, so that it reaches every pixel, including the first. The first layer is computed once
    per image and once per context and summed: many latents share one image.

    Args:
        channels: channels of the image.
        context: feature maps of the context.
        outputs: parameters per pixel.
        layers: number of masked layers.
        width: channels of each.
        kernel: size of the kernels.
        checkpoint: recompute the layers in the backward pass instead of storing their maps.

    Example:
        >>> import torch
        >>> from mixvae.networks import PixelCNN
        >>> network = PixelCNN(channels=1, context=2, outputs=3, layers=2, width=4)
        >>> network(torch.ones(5, 1, 4, 4), torch.zeros(7, 5, 2, 4, 4)).shape  # 7 contexts for each of 5 images
        torch.Size([7, 5, 3, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        context: int,
        outputs: int,
        layers: int = 8,
        width: int = 64,
        kernel: int = 3,
        *,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.checkpoint = checkpoint
        self.image = MaskedConv2d(channels, width, kernel, sees_itself=False)
        self.context = nn.Conv2d(context, width, kernel, padding=kernel // 2, bias=False)
        self.hidden = nn.ModuleList(
            make(lambda: MaskedConv2d(width, width, kernel, sees_itself=True), layers - 1, "layers")
        )
        self.norms = nn.ModuleList(CausalNorm(width) for _ in range(layers))
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Float[Tensor, "*x C H W"], context: Float[Tensor, "*z F H W"]) -> Float[Tensor, "*z P H W"]:
        """Parameters of every pixel: image batches broadcast against context batches."""
        batch = context.shape[:-3]
        of_x = self.image(2 * x.reshape(-1, *x.shape[-3:]) - 1)
        of_z = self.context(context.reshape(-1, *context.shape[-3:]))
        first = of_z.reshape(*batch, *of_z.shape[1:]) + of_x.reshape(*x.shape[:-3], *of_x.shape[1:])
        h = first.reshape(-1, *first.shape[-3:]).contiguous(memory_format=torch.channels_last)
        h = self._after(0, h, None)
        for i in range(1, len(self.norms)):
            h = recomputed(self._hidden, i, h, use_reentrant=False) if self.checkpoint else self._hidden(i, h)
        out = self.out(h)
        return out.reshape(*batch, *out.shape[1:])

    def _hidden(self, layer: int, h: Tensor) -> Tensor:
        """One hidden layer on whole maps."""
        return self._after(layer, self.hidden[layer - 1](h), h)

    def _after(self, layer: int, convolved: Tensor, before: Tensor | None) -> Tensor:
        """Normalise, add the layer's input, and activate: the same at one pixel as at all of them."""
        h = self.norms[layer](convolved.permute(0, 2, 3, 1))  # channels last, where in-place operations need no copy
        return F.relu_(h if before is None else h.add_(before.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    def sample(
        self, context: Tensor, likelihood: Any, channels: int, uniforms: Tensor | None, progress: Progress = SILENT
    ) -> Tensor:
        """Draw images pixel by pixel, computing at each pixel only what is new there.

        Args:
            context: feature maps, (N, F, H, W).
            likelihood: maps parameters (N, P, 1, 1) to a distribution of one pixel.
            channels: channels of the image.
            uniforms: uniform numbers (N, U, H, W); drawn by default.
            progress: where to report how many rows are drawn; silent by default.
        """
        n, _, height, width = context.shape
        of_z = self.context(context)
        reach = self.image.reach
        padded = [
            of_z.new_zeros(n, c, height + reach, width + 2 * reach)
            for c in (channels, *[of_z.shape[1]] * len(self.hidden))
        ]
        for row in range(height):
            for column in range(width):
                here = (..., slice(row, row + 1), slice(column, column + 1))
                there = (..., slice(row + reach, row + reach + 1), slice(column + reach, column + reach + 1))
                h = self._after(0, self.image.at(padded[0], row, column) + of_z[here], None)
                for i, layer in enumerate(self.hidden, 1):
                    padded[i][there] = h
                    h = self._after(i, layer.at(padded[i], row, column), h)  # pyright: ignore
                pixel = likelihood(self.out(h))
                if uniforms is None:
                    u = torch.rand(pixel.uniforms, device=h.device).to(h)
                else:
                    u = uniforms[here]
                padded[0][there] = 2 * pixel.from_uniform(u) - 1
            progress.update(row + 1, height, "drawing rows of pixels")
        return (padded[0][..., reach:, reach : reach + width] + 1) / 2


class GatedDeconv(Part):
    """From a vector to feature maps: gated convolutions and two nearest-neighbour upsamplings.

    Args:
        inputs: features in.
        outputs: (P, H, W) of the maps; H and W divisible by 4.
        width: channels in between.

    Raises:
        ValueError: H or W is not divisible by 4.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedDeconv
        >>> GatedDeconv(2, (3, 8, 8), width=4)(torch.zeros(5, 2)).shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(self, inputs: int, outputs: Sequence[int], width: int = 64):
        super().__init__()
        channels, height, columns = image_shape(outputs, "a convolutional decoder")
        if height % 4 or columns % 4:
            raise ValueError(f"a convolutional decoder needs height and width divisible by 4; got {height}×{columns}")
        self.start = GatedLinear(inputs, width * (height // 4) * (columns // 4))
        self.small = (width, height // 4, columns // 4)
        self.layers = nn.Sequential(
            GatedConv2d(width, width, 3),
            nn.Upsample(scale_factor=2),
            GatedConv2d(width, width, 5),
            nn.Upsample(scale_factor=2),
            GatedConv2d(width, width, 5),
            nn.Conv2d(width, channels, 1),
        )

    def forward(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N P H W"]:
        """Apply the layers."""
        return self.layers(self.start(z).unflatten(-1, self.small))
