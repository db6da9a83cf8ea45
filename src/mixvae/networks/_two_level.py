"""Encoders of two levels: z2 from x, and z1 from x and z2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixvae.networks._conv import PAPER_LAYERS, GatedConvTrunk
from mixvae.networks._dense import LOG_VAR_RANGE, GatedLinear, checked_range, gated_mlp, mean_and_log_var
from mixvae.parts import Part

GaussianParameters = tuple[Float[Tensor, "... D"], Float[Tensor, "... D"]]


class TwoLevelEncoder(Part):
    """Encoder of one component: x ↦ mean and log-variance of z2, and a function from z2 to those of z1.

    Features of x are computed once; only the joint layer runs again for every z2 that is scored.

    Args:
        upper: maps x to features for z2.
        lower: maps x to features for z1.
        features: number of features that each returns.
        latent: latent size of each level.
        width: width of the layers that see z2.
        log_var_range: smallest and largest log σ² of both levels.

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import GatedTrunk, TwoLevelEncoder
        >>> encoder = TwoLevelEncoder(GatedTrunk((4,), (8,)), GatedTrunk((4,), (8,)), features=8, latent=2, width=8)
        >>> mean, log_var, below = encoder(torch.ones(5, 4))  # of z2
        >>> below(mean)[0].shape  # mean of z1 given z2
        torch.Size([5, 2])
    """

    def __init__(
        self,
        upper: nn.Module,
        lower: nn.Module,
        features: int,
        latent: int,
        width: int = 300,
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        super().__init__()
        self.log_var_range = checked_range(log_var_range)
        self.upper, self.lower = upper, lower
        self.head = nn.Linear(features, 2 * latent)
        self.from_top = GatedLinear(latent, width)
        self.from_x = nn.Linear(features, 2 * width)
        self.joint = nn.Linear(width, 2 * width, bias=False)
        self.lower_head = nn.Linear(width, 2 * latent)

    def forward(self, x: Float[Tensor, "B ..."]) -> tuple[Tensor, Tensor, Callable[[Tensor], GaussianParameters]]:
        """Return mean and log-variance of z2, and the function from z2 (…, B, D) to those of z1."""
        mean, log_var = self.encode_top(x)
        features = self.from_x(self.lower(x))  # (B, 2 width)

        def below(z2: Float[Tensor, "... B D"]) -> GaussianParameters:
            joint = self.joint(self.from_top(z2)) + features
            return mean_and_log_var(self.lower_head(nn.functional.glu(joint, -1)), self.log_var_range)

        return mean, log_var, below

    def encode_top(self, x: Float[Tensor, "B ..."]) -> GaussianParameters:
        """Mean and log-variance of z2 alone."""
        return mean_and_log_var(self.head(self.upper(x)), self.log_var_range)


class TwoLevelDense(TwoLevelEncoder):
    """Two-level encoder with gated dense layers.

    Args:
        shape: event shape of x.
        latent: latent size of each level.
        hidden: widths of the gated layers on x.
        log_var_range: smallest and largest log σ² of both levels.

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import TwoLevelDense
        >>> encoder = TwoLevelDense((4,), 2, hidden=(8,))
        >>> mean, log_var, below = encoder(torch.ones(5, 4))  # of z2
        >>> below(mean)[0].shape  # mean of z1 given z2
        torch.Size([5, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        hidden: Sequence[int] = (300, 300),
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        upper, lower = (nn.Sequential(nn.Flatten(), gated_mlp(math.prod(shape), hidden)) for _ in range(2))
        super().__init__(upper, lower, hidden[-1], latent, hidden[-1], log_var_range=log_var_range)


class TwoLevelConv(TwoLevelEncoder):
    """Two-level encoder with the paper's gated convolutions.

    Args:
        shape: (C, H, W) of x.
        latent: latent size of each level.
        layers: (channels, kernel, stride) of every layer on x.
        width: width of the layers that see z2.
        log_var_range: smallest and largest log σ² of both levels.

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import TwoLevelConv
        >>> encoder = TwoLevelConv((1, 8, 8), 2, layers=((4, 3, 2),), width=8)
        >>> mean, log_var, below = encoder(torch.ones(5, 1, 8, 8))  # of z2
        >>> below(mean)[0].shape  # mean of z1 given z2
        torch.Size([5, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        layers: Sequence[Sequence[int]] = PAPER_LAYERS,
        width: int = 300,
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        upper, lower = (GatedConvTrunk(shape, layers) for _ in range(2))
        super().__init__(upper, lower, upper.features, latent, width, log_var_range=log_var_range)


class GaussianNetwork(Part):
    """Gated dense network from one latent to the mean and log-variance of another: p(z1|z2).

    Args:
        inputs: size of z2.
        latent: size of z1.
        hidden: widths of the gated layers.
        log_var_range: smallest and largest log σ².

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    Example:
        >>> import torch
        >>> from mixvae.networks import GaussianNetwork
        >>> mean, log_var = GaussianNetwork(2, 3, hidden=(8,))(torch.zeros(5, 2))
        >>> mean.shape, log_var.shape
        (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        inputs: int,
        latent: int,
        hidden: Sequence[int] = (300, 300),
        *,
        log_var_range: Sequence[float] = LOG_VAR_RANGE,
    ):
        super().__init__()
        self.log_var_range = checked_range(log_var_range)
        self.net = nn.Sequential(gated_mlp(inputs, hidden), nn.Linear(hidden[-1], 2 * latent))

    def forward(self, z2: Float[Tensor, "... D2"]) -> GaussianParameters:
        """Return mean and log-variance of z1."""
        return mean_and_log_var(self.net(z2), self.log_var_range)


def stack_components(below: Sequence[Callable[[Tensor], GaussianParameters]], z2: Tensor) -> GaussianParameters:
    """Apply component j's function at its own z2, or at a shared one if the component axis −3 has size 1.

    Example:
        >>> import torch
        >>> from mixvae.networks import GaussianNetwork, stack_components
        >>> below = [GaussianNetwork(2, 3, hidden=(8,)) for _ in range(4)]
        >>> stack_components(below, torch.zeros(1, 5, 2))[0].shape
        torch.Size([4, 5, 3])
    """
    own = z2.shape[-3] == len(below)
    parts = [function(z2[..., j if own else 0, :, :]) for j, function in enumerate(below)]
    mean, log_var = (torch.stack(part, -3) for part in zip(*parts, strict=True))
    return mean, log_var
