"""Evaluations of a run: each is stored under its own identity, and reused only where that is the one asked for."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixvae.analysis import active_units, encode
from mixvae.datasets import Split
from mixvae.evaluation import (
    Evaluation,
    Identity,
    check_draws,
    draws_of_each,
    fingerprint,
    log_marginal,
)
from mixvae.failures import at_least
from mixvae.files import atomic, write_json
from mixvae.model import MixtureVAE, evaluating
from mixvae.runs import legacy
from mixvae.runs.opening import open_run
from mixvae.runs.run import Run
from mixvae.runs.stored import identity_in, read_evaluation, save_evaluation, stored_evaluation
from mixvae.training import default_device, keep_freed_memory

SplitName = Literal["train", "validation", "test"]


def part_of(run: Run, split: str, examples: int | None = None) -> Split:
    """Some examples of a run's data, on the device that work goes to.

    Raises:
        ValueError: the data are not those of the training, or `examples` is not positive.
    """
    at_least(1, examples=examples)
    keep_freed_memory()
    return run.data.split(split).head(examples).to(default_device())


def prepared(run: Run, split: Split, seed: int = 0) -> Tensor:
    """Examples as a run's model takes them; training examples are binarised from a fixed seed, and not mirrored."""
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
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Estimate the likelihood of some examples, and store it under its own identity in `RUN/evaluations`.

    What is stored already for the same weights, data, examples, draws and seed is read instead of computed.

    Args:
        run: the run directory.
        total_draws: total draws per example, L·S.
        draws_per_component: L itself, the paper's protocol; overrides `total_draws`.
        split: train, validation or test.
        examples: evaluate only the first N examples.
        chunk: latents decoded at once; memory depends on it alone.
        seed: seed of the draws.
        progress: called with the number of examples done and of all.

    Raises:
        FileNotFoundError: it is no run, or has not finished an epoch.
        ValueError: a number is out of range, the data are not those of the training, or a file is damaged.
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


def _compute(
    run: Run, identity: Identity, x: Tensor, chunk: int, progress: Callable[[int, int], object] | None
) -> Evaluation:
    """Evaluate, and store the result."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(x))

    model, each = run.model, identity.draws_per_component
    estimate = log_marginal(model, x, draws_per_component=each, chunk=chunk, seed=identity.seed, progress=advance)
    means, _ = encode(model, x)
    counted = run.manifest["progress"]
    weight = model.posterior(x[:1]).log_pi.exp()
    results = estimate.summary() | {
        "active_units": active_units(means, weight) if len(means) > 1 else None,
        "bits_per_dim": _bits_per_dim(model, x, estimate.pooled),
        "parameters": sum(p.numel() for p in model.parameters()),
        "split": identity.split,
        "data": run.data.name,
        "data_sha256": identity.data,
        "weights_sha256": identity.weights,
        "recipe_sha256": identity.recipe,
        "proposal": identity.proposal,
        "best_epoch": counted["best_epoch"],
        "epochs": counted["epoch"],
        "train_seconds": counted["seconds"],
        "versions": versions(),
        "git_commit": git_commit(),
        "legacy": identity.legacy,
    }
    made = Evaluation(identity, estimate.arrays(), results)
    if not run.is_legacy:
        save_evaluation(_file(run, identity), made)
    return made


def _file(run: Run, identity: Identity) -> Path:
    return run.layout.evaluations / f"{identity.key}.json"


def evaluation_of(run: str | Path | Run) -> Evaluation:
    """The evaluation to show of a run: of its present weights, on the test split first, on most examples, the newest.

    Raises:
        FileNotFoundError: the run was not evaluated, or only before it was trained on.
        ValueError: a stored evaluation is damaged.
    """
    run = open_run(run)
    if run.is_legacy:
        found = legacy.evaluation(run.path)
        if found is None:
            raise FileNotFoundError(f"{run.path} has no evaluation: run `mixvae evaluate {run.path}` first")
        return found
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
) -> Evaluation | None:
    """The stored evaluation of a run's present weights with these settings; None if there is none.

    See `evaluate` for the arguments. A legacy run has one evaluation, which counts if these are its settings.
    """
    run = open_run(run)

    def asked(identity: Identity) -> bool:
        whole = run.manifest["runtime"]["data"].get("sizes", {}).get(split)
        size = whole if examples is None else examples if whole is None else min(examples, whole)
        each = draws_of_each(identity.components, total_draws, draws_per_component)
        return (identity.split or split, identity.draws_per_component, identity.seed) == (split, each, seed) and (
            size is None or identity.examples == size
        )

    if run.is_legacy:
        found = legacy.evaluation(run.path)
        return found if found is not None and asked(found.identity) else None
    for path in sorted(run.layout.evaluations.glob(f"{split}-*.json")):
        try:
            identity, _ = identity_in(path)
            if identity.weights == run.weights_sha256 and asked(identity):
                return read_evaluation(path)
        except (OSError, ValueError):  # damaged: `evaluate` makes it again
            continue
    return None


def _bits_per_dim(model: MixtureVAE, x: Tensor, pooled: np.ndarray) -> float | None:
    """−log₂ p(x) per value, where p(x) is a probability and not a density."""
    with torch.no_grad(), evaluating(model):
        support = model.decoder(model.prior().sample((1,))).support
    return float(-pooled.mean() / math.log(2) / x[0].numel()) if support.is_discrete else None


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    return {name: version(name) for name in ("mixvae", "torch", "numpy")}


def git_commit() -> str | None:
    """Commit of the checkout that mixvae runs from, if it does."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
