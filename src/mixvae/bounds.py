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
    """The log-densities from which every bound is computed.

    L draws from each of S drawn components, scored under J components, for B examples.

    Args:
        log_px: log p(x_b | z_lsb).
        log_pz: log p(z_lsb).
        log_q: log q_j(z_lsb | x_b).
        log_pi: log mixture weight of each scored component.
        weight: outer weight of each drawn component, 1/S when uniform.
        own: which of the J scored components each draw came from.

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms
        >>> half = torch.tensor([0.5, 0.5])
        >>> log_q = torch.eye(2).log().reshape(1, 2, 2, 1)  # two components that do not overlap
        >>> terms = Terms(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), log_q, half.log(), half, torch.arange(2))
        >>> terms.log_mixture().exp().flatten()
        tensor([0.5000, 0.5000])
        >>> terms.log_own().exp().flatten()
        tensor([1., 1.])
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
"""A bound maps log importance weights and the components' outer weights to nats per example."""


def log_mean_exp(x: Float[Tensor, ...], dim: int) -> Float[Tensor, ...]:
    """Logarithm of the mean of exp(x) along one dimension, without overflow."""
    return x.logsumexp(dim) - math.log(x.shape[dim])


def log_weights(terms: Terms, beta: float | Tensor = 1.0) -> Float[Tensor, "L S B"]:
    """Log importance weights log p(x|z) + β (log p(z) − log q(z|x)) of every draw, in nats.

    Args:
        terms: the densities of one pass.
        beta: scale of the KL part, for warm-up in training only. Evaluation always has β = 1.

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms, log_weights
        >>> px, pz, q = (torch.full((1, 1, 1), log_p) for log_p in (-1.0, -2.0, -3.0))
        >>> terms = Terms(px, pz, q[..., None], torch.zeros(1), torch.ones(1), torch.arange(1))
        >>> log_weights(terms).item(), log_weights(terms, beta=0.5).item()
        (0.0, -0.5)
    """
    return terms.log_px + beta * (terms.log_pz - terms.log_mixture())


def elbo(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Evidence lower bound of the mixture, Σ_s π_s 1/L Σ_l log w_{s,l}, in nats.

    Args:
        log_w: log importance weights, draws × components × batch.
        weight: outer weight π_s of each drawn component.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae.bounds import elbo
        >>> log_w = torch.tensor([[1.0, 4.0], [4.0, 16.0]]).log().unsqueeze(-1)  # 2 draws, 2 components, 1 example
        >>> round(elbo(log_w, torch.tensor([0.5, 0.5])).exp().item(), 4)  # geometric mean of all weights
        4.0
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

    Example:
        >>> import torch
        >>> from mixvae.bounds import miselbo
        >>> log_w = torch.tensor([[1.0, 4.0], [4.0, 16.0]]).log().unsqueeze(-1)  # 2 draws, 2 components, 1 example
        >>> round(miselbo(log_w, torch.tensor([0.5, 0.5])).exp().item(), 4)  # geometric mean of 2.5 and 10
        5.0
    """
    return weight @ log_mean_exp(log_w, 0)


def pooled(log_w: Float[Tensor, "L S B"], weight: Float[Tensor, " S"]) -> Float[Tensor, " B"]:
    """Pooled (stratified importance-weighted) bound, log Σ_s π_s 1/L Σ_l w_{s,l}, in nats.

    The tightest bound here, and consistent: it converges to log p(x) as L grows.

    Args:
        log_w: log importance weights, draws × components × batch.
        weight: outer weight π_s of each drawn component.

    References:
        Morningstar et al., Automatic Differentiation Variational Inference with Mixtures (2020),
        https://arxiv.org/abs/2003.01687

    Example:
        >>> import torch
        >>> from mixvae.bounds import pooled
        >>> log_w = torch.tensor([[1.0, 4.0], [4.0, 16.0]]).log().unsqueeze(-1)  # 2 draws, 2 components, 1 example
        >>> round(pooled(log_w, torch.tensor([0.5, 0.5])).exp().item(), 4)  # arithmetic mean of all weights
        6.25
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

    Example:
        >>> import torch
        >>> from mixvae.bounds import iwelbo
        >>> log_w = torch.tensor([1.0, 4.0]).log().reshape(2, 1, 1)  # 2 draws, 1 component, 1 example
        >>> round(iwelbo(log_w, torch.ones(1)).exp().item(), 4)
        2.5
    """
    if log_w.shape[1] != 1:
        raise ValueError(
            f"IWELBO is the bound of one component; got {log_w.shape[1]}: use `pooled`, its form for mixtures."
        )
    return pooled(log_w, weight)


def jsd(terms: Terms) -> Float[Tensor, " B"]:
    """Jensen–Shannon divergence of the components, Σ_s π_s E_{q_s}[log q_s − log q], in nats.

    Lies in [0, H(π)] in expectation, so at most log S. A single Monte Carlo estimate may be negative and is
    not clamped, so that it equals ELBO(mixture) − Σ_s π_s ELBO(q_s) exactly on the same draws.

    Args:
        terms: the densities of one pass.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms, jsd
        >>> half = torch.tensor([0.5, 0.5])
        >>> log_q = torch.eye(2).log().reshape(1, 2, 2, 1)  # two components that do not overlap
        >>> terms = Terms(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), log_q, half.log(), half, torch.arange(2))
        >>> jsd(terms)  # log 2, the most that two components can reach
        tensor([0.6931])
    """
    return elbo(terms.log_own() - terms.log_mixture(), terms.weight)
