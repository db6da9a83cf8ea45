"""Gated dense layers, and encoders built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mixvae.parts import Part

LOG_VAR_RANGE = (-6.0, 2.0)
"""Default range of an encoder's log σ²: narrower posteriors gain nothing on 8-bit images and lose digits in float32.

Data on the real line with little noise can have narrower posteriors: give their encoder a `log_var_range` of its own.
"""


class _Returning(torch.autograd.Function):
    """Clamp whose gradient outside the range is that at the end if descending it leads back inside, else zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        del output
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        leaves = ((x > ctx.high) & (grad < 0)) | ((x < ctx.low) & (grad > 0))
        return grad.masked_fill(leaves, 0), None, None


def clamped_log_var(
    log_var: Float[Tensor, "... D"], log_var_range: Sequence[float] = LOG_VAR_RANGE
) -> Float[Tensor, "... D"]:
    """Clamp a log-variance in such a way that training can bring it back into the range.

    A plain clamp has no gradient outside the range: a log σ² that once overshoots is stuck for its inputs. This one
    passes the gradient of a loss on, unless a step down that gradient would lead further out. Values are those of a
    plain clamp, and so are gradients within the range. It must be minimised: outside the range, the gradient of −loss
    is not the negative of that of the loss.

    Args:
        log_var: log σ².
        log_var_range: its smallest and largest value.
    """
    low, high = log_var_range
    return _Returning.apply(log_var, low, high)  # pyright: ignore[reportReturnType]


def checked_range(log_var_range: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest log σ² as two numbers.

    Raises:
        ValueError: they are not two finite numbers, the smaller first.
    """
    ends = tuple(log_var_range)
    if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise ValueError(
            f"log_var_range must be the smallest and the largest log-variance, such as [-6, 2]; got {list(ends)}"
        )
    return float(ends[0]), float(ends[1])


def mean_and_log_var(
    head: Float[Tensor, "... P"], log_var_range: Sequence[float] = LOG_VAR_RANGE
) -> tuple[Float[Tensor, "... D"], Float[Tensor, "... D"]]:
    """Split a network's output in two: a mean, and a log-variance clamped to a range.

    Outside the range the gradient is passed on where descending it leads back inside, and is zero otherwise.

    Args:
        head: the network's output.
        log_var_range: smallest and largest log σ².

    Example:
        >>> import torch
        >>> from mixvae.networks import mean_and_log_var
        >>> mean_and_log_var(torch.tensor([1.0, 2.0, 9.0, -9.0]))
        (tensor([1., 2.]), tensor([ 2., -6.]))
    """
    mean, log_var = head.chunk(2, -1)
    return mean, clamped_log_var(log_var, log_var_range)


class GatedLinear(Part):
    """Gated dense layer, (W x + b) ⊙ σ(V x + c), as one matrix product.

    Args:
        inputs: number of input features.
        outputs: number of output features.

    References:
        Dauphin et al., Language Modeling with Gated Convolutional Networks (2016),
        https://arxiv.org/abs/1612.08083

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedLinear
        >>> GatedLinear(4, 3)(torch.ones(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """Apply the layer to the last axis."""
        return F.glu(self.linear(x), -1)


def gated_mlp(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Stack gated dense layers: `inputs` features in, `hidden[-1]` features out.

    Raises:
        ValueError: there is no hidden layer.

    Example:
        >>> import torch
        >>> from mixvae.networks import gated_mlp
        >>> gated_mlp(4, (16, 8))(torch.ones(5, 4)).shape
        torch.Size([5, 8])
    """
    if not hidden:
        raise ValueError("hidden must name at least one layer width, such as [300, 300]; got none")
    widths = [inputs, *hidden]
    return nn.Sequential(*(GatedLinear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)))


class GatedTrunk(Part):
    """Gated dense layers on x: the features that a `OneHotPosterior` shares among its components.

    Args:
        shape: event shape of x, such as (1, 28, 28) or (64,).
        hidden: widths of the gated layers.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedTrunk
        >>> GatedTrunk((1, 28, 28), hidden=(16, 8))(torch.ones(5, 1, 28, 28)).shape
        torch.Size([5, 8])
    """

    def __init__(self, shape: Sequence[int], hidden: Sequence[int] = (300, 300)):
        super().__init__()
        self.layers = gated_mlp(math.prod(shape), hidden)

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B F"]:
        """Return the features."""
        return self.layers(x.flatten(1))


class GatedEncoder(Part):
    """Gated fully connected encoder of the paper: x ↦ mean and log-variance of one Gaussian.

    Args:
        shape: event shape of x, such as (1, 28, 28) or (64,).
        latent: latent size D.
        hidden: widths of the gated layers.
        log_var_range: smallest and largest log σ².

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedEncoder
        >>> mean, log_var = GatedEncoder((1, 28, 28), 2, hidden=(16,))(torch.ones(5, 1, 28, 28))
        >>> mean.shape, log_var.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (300, 300),
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        super().__init__()
        self.log_var_range = checked_range(log_var_range)
        self.trunk = gated_mlp(math.prod(shape), hidden)
        self.head = nn.Linear(hidden[-1], 2 * latent)

    def forward(self, x: Float[Tensor, "B ..."]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return mean and log-variance, the latter clamped to `log_var_range`."""
        return mean_and_log_var(self.head(self.trunk(x.flatten(1))), self.log_var_range)
