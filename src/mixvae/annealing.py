"""Annealed importance sampling: an independent check of likelihoods, since no encoder and no proposal is involved.

Chains move from the prior to the posterior through p(z) p(x|z)^β by Hamiltonian Monte Carlo. On observations drawn from
the model they also run backwards, from an exact draw of the posterior, and bound log p(x) from above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixvae._failures import at_least
from mixvae._tables import Row, Tabular, counted
from mixvae.distributions import DRAW_BLOCK, keyed_normal
from mixvae.joint import Joint
from mixvae.progress import SILENT, Progress

ACCEPTANCE = 0.65
"""Mean acceptance to which step sizes are tuned (Neal, 2011)."""
JITTER = 0.2
"""Largest relative deviation of a step from the tuned one; without any, trajectories could be periodic."""
PILOT_CHAINS, PILOT_SHARE, PILOT_LEAST = 16, 4, 100
"""Chains of the pilot, temperatures of the run per temperature of the pilot, and the pilot's minimum number of them."""
SETTLING, FIRST_STEP = 20, 0.5
"""Transitions in which the pilot finds its first step size, and where that search begins."""
SIMULATION, PILOT_START, PILOT, START, FORWARD, BACKWARD = range(16, 22)
"""Streams of noise, apart from those of evaluation: what tunes, simulates or starts chains, and what moves them."""


class _Point(NamedTuple):
    """Latents (K, B, D), their log-densities (K, B) in float64, and the gradients of both.

    A log-likelihood that is not finite is held as −∞, so that its weight is 0 and every finite point is better.
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor

    def log_density(self, beta: float) -> Tensor:
        """Unnormalised log-density log p(z) + β log p(x|z)."""
        return self.log_prior + beta * self.log_likelihood

    def slope(self, beta: float) -> Tensor:
        """Gradient of `log_density`."""
        return self.prior_slope + beta * self.likelihood_slope


@dataclass(frozen=True, repr=False)
class Annealed(Tabular):
    """Annealed importance sampling of B observations by K chains each.

    Args:
        log_weights: log weight of every chain, (K, B), in nats.
        acceptance: mean probability of acceptance over chains and temperatures, (B,); NaN for one temperature.
        temperatures: steps between prior and posterior.
        leapfrog: leapfrog steps of a transition.
        seed: seed of the noise.
        sign: 1 if the mean weight is unbiased for p(x); −1 if for 1/p(x), as with backward chains.

    Example:
        >>> import numpy as np
        >>> from mixvae.annealing import Annealed
        >>> Annealed(np.log([[1.0], [3.0]]), np.array([0.625]), temperatures=100, leapfrog=5, seed=0)
        Annealed importance sampling of 1 example: 2 chains, 100 temperatures, 5 leapfrog steps, seed 0
        bound  log p(x)  se  mc_se   ess  acceptance
        lower    0.6931   –    0.5  1.60       0.625
    """

    log_weights: np.ndarray
    acceptance: np.ndarray
    temperatures: int
    leapfrog: int
    seed: int
    sign: int = 1

    @property
    def log_px(self) -> np.ndarray:
        """Bound on log p(x) in expectation, (B,), in nats: the log of the mean weight, times `sign`."""
        return self.sign * (np.logaddexp.reduce(self.log_weights, 0) - math.log(len(self.log_weights)))

    @property
    def _relative(self) -> np.ndarray:
        """Weights over their mean; NaN if all are 0."""
        with np.errstate(invalid="ignore"):
            return np.exp(self.log_weights - self.sign * self.log_px)

    @property
    def mc_se(self) -> np.ndarray:
        """Monte-Carlo standard error of `log_px` by the delta method, (B,), in nats; its bias is about mc_se²/2."""
        chains = len(self.log_weights)
        return self._relative.std(0, ddof=1) / math.sqrt(chains) if chains > 1 else np.full_like(self.log_px, math.nan)

    @property
    def ess(self) -> np.ndarray:
        """Effective number of chains, (Σ w)² / Σ w², (B,), at most K."""
        return np.nan_to_num(len(self.log_weights) / np.square(self._relative).mean(0), nan=0.0)

    @property
    def title(self) -> str:
        """How many examples, chains and temperatures."""
        chains, examples = self.log_weights.shape
        effort = f"{counted(chains, 'chain')}, {self.temperatures} temperatures, {self.leapfrog} leapfrog steps"
        return f"Annealed importance sampling of {counted(examples, 'example')}: {effort}, seed {self.seed}"

    @property
    def table(self) -> list[Row]:
        """Mean of log p(x) over the examples, its standard errors over examples and over chains, and diagnostics."""
        means = {"ess": float(self.ess.mean()), "acceptance": float(self.acceptance.mean())}
        return [_row("lower" if self.sign > 0 else "upper", self.log_px, self.mc_se) | means]


@dataclass(frozen=True, repr=False)
class Bracket(Tabular):
    """Stochastic bounds on log p(x) of B simulated observations.

    Args:
        lower: the chains from the prior.
        upper: the chains from the exact posterior draw. All chains of an observation share it, so their `mc_se` and
            `ess` hold for that start and miss the variation between starts; the gap's `se`, over examples, includes it.
        joint: the joint density of the simulated observations, on which other estimates can be checked.
    """

    lower: Annealed
    upper: Annealed
    joint: Joint

    @property
    def gap(self) -> np.ndarray:
        """Upper minus lower bound, (B,), in nats: at least 0 in expectation, and at least either bound's own gap."""
        return self.upper.log_px - self.lower.log_px

    @property
    def table(self) -> list[Row]:
        """One row per bound and one for the gap: means over the examples and their standard errors."""
        gap = _row("gap", self.gap, np.hypot(self.lower.mc_se, self.upper.mc_se))
        return [*self.lower.table, *self.upper.table, gap]


def anneal(
    joint: Joint,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog: int = 10,
    *,
    seed: int = 0,
    chunk: int = 1024,
    progress: Progress = SILENT,
) -> Annealed:
    """Estimate log p(x) of every observation by annealed importance sampling from the prior.

    A chain z_0 ~ p(z), z_t ~ T_t(·|z_{t−1}) has log weight Σ_t (β_t − β_{t−1}) log p(x|z_{t−1}), t = 1 … T, with T_t a
    transition of Hamiltonian Monte Carlo that leaves p(z) p(x|z)^β_t invariant, and β is a sigmoid from 0 to 1. The
    mean weight over chains is unbiased for p(x) whatever T, so that its log is a lower bound in expectation.

    This is exact because nothing adapts during a run: step sizes, one per temperature and observation, are tuned to an
    acceptance of 0.65 by separate pilot chains with noise of their own, and then frozen. A proposal whose density or
    trajectory is not finite is rejected; a start whose likelihood is not finite has weight 0, and counts in the mean.

    Noise is keyed by seed and position of the observation, so it does not depend on `chunk`; results then agree up to
    rounding, which long float32 chains amplify, within the Monte-Carlo error. torch's generators are left untouched.

    Args:
        joint: the joint density, whose model must be in evaluation mode; autograd takes its gradients in z.
        chains: chains K of each observation.
        temperatures: steps T from prior to posterior; for large T the bias falls as 1/T.
        leapfrog: leapfrog steps of a transition.
        seed: seed of the noise.
        chunk: latents decoded at once, which bounds memory; at least all chains of one observation, or 16.
        progress: where progress is reported, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: there are no observations, or a number is not positive.

    References:
        Neal, Annealed Importance Sampling (2001), https://arxiv.org/abs/physics/9803008
        Neal, MCMC Using Hamiltonian Dynamics (2011), https://arxiv.org/abs/1206.1901
        Wu et al., On the Quantitative Analysis of Decoder-Based Models (2017), https://arxiv.org/abs/1611.04273

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, StandardNormal
        >>> from mixvae.annealing import anneal
        >>> from mixvae.joint import ModelJoint
        >>> model = MixtureVAE(torch.nn.Identity(), StandardNormal(2), MLPDecoder(2, (4,), (5,))).eval()
        >>> annealed = anneal(ModelJoint(model, torch.ones(3, 4)), chains=8, temperatures=20, leapfrog=2)
        >>> annealed.log_px.shape, annealed.log_weights.shape
        ((3,), (8, 3))
    """
    return _run(joint, None, (chains, temperatures, leapfrog, seed), chunk, progress)[0]


def bracket(
    joint: Joint,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog: int = 10,
    *,
    seed: int = 0,
    chunk: int = 1024,
    progress: Progress = SILENT,
) -> Bracket:
    """Bracket log p(x) of an equal number of simulated observations by bidirectional Monte Carlo.

    With z* ~ p(z) and x ~ p(x|z*), z* is an exact draw from p(z|x). Chains from it backwards through the temperatures
    of `anneal`, by the same transitions with the same frozen step sizes, have inverse weights whose mean is unbiased
    for 1/p(x): minus its log is an upper bound in expectation. Where the bounds meet, both are close to log p(x). This
    carries over to real observations only as far as simulated ones resemble them.

    The arguments are those of `anneal`; only the number and shape of the observations matter.

    Raises:
        ValueError: there are no observations, a number is not positive, or log p(x|z*) is not finite.

    References:
        Grosse et al., Sandwiching the Marginal Likelihood (2015), https://arxiv.org/abs/1511.02543
        Wu et al., On the Quantitative Analysis of Decoder-Based Models (2017), https://arxiv.org/abs/1611.04273

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, StandardNormal
        >>> from mixvae.annealing import bracket
        >>> from mixvae.joint import ModelJoint
        >>> model = MixtureVAE(torch.nn.Identity(), StandardNormal(2), MLPDecoder(2, (4,), (5,))).eval()
        >>> result = bracket(ModelJoint(model, torch.ones(3, 4)), chains=8, temperatures=20, leapfrog=2)
        >>> bool((abs(result.gap) < 0.2).all()), [row["bound"] for row in result.table]
        (True, ['lower', 'upper', 'gap'])
    """
    at_least(1, observations=joint.size)
    at_least(0, seed=seed)
    with _seeded(joint.like, seed, SIMULATION), torch.no_grad():
        latents = joint.sample_prior(1)[0]
        simulated = joint.simulated(latents)
        wrong = int((~simulated.log_likelihood(latents).isfinite()).sum())
    if wrong:
        raise ValueError(f"log p(x|z) must be finite where x was drawn from p(x|z); it is not for {wrong} observations")
    lower, upper = _run(simulated, latents, (chains, temperatures, leapfrog, seed), chunk, progress)
    return Bracket(lower, upper, simulated)


def _schedule(temperatures: int) -> list[float]:
    """Inverse temperatures β_0 = 0 … β_T = 1 along a sigmoid, dense at both ends (Wu et al., 2017)."""
    sigmoid = 1 / (1 + np.exp(np.linspace(4, -4, temperatures + 1)))
    return ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()


class _Part(NamedTuple):
    """Some of the observations, their positions, and what all passes over them share."""

    joint: Joint
    examples: Sequence[int]
    leapfrog: int
    seed: int
    report: Callable[[int], None]

    def starts(self, stream: int, chains: int) -> Tensor:
        """Latents from the prior, (K, B, D)."""
        drawn = []
        for row, example in enumerate(self.examples):
            with _seeded(self.joint.like, self.seed, stream, example), torch.no_grad():
                drawn.append(self.joint.part(row, row + 1).sample_prior(chains))
        return torch.cat(drawn, 1)

    def at(self, z: Tensor) -> _Point:
        """The joint density at latents, with the gradients of prior and likelihood from one backward pass."""
        finite = z.isfinite().all(-1)  # a decoder might refuse overflowed latents: the density there is 0
        valid = torch.where(finite[..., None], z, 0.0)
        with torch.enable_grad():
            one, two = valid.detach().requires_grad_(), valid.detach().requires_grad_()
            log_prior, log_likelihood = self.joint.log_prior(one), self.joint.log_likelihood(two)
            slopes = torch.autograd.grad(log_prior.sum() + log_likelihood.sum(), (one, two), materialize_grads=True)
        log_likelihood = log_likelihood.detach().double()
        log_likelihood = torch.where(finite & log_likelihood.isfinite(), log_likelihood, -math.inf)
        return _Point(z, log_prior.detach().double(), log_likelihood, *slopes)

    def trajectory(self, start: _Point, momentum: Tensor, step: Tensor, beta: float) -> tuple[_Point, Tensor]:
        """End and final momentum of leapfrog steps for the energy −log p(z) − β log p(x|z) + |momentum|²/2.

        Reversible, and preserves volume, for any `step` (broadcast to z) that does not depend on z.
        """
        point, momentum = start, momentum + step / 2 * start.slope(beta)
        for left in reversed(range(self.leapfrog)):
            point = self.at(point.z + step * momentum)
            momentum = momentum + (step if left else step / 2) * point.slope(beta)
        return point, momentum

    def transition(self, start: _Point, noise: Tensor, step: Tensor, beta: float) -> tuple[_Point, Tensor]:
        """Next points by Hamiltonian Monte Carlo for p(z) p(x|z)^β, β > 0, and the probability that each was accepted.

        The standard normal noise (K, B, D + 3) is for momentum, acceptance (2) and jitter of the step sizes (B,).
        """
        momentum, exponential = noise[..., :-3], noise[..., -3:-1].double().square().sum(-1) / 2
        step = step[:, None].to(noise) * (1 + JITTER * torch.erf(noise[..., -1:] / math.sqrt(2)))
        end, last = self.trajectory(start, momentum, step, beta)
        log_density = end.log_density(beta)
        kinetic = (momentum.double().square() - last.double().square()).sum(-1) / 2
        ratio = log_density - start.log_density(beta) + kinetic
        ratio = torch.where(log_density.isfinite() & ~ratio.isnan(), ratio, -math.inf)
        accepted = ratio > -exponential
        chosen = (
            torch.where(accepted if new.dim() == 2 else accepted[..., None], new, old)
            for new, old in zip(end, start, strict=True)
        )
        return _Point(*chosen), ratio.clamp(max=0).exp()

    def noise(self, chains: int, betas: Sequence[float], stream: int) -> Iterator[tuple[float, Tensor]]:
        """Each inverse temperature with the noise of its transition, (K, B, D + 3)."""
        key, event = _key(self.seed, stream), (chains, self.joint.latent + 3)
        for first in range(0, len(betas), DRAW_BLOCK):
            some = betas[first : first + DRAW_BLOCK]
            block = keyed_normal(key, self.examples, first, first + len(some), event)
            yield from zip(some, block.to(self.joint.like), strict=True)
            self.report(len(some))

    def tuned(self, pilot: int, temperatures: int) -> Tensor:
        """Step sizes (T + 1, B) from the acceptance of chains with `pilot` temperatures, interpolated."""
        betas, tuned = _schedule(pilot)[1:], []
        point = self.at(self.starts(PILOT_START, PILOT_CHAINS))
        log_step = torch.full_like(point.log_prior[0], math.log(FIRST_STEP))
        for beta, noise in self.noise(PILOT_CHAINS, betas[:1] * SETTLING + betas, PILOT):
            tuned.append(log_step)
            point, acceptance = self.transition(point, noise, log_step.exp(), beta)
            log_step = log_step + acceptance.mean(0) - ACCEPTANCE
        steps = torch.stack([tuned[SETTLING], *tuned[SETTLING:], tuned[-1]]).exp()
        place = torch.linspace(0, pilot, temperatures + 1, dtype=steps.dtype, device=steps.device)
        below = place.long()
        return torch.lerp(steps[below], steps[below + 1], (place - below)[:, None])

    def weighed(self, z: Tensor, betas: Sequence[float], steps: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """Log weights (K, B) of chains from z through all but the ends of `betas`, and acceptance (B,)."""
        point, widths = self.at(z), np.diff(betas).tolist()
        log_weight, accepted = widths[0] * point.log_likelihood, torch.zeros_like(point.log_prior[0])
        moves = zip(self.noise(len(z), betas[1:-1], stream), steps[1:-1], widths[1:], strict=True)
        for (beta, noise), step, width in moves:
            point, acceptance = self.transition(point, noise, step, beta)
            log_weight = log_weight + width * point.log_likelihood
            accepted = accepted + acceptance.mean(0)
        return log_weight.cpu(), accepted.cpu() / (len(betas) - 2 or math.nan)


def _run(
    joint: Joint, exact: Tensor | None, settings: tuple[int, int, int, int], chunk: int, progress: Progress
) -> list[Annealed]:
    """Chains from the prior, and backward ones if exact draws from the posterior are given."""
    chains, temperatures, leapfrog, seed = settings
    at_least(1, chains=chains, temperatures=temperatures, leapfrog=leapfrog, chunk=chunk, observations=joint.size)
    at_least(0, seed=seed)
    betas, pilot = _schedule(temperatures), max(PILOT_LEAST, temperatures // PILOT_SHARE)
    size, directions = max(1, chunk // max(chains, PILOT_CHAINS)), 1 if exact is None else 2
    total, done = -(-joint.size // size) * (SETTLING + pilot + directions * (temperatures - 1)), 0

    def report(transitions: int) -> None:
        nonlocal done
        done += transitions
        progress.update(done, total, "annealing")

    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(directions)]
    for first in range(0, joint.size, size):
        stop = min(first + size, joint.size)
        part = _Part(joint.part(first, stop), range(first, stop), leapfrog, seed, report)
        steps = part.tuned(pilot, temperatures)
        found[0].append(part.weighed(part.starts(START, chains), betas, steps, FORWARD))
        if exact is not None:
            z = exact[first:stop].expand(chains, -1, -1)
            found[1].append(part.weighed(z, betas[::-1], steps.flip(0), BACKWARD))
    log_weights = [torch.cat([weights for weights, _ in parts], 1).numpy() for parts in found]
    acceptance = [torch.cat([accepted for _, accepted in parts]).numpy() for parts in found]
    signed = zip(log_weights, acceptance, (1, -1), strict=False)
    return [Annealed(weights, accepted, temperatures, leapfrog, seed, sign) for weights, accepted, sign in signed]


def _key(*parts: int) -> int:
    """A seed of 63 bits for one stream of noise."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _seeded(like: Tensor, *parts: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of a tensor's device, and restore them afterwards."""
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        torch.default_generator.manual_seed(_key(*parts))
        if like.is_cuda:
            with torch.cuda.device(like.device):
                torch.cuda.manual_seed(_key(*parts))
        yield


def _row(bound: str, values: np.ndarray, errors: np.ndarray) -> Row:
    se = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    mc_se = float(np.linalg.norm(errors)) / len(values)
    return {"bound": bound, "log p(x)": float(values.mean()), "se": se, "mc_se": mc_se}
