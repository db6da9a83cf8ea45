"""An independent check of refined likelihoods: annealed importance sampling, and bidirectional Monte Carlo."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixvae._tables import Row, Tabular, counted
from mixvae._trying import Observations, observations
from mixvae.annealing import Annealed, Bracket, anneal, bracket
from mixvae.evaluation._estimate import Estimate, standard_error
from mixvae.evaluation._marginal import evaluate
from mixvae.joint import ModelJoint
from mixvae.model import MixtureVAE, evaluating, unread
from mixvae.progress import SILENT, Progress


@dataclass(frozen=True, repr=False)
class Check(Tabular):
    """Refined estimates beside annealed ones, on real and on simulated observations.

    Args:
        refined: evaluation of the observations.
        annealed: annealed importance sampling of the same observations, a lower bound in expectation.
        simulated: evaluation of an equal number of observations drawn from the model.
        bracket: lower and upper bounds for the simulated ones, by bidirectional Monte Carlo.

    Example:
        >>> import torch
        >>> from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal
        >>> from mixvae.evaluation import check
        >>> from mixvae.networks import GatedEncoder
        >>> posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (5,)), 3)
        >>> model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,)))
        >>> result = check(model, torch.ones(3, 4), total_draws=30, chains=4, temperatures=20, leapfrog=2)
        >>> [row["log p(x)"] for row in result.table][:2]
        ['refined', 'annealed (lower)']
    """

    refined: Estimate
    annealed: Annealed
    simulated: Estimate
    bracket: Bracket

    @property
    def title(self) -> str:
        """How much was annealed."""
        return (
            f"Check of {counted(len(self.refined.log_px), 'example')} in nats: {self.annealed.title.split(': ')[1]}; "
            f"{self.refined.total_draws} refined draws"
        )

    @property
    def table(self) -> list[Row]:
        """Means over the observations; `mc_se` is the error over draws or chains, `difference` is from the refined one.

        The error of a difference is the larger of two: that of its terms over draws and chains, and its own over
        examples.
        """
        upper = self.bracket.upper
        return [
            _row("real", "refined", self.refined),
            _row("real", "annealed (lower)", self.annealed, self.refined),
            _row("simulated", "refined", self.simulated),
            _row("simulated", "annealed (lower)", self.bracket.lower, self.simulated),
            _row("simulated", "annealed backwards (upper)", upper, self.simulated),
        ]


def _row(kind: str, name: str, of: Estimate | Annealed, refined: Estimate | None = None) -> Row:
    error = of.log_px_mc_se if isinstance(of, Estimate) else of.mc_se
    row: Row = {"examples": kind, "log p(x)": name, "mean": float(of.log_px.mean()), "mc_se": _joint(error)}
    if refined is not None:
        gap = of.log_px - refined.log_px
        over = standard_error(gap)
        row["difference"] = float(gap.mean())
        row["difference_se"] = float(np.nanmax([over, math.hypot(_joint(error), _joint(refined.log_px_mc_se))]))
    return row


def _joint(errors: np.ndarray) -> float:
    """Error of a mean of independent values."""
    return float(np.sqrt(np.square(errors).sum()) / len(errors))


def check(
    model: MixtureVAE,
    x: Observations,
    total_draws: int = 5000,
    *,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrog: int = 10,
    chunk: int = 1024,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Check:
    """Check refined estimates against methods that involve neither encoder nor proposals.

    On the observations themselves annealed importance sampling gives a lower bound in expectation, which approaches
    log p(x) with more temperatures: a refined estimate far below it has missed a mode. On observations drawn from the
    model, bidirectional Monte Carlo gives an upper bound too.

    Args:
        model: the model.
        x: observations, an array or tensor of numbers; a few dozen take minutes.
        total_draws: draws per example of the refined estimate.
        chains: annealed chains per observation.
        temperatures: steps from prior to posterior.
        leapfrog: leapfrog steps of a transition.
        chunk: latents decoded at once.
        seed: seed of all noise.
        progress: where progress is reported; silent by default.

    Raises:
        ValueError: there are no observations, or a number is not positive.

    References:
        Wu et al., On the Quantitative Analysis of Decoder-Based Models (2017), https://arxiv.org/abs/1611.04273
    """
    effort = {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog, "seed": seed, "chunk": chunk}
    x = observations(x, model)
    refined = evaluate(model, x, total_draws, chunk=chunk, seed=seed, progress=progress)
    with evaluating(model), unread(model):
        joint = ModelJoint(model, x)
        annealed = anneal(joint, **effort, progress=progress)
        both = bracket(joint, **effort, progress=progress)
    assert isinstance(both.joint, ModelJoint)
    simulated = evaluate(model, both.joint.x, total_draws, chunk=chunk, seed=seed, progress=progress)
    return Check(refined, annealed, simulated, both)
