"""A head that computes the parameters of hundreds of components at the cost of a few weights each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixvae.networks._dense import LOG_VAR_RANGE, checked_range, clamped_log_var
from mixvae.parts import Part

HEADS, LAYERS = 2, 3
"""One head for the mean and one for the log-variance, of three layers each."""


class OneHotHead(Part):
    """Mean and log-variance of A components from features h(x) shared by all of them.

    Each head has three residual layers with inputs [h, one-hot(a), previous layer]:

        r₁ = relu(H₁ h + e₁(a) + b₁),  r₂ = r₁ + relu(H₂ h + e₂(a) + P₂ r₁ + b₂),  out = r₂ + H₃ h + e₃(a) + P₃ r₂ + b₃

    The product with a one-hot vector is a column e(a) of the weight matrix, and the products with h are computed once
    for all components. A component costs 2 · 3 · D weights.

    Args:
        features: number of features of h.
        latent: latent size D, the width of every layer.
        components: number of components A.
        log_var_range: smallest and largest log σ².

    Raises:
        ValueError: log_var_range is not two increasing numbers.

    References:
        Hotti et al., Efficient Mixture Learning in Black-Box Variational Inference (2024),
        https://arxiv.org/abs/2406.07083

    Example:
        >>> import torch
        >>> from mixvae.networks import OneHotHead
        >>> mean, log_var = OneHotHead(features=8, latent=2, components=400)(torch.ones(5, 8))
        >>> mean.shape
        torch.Size([400, 5, 2])
    """

    def __init__(self, features: int, latent: int, components: int, *, log_var_range: Sequence[float] = LOG_VAR_RANGE):
        super().__init__()
        self.log_var_range = checked_range(log_var_range)
        self.projection = nn.Linear(features, HEADS * LAYERS * latent)
        self.component = nn.Parameter(torch.empty(components, HEADS, LAYERS, latent))
        self.previous = nn.Parameter(torch.empty(HEADS, LAYERS - 1, latent, latent))
        self.latent = latent
        spread = 1 / math.sqrt(features + components + latent)  # as one linear layer over [h, one-hot, previous]
        for weight in (self.projection.weight, self.projection.bias, self.component, self.previous):
            nn.init.uniform_(weight, -spread, spread)

    def forward(
        self, h: Float[Tensor, "B F"], index: Int[Tensor, " J"] | None = None
    ) -> tuple[Float[Tensor, "J B D"], Float[Tensor, "J B D"]]:
        """Return mean and log-variance of the chosen components, all by default."""
        projected = self.projection(h).unflatten(-1, (HEADS, LAYERS, 1, self.latent))
        own = self.component if index is None else self.component[index]
        # made contiguous while small: their broadcast sums are then contiguous too, and need no copies
        shared = projected.permute(1, 2, 3, 0, 4).contiguous()  # (2, 3, 1, B, D)
        own = own.permute(1, 2, 0, 3).contiguous().unsqueeze(-2)  # (2, 3, J, 1, D)

        def fed(layer: int) -> Float[Tensor, "2 N D"]:
            return (shared[:, layer] + own[:, layer]).flatten(1, 2)  # a view: in-place changes to it would cost copies

        r = fed(0).relu()
        r = r + torch.baddbmm(fed(1), r, self.previous[:, 0]).relu_()
        identity = torch.eye(self.latent, dtype=h.dtype, device=h.device)
        r = torch.baddbmm(fed(2), r, self.previous[:, 1] + identity)  # the residual sum is part of the product
        mean, log_var = r.unflatten(1, (-1, h.shape[0])).unbind()
        return mean, clamped_log_var(log_var, self.log_var_range)
