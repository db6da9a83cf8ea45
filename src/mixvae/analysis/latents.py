"""Latents of examples: moments of every component, draws, and active units."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixvae.distributions import Components, keyed_normal
from mixvae.failures import at_least
from mixvae.model import MixtureVAE, evaluating
from mixvae.resources import check, short

LARGEST_BATCH = 256
ACTIVE_VARIANCE = 0.01
"""A latent unit is active if its posterior mean varies more than this over the data (Burda et al., 2015)."""
MOMENT_DRAWS = 128
"""Draws that the moments of components without closed ones are measured on."""


@torch.no_grad()
def encode(model: MixtureVAE, x: Float[Tensor, "N ..."]) -> tuple[Float[Tensor, "N S D"], Float[Tensor, "N S D"]]:
    """Mean and standard deviation of every component of q(z|x), on the CPU.

    Components without closed moments, such as flows and chains, are measured on `MOMENT_DRAWS` keyed draws.
    """
    with evaluating(model):
        parts = [
            _moments(model.posterior(batch), range(first, first + len(batch)))
            for first, batch in zip(range(0, len(x), LARGEST_BATCH), x.split(LARGEST_BATCH), strict=True)
        ]
    mean, std = (torch.cat(part, 1).transpose(0, 1) for part in zip(*parts, strict=True))
    return mean, std


@torch.no_grad()
def draw_latents(model: MixtureVAE, x: Float[Tensor, "N ..."], draws: int, *, seed: int = 0) -> Float[Tensor, "N K D"]:
    """Draw some latents of every example, on the CPU; draw k is of component k mod S.

    Args:
        model: the model.
        x: observations on the model's device, in its dtype.
        draws: draws K per example.
        seed: seed of the noise.
    """
    at_least(1, draws=draws)
    parts = []
    with evaluating(model):
        for first, batch in zip(range(0, len(x), LARGEST_BATCH), x.split(LARGEST_BATCH), strict=True):
            q = model.posterior(batch)
            needed = draws * q.batch_shape.numel() * q.event_shape.numel() * 8
            check(needed, f"{short(draws)} draws of the latents of {len(batch)} examples", "give fewer draws")
            size, numbers = q.batch_shape[0], np.arange(first, first + len(batch))
            noise = keyed_normal(seed, numbers, 0, draws, (size, q.event_shape[0])).to(batch.device)
            k = torch.arange(draws)
            parts.append(q.rsample((draws,), noise.to(batch.dtype))[k, k % size].transpose(0, 1).cpu())
    return torch.cat(parts)


def _moments(q: Components, examples: range) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (S, B, D)."""
    try:
        mean, variance = q.mean, q.variance
    except NotImplementedError:
        noise = keyed_normal(0, examples, 0, MOMENT_DRAWS, (q.batch_shape[0], q.event_shape[0]))
        variance, mean = torch.var_mean(q.rsample((MOMENT_DRAWS,), noise.to(q.log_pi)), 0)
    return mean.cpu(), variance.sqrt().cpu()


def active_units(mean: Float[Tensor, "N S D"], weight: Float[Tensor, " S"] | None = None) -> int:
    """Number of latent units whose posterior mean varies over the data, Var_x(E_q[z_d]) > 0.01.

    Args:
        mean: mean of every component, as `encode` gives it.
        weight: mixture weights; uniform by default.

    References:
        Burda et al., Importance Weighted Autoencoders (2015), https://arxiv.org/abs/1509.00519
    """
    if len(mean) < 2:
        raise ValueError(f"active units need at least 2 examples; got {len(mean)}")
    overall = mean.mean(1) if weight is None else torch.einsum("nsd,s->nd", mean, weight.to(mean))
    return int((overall.var(0) > ACTIVE_VARIANCE).sum())
