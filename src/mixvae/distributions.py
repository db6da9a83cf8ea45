"""Distributions over latents and observations, as torch.distributions does them.

A `Components` object is a batch of distributions with batch shape (S, B): S components for each of B examples.
One rule carries everything: the component axis of z is −3. Size S there means "each its own",
size 1 means "score under every component".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.random import Generator, Philox
from torch import Tensor
from torch.distributions import Distribution, constraints

LOG_2PI = math.log(2 * math.pi)
QUADRATIC_ERROR = 5e-3
"""Largest rounding error, in nats, that `DiagonalGaussian` accepts from a matrix product in float32."""
NEGLIGIBLE = 60.0
"""Nats below the largest at which a component cannot change a mixture's density in float64, e⁻⁶⁰ = 10⁻²⁶.

Left in, its weight and gradient are denormal numbers, which processors multiply a hundred times more slowly."""
DRAW_BLOCK = 16
"""Draws that share one key of the counter-based generator in `keyed_normal`."""


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32 if it is of half precision (autocast), else x itself: densities are never halved."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def keyed_normal(
    seed: int, examples: Sequence[int] | np.ndarray, start: int, stop: int, event: tuple[int, int]
) -> Float[Tensor, "L S B D"]:
    """Standard normal noise keyed by (seed, example, draw block): the same whatever the chunk or batch.

    Draw l of example b is one number of a counter-based stream of its own, so a result computed from it depends
    neither on the examples beside it nor on how many draws were taken at once.

    Args:
        seed: seed of the evaluation.
        examples: which examples, by their number in the data set.
        start: first draw.
        stop: one past the last draw.
        event: number of components S and latent size D.

    Returns:
        Noise of stop − start draws in float64, on the CPU.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011), https://doi.org/10.1145/2063384.2063405
    """
    noise = np.empty((len(examples), stop - start, *event))
    for row, example in zip(noise, examples, strict=True):
        for block in range(start // DRAW_BLOCK, -(-stop // DRAW_BLOCK)):
            low, first = block * DRAW_BLOCK, max(start, block * DRAW_BLOCK)
            last = min(stop, low + DRAW_BLOCK)
            stream = Generator(Philox(key=[seed, int(example)], counter=[0, 0, 0, block]))
            row[first - start : last - start] = stream.standard_normal((last - low, *event))[first - low :]
    return torch.from_numpy(noise).permute(1, 2, 0, 3).contiguous()


class _OnReals(Distribution):
    """A distribution on all of R^D, whose parameters are checked where they are made."""

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """None: torch's checks would visit every parameter at every step."""
        return {}

    @property
    def support(self) -> constraints.Constraint:
        """All of R^D."""
        return constraints.real_vector


class Components(_OnReals):
    """S component distributions for each of B examples: batch shape (S, B), event shape (D,).

    A subclass gives `rsample`, `log_prob` and `select`; the rest is derived, and may be overridden where
    there is a faster way.

    Args:
        batch_shape: (S, B).
        event_shape: (D,).
        log_pi: log mixture weights of the S components; uniform by default. For a subset of S of the
            A components of a posterior these are log(A/S · π_s), the only unbiased choice.
    """

    has_rsample = True
    log_pi: Float[Tensor, " S"]

    def __init__(self, batch_shape: torch.Size, event_shape: torch.Size, log_pi: Float[Tensor, " S"] | None = None):
        if log_pi is None:
            log_pi = torch.full((batch_shape[0],), -math.log(batch_shape[0]))
        if log_pi.shape != batch_shape[:1]:
            raise ValueError(f"log_pi must have shape {tuple(batch_shape[:1])}; got {tuple(log_pi.shape)}")
        self.log_pi = log_pi
        super().__init__(batch_shape, event_shape, validate_args=False)

    @abstractmethod
    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        """Draw from every component with gradients: (*sample_shape, S, B, D).

        Args:
            sample_shape: leading shape of the draws.
            noise: standard normal noise of the result's shape; drawn from torch's generator if not given.
        """

    @abstractmethod
    def log_prob(
        self,
        value: Float[
            Tensor,
            (
                ...  # S #B D
            ),
        ],
    ) -> Float[Tensor, "... S B"]:
        """Log-density in nats; component axis −3 of size S scores each under its own, of size 1 under all."""

    @abstractmethod
    def select(self, index: Int[Tensor, " K"]) -> Components:
        """Return the components with these positions, in this order."""

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component j of its own example."""
        return self.log_prob(z.unsqueeze(-3))

    def pairwise_log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, "N S B"]:
        """Log-density of every point under every component of every example."""
        return self.log_prob(z[:, None, None])

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "L S B D"], Float[Tensor, "L S J B"]]:
        """Draw from the components `own` and score each draw under all components.

        A family whose densities are cheaper at its own draws overrides this one.
        """
        z = self.select(own).rsample(sample_shape, noise)
        return z, self.cross_log_prob(z)


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
        if noise is None:
            noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        return torch.addcmul(self.loc, self.scale, noise.to(self.loc))

    def log_prob(
        self,
        value: Float[
            Tensor,
            (
                ...  # S #B D
            ),
        ],
    ) -> Float[Tensor, "... S B"]:
        """Log-density in nats, evaluated directly, difference by difference."""
        square = (full_precision(value) - self.loc).square() * (-self.log_var).exp()
        return -0.5 * (square + self.log_var + LOG_2PI).sum(-1)

    def select(self, index: Int[Tensor, " K"]) -> DiagonalGaussian:
        """Return the components with these positions; their weights rise by (S/K) to stay unbiased."""
        if len(index) == self.batch_shape[0] and torch.equal(index, torch.arange(len(index), device=index.device)):
            return self
        log_pi = self.log_pi[index] + math.log(self.batch_shape[0] / len(index))
        return DiagonalGaussian(self.loc[index], self.log_var[index], log_pi)

    def cross_log_prob(self, z: Float[Tensor, "L S B D"]) -> Float[Tensor, "L S J B"]:
        """Log-density of every draw under every component of its own example, as one batched product."""
        draws, drawn, batch, latent = z.shape
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


class Pooled(_OnReals):
    """One mixture over all K·S components of K examples: batch shape (), event shape (D,).

    p(z) = 1/K Σ_k Σ_s π_s q_s(z | u_k): the VampPrior of pseudo-inputs u, or a Gaussian mixture.

    Args:
        components: the components, batch shape (S, K).

    References:
        Tomczak and Welling, VAE with a VampPrior (2018), https://arxiv.org/abs/1705.07120
    """

    def __init__(self, components: Components):
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=False)

    @property
    def log_pi(self) -> Float[Tensor, "S K"]:
        """Log weight of every component, which sum to one."""
        return (self.components.log_pi - math.log(self.components.batch_shape[1]))[:, None].expand(
            self.components.batch_shape
        )

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, ...]:
        """Log-density of the mixture in nats."""
        points = value.reshape(-1, value.shape[-1])
        scored = (self.components.pairwise_log_prob(points) + self.log_pi).flatten(1)
        negligible = scored < scored.detach().amax(1, keepdim=True) - NEGLIGIBLE
        return scored.masked_fill(negligible, -math.inf).logsumexp(1).reshape(value.shape[:-1])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw from the mixture: choose a component, then draw from it."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            weights = self.log_pi.flatten().exp()
            chosen = torch.multinomial(weights, shape.numel(), replacement=True)
            most = int(chosen.bincount().max())
            draws = self.components.rsample((most,)).flatten(1, 2)  # (most, S·K, D)
            return draws[_rank_within(chosen), chosen].reshape(*shape, *self.event_shape)


def _rank_within(group: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Number of earlier entries that belong to the same group."""
    order = group.argsort(stable=True)
    counts = group.bincount()
    starts = (counts.cumsum(0) - counts)[group[order]]
    ranks = torch.empty_like(group)
    ranks[order] = torch.arange(len(group), device=group.device) - starts
    return ranks


class Bernoulli(torch.distributions.Bernoulli):
    """Bernoulli distribution by logits, for binary data: log p(x) = x l − log(1 + e^l).

    Args:
        logits: log-odds l of each value.
    """

    def __init__(self, logits: Tensor):
        super().__init__(logits=full_precision(logits), validate_args=False)


class ContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """Continuous Bernoulli distribution by logits, for grey values in [0, 1].

    log p(x) = x l − log(1 + e^l) + log(l / tanh(l/2)). torch's own normaliser is a function of probabilities
    that saturate in float32 beyond |l| ≈ 16, where its density no longer integrates to one; this one is exact.

    Args:
        logits: natural parameter l of each value.

    References:
        Loaiza-Ganem and Cunningham, The continuous Bernoulli (2019), https://arxiv.org/abs/1907.06845
    """

    def __init__(self, logits: Tensor):
        super().__init__(logits=full_precision(logits), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        return _log_normaliser(logits) - F.binary_cross_entropy_with_logits(logits, value, reduction="none")

    @property
    def mean(self) -> Tensor:
        """Mean, 1 / (1 − e^{−l}) − 1/l, which is ½ + l/12 near l = 0."""
        small = self.logits.abs() < 1e-2
        safe = self.logits.where(~small, torch.ones_like(self.logits))
        return (0.5 + self.logits / 12).where(small, -1 / torch.expm1(-safe) - 1 / safe)


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(l / tanh(l/2)), with its Taylor series log 2 + l²/12 near zero."""
    small = logits.abs() < 1e-2
    safe = logits.abs().where(~small, torch.ones_like(logits))
    exact = safe.log() - (0.5 * safe).tanh().log()
    return (math.log(2) + logits.square() / 12).where(small, exact)
