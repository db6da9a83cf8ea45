"""Distributions of observed values, parameterised by the output of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32 if it has half precision (autocast), else x itself: densities never use half precision.

    Example:
        >>> import torch
        >>> from mixvae.distributions import full_precision
        >>> full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype, full_precision(torch.ones(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Bernoulli(torch.distributions.Bernoulli):
    """Bernoulli distribution by logits, for binary data: log p(x) = x l − log(1 + e^l).

    Args:
        logits: log-odds l of each value.

    Example:
        >>> import torch
        >>> from mixvae.distributions import Bernoulli
        >>> Bernoulli(torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0]))  # −log 2 each
        tensor([-0.6931, -0.6931])
    """

    def __init__(self, logits: Tensor):
        super().__init__(logits=full_precision(logits), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats, in half as many passes over memory as torch's cross-entropy."""
        return value * self.logits - F.softplus(self.logits, threshold=40.0)

    @property
    def uniforms(self) -> torch.Size:
        """Shape of the uniform numbers that one sample needs."""
        return self.batch_shape

    def from_uniform(self, u: Tensor) -> Tensor:
        """Turn uniform numbers into a sample."""
        return (u < self.probs).to(self.logits)


class ContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """Continuous Bernoulli distribution by logits, for grey values in [0, 1].

    log p(x) = x l − log(1 + e^l) + log(l / tanh(l/2)). torch's own normaliser is a function of probabilities
    that saturate in float32 beyond |l| ≈ 16, where its density no longer integrates to one; this one is exact.

    Args:
        logits: natural parameter l of each value.

    References:
        Loaiza-Ganem and Cunningham, The continuous Bernoulli (2019), https://arxiv.org/abs/1907.06845

    Example:
        >>> import torch
        >>> from mixvae.distributions import ContinuousBernoulli
        >>> p = ContinuousBernoulli(torch.tensor([0.0, 50.0]))
        >>> p.mean, p.log_prob(torch.ones(2))[1]  # 1 − 1/50, and log 50
        (tensor([0.5000, 0.9800]), tensor(3.9120))
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


class _Levels(constraints.Constraint):
    """Multiples of 1/levels in [0, 1]: intensities of integer pixels."""

    event_dim = 3
    is_discrete = True

    def __init__(self, levels: int):
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each image holds only such intensities."""
        steps = value * self.levels
        good = ((steps - steps.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)
        return good.flatten(-3).all(-1)

    def __repr__(self) -> str:
        return f"multiples of 1/{self.levels} in [0, 1]"


class _Logistics(NamedTuple):
    """Parameters of a mixture of M logistics over C channels, for values in [−1, 1]."""

    log_weight: Tensor  # (*, M, H, W)
    mean: Tensor  # (*, M, C, H, W)
    log_scale: Tensor  # (*, M, C, H, W)
    coefficients: Tensor  # (*, M, C(C−1)/2, H, W)


class DiscretizedLogisticMixture(Distribution):
    """Mixture of discretised logistics for 8-bit pixels: batch shape (*), event shape (C, H, W).

    p(x) = Σ_m w_m Π_c [σ((x_c + ½Δ − μ_mc)/s_mc) − σ((x_c − ½Δ − μ_mc)/s_mc)] with the tails in the first and last
    bins, so that it sums to one over the levels. The mean of a channel is linear in the channels before it. Differences
    of sigmoids are taken as log σ(a) + log σ(−b) + log(1 − e^{b−a}), which has no cancellation.

    Args:
        parameters: a network's output (*, P, H, W) with P = M (1 + 2C + C(C−1)/2).
        channels: number of channels C.
        levels: number of levels minus one, 255 for 8 bits.

    References:
        Salimans et al., PixelCNN++ (2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> import torch
        >>> from mixvae.distributions import DiscretizedLogisticMixture
        >>> p = DiscretizedLogisticMixture(torch.zeros(6, 1, 1), channels=1)  # 2 logistics for one grey pixel
        >>> every_level = torch.arange(256).reshape(256, 1, 1, 1) / 255
        >>> round(p.log_prob(every_level).exp().sum().item(), 4)
        1.0
    """

    def __init__(self, parameters: Tensor, channels: int, levels: int = 255):
        self.channels, self.levels = channels, levels
        per_mixture = 1 + 2 * channels + channels * (channels - 1) // 2
        parts = full_precision(parameters).unflatten(-3, (-1, per_mixture))
        score, mean, log_scale, coefficients = parts.split(
            [1, channels, channels, per_mixture - 1 - 2 * channels], dim=-3
        )
        self.logistics = _Logistics(
            score.squeeze(-3).log_softmax(-3), mean, log_scale.clamp(min=-7.0), coefficients.tanh()
        )
        height, width = parameters.shape[-2:]
        super().__init__(parameters.shape[:-3], torch.Size([channels, height, width]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Multiples of 1/levels in [0, 1]."""
        return _Levels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of whole images in nats."""
        x = (2 * value - 1).unsqueeze(-4)  # (*, 1, C, H, W)
        half, tolerance = 1 / self.levels, 0.5 / self.levels
        inverse = (-self.logistics.log_scale).exp()
        centred = x - self._means(x)
        upper, lower = (centred + half) * inverse, (centred - half) * inverse
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + (-torch.expm1(-2 * half * inverse)).log()
        first, last = x < -1 + tolerance, x > 1 - tolerance
        each = torch.where(first, F.logsigmoid(upper), torch.where(last, F.logsigmoid(-lower), inside))
        return (each.sum(-3) + self.logistics.log_weight).logsumexp(-3).sum((-2, -1))

    def _means(self, x: Tensor) -> Tensor:
        """Means of every channel given the channels of x before it, (*, M, C, H, W)."""
        _, mean, _, coefficients = self.logistics
        values = x.unbind(-3)
        shifted = [_shifted(mean, coefficients, values[:c]) for c in range(self.channels)]
        return torch.stack(torch.broadcast_tensors(*shifted), -3)

    @property
    def uniforms(self) -> torch.Size:
        """Shape of the uniform numbers that one sample needs: one for the mixture, one per channel."""
        return torch.Size([*self.batch_shape, self.channels + 1, *self.event_shape[1:]])

    def from_uniform(self, u: Tensor) -> Tensor:
        """Turn uniform numbers into a sample."""
        log_weight, mean, log_scale, coefficients = self.logistics
        edges = log_weight.exp().cumsum(-3)
        chosen = (u[..., :1, :, :] > edges).sum(-3, keepdim=True).clamp(max=log_weight.shape[-3] - 1)

        def pick(parameter: Tensor) -> Tensor:  # (*, M, K, H, W) -> (*, K, H, W)
            parameter = parameter.expand(*chosen.shape[:-3], *parameter.shape[-4:])
            index = chosen.unsqueeze(-3).expand(*chosen.shape[:-3], 1, *parameter.shape[-3:])
            return parameter.gather(-4, index).squeeze(-4)

        mean, scale, coefficients = pick(mean), pick(log_scale).exp(), pick(coefficients)
        noise = u[..., 1:, :, :].clamp(1e-7, 1 - 1e-7).logit()
        channels: list[Tensor] = []
        for c in range(self.channels):
            value = _shifted(mean, coefficients, channels) + scale[..., c, :, :] * noise[..., c, :, :]
            steps = ((value + 1) / 2 * self.levels).round().clamp(0, self.levels)
            channels.append(2 * steps / self.levels - 1)
        return (torch.stack(channels, -3) + 1) / 2

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw images."""
        with torch.no_grad():
            shape = (*sample_shape, *self.uniforms)
            return self.from_uniform(torch.rand(shape, device=self.logistics.mean.device).to(self.logistics.mean))

    @property
    def mean(self) -> Tensor:
        """Mean image, up to the logistics' tails cut off by the first and last levels."""
        log_weight, mean, _, coefficients = self.logistics
        channels: list[Tensor] = []
        for _ in range(self.channels):
            channels.append(_shifted(mean, coefficients, channels).clamp(-1, 1))
        overall = (torch.stack(channels, -3) * log_weight.exp().unsqueeze(-3)).sum(-4)
        return (overall + 1) / 2


def _shifted(mean: Tensor, coefficients: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """Mean of the next channel, (…, H, W), given the channels before it."""
    c = len(earlier)
    first = c * (c - 1) // 2
    shifted = mean[..., c, :, :]
    for k, channel in enumerate(earlier):
        shifted = shifted + coefficients[..., first + k, :, :] * channel
    return shifted
