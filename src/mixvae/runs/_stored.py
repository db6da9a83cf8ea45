"""Evaluations in files: first the arrays, then the JSON that says what they were made from."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from mixvae._arrays import read_npz
from mixvae.analysis import Representation
from mixvae.evaluation import Evaluation, Identity
from mixvae.files import commit, one_line, read_manifest, read_part
from mixvae.files._forms import conform

if TYPE_CHECKING:
    from mixvae.runs._run import Run

FORMAT = "mixvae evaluation"
VERSION = 2
"""Version of what evaluation computes; raising it causes stored evaluations to be recomputed."""


class Results(TypedDict, total=False):
    """Means and errors of an evaluation, with the accompanying counts."""

    nll: float
    nll_se: float | None
    nll_mc_se: float | None
    nll_bias: float | None
    tight: bool | None
    kl_posterior: float
    kl_posterior_se: float | None
    proposal: str
    proposal_notes: dict[str, int]
    elbo: float
    elbo_se: float | None
    elbo_mc_se: float | None
    nll_miselbo: float
    nll_miselbo_se: float | None
    nll_miselbo_mc_se: float | None
    nll_pooled: float
    nll_pooled_se: float | None
    nll_pooled_mc_se: float | None
    jsd: float
    jsd_se: float | None
    effective_components: float
    ess: float
    pareto_k: float | None
    pareto_k_unreliable: float | None
    components: int
    total_draws: int
    draws_per_component: int
    examples: int
    seed: int
    active_units: int | None
    bits_per_dim: float | None
    parameters: int
    split: str | None
    data: str
    best_epoch: int
    epochs: int
    train_seconds: float
    legacy: bool


class StoredEvaluation(TypedDict):
    """The JSON file of an evaluation."""

    created: float
    identity: Identity
    results: Results


AGAIN = "to go on without it, delete it and evaluate again"
"""What to do about an evaluation that cannot be read."""


def save_evaluation(path: Path, made: Evaluation, extra: Mapping[str, Any] | None = None) -> None:
    """Store an evaluation with its arrays under its identity, atomically.

    Args:
        path: the JSON file; the arrays go beside it.
        made: the evaluation.
        extra: what else it was made from.
    """
    content = {"identity": made.identity.record(), "extra": dict(extra or {}), "results": made.results}
    save_arrays(path, FORMAT, content, made.bounds)


def save_arrays(path: Path, form: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays, and beside them a JSON file of this form that says what they are, atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    heading = {"format": form, "version": VERSION, "created": time.time()}
    commit(path, heading | dict(content), {"arrays": (f"{path.stem}.npz", buffer.getvalue())})


def stored_evaluation(path: Path, identity: Identity, extra: Mapping[str, Any] | None = None) -> Evaluation | None:
    """The evaluation stored at a path; None, to recompute it, if it was made from something else or is damaged."""
    try:
        content = read_manifest(path)
        requested = {"version": VERSION, "identity": identity.record(), "extra": dict(extra or {})}
        if any(content.get(name) != value for name, value in requested.items()):
            return None
        return read_evaluation(path)
    except (OSError, ValueError):
        return None


def is_current(identity: object, run: Run) -> bool:
    """Whether what is stored under an identity was made from a run's current weights, trained by its recipe.

    If an amendment brought no better epoch, the weights are from before it. Scores of latents do not record the recipe.
    """
    made = identity.record() if isinstance(identity, Identity) else identity
    if not isinstance(made, dict) or made.get("weights") != run.weights_sha256:
        return False
    return made.get("recipe") is None or made["recipe"] in run.recipe.past


def read_stored(path: Path) -> dict[str, Any]:
    """Content of a stored evaluation, or of stored scores.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return read_manifest(path)
    except ValueError as error:
        raise ValueError(f"{error}; {AGAIN}") from None


def scores_in(content: Mapping[str, Any], path: Path) -> Representation:
    """How well latents predict labels, from the content of a file.

    Raises:
        ValueError: the file holds no such scores.
    """
    scores = content.get("scores")
    if not isinstance(scores, dict) or not scores or not all(map(_are_scores, scores.values())):
        raise ValueError(f"{path} holds no scores of latents: {AGAIN}")
    return Representation(scores)


def _are_scores(metrics: object) -> bool:
    """Whether these are lists of numbers by metric, all of the same length."""
    if not isinstance(metrics, dict) or not metrics:
        return False
    lists = list(metrics.values())
    return all(isinstance(one, list) and one and len(one) == len(lists[0]) for one in lists) and all(
        isinstance(value, int | float) for one in lists for value in one
    )


def identity_in(path: Path) -> tuple[Identity, float]:
    """Identity of a stored evaluation, and its time of creation.

    Raises:
        ValueError: the file is damaged, or was written by another version of mixvae.
    """
    return _identity(path, read_stored(path))


def read_evaluation(path: Path) -> Evaluation:
    """Read a stored evaluation.

    Raises:
        ValueError: one of its files is damaged, or was written by another version of mixvae.
    """
    try:
        content, arrays = read_part(path, "arrays")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; {AGAIN}") from None
    identity, _ = _identity(path, content)
    try:
        return Evaluation(identity, read_npz(arrays, f"{path.stem}.npz"), content["results"])
    except Exception as error:  # noqa: BLE001  (whatever NumPy and its archive raise)
        raise ValueError(f"the arrays of {path} are damaged: {one_line(error)}; {AGAIN}") from None


def _identity(path: Path, content: Mapping[str, Any]) -> tuple[Identity, float]:
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} was not written by this version of mixvae: {AGAIN}")
    try:
        conform(content, StoredEvaluation, "it")
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}; {AGAIN}") from None
    return Identity(**content["identity"]), float(content["created"])
