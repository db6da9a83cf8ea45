"""The paper's single-cell experiment: SCVI, mixtures of one to five encoders, and their rivals on CORTEX."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi.model import SCVI

from mixvae.files import read_json, write_json
from mixvae.representation import classifiers, classify, cluster
from mixvae.single_cell.data import cortex
from mixvae.single_cell.diagnostics import integration_scores
from mixvae.single_cell.model import MixtureSCVI

SIZES = (2400, 200, 405)
"""Cells of CORTEX that are trained on, validated on and held out."""
SCVI_NAME, RIVAL, FROZEN, MIXTURE, UNNORMALISED = "scvi", "samples", "frozen", "mixture", "nobatchnorm"


@dataclass(frozen=True)
class Job:
    """One model to train: a kind, a number of components, a seed."""

    kind: str
    components: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its result file."""
        return f"{self.kind}-S{self.components}-seed{self.seed}"


def jobs(seeds: int = 3, more_seeds: int = 6) -> list[Job]:
    """All models of the experiment: more seeds for SCVI and mixtures of one and three, so that they compare well."""
    listed = []
    for seed in range(max(seeds, more_seeds)):
        every = seed < seeds
        listed += [Job(SCVI_NAME, 1, seed)]
        listed += [Job(MIXTURE, s, seed) for s in (1, 2, 3, 4, 5) if every or s in (1, 3)]
        listed += [Job(FROZEN, s, seed) for s in (2, 3, 4, 5) if every]
    return listed + [Job(UNNORMALISED, s, seed) for seed in range(seeds) for s in (1, 3)]


def split(cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the cells to train on, to validate on and to hold out; `SIZES`, in proportion for other cells."""
    order = np.random.default_rng(seed).permutation(cells)
    first, second = (cells * part // sum(SIZES) for part in (SIZES[0], SIZES[0] + SIZES[1]))
    return order[:first], order[first:second], order[second:]


def run(
    out: str | Path,
    listed: Sequence[Job] | None = None,
    *,
    epochs: int = 400,
    warmup: int = 100,
    patience: int = 45,
    draws: int = 1000,
    batch: int = 128,
    data: AnnData | None = None,
    progress: Callable[[Job, dict[str, Any]], object] | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate what is not there yet; one file of results per model, so that a killed run goes on.

    Args:
        out: folder of the results.
        listed: what to train; `jobs()` by default.
        epochs: most epochs.
        warmup: epochs of KL warm-up.
        patience: epochs without a better validation ELBO after which training stops.
        draws: draws per held-out cell, over all components.
        batch: cells per step.
        data: cells with `cell_type` and `precise_type`; CORTEX by default.
        progress: called with every job and its result.
    """
    out = Path(out)
    adata = cortex() if data is None else data
    results = []
    for job in jobs() if listed is None else listed:
        path = out / f"{job.name}.json"
        if not path.exists():
            settings = {"epochs": epochs, "warmup": warmup, "patience": patience, "draws": draws, "batch": batch}
            write_json(path, _train_and_measure(adata, job, out, settings))
        results.append(read_json(path))
        if progress is not None:
            progress(job, results[-1])
    return results


def _train_and_measure(adata: AnnData, job: Job, out: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Train one model; measure likelihood on held-out cells and what its latents tell about cell types."""
    scvi.settings.seed = job.seed
    scvi.settings.verbosity = 40
    train, validation, test = split(adata.n_obs)
    start = time.perf_counter()
    model = _model(adata, job, out, settings)
    model.train(
        max_epochs=settings["epochs"],
        batch_size=settings["batch"],
        accelerator="cpu",
        early_stopping=True,
        early_stopping_patience=settings["patience"],
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        datasplitter_kwargs={"external_indexing": [train, validation, test]},
        plan_kwargs={"n_epochs_kl_warmup": settings["warmup"]},
    )
    seconds = time.perf_counter() - start
    if job.kind == SCVI_NAME:
        model.save(str(out / job.name), overwrite=True)
    mixture = MixtureSCVI.from_scvi_model(model, 1, noise=0.0) if job.kind == SCVI_NAME else model
    estimate = mixture.get_bounds(indices=test, n_mc_samples=settings["draws"], batch_size=128)
    means, variances = mixture.get_latent_representation(components=True)
    features = {job.kind: np.concatenate([means, variances], -1).reshape(adata.n_obs, -1)}
    if job.kind == SCVI_NAME:
        samples = [mixture.get_latent_representation(give_mean=False) for _ in range(5)]
        features |= {f"{RIVAL}{n}": np.concatenate(samples[:n], -1) for n in (1, 2, 3, 4, 5)}
    return {
        "kind": job.kind,
        "components": job.components,
        "seed": job.seed,
        "epochs": model.trainer.current_epoch,
        "seconds": seconds,
        "settings": settings,
        "estimate": estimate.summary(),
        "pooled": estimate.pooled.tolist(),
        "representation": {name: _measure(values, adata, train, test) for name, values in features.items()},
        "machine": {"threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine()},
    }


def _model(adata: AnnData, job: Job, out: Path, settings: dict[str, int]) -> Any:
    """Make the model of a job; those with a frozen decoder start from the SCVI of their seed."""
    if job.kind == SCVI_NAME:
        SCVI.setup_anndata(adata)
        return SCVI(adata)
    MixtureSCVI.setup_anndata(adata)
    if job.kind == MIXTURE:
        return MixtureSCVI(adata, n_components=job.components)
    if job.kind == UNNORMALISED:
        return MixtureSCVI(adata, n_components=job.components, use_batch_norm="none")
    SCVI.setup_anndata(adata)
    start = Job(SCVI_NAME, 1, job.seed)
    if not (out / start.name / "model.pt").exists():  # its results came without its weights
        _train_and_measure(adata, start, out, settings)
        scvi.settings.seed = job.seed
    trained = SCVI.load(str(out / start.name), adata)
    return MixtureSCVI.from_scvi_model(trained, job.components, freeze_decoder=True)


def _measure(features: np.ndarray, adata: AnnData, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Clustering of all cells, and accuracy on held-out cells of a linear SVM fitted to the training cells."""
    svm = {"svm": classifiers()["svm"]}
    measured = {}
    for key, suffix in (("cell_type", ""), ("precise_type", "_precise")):
        labels = adata.obs[key].to_numpy()
        scores = cluster(features, labels) | classify(features[train], labels[train], features[test], labels[test], svm)
        measured |= {name + suffix: value for name, value in scores.items()}
    return measured


def with_batches(adata: AnnData, seed: int = 0) -> AnnData:
    """Real cells in two batches: a random half of them keep a part of their counts, another part for every gene.

    Each count of gene g is kept with probability min(1, ½ e^{N(0, ½²)}), so the second batch has half the depth and
    genes of its own that are caught badly. The batch effect is simulated; cells, counts and types are real.
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
    seeds: int = 3,
    *,
    epochs: int = 100,
    warmup: int = 50,
    data: AnnData | None = None,
    progress: Callable[[Job, dict[str, Any]], object] | None = None,
) -> list[dict[str, Any]]:
    """Scores of scib-metrics of SCVI and mixtures on CORTEX in two batches (`with_batches`); resumes as `run` does.

    Args:
        out: folder of the results.
        components: S of the mixtures beside SCVI.
        seeds: seeds of every model.
        epochs: epochs of training.
        warmup: epochs of KL warm-up.
        data: cells with `cell_type`; CORTEX by default.
        progress: called with every job and its result.
    """
    adata = with_batches(cortex() if data is None else data)
    results = []
    for seed in range(seeds):
        for job in (Job(SCVI_NAME, 1, seed), *(Job(MIXTURE, s, seed) for s in components)):
            path = Path(out) / "integration" / f"{job.name}.json"
            if not path.exists():
                scvi.settings.seed = job.seed
                cls, options = (SCVI, {}) if job.kind == SCVI_NAME else (MixtureSCVI, {"n_components": job.components})
                cls.setup_anndata(adata, batch_key="batch")
                model = cls(adata, **options)
                plan = {"n_epochs_kl_warmup": warmup}
                model.train(epochs, accelerator="cpu", plan_kwargs=plan, enable_progress_bar=False)
                adata.obsm[job.name] = model.get_latent_representation()
                scores = integration_scores(adata, [job.name], batch_key="batch", label_key="cell_type")
                write_json(path, {**asdict(job), "epochs": epochs, "scores": scores.loc[job.name].to_dict()})
            results.append(read_json(path))
            if progress is not None:
                progress(job, results[-1])
    return results


def integration_table(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per model and S: every score's mean over seeds with its standard error."""
    by_key: dict[tuple[str, int], list[dict[str, float]]] = {}
    for result in results:
        by_key.setdefault((result["kind"], result["components"]), []).append(result["scores"])
    return [
        {"model": kind, "S": s, "seeds": len(rows)} | {k: _mean_and_error([r[k] for r in rows]) for k in rows[0]}
        for (kind, s), rows in by_key.items()
    ]


def table(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per model and S: means over seeds, each with its standard error, and the paired gain over SCVI."""
    by_key: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    pooled: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for result in results:
        for name, scores in result["representation"].items():
            key = (name.rstrip("12345"), int(name[-1]) if name[-1].isdigit() else result["components"])
            values = dict(scores)
            if not name.startswith(RIVAL):
                own = result["estimate"]
                values |= {"elbo": own["elbo"], "miselbo": -own["nll_miselbo"], "pooled": -own["nll_pooled"]}
                values |= {"effective": own["effective_components"], "epochs": float(result["epochs"])}
                pooled.setdefault(key, {})[result["seed"]] = np.array(result["pooled"])
            by_key.setdefault(key, {})[result["seed"]] = values
    baseline = by_key[(SCVI_NAME, 1)]
    for key, by_seed in sorted(by_key.items()):
        row: dict[str, Any] = {"model": key[0], "S": key[1], "seeds": len(by_seed)}
        for metric in next(iter(by_seed.values())):
            row[metric] = _mean_and_error([values[metric] for values in by_seed.values()])
            paired = [values[metric] - baseline[seed][metric] for seed, values in by_seed.items() if seed in baseline]
            row[f"{metric}_gain"] = _mean_and_error(paired)
        yield row


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), spread
