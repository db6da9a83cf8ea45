"""Paths between two examples through the latent space, one for every component."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mixvae._failures import at_least
from mixvae._resources import check, device_memory, short
from mixvae._trying import Observations, observations
from mixvae.model import MixtureVAE

OPPOSITE = 1e-3
"""Distance of an angle from π, in radians, below which two directions have no unique shortest arc between them."""


@torch.no_grad()
def interpolate(
    model: MixtureVAE,
    a: Observations,
    b: Observations,
    *,
    steps: int = 8,
    spherical: bool = False,
    seed: int = 0,
) -> Float[Tensor, "S T ..."]:
    """Decode the path from one example to another, for every component of the posterior.

    Component s goes from its centre at a to its own centre at b, which for a Gaussian are its means:
    z_st = (1 − t) μ_s(a) + t μ_s(b) at T equal steps of t from 0 to 1. So each row shows how one component arranges the
    data between the two examples, and its ends are that component's reconstructions of them. A path from component s at
    a to another one at b would mix the coordinates of two encoders, which need not agree.

    The spherical path turns from one direction to the other at constant speed,
    z_st = [sin((1 − t) ω) μ_s(a) + sin(t ω) μ_s(b)] / sin ω with ω the angle between the two, and so stays as far from
    the origin as draws of a standard normal prior are in many dimensions, where straight paths pass nearer to it.

    Args:
        model: the model.
        a: the example at t = 0, of shape `shape`; a grey image may be (H, W).
        b: the example at t = 1.
        steps: points T of a path, both ends included.
        spherical: take spherical paths; they assume a prior that is centred on the origin.
        seed: seed of the draws that are needed where p(x|z) has no mean in closed form.

    Returns:
        Means of p(x|z) along each path, (S, T, *shape), on the model's device.

    Raises:
        ValueError: there are fewer than 2 steps, an example does not fit the model, or two centres lie in opposite
            directions, which have no shortest arc between them.

    References:
        White, Sampling Generative Networks (2016), https://arxiv.org/abs/1609.04468

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, interpolate
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> interpolate(model, torch.zeros(4), torch.ones(4), steps=5).shape
        torch.Size([3, 5, 4])
    """
    at_least(2, steps=steps)
    at_least(0, seed=seed)
    ends = [observations(x[None] if isinstance(x, Tensor) else [x], model)[0] for x in (a, b)]
    if ends[0].shape != ends[1].shape:
        raise ValueError(
            f"a path leads from one example to another of the same shape; got {tuple(ends[0].shape)} and "
            f"{tuple(ends[1].shape)}"
        )
    x = torch.stack(ends)
    first, last = model.centres(x).unbind(1)  # (S, D)
    needed = steps * len(first) * (x[0].numel() + first.shape[-1]) * x.element_size()
    check(needed, f"{short(steps)} steps of {len(first)} paths", "give fewer steps", device_memory(x.device))
    t = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[None, :, None]
    path = _arc(first, last, t) if spherical else (1 - t) * first[:, None] + t * last[:, None]
    return model.decode(path, seed=seed)


def _arc(first: Float[Tensor, "S D"], last: Float[Tensor, "S D"], t: Float[Tensor, "1 T 1"]) -> Float[Tensor, "S T D"]:
    """Points of spherical paths; straight ones where the angle is too small to tell, or a centre is the origin."""
    a, b = (torch.nn.functional.normalize(z, dim=-1) for z in (first, last))
    angle = 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))[:, None, None]  # accurate near 0 and π
    angle = angle * ((a * a).sum(-1) * (b * b).sum(-1) > 0)[:, None, None]
    if bool((angle > torch.pi - OPPOSITE).any()):
        raise ValueError("two centres lie in opposite directions, without a shortest arc: take the straight path")
    near = angle < OPPOSITE
    safe = torch.where(near, torch.ones_like(angle), angle)
    shares = [torch.where(near, s, (s * safe).sin() / safe.sin()) for s in (1 - t, t)]
    return shares[0] * first[:, None] + shares[1] * last[:, None]
