"""Modes of p(z|x) for many examples at once, and the curvature there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mixvae.distributions import Components
from mixvae.joint import Joint

ROUNDS = 3
"""Maximum number of times the curvature is computed on the way to a mode."""
STEPS = 8
"""Steps taken with each curvature."""
CONVERGED = 1e-2
"""Newton decrement gᵀ H⁻¹ g below which a mode counts as found; half of it is the nats another step would gain."""
POLISH = 3
"""Final steps, which bring together searches that ended at different points near a mode."""
FLOOR = 0.1
"""Least curvature, relative to the least precision of the prior."""
STEP = 0.01
"""Half width of central differences, relative to the prior's largest standard deviation."""


@dataclass(frozen=True)
class Peaks:
    """One or two modes of each of B examples, in float64.

    Args:
        location: the modes.
        scale: lower Cholesky factors of the inverse curvature there.
        log_joint: log p(x, z) there, in nats.
        floored: eigenvalues of the curvature that were raised to the floor.
        converged: whether the search ended at a mode.
        fallback: whether the search failed, so that the start is returned with the prior's extent.
        distinct: whether the second mode differs from the first.
    """

    location: Float[Tensor, "K B D"]
    scale: Float[Tensor, "K B D D"]
    log_joint: Float[Tensor, "K B"]
    floored: Tensor
    converged: Tensor
    fallback: Tensor
    distinct: Tensor


def find_peaks(joint: Joint, q: Components) -> Peaks:
    """Climb from the centre of the best component of q, and from that of the next best one if it is far from the mode.

    Every step is z + a H⁻¹ ∇ log p(x, z), with a halved where it would not climb; each example's path depends on
    that example alone.

    Args:
        joint: log p(x, z) of B examples.
        q: their posteriors.
    """
    starts, log_joint = _centres(joint, q)
    _check_gradient(joint.part(0, 1), starts[0, :1])
    order = log_joint.argsort(0, descending=True)
    chosen = [_pick(starts, order[k]) for k in range(min(2, len(order)))]
    first = _climb(joint, chosen[0])
    if len(chosen) == 1:
        return first
    far = _square(chosen[1] - first.location[0], first.scale[0]) > _typical(joint.latent)
    if not bool(far.any()):
        return first
    second = _climb(joint, chosen[1])
    apart = _square(second.location[0] - first.location[0], first.scale[0]) > _typical(joint.latent) / 4
    found = far & apart & second.converged[0] & ~second.fallback[0]
    return replace(
        first,
        distinct=found,
        **{
            name: torch.cat([getattr(first, name), getattr(second, name)])
            for name in ("location", "scale", "log_joint", "floored", "converged", "fallback")
        },
    )


def _check_gradient(joint: Joint, z: Float[Tensor, "1 D"]) -> None:
    """Refuse a likelihood that autograd cannot differentiate in z.

    Raises:
        ValueError: it cannot.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = joint.log_likelihood(leaf).sum()
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise ValueError(
            "log p(x|z) has no gradient in z, which a refined proposal needs: let the decoder compute with torch, "
            'without detaching z, or evaluate with proposal="posterior"'
        )


def _typical(latent: int) -> float:
    """Squared distance from its mode within which nearly all of a Gaussian's mass lies."""
    return latent + 3 * math.sqrt(2 * latent)


def _pick(starts: Float[Tensor, "S B D"], index: Tensor) -> Float[Tensor, "B D"]:
    return starts.take_along_dim(index[None, :, None], 0)[0]


def _square(z: Float[Tensor, "B D"], scale: Float[Tensor, "B D D"]) -> Float[Tensor, " B"]:
    """Squared Mahalanobis length."""
    return torch.linalg.solve_triangular(scale, z.double().unsqueeze(-1), upper=False).square().sum((-2, -1))


@torch.no_grad()
def _centres(joint: Joint, q: Components) -> tuple[Float[Tensor, "S B D"], Float[Tensor, "S B"]]:
    """Centres of the components, where their noise is zero, and log p(x, z) there."""
    noise = torch.zeros(*q.batch_shape, *q.event_shape, dtype=joint.like.dtype, device=joint.like.device)
    centres = q.rsample((), noise)
    log_joint = torch.cat([joint.log_prob(one) for one in centres.split(1)]).double()
    return centres, log_joint.nan_to_num(nan=-math.inf, posinf=-math.inf)


def _climb(joint: Joint, start: Float[Tensor, "B D"]) -> Peaks:
    """Climb from a start to a mode."""
    floor = FLOOR * joint.least_precision()
    z = start.detach().clone()
    value, gradient = _value_and_gradient(joint, z)
    step = torch.ones_like(value)
    scale, floored, broken = inverse_scale(curvature(joint, z), floor)
    done = ~value.isfinite() | broken
    for round in range(ROUNDS):
        if round:
            scale, floored, broken = inverse_scale(curvature(joint, z), floor)
        at = z
        for _ in range(STEPS):
            done = done | (_decrement(scale, gradient) < CONVERGED)
            if bool(done.all()):
                break
            trial = (z.double() + step.unsqueeze(-1) * _solve(scale, gradient)).to(z)
            trial = torch.where(done.unsqueeze(-1), z, trial)
            new_value, new_gradient = _value_and_gradient(joint, trial)
            better = ~done & (new_value > value) & new_gradient.isfinite().all(-1)
            z = torch.where(better.unsqueeze(-1), trial, z)
            gradient = torch.where(better.unsqueeze(-1), new_gradient, gradient)
            value = torch.where(better, new_value, value)
            step = torch.where(better, (2 * step).clamp(max=1), step / 4)
        if at is z or bool((at == z).all()):
            break  # the curvature belongs to the current point
        step, done = torch.ones_like(value), done & (at == z).all(-1)
    else:
        scale, floored, broken = inverse_scale(curvature(joint, z), floor)
    decrement = _decrement(scale, gradient)
    for _ in range(POLISH):  # no value is compared here: rounding of values must not decide where a search ends
        trial = (z.double() + _solve(scale, gradient)).to(z)
        new_value, new_gradient = _value_and_gradient(joint, trial)
        new_decrement = _decrement(scale, new_gradient)
        nearer = (decrement < CONVERGED) & new_value.isfinite() & (new_decrement < decrement)
        z = torch.where(nearer.unsqueeze(-1), trial, z)
        gradient = torch.where(nearer.unsqueeze(-1), new_gradient, gradient)
        value, decrement = torch.where(nearer, new_value, value), torch.where(nearer, new_decrement, decrement)
    fallback = broken | ~value.isfinite()
    wide = torch.eye(joint.latent, dtype=torch.float64, device=z.device) / math.sqrt(joint.least_precision())
    scale = torch.where(fallback[:, None, None], wide, scale)
    z = torch.where(fallback[:, None], start.nan_to_num(), z)
    converged = ~fallback & (decrement < 0.5)
    distinct = torch.zeros_like(converged)
    return Peaks(z.double()[None], scale[None], value[None], floored[None], converged[None], fallback[None], distinct)


def _solve(scale: Float[Tensor, "B D D"], gradient: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """H⁻¹ g = L Lᵀ g."""
    return (scale @ (scale.mT @ gradient.unsqueeze(-1))).squeeze(-1)


def _decrement(scale: Float[Tensor, "B D D"], gradient: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """gᵀ H⁻¹ g."""
    return (scale.mT @ gradient.unsqueeze(-1)).square().sum((-2, -1))


def _value_and_gradient(joint: Joint, z: Tensor) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"]]:
    """Value of log p(x, z) and its gradient in z, in float64; −∞ where there is none."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = joint.log_prob(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    value, gradient = value.detach().double(), gradient.double()
    good = value.isfinite() & gradient.isfinite().all(-1)
    return value.masked_fill(~good, -math.inf), gradient.masked_fill(~good[:, None], 0.0)


def inverse_scale(matrix: Float[Tensor, "B D D"], floor: float) -> tuple[Float[Tensor, "B D D"], Tensor, Tensor]:
    """Lower Cholesky factor of the inverse of a curvature, with its eigenvalues floored.

    Returns:
        The factor, how many eigenvalues were raised to the floor, and whether the curvature was not finite.
    """
    broken = ~matrix.isfinite().all(-1).all(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(broken[:, None, None], eye, matrix))
    floored = (values < floor).sum(-1)
    inverse = (vectors / values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
    return torch.linalg.cholesky(inverse), floored, broken


def curvature(joint: Joint, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
    """Curvature −∇² log p(x, z) of every example, in float64.

    Gauss–Newton, Jᵀ W J − ∇² log p(z), where the likelihood is an exponential family with Jacobian J of its natural
    parameters and information W; otherwise by Hessian-vector products, symmetrised. A decoder that can be
    differentiated only once, such as a compiled one, is differentiated a second time by central differences.
    """
    try:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            natural = joint.natural(leaf)
            if natural is None:
                return _hessian(-joint.log_prob(leaf), leaf)
            return _gauss_newton(natural.parameters, natural.information.detach(), leaf) + _prior_hessian(joint, z)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return _by_differences(joint, z)


def _by_differences(joint: Joint, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
    """Curvature from gradients on either side of every coordinate."""
    width = STEP / math.sqrt(joint.least_precision())
    columns = []
    for d in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, d] = width
        ahead, behind = z + step, z - step
        difference = _value_and_gradient(joint, behind)[1] - _value_and_gradient(joint, ahead)[1]
        columns.append(difference / (ahead - behind)[:, d, None].double())
    matrix = torch.stack(columns, -1)
    return (matrix + matrix.mT) / 2


def _prior_hessian(joint: Joint, z: Tensor) -> Float[Tensor, "B D D"]:
    leaf = z.detach().requires_grad_()
    return _hessian(-joint.log_prior(leaf), leaf)


def _hessian(value: Float[Tensor, " B"], leaf: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
    """Hessian of every example's value in its own row of the leaf, column by column."""
    (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    columns = [_or_zeros(gradient[:, d].sum(), leaf) for d in range(leaf.shape[1])]
    matrix = torch.stack(columns, -1).double()
    return (matrix + matrix.mT) / 2


def _or_zeros(value: Tensor, leaf: Tensor) -> Tensor:
    """Gradient in a leaf; zeros if the value does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient.detach()


def _gauss_newton(
    parameters: Float[Tensor, "B P"], information: Float[Tensor, "B P"], leaf: Float[Tensor, "B D"]
) -> Float[Tensor, "B D D"]:
    """Jᵀ diag(W) J of every example: column d of J is the derivative of the vector–Jacobian product."""
    dummy = torch.zeros_like(parameters, requires_grad=True)
    (product,) = torch.autograd.grad(parameters, leaf, dummy, create_graph=True)
    columns = [torch.autograd.grad(product[:, d].sum(), dummy, retain_graph=True)[0] for d in range(leaf.shape[1])]
    jacobian = torch.stack(columns, 1) * information.sqrt().unsqueeze(1)  # (B, D, P)
    jacobian = jacobian.double()
    return jacobian @ jacobian.mT
