"""Runs of MixtureSCVI on disk, for the command line: safe files only, and a killed training goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback

from mixvae.files import (
    atomic,
    load_tensors,
    load_weights,
    read_json,
    save_weights,
    write_json,
)
from mixvae.single_cell.data import check_genes, read_h5ad
from mixvae.single_cell.model import MixtureSCVI

LATENT_KEY = "X_mixvae"
STREAM = 1_000_003
"""Epochs' seeds are apart by the seed times this."""


@dataclass(frozen=True)
class Settings:
    """What a run is made from: the file's keys, the model, the training."""

    components: int = 4
    batch_key: str | None = None
    labels_key: str | None = None
    layer: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    latent: int = 10
    likelihood: str = "zinb"
    epochs: int | None = None
    patience: int = 45
    seed: int = 0

    def setup(self) -> dict[str, Any]:
        """Arguments of `MixtureSCVI.setup_anndata`."""
        return {
            "batch_key": self.batch_key,
            "labels_key": self.labels_key,
            "layer": self.layer,
            "categorical_covariate_keys": list(self.categorical_covariate_keys) or None,
            "continuous_covariate_keys": list(self.continuous_covariate_keys) or None,
        }

    def model(self, adata: AnnData) -> MixtureSCVI:
        """Make an untrained model for cells that are set up."""
        return MixtureSCVI(adata, n_components=self.components, n_latent=self.latent, gene_likelihood=self.likelihood)


class _Resumable(Callback):
    """Saves the state of the training after every epoch, and seeds every epoch by its number.

    So the noise of an epoch does not depend on how the training came there, and a resumed run ends bit for bit
    where an uninterrupted one does.
    """

    def __init__(self, path: Path, seed: int, progress: Callable[[int, int, float], object] | None):
        self.path, self.seed, self.progress = path, seed, progress
        self.history: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """What was logged so far, which the checkpoint keeps."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was logged."""
        self.history = state_dict["history"]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Seed the order of the epoch's cells."""
        del pl_module
        sampler = trainer.train_dataloader.sampler
        while hasattr(sampler, "sampler"):  # scvi-tools wraps the random sampler in one of batches
            sampler = sampler.sampler
        sampler.generator = torch.Generator().manual_seed(self._seed(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed the noise of the epoch with its first batch: how much was drawn before depends on a resume."""
        del pl_module, batch
        if batch_idx == 0:
            torch.manual_seed(self._seed(trainer))

    def _seed(self, trainer: Any) -> int:
        return self.seed * STREAM + trainer.current_epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell how far the training is, and write the checkpoint, whole or not at all."""
        del pl_module
        for name, value in trainer.callback_metrics.items():
            self.history.setdefault(name, []).append(float(value))
        if self.progress is not None:
            elbo = trainer.callback_metrics.get("elbo_validation", torch.tensor(float("nan")))
            self.progress(trainer.current_epoch + 1, trainer.max_epochs, float(elbo))
        with atomic(self.path) as temporary:
            trainer.save_checkpoint(temporary)


def train(
    file: str | Path,
    out: str | Path,
    settings: Settings,
    progress: Callable[[int, int, float], object] | None = None,
) -> MixtureSCVI:
    """Train on the cells of a file; a run that was killed goes on when the same call is made again.

    Args:
        file: an .h5ad file.
        out: the run directory: settings.json, registry.json, model.safetensors, history.json.
        settings: what to train.
        progress: called with epoch, last epoch and validation ELBO.

    Raises:
        ValueError: the run is finished, or was begun with other settings or other genes.
    """
    out = Path(out)
    if (out / "model.safetensors").exists():
        raise ValueError(f"{out} is a finished run: give another --out, or `mixvae sc embed {out} FILE.h5ad`")
    adata = read_h5ad(file)
    asked = {**asdict(settings), "file": str(file), "cells": adata.n_obs, "genes": list(map(str, adata.var_names))}
    asked = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    checkpoint = out / "last.ckpt"
    if (out / "settings.json").exists():
        begun = read_json(out / "settings.json")
        if other := [key for key in asked if begun.get(key) != asked[key]]:
            raise ValueError(
                f"{out} was begun with another {other[0]}: give the same arguments to go on, or another --out"
            )
    scvi.settings.seed = settings.seed
    MixtureSCVI.setup_anndata(adata, **settings.setup())
    model = settings.model(adata)
    write_json(out / "settings.json", asked)
    write_json(out / "registry.json", _plain(model.registry))
    resumable = _Resumable(checkpoint, settings.seed, progress)
    model.train(
        settings.epochs,
        accelerator="auto",
        early_stopping=True,
        early_stopping_patience=settings.patience,
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[resumable],
        **({"ckpt_path": str(checkpoint)} if checkpoint.exists() else {}),
    )
    write_json(out / "history.json", resumable.history)
    save_weights(out / "model.safetensors", {k: v.contiguous() for k, v in model.module.state_dict().items()})
    checkpoint.unlink(missing_ok=True)
    return model


def load(run: str | Path, adata: AnnData) -> MixtureSCVI:
    """Load a run for cells with the same genes; no pickle is read.

    Args:
        run: the run directory.
        adata: the cells, whose batches and covariates must be those of the training.

    Raises:
        ValueError: it is no finished run, genes differ, or a batch was not seen in training.
    """
    run = Path(run)
    if not (run / "settings.json").exists():
        raise ValueError(f"{run} is not a run of `mixvae sc train`: it has no settings.json")
    if not (run / "model.safetensors").exists():
        raise ValueError(f"{run} has not finished training: give its `mixvae sc train` command again")
    begun = read_json(run / "settings.json")
    check_genes(adata.var_names, begun["genes"])
    names = Settings.__dataclass_fields__
    settings = Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in begun.items() if k in names})
    MixtureSCVI.setup_anndata(adata, source_registry=_arrays(read_json(run / "registry.json")), **settings.setup())
    model = settings.model(adata)
    load_tensors(model.module, load_weights(run / "model.safetensors"), str(run / "model.safetensors"))
    model.is_trained_ = True
    model.module.eval()
    return model


def embed(run: str | Path, file: str | Path, out: str | Path) -> AnnData:
    """Write a copy of a file with latents, `X_mixvae`, and responsibilities in `obsm`.

    Args:
        run: the run directory.
        file: an .h5ad file with the genes of the run.
        out: the .h5ad file to write.
    """
    adata = read_h5ad(file)
    columns = set(adata.obs) | set(adata.uns)
    model = load(run, adata)
    adata.obsm[LATENT_KEY] = model.get_latent_representation()
    model.get_responsibilities()
    own = [key for key in (*adata.obs, *adata.uns) if key not in columns and str(key).startswith("_scvi")]
    adata.obs = adata.obs.drop(columns=[key for key in own if key in adata.obs])  # of no use in a file
    for key in set(own) & set(adata.uns):
        del adata.uns[key]
    with atomic(out) as temporary:
        adata.write_h5ad(temporary)
    return adata


def _plain(value: Any) -> Any:
    """A registry as JSON can hold it."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _arrays(value: Any, key: str = "") -> Any:
    """A registry as scvi-tools holds it, categories as arrays."""
    if isinstance(value, dict):
        return {k: _arrays(v, "categorical_mapping" if key == "mappings" else k) for k, v in value.items()}
    if isinstance(value, list) and key in ("categorical_mapping", "columns"):
        return np.array(value, dtype=object)
    return value
