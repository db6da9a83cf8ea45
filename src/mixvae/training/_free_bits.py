"""Free bits: the part of the KL divergence that costs nothing, so that the encoder has no reason to remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixvae.bounds import Terms, elbo
from mixvae.gradients import Estimator, doubly_reparameterised, proportional
from mixvae.model import MixtureVAE


def free_bits(terms: Terms, nats: float) -> Terms:
    """Hold log q and log p(z) constant where their mean difference over the batch is below λ; values stay.

    With KL_b = Σ_s π_s 1/L Σ_l [log q(z_lsb|x_b) − log p(z_lsb)], both lose their gradients if 1/B Σ_b KL_b < λ. So the
    gradient is that of max(λ, mean KL), and the value is still the bound. Decided on the device, by `torch.where`.

    Args:
        terms: the densities of one pass over a whole batch.
        nats: λ, in nats per example.

    References:
        Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016),
        https://arxiv.org/abs/1606.04934

    Example:
        >>> import torch
        >>> from mixvae.bounds import Terms
        >>> from mixvae.training._free_bits import free_bits
        >>> q = torch.ones(1, 1, 1, 1, requires_grad=True)  # log q − log p(z) = 1 nat
        >>> terms = Terms(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), q, torch.zeros(1), torch.ones(1), torch.arange(1))
        >>> for nats in (0.5, 2.0):
        ...     torch.autograd.grad(free_bits(terms, nats).log_mixture().sum(), q)[0].item()
        1.0
        0.0
    """
    free = elbo(terms.log_mixture() - terms.log_pz, terms.weight).mean() < nats

    def held(value: Tensor) -> Tensor:
        return torch.where(free, value.detach(), value)

    return replace(terms, log_pz=held(terms.log_pz), log_q=held(terms.log_q), log_pi=held(terms.log_pi))


class Freed(MixtureVAE):
    """View of a model whose terms have free bits: it stands between a model and any estimator and bound.

    Args:
        model: the model; its parts are shared, not copied.
        nats: λ, in nats per example.
    """

    def __init__(self, model: MixtureVAE, nats: float):
        super().__init__(model.posterior, model.prior, model.decoder)
        self.model, self.nats = model, nats

    def forward(
        self,
        x: Tensor,
        draws_per_component: int = 1,
        *,
        active: Sequence[int] | Tensor | None = None,
        scored: Sequence[int] | Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Terms:
        """Terms of the model, held where the KL is below λ."""
        return free_bits(self.model(x, draws_per_component, active=active, scored=scored, noise=noise), self.nats)

    def with_posterior(self, posterior: nn.Module) -> MixtureVAE:
        """The same view of the model with another posterior."""
        return Freed(self.model.with_posterior(posterior), self.nats)


def check_free_bits(nats: float, gradient: Estimator, model: MixtureVAE, processes: int) -> None:
    """Refuse free bits where the mean KL of a whole batch is unknown, or would not determine the whole gradient.

    Args:
        nats: λ.
        gradient: the estimator.
        model: the model.
        processes: number of processes that compute a batch.

    Raises:
        ValueError: a batch is divided among processes, or the estimator weights its draws differently.
    """
    if not nats:
        return
    if processes > 1:
        raise ValueError(
            f"free_bits {nats:g} needs the mean KL of a whole batch, and {processes} processes share one: give one "
            "device, or no free_bits"
        )
    if gradient is doubly_reparameterised:
        raise ValueError(
            "free_bits hold log q constant, and doubly_reparameterised replaces its score by other paths: use "
            "reparameterised"
        )
    weights = None if gradient is not proportional else model.posterior.log_pi()  # pyright: ignore[reportCallIssue]
    if weights is not None and not torch.allclose(weights, weights.mean()):
        raise ValueError(
            "free_bits weight the KL of each draw by its component's weight, and proportional draws already come in "
            "proportion to it: use reparameterised, or equal mixture weights"
        )
