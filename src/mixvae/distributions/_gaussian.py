"""Gaussian components, whose densities are one matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixvae.distributions._components import Components, Points
from mixvae.distributions._observations import full_precision

FEW = 16
"""Up to this many points, or components, Gaussian log-densities are computed directly, difference by difference."""
LOG_2PI = math.log(2 * math.pi)


def normal_noise(noise: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return the given noise in the dtype of `like`, or draw standard normal noise of a shape."""
    return torch.randn(*shape, dtype=like.dtype, device=like.device) if noise is None else noise.to(like)


def normal_log_prob(value: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian over the last axis, in nats, difference by difference.

    Example:
        >>> import torch
        >>> from mixvae.distributions import normal_log_prob
        >>> normal_log_prob(torch.zeros(2), torch.zeros(2), torch.zeros(2))  # −log 2π
        tensor(-1.8379)
    """
    square = ((full_precision(value) - mean) * (-0.5 * log_var).exp()).square().sum(-1)
    return -0.5 * (square + (log_var + LOG_2PI).sum(-1))


class DiagonalGaussian(Components):
    """Gaussian components with diagonal covariance, N(z; μ_s(x_b), diag σ²_s(x_b)).

    Cross and pairwise densities of many points under many components expand the quadratic, so that all of them are one
    matrix product: log q_j(z) = Σ_d −½ z_d²/σ_jd² + z_d μ_jd/σ_jd² + c_j. Its terms cancel, losing more nats in float32
    than a narrow posterior can spare, so latents are centred and the product is taken in float64. The remaining error
    is about 1e-16 D^{3/2} (r/σ)² nats at a distance r from the centre: 1e-6 at r = 10⁴ σ, but whole nats beyond 10⁷ σ.
    The best component of every point is therefore scored again directly, in the pairwise product with the other
    components of its example, so that narrow posteriors that lie far apart are exact where they count; other components
    close to the best one keep this error. A few points or a few components are scored directly, which costs less than
    the factors.

    Args:
        mean: μ.
        log_var: log σ².
        log_pi: log mixture weights; uniform by default.

    Raises:
        ValueError: mean and log-variance do not both have the same shape (S, B, D).

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiagonalGaussian
        >>> q = DiagonalGaussian(torch.zeros(3, 5, 2), torch.zeros(3, 5, 2))
        >>> q.batch_shape, q.event_shape, q.rsample((7,)).shape
        (torch.Size([3, 5]), torch.Size([2]), torch.Size([7, 3, 5, 2]))
        >>> q.log_prob(torch.zeros(1, 1, 2))[:, 0]  # −log 2π under each component
        tensor([-1.8379, -1.8379, -1.8379])
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
        self._factors: dict[str, _Factors] = {}

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
        """Return the components with these positions; their weights are scaled by S/K to stay unbiased."""
        log_pi = self.log_pi[index] + math.log(self.batch_shape[0] / len(index))
        return DiagonalGaussian(self.loc[index], self.log_var[index], log_pi)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component of its own example, as one batched product."""
        draws, drawn, batch, latent = z.shape
        if min(draws * drawn, self.batch_shape[0]) <= FEW:
            return self.log_prob(z.unsqueeze(-3))
        points = z.permute(2, 0, 1, 3).reshape(batch, draws * drawn, latent)  # one group of points per example
        if "by example" not in self._factors:
            self._factors["by example"] = _factors(self.loc.transpose(0, 1), self.log_var.transpose(0, 1))
        scored = _quadratic(points, *self._factors["by example"])  # (B, L·S, J)
        best = scored.detach().argmax(-1, keepdim=True)
        scored = _rescored(scored, points, self.loc.transpose(0, 1), self.log_var.transpose(0, 1), best)
        return scored.reshape(batch, draws, drawn, -1).permute(1, 2, 3, 0)

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example, as one product."""
        if min(len(z), self.batch_shape.numel()) <= FEW:
            return self.log_prob(z[:, None, None])
        if "of all" not in self._factors:
            self._factors["of all"] = _factors(self.loc.flatten(0, 1)[None], self.log_var.flatten(0, 1)[None])
        scored = _quadratic(z[None], *self._factors["of all"])
        best = scored.detach().argmax(-1, keepdim=True)
        components, examples = self.batch_shape
        if components <= FEW:  # all of the example's, which lie near one another
            best = best % examples + examples * torch.arange(components, device=best.device)
        scored = _rescored(scored, z[None], self.loc.flatten(0, 1)[None], self.log_var.flatten(0, 1)[None], best)
        return scored[0].unflatten(-1, self.batch_shape)


_Factors = tuple[Float[Tensor, "G 1 D"], Float[Tensor, "G J 2*D"], Float[Tensor, "G 1 J"]]
"""Centre, weights and constants that make Gaussian log-densities a product with [z², z]."""


def _factors(mean: Float[Tensor, "G J D"], log_var: Float[Tensor, "G J D"]) -> _Factors:
    """Factors of the Gaussians' quadratic, always in float64, so that no value has to be read."""
    mean, log_var = mean.double(), log_var.double()
    centre = mean.detach().mean(1, keepdim=True)
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
    point = z.double() - centre  # float64, which autocast leaves alone
    features = torch.cat([point.square(), point], -1)
    return torch.baddbmm(constant, features, weights.transpose(1, 2)).to(full_precision(z).dtype)


def _rescored(
    scored: Float[Tensor, "G N J"],
    z: Float[Tensor, "G N D"],
    mean: Float[Tensor, "G J D"],
    log_var: Float[Tensor, "G J D"],
    index: Int[Tensor, "G N K"],
) -> Float[Tensor, "G N J"]:
    """Replace the log-densities of K Gaussians for every point by direct ones, in place."""
    groups, _, components = scored.shape
    first = components * torch.arange(groups, device=index.device)[:, None, None]
    flat = (index + first).flatten()
    own_mean, own_log_var = (  # by indexing, whose gradient adds in a fixed order on a GPU: index_select's does not
        part.flatten(0, 1)[flat].unflatten(0, index.shape) for part in (mean, log_var)
    )
    return scored.scatter_(-1, index, normal_log_prob(z.unsqueeze(-2), own_mean, own_log_var).to(scored.dtype))
