"""Latents of examples: moments of every component, draws, and active units."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mixvae._failures import at_least
from mixvae._resources import check, short
from mixvae._trying import Observations, observations, observed
from mixvae.distributions import Components, keyed_normal
from mixvae.model import MixtureVAE, evaluating

LARGEST_BATCH = 256
ACTIVE_VARIANCE = 0.01
"""A latent unit is active if its posterior mean varies more than this over the data (Burda et al., 2015)."""
MOMENT_DRAWS = 128
"""Number of draws from which moments without a closed form are estimated."""


@torch.no_grad()
def encode(model: MixtureVAE, x: Observations) -> tuple[Float[Tensor, "N S D"], Float[Tensor, "N S D"]]:
    """Mean and standard deviation of every component of q(z|x), on the CPU.

    Moments without a closed form, such as those of flows and chains, are estimated from `MOMENT_DRAWS` keyed draws.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.analysis import encode
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> mean, std = encode(model, torch.ones(6, 4))
        >>> mean.shape, std.shape
        (torch.Size([6, 3, 2]), torch.Size([6, 3, 2]))
    """
    parts, first = [], 0
    with evaluating(model):
        for batch in observed(x, model, LARGEST_BATCH):
            parts.append(_moments(model.posterior(batch), range(first, first + len(batch)), batch))
            first += len(batch)
    mean, std = (torch.cat(part, 1).transpose(0, 1) for part in zip(*parts, strict=True))
    return mean, std


@torch.no_grad()
def draw_latents(model: MixtureVAE, x: Observations, total_draws: int, *, seed: int = 0) -> Float[Tensor, "N K D"]:
    """Draw some latents of every example, on the CPU; draw k comes from component k mod S.

    Args:
        model: the model.
        x: observations, an array or tensor of numbers.
        total_draws: draws K per example.
        seed: seed of the noise.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.analysis import draw_latents
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> draw_latents(model, torch.ones(6, 4), 5).shape
        torch.Size([6, 5, 2])
    """
    at_least(1, total_draws=total_draws)
    x, parts = observations(x, model), []
    with evaluating(model):
        for first, batch in zip(range(0, len(x), LARGEST_BATCH), x.split(LARGEST_BATCH), strict=True):
            q = model.posterior(batch)
            needed = total_draws * q.batch_shape.numel() * q.event_shape.numel() * 8
            check(needed, f"{short(total_draws)} draws of the latents of {len(batch)} examples", "give fewer draws")
            size, numbers = q.batch_shape[0], np.arange(first, first + len(batch))
            noise = keyed_normal(seed, numbers, 0, total_draws, (size, q.event_shape[0])).to(batch.device)
            k = torch.arange(total_draws)
            parts.append(q.rsample((total_draws,), noise.to(batch.dtype))[k, k % size].transpose(0, 1).cpu())
    return torch.cat(parts)


def _moments(q: Components, examples: range, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (S, B, D)."""
    try:
        mean, variance = q.mean, q.variance
    except NotImplementedError:
        noise = keyed_normal(0, examples, 0, MOMENT_DRAWS, (q.batch_shape[0], q.event_shape[0]))
        variance, mean = torch.var_mean(q.rsample((MOMENT_DRAWS,), noise.to(like)), 0)
    return mean.cpu(), variance.sqrt().cpu()


def active_units(mean: Float[Tensor, "N S D"], weight: Float[Tensor, " S"] | None = None) -> int:
    """Number of latent units whose posterior mean varies over the data, Var_x(E_q[z_d]) > 0.01.

    Args:
        mean: mean of every component, as `encode` returns it.
        weight: mixture weights; uniform by default.

    Raises:
        ValueError: there are fewer than 2 examples.

    References:
        Burda et al., Importance Weighted Autoencoders (2015), https://arxiv.org/abs/1509.00519

    Example:
        >>> import torch
        >>> from mixvae.analysis import active_units
        >>> active_units(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]))  # two examples, one component, two units
        1
    """
    if len(mean) < 2:
        raise ValueError(f"active units need at least 2 examples; got {len(mean)}")
    overall = mean.mean(1) if weight is None else torch.einsum("nsd,s->nd", mean, weight.to(mean))
    return int((overall.var(0) > ACTIVE_VARIANCE).sum())
