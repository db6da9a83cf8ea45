"""Distributions of observed values, parameterised by the output of networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl


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
    def variance(self) -> Tensor:
        """Variance, σ(l) σ(−l), which 1 − σ(l) would round to 0 for large l."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    @property
    def uniforms(self) -> torch.Size:
        """Shape of the uniform numbers that one sample needs."""
        return self.batch_shape

    def from_uniform(self, u: Tensor) -> Tensor:
        """Turn uniform numbers into a sample."""
        return (u < self.probs).to(self.logits)


NEAR = 0.5
"""Below this |l| the moments of a continuous Bernoulli are series in l, as their closed forms cancel there."""
SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)
"""B₂ₖ/(2k)!: the mean is ½ + Σ_k SERIES_k l^{2k−1}, and variance and entropy follow by calculus."""
TINY = 0.05
"""Below this |l| distribution function and quantiles are series in l."""


class ContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """Continuous Bernoulli distribution by logits, for grey values in [0, 1].

    log p(x) = x l − log(1 + e^l) + log(l / tanh(l/2)). torch computes density, moments and draws from probabilities,
    which saturate in float32 beyond |l| ≈ 16. Here all of them are functions of l: symmetric forms in e^{−|l|} that
    neither overflow nor cancel, and series near 0, accurate to float precision at any l.

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
        >>> p.stddev, p.icdf(torch.tensor(0.5))  # √(1/12) and 1/50; ½ and 1 − log 2 / 50
        (tensor([0.2887, 0.0200]), tensor([0.5000, 0.9861]))
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
        near, small, size = _split(self.logits)
        below = 1 / size - (-size).exp() / -torch.expm1(-size)  # the mean at −|l|
        exact = torch.where(self.logits < 0, below, 1 - below)
        return torch.where(near, 0.5 + small * _series(small, SERIES), exact)

    @property
    def variance(self) -> Tensor:
        """Variance, 1/l² − 1/(4 sinh²(l/2)), which is 1/12 − l²/240 near l = 0."""
        near, small, size = _split(self.logits)
        exact = size.reciprocal().square() - (-size).exp() / torch.expm1(-size).square()
        return torch.where(near, _series(small, [(2 * k + 1) * c for k, c in enumerate(SERIES)]), exact)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, log((1 − e^{−a})/a) + 1 − a/(e^a − 1) with a = |l|."""
        near, small, size = _split(self.logits)
        filled = -torch.expm1(-size)
        exact = (filled / size).log() + 1 - size * (-size).exp() / filled
        terms = [-(2 * k + 1) / (2 * k + 2) * c for k, c in enumerate(SERIES)]
        return torch.where(near, small.square() * _series(small, terms), exact)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of a value up to this one, (e^{lx} − 1) / (e^l − 1)."""
        logits, x = torch.broadcast_tensors(self.logits, value)
        small, size = logits.clamp(-TINY, TINY), torch.where(logits.abs() < TINY, TINY, logits.abs())
        x = x.clamp(0, 1)
        v, skew = x * (1 - x), 1 - 2 * x
        series = skew / 12 + small * (v / 24 - small * skew * (v + 1 / 3) / 240)  # Bernoulli polynomials of x
        exact = (-logits.relu() * (1 - x)).exp() * torch.expm1(-size * x) / torch.expm1(-size)
        return torch.where(logits.abs() < TINY, x - small * v * (0.5 - small * series), exact)

    def icdf(self, value: Tensor) -> Tensor:
        """The value below which this probability lies, log(1 − u + u e^l) / l."""
        logits, u = torch.broadcast_tensors(self.logits, value)
        small, size = logits.clamp(-TINY, TINY), torch.where(logits.abs() < TINY, TINY, logits.abs())
        v, skew = u * (1 - u), 1 - 2 * u
        series = skew / 6 + small * ((1 - 6 * v) / 24 + small * skew * (1 - 12 * v) / 120)  # Bernoulli's cumulants
        near, far = torch.where(logits > 0, u, 1 - u), torch.where(logits > 0, 1 - u, u)
        moderate = torch.log1p(far * torch.expm1(-size.clamp(max=1)))
        large = torch.logaddexp(near.log(), far.log() - size)
        to_end = -torch.where(size < 1, moderate, large) / size  # from the end where the density is highest
        exact = torch.where(logits > 0, 1 - to_end, to_end)
        return torch.where(logits.abs() < TINY, u + small * v * (0.5 + small * series), exact)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients in the logits, by the inverse of `cdf`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by the inverse of `cdf`."""
        with torch.no_grad():
            return self.rsample(sample_shape)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    """A(l_q) − l_q E_p[x] − H(p) with A = log((e^l − 1)/l), measured from q's end: nothing large cancels."""
    small, size = q.logits.clamp(-TINY, TINY), torch.where(q.logits.abs() < TINY, TINY, q.logits.abs())
    distance = torch.where(q.logits > 0, ContinuousBernoulli(-p.logits).mean, p.mean)
    far = (-torch.expm1(-size) / size).log() + size * distance
    near = small * (0.5 - p.mean + small / 24 - small**3 / 2880)
    return torch.where(q.logits.abs() < TINY, near, far) - p.entropy()


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the series holds, the logits for it, and |l| for the closed form; both are harmless where unused."""
    size = logits.abs()
    near = size < NEAR
    return near, logits.clamp(-NEAR, NEAR), torch.where(near, NEAR, size)


def _series(logits: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Σ_k c_k l^{2k}."""
    total, square = torch.zeros_like(logits), logits.square()
    for c in reversed(coefficients):
        total = total * square + c
    return total


def _log_normaliser(logits: Tensor) -> Tensor:
    """log(l / tanh(l/2)), with its Taylor series log 2 + l²/12 near zero."""
    small = logits.abs() < 1e-2
    safe = logits.abs().where(~small, torch.ones_like(logits))
    exact = safe.log() - (0.5 * safe).tanh().log()
    return (math.log(2) + logits.square() / 12).where(small, exact)


LOG_SCALE_RANGE = (-7.0, 8.0)
"""Range of a logistic's log-scale: narrower ones gain nothing on 8 bits; wider ones are as flat between the end bins in
float32, and lose their density to underflow."""
NODES, FEW_LEVELS = 12, 32
"""Levels between the ends that represent a channel's distribution in `mean`; with up to 32 levels, all of them do."""
NEAREST = 8
"""Edges between levels that are summed one by one for the mean of a discretised logistic."""
PIECE = 2**10
"""Logistics whose mean is computed at once, about NODES^(C−1) numbers each, which fit in a processor's cache."""


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
            score.squeeze(-3).log_softmax(-3), mean, log_scale.clamp(*LOG_SCALE_RANGE), coefficients.tanh()
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
        mean, coefficients, values = mean.unbind(-3), coefficients.unbind(-3), x.unbind(-3)
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

        mean, scale, coefficients = pick(mean).unbind(-3), pick(log_scale).exp(), pick(coefficients).unbind(-3)
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
        """Mean image of the draws: discretised, clipped, and every channel linear in the drawn channels before it.

        The mean of a discretised logistic is a sum over its levels, and a later channel's mean is averaged over the
        levels of the channels before it. Up to 32 levels are all used, with an error below 2e-4; with more, both ends
        and 12 in between by Gauss's rule in the quantiles, with an error below 1e-3 for 8 bits and 5e-3 for 6.
        """
        log_weight, mean, log_scale, coefficients = self.logistics
        parts = (mean, log_scale.exp(), coefficients)
        pieces = zip(*(p.movedim(-3, 0).flatten(1).split(PIECE, -1) for p in parts), strict=True)  # (…, N)
        found = torch.cat([self._means_of_draws(*piece) for piece in pieces], -1)  # (C, N)
        each = found.unflatten(-1, log_weight.shape).movedim(0, -3)
        overall = (each * log_weight.exp().unsqueeze(-3)).sum(-4)
        return ((overall + 1) / 2).clamp(0, 1)

    def _means_of_draws(self, mean: Tensor, scale: Tensor, coefficients: Tensor) -> Tensor:
        """Mean of every channel, (C, N), under each of N logistics; levels of earlier channels are leading axes."""
        earlier: list[Tensor] = []
        weight, found = torch.ones_like(mean[0]), []
        for c in range(self.channels):
            location = _shifted(mean.unbind(), coefficients.unbind(), earlier)
            value = weight * _discretised_mean(location, scale[c], self.levels)
            found.append(value.reshape(-1, mean.shape[-1]).sum(0))
            if c + 1 < self.channels:
                level, share = _representatives(location, scale[c], self.levels)
                earlier, weight = [*earlier, level], weight * share
        return torch.stack(found)


def _discretised_mean(location: Tensor, scale: Tensor, levels: int) -> Tensor:
    """Mean in [−1, 1] of a logistic that is rounded to the nearest level and clipped.

    Every edge between two levels contributes the probability of lying above it. That is the integral over the bin
    around the edge, in closed form for all edges at once, plus a difference that is summed for the nearest edges only.
    """
    x, s = (location + 1) * levels / 2, scale * levels / 2  # in steps of one level

    def integral(upto: Tensor | float) -> Tensor:  # of the probability above t, from t to infinity
        return s * F.softplus((x - upto) / s)

    total = integral(0.0) - integral(float(levels))
    edges = min(levels, NEAREST)
    first = (x.detach() - edges / 2).round().clamp(0, levels - edges)
    near = [((x - first - k - 0.5) / s).sigmoid() for k in range(edges)]
    total = total + torch.stack(near).sum(0) - (integral(first) - integral(first + edges))
    return 2 * total / levels - 1


def _representatives(location: Tensor, scale: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Levels in [−1, 1] that represent a discretised logistic, and their probabilities, along a new first axis."""
    if levels < FEW_LEVELS:
        level = torch.linspace(-1, 1, levels + 1).to(location).reshape(-1, *[1] * location.dim())
        above = ((location - (level[:-1] + 1 / levels)) / scale).sigmoid()
        one = torch.ones_like(above[:1])
        return level, torch.cat([one, above]) - torch.cat([above, 0 * one])
    edge = 1 - 1 / levels
    low, high = ((-edge - location) / scale).sigmoid(), ((location - edge) / scale).sigmoid()
    between = (1 - low - high).clamp(min=0)
    node, weight = (torch.as_tensor(v).to(location) for v in np.polynomial.legendre.leggauss(NODES))
    shape = (-1, *[1] * location.dim())
    u = low + between * (0.5 + 0.5 * node).reshape(shape)
    step = (location + scale * u.clamp(1e-7, 1 - 1e-7).logit() + 1) / 2 * levels
    step = (step + (step.round() - step).detach()).clamp(0, levels)  # rounded, with the gradient of what is rounded
    ends = torch.stack([torch.zeros_like(low), torch.full_like(low, levels)])
    share = torch.cat([torch.stack([low, high]), between * 0.5 * weight.reshape(shape)])
    return 2 * torch.cat([ends, step]) / levels - 1, share


def _shifted(mean: Sequence[Tensor], coefficients: Sequence[Tensor], earlier: Sequence[Tensor]) -> Tensor:
    """Mean of the next channel given the channels before it."""
    c = len(earlier)
    first = c * (c - 1) // 2
    shifted = mean[c]
    for k, channel in enumerate(earlier):
        shifted = shifted + coefficients[first + k] * channel
    return shifted
