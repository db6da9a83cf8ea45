"""The paper's single-cell experiment: SCVI, mixtures of one to five encoders, and their rivals on CORTEX.

Every model is a run directory, and its evaluation is stored there with what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from scipy.sparse import issparse
from scvi import REGISTRY_KEYS
from scvi.model import SCVI

from mixvae._failures import at_least
from mixvae.analysis import classifiers, classify, cluster
from mixvae.evaluation import Evaluation, Identity, fingerprint
from mixvae.progress import SILENT, Progress
from mixvae.reproduce.cells.names import FROZEN, MIXTURE, RIVAL, SCVI_NAME, UNNORMALISED
from mixvae.reproduce.cells.results import Job, agree, labels_sha256, legacy, legacy_evaluation
from mixvae.reproduce.findings import refuse_copies
from mixvae.runs import Layout, Run
from mixvae.runs._stored import save_evaluation, stored_evaluation
from mixvae.single_cell.data import check_keys, cortex, pbmc68k
from mixvae.single_cell.model import MixtureSCVI
from mixvae.single_cell.recipes import Training
from mixvae.single_cell.runs import finished, take_weights

SIZES = (2400, 200, 405)
"""Cells of CORTEX for training and validation, and held out."""
NOISE = 0.01
"""Noise on the copies of SCVI's encoder, relative to each tensor's own standard deviation."""
LABELS = ("cell_type", "precise_type")
COMPARED = (1, 3)
"""Sizes of the mixtures that are trained with further seeds."""
FEWEST = 20
"""Minimum number of cells in a trial."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    MIXTURE: {},
    UNNORMALISED: {"use_batch_norm": "none"},
    "gaussian_mixture": {"prior": "gaussian_mixture"},
    "vamp": {"prior": "vamp"},
}
"""Arguments of each kind of mixture, besides the number of components."""


@dataclass(frozen=True)
class Plan:
    """How every model of the study is trained and evaluated.

    Args:
        epochs: maximum number of epochs.
        warmup: epochs of KL warm-up.
        patience: epochs without a better validation ELBO after which training stops.
        total_draws: draws per held-out cell, over all components.
        batch: cells per step.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int = 400
    warmup: int = 100
    patience: int = 45
    total_draws: int = 1000
    batch: int = 128

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, patience=self.patience, total_draws=self.total_draws, batch=self.batch)
        at_least(0, warmup=self.warmup)


def jobs(
    seeds: Sequence[int] = (0, 1, 2),
    more_seeds: Sequence[int] = (3, 4, 5),
    *,
    sizes: Sequence[int] = (1, 2, 3, 4, 5),
    frozen: Sequence[int] = (2, 3, 4, 5),
    unnormalised: Sequence[int] = (1, 3),
    drawn: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> list[Job]:
    """Models of the experiment, including SCVI with every seed.

    Args:
        seeds: seeds of every model.
        more_seeds: further seeds of SCVI and of mixtures of `COMPARED` sizes, for a sharper comparison.
        sizes: numbers of components S of mixtures.
        frozen: numbers of components of mixtures with SCVI's decoder, frozen.
        unnormalised: numbers of components of mixtures without BatchNorm.
        drawn: for these kinds, numbers of draws per step of one encoder.
    """
    listed = []
    for seed in (*seeds, *more_seeds):
        every = seed in seeds
        listed += [Job(SCVI_NAME, 1, seed)]
        listed += [Job(MIXTURE, s, seed) for s in sizes if every or s in COMPARED]
        listed += [Job(FROZEN, s, seed) for s in frozen if every]
    listed += [Job(UNNORMALISED, s, seed) for seed in seeds for s in unnormalised]
    return listed + [Job(kind, 1, seed, n) for seed in seeds for kind, numbers in drawn.items() for n in numbers]


def split(cells: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the cells to train on, to validate on and to hold out; as many as `SIZES`, or in proportion."""
    order = np.random.default_rng(seed).permutation(cells)
    first, second = (cells * part // sum(SIZES) for part in (SIZES[0], SIZES[0] + SIZES[1]))
    return order[:first], order[first:second], order[second:]


def trial(cells: int) -> AnnData:
    """PBMC cells instead of CORTEX, to try out the experiment.

    Raises:
        ValueError: there are not that many, or too few to hold any out.
    """
    data = pbmc68k()
    if not FEWEST <= cells <= data.n_obs:
        raise ValueError(f"cells must be from {FEWEST} to {data.n_obs}; got {cells}")
    data = data[:cells].copy()
    for key in LABELS:
        data.obs[key] = data.obs["bulk_labels"].astype(str)
    return data


def run(
    out: str | Path,
    listed: Sequence[Job] | None = None,
    *,
    epochs: int = Plan.epochs,
    warmup: int = Plan.warmup,
    patience: int = Plan.patience,
    total_draws: int = Plan.total_draws,
    batch: int = Plan.batch,
    data: AnnData | None = None,
    progress: Progress = SILENT,
) -> list[Evaluation]:
    """Train and evaluate what is missing; one run directory per model, so that a killed study resumes.

    A folder of results from before results had an identity is read as it is, if it holds all models and was made with
    the same settings.

    Args:
        out: folder of the runs.
        listed: models to train; `jobs()` by default.
        epochs: maximum number of epochs.
        warmup: epochs of KL warm-up.
        patience: epochs without a better validation ELBO after which training stops.
        total_draws: draws per held-out cell, over all components.
        batch: cells per step.
        data: cells with `cell_type` and `precise_type`; CORTEX by default.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: a run or a result in the folder was made from other cells or with other settings.
    """
    out, plan = Path(out).expanduser(), Plan(epochs, warmup, patience, total_draws, batch)
    listed = jobs() if listed is None else listed
    held_out = SIZES[2] if data is None else len(split(data.n_obs)[2])

    def check(path: Path, content: Mapping[str, Any]) -> None:
        agree(path, {**content["settings"], "total_draws": content["settings"]["draws"]}, asdict(plan))
        agree(path, {"number of held-out cells": len(content["pooled"])}, {"number of held-out cells": held_out})
        legacy_evaluation(content)

    contents = legacy(out, listed, check)
    made = _Study(out, plan, data).evaluations(listed) if contents is None else map(legacy_evaluation, contents)
    results = []
    for job, result in zip(listed, made, strict=True):
        results.append(result)
        progress.announce(f"{job.name}: done")
    refuse_copies({job.name: result for job, result in zip(listed, results, strict=True)})
    return results


class _Study:
    """The models of one study on one data set."""

    def __init__(self, out: Path, plan: Plan, data: AnnData | None):
        self.out, self.plan = out, plan
        self.adata, self.source = (cortex(), "CORTEX") if data is None else (data, f"{data.n_obs} cells")
        check_keys(self.adata, LABELS, None)
        self.split = split(self.adata.n_obs)

    def evaluations(self, listed: Sequence[Job]) -> Iterator[Evaluation]:
        """Evaluations of all jobs; missing ones are trained and measured one by one."""
        return map(self.evaluate, listed)

    def train(self, job: Job) -> tuple[Run, Any]:
        """The finished run of a job, trained first if necessary, and its model with the run's weights, if it has any.

        Raises:
            ValueError: the run directory is from other cells or other settings.
        """
        plan = self.plan
        model, start = self._new(job)
        each = job.draws
        training = Training(
            plan.epochs, plan.patience, plan.warmup, plan.batch, job.seed, self.split, "cpu", draws_per_component=each
        )
        run = finished(self.out / job.name, model, training, self.source, start)
        if run.has_weights:  # results may come without
            take_weights(model, run)
        return run, model

    def _new(self, job: Job) -> tuple[Any, dict[str, Any] | None]:
        """The untrained model of a job, and what it starts from: a frozen decoder is SCVI's with the same seed."""
        start, trained = None, None
        if job.kind == FROZEN:
            before, trained = self.train(Job(SCVI_NAME, 1, job.seed))
            start = {"sha256": before.weights_sha256, "noise": NOISE}
            if self._is_done(job):
                trained.is_trained_ = True  # even without its weights: only the recipe is made from it
            else:
                take_weights(trained, before)
        scvi.settings.seed = job.seed
        if trained is not None:
            return MixtureSCVI.from_scvi_model(trained, job.components, noise=NOISE, freeze_decoder=True), start
        if job.kind == SCVI_NAME:
            SCVI.setup_anndata(self.adata)
            return SCVI(self.adata), None
        MixtureSCVI.setup_anndata(self.adata)
        return MixtureSCVI(self.adata, n_components=job.components, **OPTIONS[job.kind]), None

    def _is_done(self, job: Job) -> bool:
        """Whether a job's run is finished, so that nothing is trained from its start."""
        path = self.out / job.name
        return Layout(path).manifest.exists() and Run(path).is_done

    def evaluate(self, job: Job) -> Evaluation:
        """Likelihood of held-out cells under a job's model, and how well its latents predict cell types."""
        run, model = self.train(job)
        test = self.split[2]
        counts = model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)[test]
        dense = np.asarray(counts.toarray() if issparse(counts) else counts, dtype=np.float32)
        identity = Identity(
            run.recipe.identity["data"]["sha256"],
            "test",
            len(test),
            fingerprint(torch.from_numpy(dense)),
            job.components,
            -(-self.plan.total_draws // job.components),
            0,
            proposal="refined",
            weights=run.weights_sha256,
            recipe=run.recipe.sha256,
        )
        extra = {"labels_sha256": labels_sha256(self.adata, LABELS)}
        path = run.layout.evaluations / f"{identity.key}.json"
        evaluation = stored_evaluation(path, identity, extra)
        if evaluation is None:
            take_weights(model, run)
            evaluation = self._measure(job, run, model, identity)
            save_evaluation(path, evaluation, extra)
        return evaluation

    def _measure(self, job: Job, run: Run, model: Any, identity: Identity) -> Evaluation:
        scvi.settings.seed = job.seed  # for the samples, wherever the model comes from
        mixture = MixtureSCVI.from_scvi_model(model, 1, noise=0.0) if job.kind == SCVI_NAME else model
        estimate = mixture.get_bounds(indices=self.split[2], n_mc_samples=self.plan.total_draws, batch_size=128)
        means, variances = mixture.get_latent_representation(components=True)
        features = {job.kind: np.concatenate([means, variances], -1).reshape(self.adata.n_obs, -1)}
        if job.kind == SCVI_NAME:
            samples = [mixture.get_latent_representation(give_mean=False) for _ in range(5)]
            features |= {f"{RIVAL}{n}": np.concatenate(samples[:n], -1) for n in (1, 2, 3, 4, 5)}
        train, _, test = self.split
        own: dict[str, Any] = {}
        if job.kind == SCVI_NAME:  # in the words and by the draws of scvi-tools
            values = model.get_marginal_ll(
                indices=self.split[2], n_mc_samples=self.plan.total_draws, batch_size=128, return_mean=False
            )
            own["marginal_ll"] = float(np.mean(np.asarray(values, dtype=float)))
        results = (
            estimate.summary()
            | own
            | {
                "job": job.described,
                "settings": asdict(self.plan),
                "representation": {name: _scores(values, self.adata, train, test) for name, values in features.items()},
                "data": self.source,
                "split": identity.split,
                "data_sha256": identity.data,
                "weights_sha256": identity.weights,
                "recipe_sha256": identity.recipe,
                "proposal": identity.proposal,
                "epochs": run.epoch,
                "best_epoch": run.manifest["progress"]["best_epoch"],
                "seconds": run.manifest["progress"]["seconds"],
                "legacy": False,
            }
        )
        return Evaluation(identity, estimate.arrays(), results)


def _scores(features: np.ndarray, adata: AnnData, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Clustering of all cells, and accuracy on held-out cells of a linear SVM fitted to the training cells."""
    svm = {"svm": classifiers()["svm"]}
    measured = {}
    for key, suffix in zip(LABELS, ("", "_precise"), strict=True):
        labels = adata.obs[key].to_numpy()
        scores = cluster(features, labels) | classify(features[train], labels[train], features[test], labels[test], svm)
        measured |= {name + suffix: value for name, value in scores.items()}
    return measured
