"""Proposals: for every example a mixture of Student's t distributions and the posterior, and what its draws weigh."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator, Philox
from torch import Tensor

from mixvae.distributions import DRAW_BLOCK, Components, keyed_normal
from mixvae.joint import Joint

DEGREES = 20
"""Degrees of freedom ν of Student's t: tails heavier than the posterior's."""
AMORTISED, ALLOCATION, POSTERIOR, STUDENT, STRATA = range(5)
"""Noise streams: the first two for draws from the posterior as it is, the others for draws from a proposal."""


def stream(kind: int, pilot: int) -> int:
    """Stream of one kind of noise in the final draws (0) or in a pilot round (1, 2, …): no two share one."""
    return kind + (STRATA + 1) * pilot


def systematic_counts(weights: np.ndarray, draws: int, u: float) -> np.ndarray:
    """Divide draws in proportion to weights by systematic random rounding: E n_s = n π_s for u uniform on [0, 1).

    Args:
        weights: π, which sum to one.
        draws: number of draws n.
        u: a uniform number.

    References:
        Elvira et al., Generalized Multiple Importance Sampling (2019), https://arxiv.org/abs/1511.03095

    Example:
        >>> import numpy as np
        >>> from mixvae.proposals import systematic_counts
        >>> systematic_counts(np.array([0.25, 0.75]), 2, 0.1), systematic_counts(np.array([0.25, 0.75]), 2, 0.9)
        (array([1, 1]), array([0, 2]))
    """
    edges = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    edges[-1] = 1.0  # whatever the rounding
    return np.diff(np.ceil(edges * draws - u)).astype(int)


def keyed_uniform(seed: int, example: int, of: int = ALLOCATION) -> float:
    """A uniform number on [0, 1) keyed by (seed, example, stream)."""
    return float(Generator(Philox(key=[seed, example], counter=[0, 0, of, 0])).random())


class Student(NamedTuple):
    """T multivariate t distributions for each of B examples."""

    location: Float[Tensor, "T B D"]
    scale: Float[Tensor, "T B D D"]
    """Lower Cholesky factors of the scale matrices Σ."""

    def draw(self, which: Int[Tensor, "N B"], noise: Float[Tensor, "N B E"]) -> Float[Tensor, "N B D"]:
        """Draw z = m + L g √(ν / Σ h²) from each example's chosen distributions, E = D + ν normals (g, h) per draw."""
        latent = self.location.shape[-1]
        chi = noise[..., latent:].square().sum(-1, keepdim=True)
        standard = noise[..., :latent] * (DEGREES / chi).sqrt()
        z = torch.zeros_like(standard)
        for k, (location, scale) in enumerate(zip(self.location, self.scale, strict=True)):
            moved = location + torch.einsum("bij,nbj->nbi", scale, standard)
            z = torch.where((which == k).unsqueeze(-1), moved, z)
        return z

    def log_prob(self, z: Float[Tensor, "N B D"]) -> Float[Tensor, "T N B"]:
        """Log-density under every distribution, in nats."""
        latent = z.shape[-1]
        constant = (
            math.lgamma((DEGREES + latent) / 2) - math.lgamma(DEGREES / 2) - latent / 2 * math.log(DEGREES * math.pi)
        )
        densities = []
        for location, scale in zip(self.location, self.scale, strict=True):
            centred = (z - location).permute(1, 2, 0)  # (B, D, N)
            square = torch.linalg.solve_triangular(scale, centred, upper=False).square().sum(1).T
            volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            densities.append(constant - volume - (DEGREES + latent) / 2 * (square / DEGREES).log1p())
        return torch.stack(densities)


@dataclass(frozen=True)
class Proposal:
    """A mixture for each of B examples, r(z) = Σ_k (n_k/n) r_k(z), of Student's t and the posterior.

    Weights w = p(x, z) / r(z) with the realised shares n_k/n average to an unbiased estimate of p(x), whatever the
    shares are (deterministic-mixture weights).

    Args:
        student: the t distributions.
        counts: draws of each t for each example.
        of_posterior: draws of each component of the posterior; all zero if it is not used.
        examples: numbers of the examples, which key their noise.
        seed: seed of the noise.
        pilot: which pilot round its draws are for; 0 for the final draws.

    References:
        Elvira et al., Generalized Multiple Importance Sampling (2019), https://arxiv.org/abs/1511.03095
        Hesterberg, Weighted Average Importance Sampling and Defensive Mixture Distributions (1995),
        https://doi.org/10.1080/00401706.1995.10484303
    """

    student: Student
    counts: Int[Tensor, "T B"]
    of_posterior: tuple[int, ...]
    examples: np.ndarray
    seed: int
    pilot: int = 0

    @property
    def draws(self) -> int:
        """Draws n of every example."""
        return int(self.counts[:, 0].sum()) + sum(self.of_posterior)

    def part(self, start: int, stop: int) -> Proposal:
        """The same for some of the examples."""
        own = slice(start, stop)
        student = Student(self.student.location[:, own], self.student.scale[:, own])
        counts, examples = self.counts[:, own], self.examples[own]
        return Proposal(student, counts, self.of_posterior, examples, self.seed, self.pilot)

    def log_prob(self, z: Float[Tensor, "N B D"], q: Components) -> Float[Tensor, "N B"]:
        """Log-density log r(z), in nats and float64."""
        shares = [self.student.log_prob(z.double()) + (self.counts / self.draws).log().unsqueeze(1)]
        if any(self.of_posterior):
            realised = torch.tensor(self.of_posterior, dtype=torch.float64, device=z.device)
            under = q.cross_log_prob(z.unsqueeze(1))[:, 0].double()  # (N, S, B)
            shares.append((under + (realised / self.draws).log()[:, None]).logsumexp(1)[None])
        return torch.cat(shares).logsumexp(0)

    @property
    def strata(self) -> int:
        """Number of distributions that draws come from, the posterior counting as one."""
        return len(self.counts) + 1

    def points(
        self, q: Components, at_once: int, like: Tensor
    ) -> Iterator[tuple[Float[Tensor, "N B D"], Int[Tensor, "N B"]]]:
        """All draws of the examples in the dtype of the model, and the stratum of each; the posterior's is the last.

        Args:
            q: the posteriors.
            at_once: draws per example yielded at once, at most.
            like: a tensor of the model's dtype and device.
        """
        yield from self._from_posterior(q, at_once, like)
        yield from self._from_student(at_once, like)

    def _from_posterior(self, q: Components, at_once: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        counts, key = np.array(self.of_posterior), stream(POSTERIOR, self.pilot)
        shape = (len(counts), q.event_shape[0])
        levels = sorted({int(n) for n in counts if n})  # rows of draws below a level come from the same components
        for low, high in itertools.pairwise([0, *levels]):
            index = np.flatnonzero(counts > low)
            drawn = q if len(index) == len(counts) else q.select(torch.from_numpy(index).to(like.device))
            step = max(1, at_once // len(index))
            step -= step % DRAW_BLOCK if step > DRAW_BLOCK else 0
            for start in range(low, high, step):
                stop = min(high, start + step)
                noise = keyed_normal(self.seed, self.examples, start, stop, shape, key)[:, index]
                z = drawn.rsample((stop - start,), noise.to(like)).flatten(0, 1)
                yield z, torch.full(z.shape[:2], len(self.counts), device=z.device)

    def _from_student(self, at_once: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        key, latent = stream(STUDENT, self.pilot), self.student.location.shape[-1]
        edges = self.counts.cumsum(0)
        draws = int(edges[-1, 0])
        step = max(1, at_once)
        step -= step % DRAW_BLOCK if step > DRAW_BLOCK else 0
        for start in range(0, draws, step):
            stop = min(draws, start + step)
            noise = keyed_normal(self.seed, self.examples, start, stop, (1, latent + DEGREES), key)[:, 0]
            numbers = torch.arange(start, stop, device=edges.device)
            which = (numbers[:, None] >= edges[:, None]).sum(0)  # (N, B)
            yield self.student.draw(which, noise.to(edges.device)).to(like), which

    @torch.no_grad()
    def log_weights(
        self, joint: Joint, q: Components, at_once: int
    ) -> Iterator[tuple[Float[Tensor, "N B"], Int[Tensor, "N B"]]]:
        """Log weights log p(x, z) − log r(z) of all draws, some at once, and the stratum of each.

        A draw at which the model has no density has weight 0 and counts as a draw.

        Raises:
            FloatingPointError: the model's density is NaN or +∞ at a draw.
        """
        for z, stratum in self.points(q, at_once, joint.like):
            log_joint = joint.log_prob(z).double()
            if bool((log_joint.isnan() | (log_joint == math.inf)).any()):
                raise FloatingPointError(
                    "log p(x, z) is NaN or infinite at a draw of the proposal, so that p(x) cannot be estimated: "
                    'evaluate in float64, or with proposal="posterior"'
                )
            log_r = self.log_prob(z, q)
            if bool((log_r.isnan() | log_r.isinf()).any()):
                raise FloatingPointError(
                    "the density of the proposal is NaN, zero or infinite at a draw of its own, so that p(x) cannot be "
                    "estimated: check the posterior's log_prob, or evaluate in float64"
                )
            yield log_joint - log_r, stratum
