"""Lower bounds on log p(x) from log-densities: pure functions, no modules.

Shapes read *draw L, component S, batch B*. Everything is in nats. A model yields `Terms`; `log_weights` turns
them into importance weights; each bound reduces the weights to one number per example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The log-densities that every bound is made of.

    L draws from each of S drawn components, scored under J components, for B examples.

    Args:
        log_px: log p(x_b | z_lsb).
        log_pz: log p(z_lsb).
        log_q: log q_j(z_lsb | x_b).
        log_pi: log mixture weight of each scored component.
        weight: outer weight of each drawn component, 1/S when uniform.
        own: which of the J scored components each draw came from.
    """

    log_px: Float[Tensor, "L S B"]
    log_pz: Float[Tensor, "L S B"]
    log_q: Float[Tensor, "L S J B"]
    log_pi: Float[Tensor, " J"]
    weight: Float[Tensor, " S"]
    own: Int[Tensor, " S"]

    def log_mixture(self) -> Float[Tensor, "L S B"]:
        """Log-density of the mixture at every draw, log Σ_j π_j q_j(z_lsb | x_b)."""
        return (self.log_q + self.log_pi[:, None]).logsumexp(-2)

    def log_own(self) -> Float[Tensor, "L S B"]:
        """Log-density of every draw under the component it was drawn from."""
        return self.log_q[:, torch.arange(len(self.own), device=self.own.device), self.own]


Bound = Callable[[Float[Tensor, "L S B"], Float[Tensor, " S"]], Float[Tensor, " B"]]
"""A bound: log importance weights and the components' outer weights to nats per example."""


def log_mean_exp(x: Float[Tensor, ...], dim: int) -> Float[Tensor, ...]:
    """Logarithm of the mean of exp(x) along one dimension, without overflow."""
    return x.logsumexp(dim) - math.log(x.shape[dim])


def log_weights(terms: Terms, beta: float | Tensor = 1.0) -> Float[Tensor, "L S B"]:
    """Log importance weights log p(x|z) + β (log p(z) − log q(z|x)) of every draw, in nats.

    Args:
        terms: the densities of one pass.
        beta: scale of the KL part, for warm-up in training only. Evaluation always has β = 1.
    """
    return terms.log_px + beta * (terms.log_pz - terms.log_mixture())


def elbo(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Evidence lower bound of the mixture, Σ_s π_s 1/L Σ_l log w_{s,l}, in nats.

    Args:
        log_w: log importance weights, draws × components × batch.
        weight: outer weight π_s of each drawn component.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """
    return weight @ log_w.mean(0)


def miselbo(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Multiple-importance-sampling ELBO, Σ_s π_s log 1/L Σ_l w_{s,l}, in nats.

    Tight in L only within each component, so for S > 1 it stays below log p(x): report `pooled` beside it.

    Args:
        log_w: log importance weights, draws × components × batch.
        weight: outer weight π_s of each drawn component.

    References:
        Kviman et al., Multiple Importance Sampling ELBO (2022), https://arxiv.org/abs/2202.10951
    """
    return weight @ log_mean_exp(log_w, 0)


def pooled(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Pooled (stratified importance-weighted) bound, log Σ_s π_s 1/L Σ_l w_{s,l}, in nats.

    The tightest of the bounds here, and consistent: it converges to log p(x) as L grows.

    Args:
        log_w: log importance weights, draws × components × batch.
        weight: outer weight π_s of each drawn component.

    References:
        Morningstar et al., Automatic Differentiation Variational Inference with Mixtures (2020),
        https://arxiv.org/abs/2003.01687
    """
    return (log_mean_exp(log_w, 0) + weight.log()[:, None]).logsumexp(0)


def iwelbo(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Importance-weighted ELBO of a single encoder, log 1/L Σ_l w_l, in nats.

    Args:
        log_w: log importance weights, draws × 1 × batch.
        weight: outer weight of the only component.

    Raises:
        ValueError: there is more than one component.

    References:
        Burda et al., Importance Weighted Autoencoders (2015), https://arxiv.org/abs/1509.00519
    """
    if log_w.shape[1] != 1:
        raise ValueError(
            f"IWELBO is the bound of one component; got {log_w.shape[1]}: use `pooled`, its form for mixtures."
        )
    return pooled(log_w, weight)


def jsd(terms: Terms) -> Float[Tensor, " B"]:
    """Jensen–Shannon divergence of the components, Σ_s π_s E_{q_s}[log q_s − log q], in nats.

    Lies in [0, H(π)] in expectation, so at most log S; one Monte-Carlo estimate may be negative and is
    not clamped, which is why ELBO(mixture) − Σ_s π_s ELBO(q_s) equals it exactly on the same draws.

    Args:
        terms: the densities of one pass.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """
    return elbo(terms.log_own() - terms.log_mixture(), terms.weight)
