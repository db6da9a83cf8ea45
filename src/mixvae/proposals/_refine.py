"""Finding a proposal for every example: its modes, the curvature there, and pilot rounds where they can help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mixvae.distributions import Components, keyed_normal
from mixvae.joint import Joint
from mixvae.proposals._mixture import (
    DEGREES,
    POSTERIOR,
    STRATA,
    Proposal,
    Student,
    keyed_uniform,
    stream,
    systematic_counts,
)
from mixvae.proposals._modes import Peaks, find_peaks

DEFENSIVE = 0.25
"""Share α of the draws that come from the posterior itself, or from a widened t (Hesterberg, 1995)."""
INFLATED = 0.25
"""Most by which every t is wider than the curvature, δ, or 1/√D if less: it costs a factor e^{−2 D δ²} of draws."""
WIDENED = 2.0
"""Factor on the scale of the t that replaces a posterior whose density is not available at every point."""
ROUNDING = 0.01
"""Largest error in nats of a posterior's log-density at its own draws."""
DEFENSIVE_T = 0.1
"""Share of the draws from that t."""
LEAST_SHARE = 0.1
"""Smallest share of the draws around a mode that is outweighed by another."""
ENOUGH = 10
"""Effective draws per latent dimension at which moments count as much as the curvature."""
PILOTS = 2
"""Maximum number of pilot rounds; together they take at most half as many draws as are weighted afterwards."""
SETTINGS = ("degrees", "pilot_draws")
"""Notes that are the same for all examples."""
COUNTS = ("examples", "unconverged", "floored", "fallbacks", "second_modes", "adapted")
"""Notes that count examples: all of them, and those for which each of these holds."""


@dataclass(frozen=True)
class Refined:
    """Proposals of B examples, and how they were found, example by example.

    Args:
        proposal: what to draw from.
        peaks: the modes that it was made from.
        pilot: draws of the pilot rounds; 0 if there was none.
        adapted: whether a pilot moved the proposal.
        second: whether it draws around a second mode.
    """

    proposal: Proposal
    peaks: Peaks
    pilot: int
    adapted: Tensor
    second: Tensor

    def notes(self) -> dict[str, int]:
        """Values of `SETTINGS` and `COUNTS`, by name."""
        settings = (DEGREES, self.pilot)
        counts = (
            len(self.adapted),
            int((~self.peaks.converged[0]).sum()),
            int((self.peaks.floored[0] > 0).sum()),
            int(self.peaks.fallback[0].sum()),
            int(self.second.sum()),
            int(self.adapted.sum()),
        )
        return dict(zip((*SETTINGS, *COUNTS), (*settings, *counts), strict=True))


def together(notes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Notes on the proposals of several groups of examples: settings once, counts added."""
    return {
        name: value if name in SETTINGS else sum(note[name] for note in notes)
        for name, value in (notes[0] if notes else {}).items()
    }


def refine(
    joint: Joint,
    q: Components,
    draws: int,
    *,
    examples: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    at_once: int = 64,
    with_posterior: bool | None = None,
) -> Refined:
    """Find a proposal for every example: from its modes and curvature, and pilot rounds if they can help.

    Args:
        joint: log p(x, z) of B examples.
        q: their posteriors.
        draws: draws n of every example that will be weighted.
        examples: numbers of the examples, which key their noise; their positions by default.
        seed: seed of the noise.
        at_once: draws per example decoded at once in the pilot rounds.
        with_posterior: whether some draws come from the posterior; by default if it scores its own draws.

    References:
        Bugallo et al., Adaptive Importance Sampling: The past, the present, and the future (2017),
        https://doi.org/10.1109/MSP.2017.2699226
        Cornuet et al., Adaptive Multiple Importance Sampling (2012), https://arxiv.org/abs/0907.1254

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.joint import ModelJoint
        >>> from mixvae.networks import GatedEncoder
        >>> from mixvae.proposals import refine
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 3)
        >>> model, x = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (8,))).eval(), torch.ones(5, 4)
        >>> joint, q = ModelJoint(model, x), posterior(x)
        >>> proposal = refine(joint, q, draws=100).proposal
        >>> log_w = torch.cat([some for some, _ in proposal.log_weights(joint, q, at_once=64)])
        >>> log_w.shape  # draws, examples
        torch.Size([100, 5])
    """
    numbers = np.arange(joint.size) if examples is None else np.asarray(examples)
    peaks = find_peaks(joint, q)
    if with_posterior is None:
        with_posterior = bool(scores_own_draws(q, numbers, seed, joint.like).all())
    student, shares = _around(peaks, widened=not with_posterior)
    second = peaks.distinct & (shares[1] > 0) if len(peaks.location) > 1 else torch.zeros_like(peaks.distinct)
    adapted = torch.zeros(joint.size, dtype=torch.bool, device=shares.device)
    rounds, pilot = _pilots(draws, joint.latent)
    for number in range(1, rounds + 1):
        one = _proposal(student, shares, q, pilot, numbers, seed, with_posterior=with_posterior, pilot=number)
        student, moved = _adapted(one, joint, q, shares, at_once)
        adapted = adapted | moved
    proposal = _proposal(student, shares, q, draws, numbers, seed, with_posterior=with_posterior)
    return Refined(proposal, peaks, rounds * pilot, adapted, second)


def _pilots(draws: int, latent: int) -> tuple[int, int]:
    """Number of pilot rounds, each large enough to help, and draws of each."""
    least = 2 * ENOUGH * latent
    rounds = min(PILOTS, draws // 2 // least)
    return rounds, min(draws // 2 // max(1, rounds), 2 * least) if rounds else 0


def scores_own_draws(q: Components, examples: np.ndarray, seed: int, like: Tensor) -> Bool[Tensor, " B"]:
    """Whether a posterior gives its own draws the density they were drawn with: inverses of flows have rounding errors.

    A flow that explodes gives no density; the proposal then does without the posterior.

    Args:
        q: the posteriors of B examples.
        examples: their numbers, which key the noise.
        seed: seed of the noise.
        like: a tensor of the model's dtype and device.
    """
    none = torch.zeros(q.batch_shape[1], dtype=torch.bool, device=like.device)
    if not q.scores_anywhere:
        return none
    noise = keyed_normal(seed, examples, 0, 1, (q.batch_shape[0], q.event_shape[0]), stream(POSTERIOR, 1))
    try:
        z, known = q.rsample_and_cross_log_prob((1,), noise=noise.to(like))
        return ((q.cross_log_prob(z) - known).abs() <= ROUNDING).flatten(0, -2).all(0)
    except ValueError:
        return none


def _around(peaks: Peaks, *, widened: bool) -> tuple[Student, Float[Tensor, "T B"]]:
    """A t around every mode, and their shares: by Laplace's estimate of each mode's mass, with a floor.

    Where no mass is known, as the search began where p(x, z) is zero, all draws are of the first.
    """
    mass = peaks.log_joint + peaks.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if len(mass) > 1:
        mass = torch.stack([mass[0], mass[1].masked_fill(~peaks.distinct, -math.inf)])
    shares = mass.softmax(0)
    shares = torch.where(mass.isfinite(), shares.clamp(min=LEAST_SHARE), 0.0)
    shares[0] = torch.where(mass.isfinite().any(0), shares[0], 1.0)
    shares = shares / shares.sum(0)
    location = peaks.location
    scale = _widening(location.shape[-1]) * peaks.scale
    if widened:
        location = torch.cat([location, location[:1]])
        scale = torch.cat([scale, WIDENED * scale[:1]])
        shares = torch.cat([(1 - DEFENSIVE_T) * shares, torch.full_like(shares[:1], DEFENSIVE_T)])
    return Student(location, scale), shares


def _widening(latent: int) -> float:
    """Factor on the scale of a t in `latent` dimensions."""
    return 1 + min(INFLATED, 1 / math.sqrt(latent))


def _proposal(
    student: Student,
    shares: Float[Tensor, "T B"],
    q: Components,
    draws: int,
    examples: np.ndarray,
    seed: int,
    *,
    with_posterior: bool,
    pilot: int = 0,
) -> Proposal:
    """Divide draws among the t distributions, and the posterior if its density is known everywhere."""
    of_posterior = (0,) * q.batch_shape[0]
    if with_posterior and draws > 1:
        u = keyed_uniform(seed, 0, stream(STRATA, pilot))
        defensive = max(1, round(DEFENSIVE * draws))
        of_posterior = tuple(map(int, systematic_counts(q.log_pi.double().exp().cpu().numpy(), defensive, u)))
    rest = draws - sum(of_posterior)
    edges = (shares.cumsum(0) * rest).round().long()
    edges[-1] = rest
    counts = edges.diff(dim=0, prepend=torch.zeros_like(edges[:1]))
    return Proposal(student, counts, of_posterior, examples, seed, pilot)


def _adapted(
    pilot: Proposal, joint: Joint, q: Components, shares: Float[Tensor, "T B"], at_once: int
) -> tuple[Student, Tensor]:
    """Move every t to the weighted moments of a pilot round's draws, as far as the effective draws allow.

    With a = ESS / (ESS + 10 D), location and scale matrix are a times the moments plus 1 − a times the old ones; below
    an ESS of D nothing moves. The pilot's weights, which enter no estimate, are truncated at √n times their mean.

    References:
        Ionides, Truncated Importance Sampling (2008), https://doi.org/10.1198/106186008X320456
    """
    points = torch.cat([z.double() for z, _ in pilot.points(q, at_once, joint.like)])
    log_w = torch.cat([some for some, _ in pilot.log_weights(joint, q, at_once)])
    under = pilot.student.log_prob(points) + shares.log().unsqueeze(1)  # (T, N, B)
    each = (log_w + under.log_softmax(0)).nan_to_num(nan=-math.inf)
    each = torch.minimum(each, each.logsumexp(1, keepdim=True) - math.log(len(log_w)) / 2)
    each = each - each.amax(1, keepdim=True).clamp(min=-1e300)
    w = each.exp()
    total = w.sum(1)
    ess = total.square() / w.square().sum(1).clamp(min=1e-300)
    moved = (ess >= joint.latent) & (shares > 0)
    w = w / total.clamp(min=1e-300).unsqueeze(1)
    mean = torch.einsum("tnb,nbd->tbd", w, points)
    covariance = torch.stack([_covariance(w[t], points, mean[t]) for t in range(len(w))])
    a = torch.where(moved, ess / (ess + ENOUGH * joint.latent), 0.0)
    old = pilot.student
    location = torch.lerp(old.location, mean, a.unsqueeze(-1))
    matrix = torch.lerp(old.scale @ old.scale.mT, _widening(joint.latent) ** 2 * covariance, a[..., None, None])
    scale, failed = torch.linalg.cholesky_ex(matrix)
    good = moved & (failed == 0)
    student = Student(
        torch.where(good.unsqueeze(-1), location, old.location), torch.where(good[..., None, None], scale, old.scale)
    )
    return student, good.any(0)


def _covariance(
    w: Float[Tensor, "N B"], points: Float[Tensor, "N B D"], mean: Float[Tensor, "B D"]
) -> Float[Tensor, "B D D"]:
    """Weighted covariance of every example's points."""
    centred = points - mean
    return torch.einsum("nb,nbi,nbj->bij", w, centred, centred)
