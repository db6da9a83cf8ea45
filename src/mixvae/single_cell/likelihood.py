"""Log-likelihood of counts under many draws of the latents, with little memory and computation for each draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

EPSILON = 1e-8
"""Added to parameters as in scvi-tools, so that both agree up to rounding."""
CACHED = 2**17
"""Number of values computed at once on a CPU, small enough for intermediate results to stay in its cache."""
STIRLING = 30.0
"""Inverse dispersion from which a ratio of Gamma functions is that of Stirling's series."""
IMPOSSIBLE = 1e30
"""Subtracted from log odds, makes the odds zero in any precision."""


def log_likelihood(
    px: Distribution, x: Float[Tensor, "B G"], theta: Float[Tensor, "#T #B G"] | None
) -> Float[Tensor, "T B"]:
    """Log p(x_b | z_tb), summed over genes, in nats, for T draws of every cell.

    A negative binomial with mean μ and inverse dispersion θ, inflated by zeros with log odds ℓ, has

        log p(x) = log Γ(x + θ) − log Γ(θ) − log x! − x log θ + x log μ − (x + θ) r + softplus(u) − softplus(ℓ),

    where r = log(1 + μ/θ), and u = ℓ + θ r for a zero but −∞ for any other count; the softplus terms are those of zero
    inflation. The first four terms vanish for zeros and do not depend on the mean; they are computed once for all draws
    that share a dispersion. Equal to `px.log_prob` on repeated counts, up to rounding; for a large θ that of scvi-tools
    is off by more, as it takes the difference of the first two terms in single precision.

    Args:
        px: distribution of scvi-tools with parameters of shape (T·B, G), draws first.
        x: counts.
        theta: inverse dispersion without the repeats; None if the likelihood has none.

    References:
        Lopez et al., Deep generative modeling for single-cell transcriptomics (2018),
        https://doi.org/10.1038/s41592-018-0229-2
    """
    cells = x.shape[0]
    if theta is None or not isinstance(px, NegativeBinomial):
        repeats = px.batch_shape[0] // cells
        return px.log_prob(x.repeat(repeats, 1)).sum(-1).unflatten(0, (-1, cells))
    parameters = [px.mu, px.zi_logits.to(px.mu)] if isinstance(px, ZeroInflatedNegativeBinomial) else [px.mu]
    kernel = _LogKernel.apply(x, theta, *(part.unflatten(0, (-1, cells)) for part in parameters))
    return _log_base_measure(x, theta) + kernel


def _log_base_measure(x: Float[Tensor, "B G"], theta: Float[Tensor, "#T #B G"]) -> Float[Tensor, "#T B"]:
    """The terms without the mean, log Γ(x + θ) − log Γ(θ) − log x! − x log θ, computed where the count is not zero."""
    index = x.flatten().nonzero().squeeze(1)
    wide = theta.dtype if theta.device.type == "mps" else torch.float64  # which Metal lacks
    counts, own = x.flatten()[index].to(wide), theta.flatten(1).index_select(1, index % theta[0].numel()).to(wide)
    terms = (_log_rising(counts, own) - (counts + 1).lgamma()).to(theta.dtype)
    return terms.new_zeros(len(own), x.numel()).index_copy(1, index, terms).unflatten(1, x.shape).sum(-1)


def _log_rising(x: Float[Tensor, " N"], theta: Float[Tensor, "T N"]) -> Float[Tensor, "T N"]:
    """Log Γ(x + θ) − log Γ(θ) − x log θ, which vanishes as θ grows, while its terms grow.

    A difference of their float32 values would be off by a nat at θ = 10⁶, and p(x) would not sum to one. For large θ it
    is that of Stirling's series, (θ + x − ½) log(1 + x/θ) − x + s(x + θ) − s(θ), with the remainder s(a) = 1/(12 a) −
    1/(360 a³) + 1/(1260 a⁵), off by less than 10⁻¹³.
    """
    direct = (x + theta).lgamma() - theta.lgamma() - x * (theta + EPSILON).log()
    far = theta.clamp(min=STIRLING)
    series = (far + x - 0.5) * (x / far).log1p() - x + _remainder(x + far) - _remainder(far)
    return torch.where(theta < STIRLING, direct, series)


def _remainder(a: Tensor) -> Tensor:
    """The remainder of Stirling's approximation of log Γ(a)."""
    inverse = 1 / a
    return inverse * (1 / 12 - inverse.square() * (1 / 360 - inverse.square() / 1260))


def _log_kernel(
    x: Float[Tensor, "B G"],
    theta: Float[Tensor, "#T #B G"],
    mean: Float[Tensor, "T B G"],
    logits: Float[Tensor, "T B G"] | None = None,
) -> Float[Tensor, "T B"]:
    """The terms with the mean, x log μ − (x + θ) r + softplus(u) − softplus(ℓ); without logits no zero inflation."""
    r = (mean / (theta + EPSILON)).log1p()
    failures = theta * r
    value = x * ((mean + EPSILON).log() - r) - failures
    if logits is not None:
        value = value + softplus(logits + failures - IMPOSSIBLE * x) - softplus(logits)
    return value.sum(-1)


class _LogKernel(torch.autograd.Function):
    """`_log_kernel`, which would store a dozen arrays for its gradient: here both are computed together, in blocks.

    The gradient is made for one backward pass, which scales it in place. Further passes, and those that request a graph
    of their own, differentiate `_log_kernel`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, mean: Tensor, *logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, theta, mean, *logits)
        parameters, value = (theta.expand_as(mean), mean, *logits), mean.new_empty(mean.shape[:2])
        ctx.gradient = [torch.empty_like(mean) for _ in parameters] if any(ctx.needs_input_grad) else []
        for block in _blocks(mean):
            own, out = ([part[block] for part in parts] for parts in (parameters, ctx.gradient))
            value[block] = _value_and_gradient(out, x[block[1]], *own)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, *parameters) = grads, ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, []
        if not gradient or torch.is_grad_enabled():
            return None, *_gradient(grad, x, parameters)
        of_theta, *others = [part.mul_(grad.unsqueeze(-1)) for part in gradient]
        return None, of_theta.sum_to_size(parameters[0].shape), *others


def _blocks(like: Float[Tensor, "T B G"]) -> Iterator[tuple[slice, slice]]:
    """Draws and cells computed at once: all of them unless on a CPU."""
    draws, cells, genes = like.shape
    rows = max(1, CACHED // genes) if like.device.type == "cpu" else draws * cells
    width = min(cells, rows)
    height = rows // width
    for draw in range(0, draws, height):
        for cell in range(0, cells, width):
            yield slice(draw, draw + height), slice(cell, cell + width)


def _value_and_gradient(
    out: Sequence[Tensor],
    x: Float[Tensor, "B G"],
    theta: Float[Tensor, "T B G"],
    mean: Float[Tensor, "T B G"],
    logits: Float[Tensor, "T B G"] | None = None,
) -> Float[Tensor, "T B"]:
    """`_log_kernel`, and its derivatives by θ, μ and ℓ, written into `out` unless that is empty.

    As softplus(a) = max(a, 0) − log σ(|a|), zero inflation adds max(ℓ, −θ r) − max(ℓ, 0) + log σ(|ℓ|)/σ(|u|) to the
    binomial's part, in place of its −θ r for a zero. A zero was inflated with posterior probability σ(u) and prior
    probability σ(ℓ); ∂ℓ is their difference. With w = 1 − σ(u) and n = (x + w θ) / (μ + θ), ∂μ = x/μ − n and
    ∂θ = n μ/θ − w r.
    """
    scale, positive = theta + EPSILON, mean + EPSILON
    ratio = mean / scale
    r = ratio.log1p()
    failures = theta * r
    value = positive.log().sub_(r).mul_(x)
    weight = value.new_ones(())
    if logits is None:
        value.sub_(failures)
    else:
        possible = logits.sub(x, alpha=IMPOSSIBLE)
        u = possible + failures
        posterior, prior = u.sigmoid(), logits.sigmoid()
        weight = 1 - posterior
        value.add_(torch.maximum(possible, failures.neg_())).sub_(logits.clamp(min=0))
        value.add_(torch.maximum(prior, 1 - prior).div_(torch.maximum(posterior, weight)).log_())
        if out:
            torch.sub(posterior, prior, out=out[2])
    if out:
        n = torch.addcmul(x, weight, theta).div_(scale.add_(mean))
        torch.mul(n, ratio, out=out[0]).sub_(r.mul_(weight))
        torch.div(x, positive, out=out[1]).sub_(n)
    return value.sum(-1)


def _gradient(grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradient of `_log_kernel`; it can be differentiated again if the backward pass asks for that."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        value = _log_kernel(x, *parameters)
    needed = [part for part in parameters if part.requires_grad]
    found = iter(torch.autograd.grad(value, needed, grad, create_graph=again))
    return [next(found) if part.requires_grad else None for part in parameters]
