"""Labels transferred by scANVI and by mixtures of it: some cells' labels are hidden, predicted, and scored.

Pretrained models are run directories; every transfer is one JSON file with its predictions beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from scipy.sparse import issparse
from scvi.model import SCANVI, SCVI

from mixvae._failures import at_least
from mixvae.evaluation import Evaluation, Identity, fingerprint
from mixvae.files import canonical, checksum
from mixvae.progress import SILENT, Progress
from mixvae.reproduce.cells.label_scores import BINS, label_scores
from mixvae.reproduce.cells.names import SCVI_NAME
from mixvae.reproduce.cells.results import Job, agree, labels_sha256, with_scvi
from mixvae.runs import Run, open_run
from mixvae.runs._stored import read_evaluation, save_evaluation
from mixvae.single_cell.data import check_keys, cortex, pbmc68k
from mixvae.single_cell.loading import LabelSplitter
from mixvae.single_cell.model import MixtureSCVI
from mixvae.single_cell.recipes import OPTIMIZER, Training
from mixvae.single_cell.runs import finished, take_weights
from mixvae.single_cell.scanvi import MixtureSCANVI

SHOWN, HIDDEN = "shown_label", "hidden"
"""Column with the labels that a model is shown, and its content for all other cells."""
PROPOSAL = "labels"
"""Placeholder in these results' identities for where draws come from: there are none."""


@dataclass(frozen=True)
class Source:
    """A data set with labels.

    Args:
        load: returns its cells.
        key: the column of their labels.
    """

    load: Callable[[], AnnData]
    key: str


SOURCES = {"pbmc68k": Source(pbmc68k, "bulk_labels"), "cortex": Source(cortex, "cell_type")}
"""The data sets by name."""


@dataclass(frozen=True)
class Transfer:
    """One transfer of labels.

    Args:
        data: name of the data set.
        hidden: share of the labels that are hidden.
        job: the pretrained model that it starts from, whose seed also chooses the hidden labels.
    """

    data: str
    hidden: float
    job: Job

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.data}-hidden{100 * self.hidden:g}-{self.job.name}"

    @property
    def pretrained(self) -> str:
        """Name of the run directory of the pretrained model, which all shares use."""
        return f"{self.data}-{self.job.name}"


@dataclass(frozen=True)
class Settings:
    """How every model is trained, by default as scvi-tools does: SCVI by `train()`, scANVI as in its tutorials.

    Args:
        epochs: epochs of SCVI.
        warmup: epochs of its KL warm-up.
        label_epochs: epochs of scANVI.
        label_warmup: epochs of its KL warm-up.
        per_label: maximum number of cells of each label in one epoch of scANVI.
        batch: cells per step.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int = 400
    warmup: int = 400
    label_epochs: int = 20
    label_warmup: int = 400
    per_label: int = 100
    batch: int = 128

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, label_epochs=self.label_epochs, per_label=self.per_label, batch=self.batch)
        at_least(0, warmup=self.warmup, label_warmup=self.label_warmup)


class PlainSCANVI(SCANVI):
    """scANVI that leaves out the last batch of an epoch if it is one cell, as mixtures do; scvi-tools fails."""

    _data_splitter_cls = LabelSplitter


def transfers(
    data: Sequence[str], hidden: Sequence[float], sizes: Sequence[int], seeds: Sequence[int]
) -> list[Transfer]:
    """All transfers of an experiment; scANVI is one for every data set, share and seed.

    Args:
        data: names of the data sets.
        hidden: shares of hidden labels.
        sizes: numbers of components S of mixtures.
        seeds: seeds of every model.
    """
    return [Transfer(name, share, job) for name in data for job in with_scvi(sizes, seeds) for share in hidden]


def hide(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which labels are hidden: of n cells of a type round(share·n), chosen by the seed, but never all of them.

    Args:
        labels: label of every cell.
        share: share to hide, between 0 and 1.
        seed: the seed.

    Returns:
        True for cells whose label is hidden, (N,).

    Raises:
        ValueError: the share is not between 0 and 1.

    Example:
        >>> import numpy as np
        >>> from mixvae.reproduce.cells.labels import hide
        >>> hidden = hide(np.array(["B"] * 10 + ["T"]), 0.5, seed=0)
        >>> int(hidden[:10].sum()), bool(hidden[10])
        (5, False)
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of hidden labels must be between 0 and 1; got {share}")
    rng, hidden = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        cells = rng.permutation(np.flatnonzero(labels == label))
        hidden[cells[: min(round(share * len(cells)), len(cells) - 1)]] = True
    return hidden


def transfer(
    out: str | Path,
    listed: Sequence[Transfer],
    settings: Settings | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
    progress: Progress = SILENT,
) -> list[Evaluation]:
    """Train and score what is missing; a folder with all results is read without cells, runs or training.

    Args:
        out: folder of runs and results.
        listed: the transfers.
        settings: how models are trained.
        sources: the data sets by name.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: a run or a result in the folder was made from other cells or with other settings.
    """
    folder, settings = Path(out).expanduser(), settings or Settings()
    found = {one: _stored(folder, one, settings) for one in listed}
    results = []
    sets = {name: _Labelled(folder, settings, name, source) for name, source in sources.items()}
    for data in dict.fromkeys(one.data for one in listed if found[one] is None):
        for one, result in found.items():
            if one.data == data and result is not None:
                sets[data].check(folder / f"{one.name}.json", result)
    for one in listed:
        result = found[one]
        results.append(sets[one.data].transferred(one) if result is None else result)
        progress.announce(f"{one.name}: done")
    return results


def _stored(folder: Path, one: Transfer, settings: Settings) -> Evaluation | None:
    """The result of a transfer, None if there is none, it is damaged, or its pretrained model has other weights by now.

    Raises:
        ValueError: it was made with other settings.
    """
    path = folder / f"{one.name}.json"
    try:
        found = read_evaluation(path)
    except (OSError, ValueError):
        return None
    agree(path, found.results | found.results.get("settings", {}), _requested(one) | asdict(settings))
    run = folder / one.pretrained
    if (run / "run.json").exists() and open_run(run).weights_sha256 != found.identity.weights:
        return None
    return found


def _requested(one: Transfer) -> dict[str, Any]:
    return {"data": one.data, "hidden": one.hidden, "job": one.job.described, "bins": BINS}


class _Labelled:
    """One data set, and the models that are trained on it."""

    def __init__(self, folder: Path, settings: Settings, name: str, source: Source):
        self.folder, self.settings, self.name, self.source = folder, settings, name, source

    @cached_property
    def cells(self) -> AnnData:
        """The cells, loaded when something is missing."""
        cells = self.source.load()
        check_keys(cells, [self.source.key], None)
        return cells

    @cached_property
    def known(self) -> dict[str, str]:
        """Checksums of counts and labels."""
        counts = self.cells.X.toarray() if issparse(self.cells.X) else np.asarray(self.cells.X)
        return {
            "observations": fingerprint(torch.from_numpy(counts)),
            "labels_sha256": labels_sha256(self.cells, [self.source.key]),
        }

    def check(self, path: Path, result: Evaluation) -> None:
        """Check that a result is of these cells.

        Raises:
            ValueError: it is of other cells.
        """
        agree(path, {name: result[name] for name in self.known}, self.known)

    def pretrained(self, one: Transfer) -> tuple[Run, Any]:
        """The finished run of SCVI or a mixture without labels, trained first if necessary, and its model."""
        cells, job, settings = self.cells.copy(), one.job, self.settings
        scvi.settings.seed = job.seed
        cls, options = (SCVI, {}) if job.kind == SCVI_NAME else (MixtureSCVI, {"n_components": job.components})
        cls.setup_anndata(cells)
        model = cls(cells, **options)
        training = Training(settings.epochs, None, settings.warmup, settings.batch, seed=job.seed, accelerator="cpu")
        run = finished(self.folder / one.pretrained, model, training, self.name)
        take_weights(model, run)
        return run, model

    def transferred(self, one: Transfer) -> Evaluation:
        """Train scANVI from a pretrained model with some labels, and score its predictions of the others."""
        run, start = self.pretrained(one)
        settings, cells, seed = self.settings, start.adata, one.job.seed
        labels = cells.obs[self.source.key].astype(str).to_numpy()
        hidden = hide(labels, one.hidden, seed)
        cells.obs[SHOWN] = np.where(hidden, HIDDEN, labels)
        begun = time.perf_counter()
        scvi.settings.seed = seed
        cls = PlainSCANVI if one.job.kind == SCVI_NAME else MixtureSCANVI
        model = cls.from_scvi_model(start, HIDDEN, labels_key=SHOWN)
        model.train(
            max_epochs=settings.label_epochs,
            n_samples_per_label=settings.per_label,
            batch_size=settings.batch,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            plan_kwargs={**OPTIMIZER, "n_epochs_kl_warmup": settings.label_warmup},
        )
        soft = model.predict(indices=np.flatnonzero(hidden), soft=True)
        types = sorted(set(labels))
        probability, label = soft[types].to_numpy(np.float64), np.searchsorted(types, labels[hidden])
        identity = Identity(
            run.recipe.identity["data"]["sha256"],
            f"hidden by seed {seed}",
            int(hidden.sum()),
            self.known["observations"],
            one.job.components,
            draws_per_component=0,
            seed=seed,
            proposal=PROPOSAL,
            weights=run.weights_sha256,
            recipe=run.recipe.sha256,
        )
        results = label_scores(probability, label) | {
            **_requested(one),
            **self.known,
            "hidden_sha256": checksum(canonical(np.flatnonzero(hidden).tolist())),
            "settings": asdict(settings),
            "types": types,
            "examples": int(hidden.sum()),
            "cells": len(hidden),
            "seconds": time.perf_counter() - begun,
            "pretraining_seconds": run.manifest["progress"]["seconds"],
        }
        arrays = {"probability": probability.astype(np.float32), "label": label, "cell": np.flatnonzero(hidden)}
        made = Evaluation(identity, arrays, results)
        save_evaluation(self.folder / f"{one.name}.json", made)
        return made
