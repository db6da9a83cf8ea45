"""The recipe of a training on cells: what determines its weights, in the form that every run records."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scvi import REGISTRY_KEYS
from scvi.model import SCVI

from mixvae._failures import at_least
from mixvae.files import canonical, checksum
from mixvae.runs import Recipe
from mixvae.runs._recipe import path_of

ROWS = 4096
"""Number of cells whose counts are hashed at once."""
OPTIMIZER = {"optimizer": "Adam", "lr": 1e-3, "weight_decay": 1e-6, "eps": 0.01}
"""scvi-tools' defaults, passed explicitly so that the record says what was done."""
MONITOR = "elbo_validation"
"""What early stopping monitors: scvi-tools' name for the negative ELBO of the validation cells."""
PLAIN_NAMES = {"n_components": "components", "n_latent": "latent", "gene_likelihood": "likelihood"}
"""Names in a recipe for the model options that users set on the command line."""

NAMES = ("column_names", "columns", "categorical_mapping", "mappings")
"""Where scvi-tools keeps the names of genes and covariates, and the categories in order of their codes."""
PARTS = ("train", "validation", "test")
Indices = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Training:
    """How a model of cells is trained.

    Args:
        epochs: maximum number of epochs.
        patience: epochs without a better validation ELBO after which training stops; None for never.
        warmup: epochs of KL warm-up.
        batch: cells per step, over all processes together.
        seed: seed of weights, split and noise.
        split: indices of the cells to train on, to validate on and to hold out; scvi-tools' 90 % and 10 % by default.
        accelerator: the device, as in Lightning.
        processes: number of processes that train together, each on its share of every batch.
        draws_per_component: draws from each encoder per cell and step, which only mixtures take.

    Raises:
        ValueError: a number is out of range.
    """

    epochs: int
    patience: int | None
    warmup: int
    batch: int = 128
    seed: int = 0
    split: Indices | None = None
    accelerator: str = "auto"
    processes: int = 1
    draws_per_component: int = 1

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, patience=self.patience, batch=self.batch, processes=self.processes)
        if self.batch % self.processes:
            raise ValueError(f"a batch of {self.batch} cells cannot be divided evenly among {self.processes} processes")
        at_least(0, warmup=self.warmup)
        at_least(1, draws_per_component=self.draws_per_component)
        check_seed(self.seed)

    @property
    def goal(self) -> dict[str, Any]:
        """The goal recorded for the run."""
        return {"epochs": self.epochs, "patience": self.patience}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of cells in every part of the split; empty if scvi-tools splits."""
        return {} if self.split is None else dict(zip(PARTS, map(len, self.split), strict=True))

    def identity(self) -> dict[str, Any]:
        """What determines the weights, apart from data, model, seed and start."""
        split: dict[str, Any] = {"by": "scvi-tools", "train": 0.9}
        if self.split is not None:
            split = {**self.sizes, "sha256": checksum(canonical([indices.tolist() for indices in self.split]))}
        return {
            "batch": self.batch,
            "kl_warmup": self.warmup,
            "split": split,
            "optimizer": {"class": OPTIMIZER["optimizer"], "eps": OPTIMIZER["eps"]},
            "monitor": MONITOR,
            "weights": "last epoch",
            **({"processes": self.processes} if self.processes > 1 else {}),  # each normalises over its own share
            **({"draws_per_component": self.draws_per_component} if self.draws_per_component > 1 else {}),
        }


def check_seed(seed: int) -> None:
    """Check a seed, which scvi-tools also gives to NumPy.

    Raises:
        ValueError: it is not a whole number from 0 to 2**32 − 1.
    """
    at_least(0, seed=seed)
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2**32; got {seed}")


def recipe_of(model: SCVI, training: Training, start: Mapping[str, Any] | None = None) -> Recipe:
    """Recipe for training a model on the cells it was made for.

    Args:
        model: a `MixtureSCVI` or `scvi.model.SCVI`.
        training: how it is trained.
        start: the weights from which it starts, if they are not random: their sha256 and the noise on them.
    """
    first = {
        "epoch": 0,
        "step": 0,
        "learning_rate": [OPTIMIZER["lr"]],
        "weight_decay": [OPTIMIZER["weight_decay"]],
        "clip": None,
    }
    identity = {
        "data": _cells(model),
        "model": {"class": path_of(type(model)), **_named(_defaults() | options_of(model))},
        "training": training.identity(),
        "seed": training.seed,
        "start": None if start is None else dict(start),
    }
    return Recipe(identity, (first,))


def options_of(model: SCVI) -> dict[str, Any]:
    """Arguments with which a model was made, apart from the cells."""
    options = dict(model.init_params_["non_kwargs"])
    for extra in model.init_params_["kwargs"].values():
        options |= extra
    return options


def registry_of(model: SCVI) -> dict[str, Any]:
    """The setup of a model's cells as JSON values."""
    kept = {name: value for name, value in model.registry.items() if name != "_scvi_uuid"}
    return _plain(kept)


def as_registry(value: Any, key: str = "") -> Any:
    """The same in scvi-tools' form, with categories as arrays."""
    if isinstance(value, dict):
        return {k: as_registry(v, "categorical_mapping" if key == "mappings" else k) for k, v in value.items()}
    if isinstance(value, list) and key in ("categorical_mapping", "columns"):
        return np.array(value, dtype=object)
    return value


def _defaults() -> dict[str, Any]:
    """Options that scvi-tools fills in."""
    parameters = inspect.signature(SCVI.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {name: value for name, value in defaults.items() if name not in ("adata", "registry")}


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by plain names, starting with those that users set."""
    first = {plain: options[name] for name, plain in PLAIN_NAMES.items() if name in options}
    return first | _plain({name: value for name, value in options.items() if name not in PLAIN_NAMES})


def _cells(model: SCVI) -> dict[str, Any]:
    """What a model is trained on: counts, batches, labels and covariates, with the genes' names and all categories."""
    manager = model.adata_manager
    states = {key: field["state_registry"] for key, field in registry_of(model)["field_registries"].items()}
    names = {key: {name: state[name] for name in NAMES if name in state} for key, state in states.items()}
    digest = hashlib.sha256(canonical({key: names[key] for key in manager.data_registry}).encode())
    for key in sorted(manager.data_registry):
        values = manager.get_from_registry(key)
        if key == REGISTRY_KEYS.X_KEY:
            _hash_counts(digest, values)
        else:
            digest.update(np.ascontiguousarray(np.asarray(values, dtype=np.float64)).tobytes())
    setup = _plain(model.registry["setup_args"])
    sizes = {"cells": model.adata.n_obs, "genes": model.adata.n_vars}
    return {**sizes, "setup": setup, "sha256": digest.hexdigest()}


def _hash_counts(digest: Any, counts: Any) -> None:
    """Hash a matrix by the values used in training, whether it is sparse or dense."""
    for start in range(0, counts.shape[0], ROWS):
        rows = sp.csr_matrix(counts[start : start + ROWS], dtype=np.float32, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        for part in (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data):
            digest.update(part.tobytes())


def _plain(value: Any) -> Any:
    """A nested value as JSON values."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
