"""Requested evaluations: what they will be made from, where they are stored, and what is stored."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mixvae import evaluation
from mixvae.analysis import active_units, encode
from mixvae.distributions import support_of
from mixvae.evaluation import (
    Estimate,
    Evaluation,
    Identity,
    ProposalName,
    check_draws,
    draws_of_each,
    fingerprint,
)
from mixvae.files import write_json
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import Progress
from mixvae.runs._examples import NEW, Examples, NewData, examples_of, prepared
from mixvae.runs._opening import open_run
from mixvae.runs._run import Run
from mixvae.runs._sources import sources_of
from mixvae.runs._stored import save_evaluation, stored_evaluation

FINITE = ("elbo", "miselbo", "pooled", "log_px")
"""Per-example values without which there is no result."""


@dataclass(frozen=True)
class Request:
    """A requested evaluation: its examples, and the identity that it will have.

    Args:
        run: the run.
        of: where the examples come from.
        x: the examples, in the form that the model takes.
        identity: what the evaluation is made from.
        chunk: latents decoded at once.
    """

    run: Run
    of: Examples
    x: Tensor
    identity: Identity
    chunk: int

    @property
    def file(self) -> Path:
        """Where it is stored; an evaluation of new examples goes into a separate folder, where no report looks."""
        folder = self.run.layout.evaluations
        if self.identity.split == NEW:
            return folder / NEW / f"{str(self.identity.data)[:12]}-{self.identity.key}.json"
        return folder / f"{self.identity.key}.json"

    def stored(self) -> Evaluation | None:
        """The stored evaluation; None if there is none, or it was made from something else."""
        return None if self.run.is_legacy else stored_evaluation(self.file, self.identity)

    def estimate(self, progress: Progress, first: int = 0, last: int | None = None) -> Estimate:
        """Evaluate the examples, or those from `first` up to but excluding `last`; their numbers key their draws.

        Raises:
            ValueError: the bound of an example is not finite.
        """
        x = self.x[first:last]
        made = evaluation.evaluate(
            self.run.model,
            x,
            draws_per_component=self.identity.draws_per_component,
            proposal=cast("ProposalName", self.identity.proposal),
            chunk=self.chunk,
            seed=self.identity.seed,
            examples=np.arange(first, first + len(x)),
            progress=progress,
        )
        for name in FINITE:
            if len(broken := np.flatnonzero(~np.isfinite(values := getattr(made, name)))):
                raise ValueError(
                    f"the {name} of {self.of.data}'s {self.identity.split} example {first + broken[0]} is "
                    f"{values[broken[0]]}, so that there is no result: {self.run.path} gives it no density"
                )
        return made

    def finish(self, estimate: Estimate) -> Evaluation:
        """Store the estimate of all examples, with everything else that `results.json` holds."""
        result = Evaluation(self.identity, estimate.arrays(), estimate.summary() | self._beside(estimate))
        if not self.run.is_legacy:
            save_evaluation(self.file, result)
        self.copy(result)
        return result

    def copy(self, result: Evaluation) -> None:
        """Copy the results of the whole test split to `results.json`."""
        if self.of.split == "test" and len(self.x) == len(self.run.data.test) and not self.run.is_legacy:
            write_json(self.run.layout.results, dict(result.results))

    def _beside(self, estimate: Estimate) -> dict[str, Any]:
        """What results hold besides means and errors: measures of the model, and what they were made from."""
        model, x, identity = self.run.model, self.x, self.identity
        means, _ = encode(model, x)
        trained = self.run.manifest["progress"]
        weight = model.posterior(x[:1]).log_pi.exp()
        return {
            "active_units": active_units(means, weight) if len(means) > 1 else None,
            "bits_per_dim": _bits_per_dim(model, x, estimate.log_px),
            "parameters": sum(p.numel() for p in model.parameters()),
            "split": identity.split,
            "data": self.of.data,
            "data_sha256": identity.data,
            "weights_sha256": identity.weights,
            "recipe_sha256": identity.recipe,
            "best_epoch": trained["best_epoch"],
            "epochs": trained["epoch"],
            "train_seconds": trained["seconds"],
            "versions": versions(),
            "git_commit": git_commit(),
            "legacy": identity.legacy,
        }


def request(
    run: str | Path | Run,
    total_draws: int,
    *,
    draws_per_component: int | None,
    split: str,
    examples: int | None,
    seed: int,
    proposal: str,
    data: NewData | None,
    progress: Progress,
    chunk: int = 1024,
) -> Request:
    """Read the examples of a requested evaluation; see `evaluate` for the arguments.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a number is out of range, or the data are not those it was trained on.
    """
    run = open_run(run)
    check_draws(total_draws, draws_per_component, chunk, seed)
    of = examples_of(run, split, examples, data, progress)
    x = prepared(run, of.part)
    with torch.no_grad(), evaluating(run.model):
        components = run.model.posterior(x[:1]).batch_shape[0]
    identity = Identity(
        of.sha256,
        of.split,
        len(x),
        fingerprint(x),
        components,
        draws_of_each(components, total_draws, draws_per_component),
        seed,
        proposal,
        weights=run.weights_sha256,
        recipe=None if run.is_legacy else run.recipe.sha256,
        legacy=run.is_legacy,
        source=sources_of(run.model),
    )
    return Request(run, of, x, identity, chunk)


def _bits_per_dim(model: MixtureVAE, x: Tensor, log_px: np.ndarray) -> float | None:
    """−log₂ p(x) per value, if p(x) is a probability rather than a density."""
    with torch.no_grad(), evaluating(model):
        support: Any = support_of(model.at_origin())
    discrete = support is not None and support.is_discrete
    return float(-log_px.mean() / math.log(2) / x[0].numel()) if discrete else None


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in ("mixvae", "torch", "numpy")}


def git_commit() -> str | None:
    """Commit of the checkout that mixvae runs from, if any; not that of a repository around its environment."""
    here = Path(__file__)
    try:
        for words in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            done = subprocess.run(["git", "-C", here.parent, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
