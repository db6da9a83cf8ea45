"""Gradient estimators: functions that return the value of a bound, each with a different gradient.

All have the same expected gradient and differ in its variance. With z = T(ε; φ) and a log weight
log w = log p(x, z) − log q_φ(z|x), the plain gradient in φ has two parts: one through the draw, and the score
∂_φ log q_φ(z|x) at a fixed z. All but the plain estimator replace the score by something equal in expectation.
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
    """The plain estimator: differentiate the bound as it stands. Works for every bound.

    Args:
        model: the model.
        x: a batch of observations.
        bound: which bound.
        draws_per_component: draws L per active component.
        beta: scale of the KL part.
        active: components to draw from; all by default.
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

    All N = L·S draws are independent draws from the mixture: a component by its weight, then z from it. With
    u_n = w_n / Σ_m w_m the score term is E[u ∂_φ log q(z)] = E[∂_z u · ∂_φ T], so that the encoder's gradient is
    E Σ_n (1 − β + β u_n) u_n ∂_z log w_n · ∂_φ T, the squared weights of the paper at β = 1.

    On stratified draws those squared weights are biased: the mixture's score has parts r_j ∂ log q_j for every j, at
    draws that came from s ≠ j, and only the distribution drawn from can be reparameterised. So this estimator
    draws independently, and works only for bounds that allow it.

    Args:
        model: the model; its mixture weights are not learned.
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
    if active is not None or scored is not None:
        raise ValueError(
            "the doubly reparameterised gradient draws from the whole mixture, each draw independently; got a subset "
            "of components: leave `active` out, or use `reparameterised`"
        )
    if log_pi.requires_grad:
        raise ValueError(
            "the doubly reparameterised gradient needs fixed mixture weights, as a choice of component has no path; "
            "got learned ones: use `reparameterised`"
        )
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
        super().__init__(q.batch_shape, q.event_shape, q.log_pi.detach())

    def rsample(self, sample_shape: Sequence[int] = (), noise: Tensor | None = None) -> Tensor:
        return self.q.rsample(sample_shape, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.q.log_prob(value)

    def select(self, index: Int[Tensor, " K"]) -> Components:
        return self.q.select(index)

    def drawn(self, own: Int[Tensor, " S"] | None) -> Components:
        return self.q.drawn(own)  # whose weights keep their gradient

    def rsample_and_cross_log_prob(
        self, sample_shape: Sequence[int], own: Int[Tensor, " S"] | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        z = self.drawn(own).rsample(sample_shape, noise)
        self.owner.drawn = z if not z.requires_grad else z.view_as(z)
        return self.owner.drawn, self.score(self.owner.drawn)


class _Scorer(nn.Module):
    """From draws and x to the log-density under every component, as a module whose parameters can be replaced."""

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
