"""A second question about cells: do mixtures integrate batches better than SCVI? One batch is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scvi
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi.model import SCVI

from mixvae.evaluation import Evaluation, Identity
from mixvae.progress import SILENT, Progress
from mixvae.reproduce.cells.names import SCVI_NAME
from mixvae.reproduce.cells.results import Job, agree, labels_sha256, legacy, with_scvi
from mixvae.runs._stored import save_evaluation, stored_evaluation
from mixvae.single_cell.data import cortex
from mixvae.single_cell.diagnostics import integration_scores
from mixvae.single_cell.model import MixtureSCVI
from mixvae.single_cell.recipes import Training
from mixvae.single_cell.runs import finished, take_weights

SCORES = "scib-metrics"
LEGACY_WARMUP = 50
"""Epochs of warm-up in results that do not record it."""


def with_batches(adata: AnnData, seed: int = 0) -> AnnData:
    """Real cells in two batches: a random half of them is thinned, each gene by its own factor.

    Each count of gene g is kept with probability min(1, ½ e^{N(0, ½²)}), so the second batch has half the depth and
    its own poorly captured genes. The batch effect is simulated; cells, counts and types are real.
    """
    rng = np.random.default_rng(seed)
    counts = adata.X.toarray().astype(int)
    second = rng.random(adata.n_obs) < 0.5
    kept = np.minimum(1.0, 0.5 * np.exp(rng.normal(0, 0.5, adata.n_vars)))
    counts[second] = rng.binomial(counts[second], kept)
    batched = AnnData(csr_matrix(counts.astype(np.float32)), obs=adata.obs.copy(), var=adata.var.copy())
    batched.obs["batch"] = np.where(second, "thinned", "whole")
    return batched[counts.sum(1) > 0].copy()


def integrate(
    out: str | Path,
    components: Sequence[int] = (1, 3),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    epochs: int = 100,
    warmup: int = 50,
    data: AnnData | None = None,
    progress: Progress = SILENT,
) -> list[dict[str, Any]]:
    """scib-metrics of SCVI and mixtures on CORTEX in two batches (`with_batches`); resumes as `run` does.

    Args:
        out: folder of the runs.
        components: S of the mixtures to compare with SCVI.
        seeds: seeds of every model.
        epochs: epochs of training.
        warmup: epochs of KL warm-up.
        data: cells with `cell_type`; CORTEX by default.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: a run or a result in the folder was made from other cells or with other settings.
    """
    folder, listed = Path(out).expanduser(), with_scvi(components, seeds)
    asked = {"epochs": epochs, "warmup": warmup}
    contents = legacy(folder, listed, lambda path, content: agree(path, {"warmup": LEGACY_WARMUP, **content}, asked))
    adata = None if contents is not None or not listed else with_batches(cortex() if data is None else data)
    results = []
    for i, job in enumerate(listed):
        training = Training(epochs, None, warmup, seed=job.seed, accelerator="cpu")
        results.append(contents[i] if contents is not None else _integrated(folder / job.name, job, training, adata))
        progress.announce(f"{job.name}: done")
    return results


def _integrated(path: Path, job: Job, training: Training, adata: AnnData) -> dict[str, Any]:
    """Train one model on two batches, and score how well its latents mix them."""
    scvi.settings.seed = job.seed
    cls, options = (SCVI, {}) if job.kind == SCVI_NAME else (MixtureSCVI, {"n_components": job.components})
    cls.setup_anndata(adata, batch_key="batch")
    model = cls(adata, **options)
    run = finished(path, model, training, f"{adata.n_obs} cells in two batches, one of them simulated", None)
    identity = Identity(
        run.recipe.identity["data"]["sha256"],
        "all",
        adata.n_obs,
        None,
        job.components,
        draws_per_component=0,
        seed=job.seed,
        proposal=SCORES,
        weights=run.weights_sha256,
        recipe=run.recipe.sha256,
    )
    extra = {"labels_sha256": labels_sha256(adata, ["cell_type"])}
    file = run.layout.evaluations / "integration.json"
    evaluation = stored_evaluation(file, identity, extra)
    if run.has_weights or evaluation is None:
        take_weights(model, run)
    if evaluation is None:
        adata.obsm[job.name] = model.get_latent_representation()
        scores = integration_scores(adata, [job.name], batch_key="batch", label_key="cell_type")
        results = {**job.described, "epochs": run.epoch, "scores": scores.loc[job.name].to_dict()}
        evaluation = Evaluation(identity, {"latent": adata.obsm.pop(job.name)}, results)
        save_evaluation(file, evaluation, extra)
    return dict(evaluation.results)
