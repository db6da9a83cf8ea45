"""Evaluations of a run: each is stored under its own identity, and reused only for the same identity."""

from __future__ import annotations

import math
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from mixvae import evaluation
from mixvae._failures import at_least
from mixvae.analysis import active_units, encode
from mixvae.datasets import Split
from mixvae.evaluation import (
    Check,
    Evaluation,
    Identity,
    ProposalName,
    check_draws,
    draws_of_each,
    fingerprint,
)
from mixvae.files import atomic, write_json
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import SILENT, Progress
from mixvae.runs import _legacy as legacy
from mixvae.runs._opening import open_run
from mixvae.runs._run import Run
from mixvae.runs._stored import identity_in, read_evaluation, save_evaluation, stored_evaluation
from mixvae.training import default_device, keep_freed_memory

SplitName = Literal["train", "validation", "test"]


def part_of(run: Run, split: str, examples: int | None = None) -> Split:
    """Some examples of a run's data, on the default device.

    Raises:
        ValueError: the data are not those it was trained on, or `examples` is not positive.
    """
    at_least(1, examples=examples)
    keep_freed_memory()
    return run.data.split(split).head(examples).to(default_device())


def prepared(run: Run, split: Split, seed: int = 0) -> Tensor:
    """Examples as a run's model takes them; training examples are binarised by a fixed seed, and not mirrored."""
    x = replace(split, flip=False).batch(slice(None), torch.Generator(split.x.device).manual_seed(seed))
    return x.to(next(run.model.parameters()).dtype)


def evaluate(
    run: str | Path | Run,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    proposal: ProposalName = "refined",
    progress: Progress = SILENT,
) -> Evaluation:
    """Estimate the likelihood of some examples, and store the result under its own identity in `RUN/evaluations`.

    A stored result for the same weights, data, examples, draws, seed and proposal is read instead of recomputed.

    Args:
        run: the run directory.
        total_draws: total draws per example, L·S.
        draws_per_component: L itself, the paper's protocol; overrides `total_draws`.
        split: train, validation or test.
        examples: evaluate only the first N examples.
        chunk: latents decoded at once; memory depends on nothing else.
        seed: seed of the draws.
        proposal: where the draws of the headline come from: proposals refined for each example, or the posterior.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a number is out of range, the data are not those it was trained on, or a file is damaged.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import evaluate, train
        >>> flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2"]
        >>> run = train(read("digits", flags), "runs/evaluated")
        >>> result = evaluate(run, total_draws=10, examples=20)
        >>> result["examples"], result["draws_per_component"], result.bounds["pooled"].shape
        (20, 5, (20,))
    """
    run = open_run(run)
    check_draws(total_draws, draws_per_component, chunk, seed)
    part = part_of(run, split, examples)
    x = prepared(run, part)
    with torch.no_grad(), evaluating(run.model):
        components = run.model.posterior(x[:1]).batch_shape[0]
    identity = Identity(
        run.data.sha256(),
        split,
        len(x),
        fingerprint(x),
        components,
        draws_of_each(components, total_draws, draws_per_component),
        seed,
        proposal,
        weights=run.weights_sha256,
        recipe=None if run.is_legacy else run.recipe.sha256,
        legacy=run.is_legacy,
    )
    stored = None if run.is_legacy else stored_evaluation(_file(run, identity), identity)
    if stored is None:
        stored = _compute(run, identity, x, chunk, progress)
    if split == "test" and len(x) == len(run.data.test) and not run.is_legacy:
        write_json(run.layout.results, dict(stored.results))
    return stored


def check(
    run: str | Path | Run,
    examples: int,
    total_draws: int = 5000,
    *,
    split: SplitName = "test",
    chunk: int = 1024,
    seed: int = 0,
    temperatures: int = 1000,
    progress: Progress = SILENT,
) -> Check:
    """Check the likelihood of a run's first examples by annealed importance sampling: `mixvae.evaluation.check`.

    Args:
        run: the run directory.
        examples: how many examples.
        total_draws: draws per example of the refined estimate.
        split: train, validation or test.
        chunk: latents decoded at once.
        seed: seed of all noise.
        temperatures: steps from prior to posterior.
        progress: where to report progress; silent by default.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a number is out of range, or the data are not those it was trained on.
    """
    run = open_run(run)
    x = prepared(run, part_of(run, split, examples))
    return evaluation.check(
        run.model, x, total_draws, temperatures=temperatures, chunk=chunk, seed=seed, progress=progress
    )


def _compute(run: Run, identity: Identity, x: Tensor, chunk: int, progress: Progress) -> Evaluation:
    """Evaluate, and store the result."""
    model, each = run.model, identity.draws_per_component
    proposal = cast("ProposalName", identity.proposal)
    estimate = evaluation.evaluate(
        model, x, draws_per_component=each, proposal=proposal, chunk=chunk, seed=identity.seed, progress=progress
    )
    means, _ = encode(model, x)
    trained = run.manifest["progress"]
    weight = model.posterior(x[:1]).log_pi.exp()
    results = estimate.summary() | {
        "active_units": active_units(means, weight) if len(means) > 1 else None,
        "bits_per_dim": _bits_per_dim(model, x, estimate.log_px),
        "parameters": sum(p.numel() for p in model.parameters()),
        "split": identity.split,
        "data": run.data.name,
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
    result = Evaluation(identity, estimate.arrays(), results)
    if not run.is_legacy:
        save_evaluation(_file(run, identity), result)
    return result


def _file(run: Run, identity: Identity) -> Path:
    return run.layout.evaluations / f"{identity.key}.json"


def evaluation_of(run: str | Path | Run) -> Evaluation:
    """The evaluation of a run's current weights to show: by preference on the test split, on most examples, newest.

    Raises:
        FileNotFoundError: the run was not evaluated, or not since it was last trained.
        ValueError: a stored evaluation is damaged.
    """
    run = open_run(run)
    if run.is_legacy:
        stored = legacy.evaluation(run.path)
        if stored is None:
            raise FileNotFoundError(f"{run.path} has no evaluation: run `mixvae evaluate {run.path}` first")
        return stored
    ranked = []
    for path in run.layout.evaluations.glob("*-draws*.json"):
        identity, created = identity_in(path)
        if identity.weights == run.weights_sha256:
            ranked.append((identity.split == "test", identity.examples, created, path))
    if not ranked:
        raise FileNotFoundError(f"{run.path} has no evaluation of its weights: run `mixvae evaluate {run.path}` first")
    return read_evaluation(max(ranked)[-1])


def find_evaluation(
    run: str | Path | Run,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    seed: int = 0,
    proposal: ProposalName = "refined",
) -> Evaluation | None:
    """The stored evaluation of a run's current weights with these settings; None if there is none.

    See `evaluate` for the arguments. A legacy run has one evaluation, which is returned if it has these settings.
    """
    run = open_run(run)

    def matches(identity: Identity) -> bool:
        whole = run.manifest["runtime"]["data"].get("sizes", {}).get(split)
        size = whole if examples is None else examples if whole is None else min(examples, whole)
        each = draws_of_each(identity.components, total_draws, draws_per_component)
        has = (identity.split or split, identity.draws_per_component, identity.seed, identity.proposal)
        return has == (split, each, seed, proposal) and (size is None or identity.examples == size)

    if run.is_legacy:
        stored = legacy.evaluation(run.path)
        return stored if stored is not None and matches(stored.identity) else None
    for path in sorted(run.layout.evaluations.glob(f"{split}-*.json")):
        try:
            identity, _ = identity_in(path)
            if identity.weights == run.weights_sha256 and matches(identity):
                return read_evaluation(path)
        except (OSError, ValueError):  # damaged: `evaluate` recomputes it
            continue
    return None


def _bits_per_dim(model: MixtureVAE, x: Tensor, log_px: np.ndarray) -> float | None:
    """−log₂ p(x) per value, if p(x) is a probability and not a density."""
    with torch.no_grad(), evaluating(model):
        support = model.decoder(model.prior().sample((1,))).support
    return float(-log_px.mean() / math.log(2) / x[0].numel()) if support.is_discrete else None


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in ("mixvae", "torch", "numpy")}


def git_commit() -> str | None:
    """Commit of the checkout that mixvae runs from, if any."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, atomically.

    Example:
        >>> import numpy as np
        >>> from mixvae.runs import save_arrays
        >>> save_arrays("arrays.npz", {"x": np.zeros(3)})
        >>> np.load("arrays.npz")["x"].shape
        (3,)
    """
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
