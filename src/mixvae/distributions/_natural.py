"""Natural parameters of likelihoods, for their curvature, and how wide a prior is."""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent

from mixvae.distributions._autoregressive import Autoregressive
from mixvae.distributions._chain import Chain
from mixvae.distributions._pooled import Pooled

DRAWS = 1000
"""Draws from which the extent of a prior without a variance is measured."""
QUARTILES = 1.349
"""Distance between the quartiles of a standard normal."""


class Natural(NamedTuple):
    """Parameters θ of a likelihood that is an exponential family in each of them, and their Fisher information.

    Gauss–Newton curvature of −log p(x|z) is Jᵀ diag(information) J with J = ∂θ/∂z.
    """

    parameters: Float[Tensor, "*B P"]
    information: Float[Tensor, "*B P"]


@singledispatch
def natural_parameters(p: Distribution, x: Float[Tensor, "B ..."]) -> Natural | None:
    """Parameters of a likelihood with a diagonal Fisher information, and that information; None if there is none.

    Register a function for your own exponential family with `natural_parameters.register`.

    Args:
        p: the likelihood, batch shape (*L, B).
        x: the observations, which an autoregressive likelihood is conditioned on.

    Example:
        >>> import torch
        >>> from mixvae.distributions import Bernoulli, natural_parameters
        >>> p = torch.distributions.Independent(Bernoulli(torch.zeros(5, 4)), 1)
        >>> natural_parameters(p, torch.ones(5, 4)).information[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    del p, x
    return None


@natural_parameters.register
def _(p: Independent, x: Tensor) -> Natural | None:
    found = natural_parameters(p.base_dist, x)
    if found is None:
        return None
    single = len(p.batch_shape)
    return Natural(found.parameters.flatten(single), found.information.flatten(single))


@natural_parameters.register
def _(p: Autoregressive, x: Tensor) -> Natural | None:
    found = natural_parameters(p.likelihood(p.network(x, p.context)), x)
    if found is None or found.parameters.dim() <= len(p.batch_shape):
        return None
    single = len(p.batch_shape)
    return Natural(found.parameters.flatten(single), found.information.flatten(single))


@natural_parameters.register
def _(p: distributions.Bernoulli, x: Tensor) -> Natural:
    del x
    return Natural(p.logits, p.variance)


@natural_parameters.register
def _(p: distributions.ContinuousBernoulli, x: Tensor) -> Natural:
    del x
    return Natural(p.logits, p.variance)


@natural_parameters.register
def _(p: distributions.Normal, x: Tensor) -> Natural:
    del x
    return Natural(p.loc, p.scale.square().reciprocal())


@natural_parameters.register
def _(p: distributions.Poisson, x: Tensor) -> Natural:
    del x
    return Natural(p.rate.log(), p.rate)


@singledispatch
def least_precision(prior: Distribution) -> float:
    """Smallest precision of a prior in any coordinate; for a mixture, that of its widest component.

    Without a finite variance, as Cauchy's, that of a normal with the same quartiles.

    Args:
        prior: a distribution with batch shape () and event shape (D,).

    Example:
        >>> import torch
        >>> from mixvae.distributions import least_precision
        >>> normal = torch.distributions.Normal(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> least_precision(torch.distributions.Independent(normal, 1))
        0.25
    """
    try:
        variance = prior.variance.detach()
    except (NotImplementedError, AttributeError):
        variance = _drawn(prior).var(0)
    if not variance.isfinite().all():
        low, high = (_drawn(prior).float().quantile(share, dim=0) for share in (0.25, 0.75))
        variance = ((high - low) / QUARTILES).square()
    return float(1 / variance.max())


@torch.no_grad()
def _drawn(prior: Distribution) -> Tensor:
    """Draws from a prior, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prior.sample(torch.Size([DRAWS]))


@least_precision.register
def _(prior: Pooled) -> float:
    try:
        return float(1 / prior.components.variance.detach().max())
    except (NotImplementedError, AttributeError):
        return least_precision.dispatch(Distribution)(prior)


@least_precision.register
def _(prior: Chain) -> float:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        _, log_var = prior.lower(prior.top.sample(torch.Size([DRAWS])))
    return min(least_precision(prior.top), float((-log_var.max()).exp()))
