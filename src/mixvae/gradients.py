"""Gradient estimators: functions that return the value of a bound, each with a different gradient.

With z = T(ε; φ) and a log weight log w = log p(x, z) − log q_φ(z|x), the plain gradient in φ has two parts: one
through the draw, and the score ∂_φ log q_φ(z|x) at a fixed z. `sticking_the_landing` and `doubly_reparameterised`
replace the score by a term that is equal in expectation.

Which bound each differentiates, in expectation over draws; N = L·S draws in all, S components:

- `reparameterised`: any bound, of L draws of every component (stratified), weighted by π.
- `sticking_the_landing`: the ELBO.
- `doubly_reparameterised`: log 1/N Σ_n w_n of N *independent* draws of the mixture.
- `proportional`: the ELBO, or log 1/N Σ_n w_n of N draws divided among the components in proportion to π.

All estimators of the ELBO have the same expected gradient and differ in its variance: the ELBO is linear in the
draws' distribution. The log of a mean is not, so for S > 1 the pooled bounds of stratified, independent and
proportional draws are three different lower bounds on log p(x), with different gradients. By how much, and which is
tightest, depends on the model; all three approach log p(x) as L grows. The last two choose components once per call,
for all of its examples: a batch in parts chooses for each part, which is another draw with the same mean gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from mixvae.bounds import Bound, elbo, iwelbo, log_weights, pooled
from mixvae.distributions import Components
from mixvae.model import MixtureVAE

Estimator = Callable[..., Float[Tensor, " B"]]
"""A gradient estimator, such as `reparameterised`: mapping (model, x, bound, draws, **options) to nats per example."""


def reparameterised(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    bound: Bound = elbo,
    draws_per_component: int = 1,
    *,
    beta: float | Tensor = 1.0,
    active: Sequence[int] | Tensor | None = None,
    scored: Sequence[int] | Tensor | None = None,
    noise: Float[Tensor, "L S B D"] | None = None,
) -> Float[Tensor, " B"]:
    """The plain estimator: differentiate the bound as it stands, with L draws of every component. Works for any bound.

    Args:
        model: the model.
        x: a batch of observations.
        bound: which bound.
        draws_per_component: draws L per active component.
        beta: scale of the KL part.
        active: components to draw from; all by default. A random subset is unbiased for the ELBO and the MISELBO of
            all; `pooled` becomes a looser bound, with fewer draws.
        scored: components to score every draw under; all by default.
        noise: standard normal noise; drawn from torch's generator by default.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes (2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.gradients import reparameterised
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> loss = -reparameterised(model, torch.ones(5, 4), draws_per_component=2).mean()
        >>> loss.backward()
        >>> sum(p.grad is None for p in model.parameters())
        0
    """
    terms = model(x, draws_per_component, active=active, scored=scored, noise=noise)
    return bound(log_weights(terms, beta), terms.weight)


def sticking_the_landing(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    bound: Bound = elbo,
    draws_per_component: int = 1,
    *,
    beta: float | Tensor = 1.0,
    active: Sequence[int] | Tensor | None = None,
    scored: Sequence[int] | Tensor | None = None,
    noise: Float[Tensor, "L S B D"] | None = None,
) -> Float[Tensor, " B"]:
    """The ELBO without its score term, whose expectation is zero: no variance where q(z|x) = p(z|x) and β = 1.

    Value and expected gradient are those of `reparameterised(elbo)`.

    The posterior's *parameters* are held fixed in log q(z|x), flows and the networks of lower levels included, so
    that only the path through the draw remains. The score of a mixture vanishes over stratified draws of all
    components together, Σ_s π_s E_{q_s}[∂ log q] = ∂ ∫ q = 0, and likewise over random subsets of them. Encodes x
    twice; a flow without a fast inverse is inverted at every step.

    Args:
        model: the model.
        x: a batch of observations.
        bound: the ELBO, the only bound whose score term vanishes.
        draws_per_component: draws L per active component.
        beta: scale of the KL part.
        active: components to draw from; all by default.
        scored: components to score every draw under; all by default.
        noise: standard normal noise; drawn from torch's generator by default.

    Raises:
        ValueError: the bound is not the ELBO.

    References:
        Roeder et al., Sticking the Landing (2017), https://arxiv.org/abs/1703.09194

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.gradients import reparameterised, sticking_the_landing
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> x, noise = torch.ones(5, 4), torch.randn(1, 3, 5, 2)
        >>> torch.allclose(sticking_the_landing(model, x, noise=noise), reparameterised(model, x, noise=noise))
        True
    """
    if bound is not elbo:
        raise ValueError(
            f"sticking the landing is unbiased for the elbo only; got {_name(bound)}: use `reparameterised`, or "
            "`doubly_reparameterised` for iwelbo and pooled"
        )
    view = model.with_posterior(_HeldPosterior(model.posterior))
    return reparameterised(view, x, bound, draws_per_component, beta=beta, active=active, scored=scored, noise=noise)


def doubly_reparameterised(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    bound: Bound = pooled,
    draws_per_component: int = 1,
    *,
    beta: float | Tensor = 1.0,
    active: Sequence[int] | Tensor | None = None,
    scored: Sequence[int] | Tensor | None = None,
    noise: Float[Tensor, "L S B D"] | None = None,
) -> Float[Tensor, " B"]:
    """The importance-weighted bound with its score term reparameterised a second time (DReG).

    Value and gradient are those of log 1/N Σ_n w_n with N = L·S *independent* draws of the mixture: a component by its
    weight, then z from it. For S > 1 this lower bound on log p(x) differs from the stratified one of
    `reparameterised(pooled)`, which takes L draws of every component; either may be the tighter. With
    u_n = w_n / Σ_m w_m the score term is E[u ∂_φ log q(z)] = E[∂_z u · ∂_φ T], so that the encoder's gradient is
    E Σ_n (1 − β + β u_n) u_n ∂_z log w_n · ∂_φ T, the squared weights of the paper at β = 1.

    On stratified draws those squared weights are biased: the mixture's score has parts r_j ∂ log q_j for every j, at
    draws that came from s ≠ j, and only the distribution drawn from can be reparameterised. So this estimator draws
    independently, and works only for bounds that allow it.

    Args:
        model: the model; its mixture weights must be fixed.
        x: a batch of observations.
        bound: `pooled`, or `iwelbo` for a single component.
        draws_per_component: draws L per component.
        beta: scale of the KL part.
        active: not available: the draws choose their components.
        scored: not available.
        noise: standard normal noise for L·S draws; drawn from torch's generator by default.

    Raises:
        ValueError: the bound is neither of these, the weights are learned, or a subset of components is requested.

    References:
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (2019),
        https://arxiv.org/abs/1810.04152

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.gradients import doubly_reparameterised
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> doubly_reparameterised(model, torch.ones(5, 4), draws_per_component=4).shape
        torch.Size([5])
    """
    posterior: Any = model.posterior
    log_pi = posterior.log_pi()
    if bound not in (pooled, iwelbo) or (bound is iwelbo and len(log_pi) > 1):
        raise ValueError(
            f"the doubly reparameterised gradient is unbiased for pooled, and for iwelbo with one component; got "
            f"{_name(bound)} with {len(log_pi)}: use `reparameterised`, or `sticking_the_landing` for the elbo"
        )
    _check_whole("the doubly reparameterised gradient", "independently", log_pi, active, scored)
    n = draws_per_component * len(log_pi)
    chosen = torch.multinomial(log_pi.exp(), n, replacement=True)
    held = _HeldPosterior(posterior)
    view = model.with_posterior(held)
    each = None if noise is None else noise.reshape(1, n, *noise.shape[2:])
    log_w = log_weights(view(x, 1, active=chosen, noise=each), beta)
    u = log_w.detach().softmax(1)
    held.scale_paths(1 - beta + beta * u)
    surrogate = (u * log_w).sum((0, 1))
    value = pooled(log_w, log_w.new_full((n,), 1 / n))  # equal: each draw chose its component by weight
    return value.detach() + surrogate - surrogate.detach()


def proportional(
    model: MixtureVAE,
    x: Float[Tensor, "B ..."],
    bound: Bound = elbo,
    draws_per_component: int = 1,
    *,
    beta: float | Tensor = 1.0,
    active: Sequence[int] | Tensor | None = None,
    scored: Sequence[int] | Tensor | None = None,
    noise: Float[Tensor, "L S B D"] | None = None,
) -> Float[Tensor, " B"]:
    """The plain gradient for draws divided among the components in proportion to their weights.

    Of N = L·S draws in all, component s gets n_s by systematic rounding: with one uniform u at each call, the number of
    k < N for which (k + u)/N lies in the component's interval of the cumulated weights. So E n_s = N π_s and
    |n_s − N π_s| < 1, and 1/N Σ_n f(z_n) is unbiased for Σ_s π_s E_{q_s} f. All examples share u. The value is

        elbo: 1/N Σ_n log w_n,    pooled: log 1/N Σ_n w_n.

    The first has the expected gradient of `reparameterised(elbo)`. The second is a lower bound on log p(x) of its own,
    in general neither that of `reparameterised(pooled)` nor that of `doubly_reparameterised`. With equal weights both
    values are those of `reparameterised`. With unequal ones a component of small weight is rarely decoded, and the ELBO
    usually varies less than with independent draws. No value is read from the device.

    Args:
        model: the model; its mixture weights must be fixed.
        x: a batch of observations.
        bound: `elbo` or `pooled`.
        draws_per_component: draws L per component on average over the components, N/S.
        beta: scale of the KL part.
        active: not available: the draws choose their components.
        scored: not available.
        noise: standard normal noise for L·S draws; drawn from torch's generator by default.

    Raises:
        ValueError: the bound is neither of these, the weights are learned, or a subset of components is requested.

    References:
        Systematic sampling: Madow, On the Theory of Systematic Sampling II (1949),
        https://doi.org/10.1214/aoms/1177729988
        Morningstar et al., Automatic Differentiation Variational Inference with Mixtures (2020),
        https://arxiv.org/abs/2003.01687

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.gradients import proportional, reparameterised
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,)))
        >>> x, noise = torch.ones(5, 4), torch.randn(2, 3, 5, 2)
        >>> torch.allclose(proportional(model, x, noise=noise, draws_per_component=2),
        ...                reparameterised(model, x, noise=noise, draws_per_component=2))  # equal weights
        True
    """
    posterior: Any = model.posterior
    log_pi = posterior.log_pi()
    if bound not in (elbo, pooled):
        raise ValueError(
            f"draws in proportion to the weights have an elbo and a pooled bound; got {_name(bound)}, which needs the "
            "same number of draws of every component: use `reparameterised`"
        )
    _check_whole("the proportional gradient", "by the weights", log_pi, active, scored)
    n = draws_per_component * len(log_pi)
    chosen = _in_proportion(log_pi, n)
    each = (
        None if noise is None else noise.transpose(0, 1).reshape(1, n, *noise.shape[2:])
    )  # all of a component's first
    log_w = log_weights(model(x, 1, active=chosen, noise=each), beta)
    return bound(log_w, log_w.new_full((n,), 1 / n))


def _in_proportion(log_pi: Float[Tensor, " S"], n: int) -> Int[Tensor, " N"]:
    """Component of each of n draws, in ascending order, by systematic rounding of n·π with one uniform number."""
    edges = log_pi.double().softmax(0).cumsum(0)
    u = torch.rand((), dtype=torch.float64, device=log_pi.device)
    points = (torch.arange(n, device=log_pi.device) + u) / n
    return torch.searchsorted(edges[:-1], points, right=True)


def _check_whole(
    what: str,
    how: str,
    log_pi: Tensor,
    active: Sequence[int] | Tensor | None,
    scored: Sequence[int] | Tensor | None,
) -> None:
    """Refuse a subset of components, and learned weights, where the draws choose their components.

    Raises:
        ValueError: either is given.
    """
    if active is not None or scored is not None:
        raise ValueError(
            f"{what} draws from the whole mixture, each draw {how}; got a subset of components: leave `active` out, or "
            "use `reparameterised`"
        )
    if log_pi.requires_grad:
        raise ValueError(
            f"{what} needs fixed mixture weights, as the choice of a component has no pathwise gradient; got learned "
            "ones: use `reparameterised`"
        )


class _HeldPosterior(nn.Module):
    """A posterior whose components score draws with fixed parameters.

    Args:
        posterior: the posterior that draws.
    """

    def __init__(self, posterior: nn.Module):
        super().__init__()
        self.posterior = posterior
        self.drawn: Tensor | None = None

    def forward(self, x: Tensor, index: Int[Tensor, " J"] | None = None) -> Components:
        before = _random_state(x.device)
        inputs = (x,) if index is None else (x, index)
        q = self.posterior(*inputs)
        scorer = _Scorer(self.posterior)
        fixed = {name: p.detach() for name, p in scorer.named_parameters()}

        def score(z: Tensor) -> Tensor:
            with _replayed(before, x.device):  # the same dropout as where z was drawn
                return functional_call(scorer, fixed, (z, *inputs))

        return _Held(self, q, score)

    def scale_paths(self, factor: Float[Tensor, "L S B"]) -> None:
        """Scale the gradient that flows back through every draw."""
        if self.drawn is not None and self.drawn.requires_grad:
            self.drawn.register_hook(lambda gradient: gradient * factor.unsqueeze(-1))


class _Held(Components):
    """Components that draw with gradients but score with fixed parameters."""

    def __init__(self, owner: _HeldPosterior, q: Components, score: Callable[[Tensor], Tensor]):
        self.owner, self.q, self.score = owner, q, score
        self.scores_anywhere = q.scores_anywhere
        super().__init__(q.batch_shape, q.event_shape, q.log_pi.detach())

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        return self.q.rsample(sample_shape, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.q.log_prob(value)

    def select(self, index: Int[Tensor, " K"]) -> Components:
        return self.q.select(index)

    def drawn(self, own: Int[Tensor, " S"] | None) -> Components:
        return self.q.drawn(own)  # its weights keep their gradient

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.drawn(own).rsample(sample_shape, noise)
        self.owner.drawn = z if not z.requires_grad else z.view_as(z)
        return self.owner.drawn, self.score(self.owner.drawn)


class _Scorer(nn.Module):
    """Maps draws and x to the log-density under every component, as a module whose parameters can be replaced."""

    def __init__(self, posterior: nn.Module):
        super().__init__()
        self.posterior = posterior

    def forward(self, z: Tensor, *inputs: Tensor) -> Tensor:
        return self.posterior(*inputs).cross_log_prob(z)


def _random_state(device: torch.device) -> Tensor:
    """State of torch's generator on a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def _replayed(state: Tensor, device: torch.device) -> Iterator[None]:
    """Restore an earlier state of torch's generator within the block, and the current one afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.cuda.set_rng_state(state, device) if on_gpu else torch.set_rng_state(state)
        yield


def _name(bound: Bound) -> str:
    return getattr(bound, "__name__", type(bound).__name__)
