"""Gaussian components, whose densities are one matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae.distributions.components import Components, Points
from mixvae.distributions.observations import full_precision

FEW_DRAWS = 2
"""Draws per example up to which `DiagonalGaussian` scores them one by one under more components than that."""
LOG_2PI = math.log(2 * math.pi)
QUADRATIC_ERROR = 5e-3
"""Largest rounding error, in nats, that `DiagonalGaussian` accepts from a matrix product in float32."""


def normal_noise(noise: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return the given noise in the dtype of `like`, or draw standard normal noise of a shape."""
    return torch.randn(*shape, dtype=like.dtype, device=like.device) if noise is None else noise.to(like)


def normal_log_prob(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian over the last axis, in nats, difference by difference."""
    square = (full_precision(value) - mean).square() * (-log_var).exp()
    return -0.5 * (square + log_var + LOG_2PI).sum(-1)


class DiagonalGaussian(Components):
    """Gaussian components with diagonal covariance, N(z; μ_s(x_b), diag σ²_s(x_b)).

    Cross and pairwise densities expand the quadratic, so that all of them are one matrix product:
    log q_j(z) = Σ_d −½ z_d²/σ_jd² + z_d μ_jd/σ_jd² + c_j. Latents are centred first, and where rounding could
    still cost more than `QUADRATIC_ERROR` nats in float32 the product is taken in float64.

    Args:
        mean: μ.
        log_var: log σ².
        log_pi: log mixture weights; uniform by default.

    Raises:
        ValueError: mean and log-variance are not both of one shape (S, B, D).
    """

    def __init__(
        self,
        mean: Float[Tensor, "S B D"],
        log_var: Float[Tensor, "S B D"],
        log_pi: Float[Tensor, " S"] | None = None,
    ):
        if mean.dim() != 3 or mean.shape != log_var.shape:
            raise ValueError(
                "mean and log-variance must both have shape (S, B, D); "
                f"got {tuple(mean.shape)} and {tuple(log_var.shape)}"
            )
        self.loc = full_precision(mean)
        self.log_var = full_precision(log_var)
        log_pi = None if log_pi is None else log_pi.to(self.loc)
        super().__init__(mean.shape[:2], mean.shape[2:], log_pi)
        self.log_pi = self.log_pi.to(self.loc)

    @property
    def mean(self) -> Tensor:
        """Mean of every component, (S, B, D)."""
        return self.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviation of every component, (S, B, D)."""
        return (0.5 * self.log_var).exp()

    @property
    def variance(self) -> Tensor:
        """Variance of every component, (S, B, D)."""
        return self.log_var.exp()

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw z = μ + σ ε from every component: (*sample_shape, S, B, D)."""
        noise = normal_noise(noise, (*sample_shape, *self.loc.shape), self.loc)
        return torch.addcmul(self.loc, self.scale, noise)

    def log_prob(self, value: Points) -> Float[Tensor, "... S B"]:
        """Log-density in nats, evaluated directly, difference by difference."""
        return normal_log_prob(value, self.loc, self.log_var)

    def noise_of(self, value: Points) -> Float[Tensor, "... S B D"]:
        """Noise of a value, (z − μ) / σ."""
        return (value - self.loc) / self.scale

    def select(self, index: Int[Tensor, " K"]) -> DiagonalGaussian:
        """Return the components with these positions; their weights rise by (S/K) to stay unbiased."""
        if len(index) == self.batch_shape[0] and torch.equal(index, torch.arange(len(index), device=index.device)):
            return self
        log_pi = self.log_pi[index] + math.log(self.batch_shape[0] / len(index))
        return DiagonalGaussian(self.loc[index], self.log_var[index], log_pi)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component of its own example, as one batched product.

        A few draws under many components are scored directly: making the product's weights would cost more.
        """
        draws, drawn, batch, latent = z.shape
        if draws * drawn <= FEW_DRAWS < self.batch_shape[0]:
            return self.log_prob(z.unsqueeze(-3))
        points = z.permute(2, 0, 1, 3).reshape(batch, draws * drawn, latent)  # one group of points per example
        scored = _quadratic(points, *self._quadratic_by_example)  # (B, L·S, J)
        return scored.reshape(batch, draws, drawn, -1).permute(1, 2, 3, 0)

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example, as one product."""
        return _quadratic(z[None], *self._quadratic_of_all)[0].unflatten(-1, self.batch_shape)

    @cached_property
    def _quadratic_by_example(self) -> tuple[Tensor, Tensor, Tensor]:
        return _quadratic_weights(self.loc.transpose(0, 1), self.log_var.transpose(0, 1))

    @cached_property
    def _quadratic_of_all(self) -> tuple[Tensor, Tensor, Tensor]:
        return _quadratic_weights(self.loc.flatten(0, 1)[None], self.log_var.flatten(0, 1)[None])


def _quadratic_weights(
    mean: Float[Tensor, "G J D"], log_var: Float[Tensor, "G J D"]
) -> tuple[Float[Tensor, "G 1 D"], Float[Tensor, "G J 2*D"], Float[Tensor, "G 1 J"]]:
    """Centre, weights and constants that make Gaussian log-densities a product with [z², z]."""
    with torch.no_grad():
        centre = mean.mean(1, keepdim=True)
        error = ((mean - centre).square() * (-log_var).exp()).sum(-1).max() * torch.finfo(mean.dtype).eps
        exact = error > QUADRATIC_ERROR  # NaN compares false, and stays NaN
    if mean.dtype == torch.float32 and bool(exact):
        mean, log_var, centre = mean.double(), log_var.double(), centre.double()
    mean = mean - centre
    precision = (-log_var).exp()
    weights = torch.cat([-0.5 * precision, mean * precision], -1)
    constant = -0.5 * (mean.square() * precision + log_var + LOG_2PI).sum(-1)
    return centre, weights, constant.unsqueeze(1)


def _quadratic(
    z: Float[Tensor, "G N D"],
    centre: Float[Tensor, "G 1 D"],
    weights: Float[Tensor, "G J 2*D"],
    constant: Float[Tensor, "G 1 J"],
) -> Float[Tensor, "G N J"]:
    """Log-density of every point of a group under every Gaussian of that group."""
    with torch.autocast(z.device.type, enabled=False):
        point = z.to(weights.dtype) - centre
        features = torch.cat([point.square(), point], -1)
        return torch.baddbmm(constant, features, weights.transpose(1, 2)).to(full_precision(z).dtype)
