"""Runs of MixtureSCVI on disk, for the command line: in the same form as those of images, without executable files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scvi
from anndata import AnnData
from scvi.model import SCVI
from scvi.model._utils import get_max_epochs_heuristic

from mixvae._failures import at_least, plain_errors, typed
from mixvae._resources import guarding, short
from mixvae.files import atomic, check_file, load_tensors, read_json, read_part, read_regular, weights_from_bytes
from mixvae.progress import SILENT, Progress
from mixvae.runs import Layout, Recipe, Run, directory_of, open_run
from mixvae.single_cell.atlas import Atlas, read_cells, with_genes
from mixvae.single_cell.checked import MIXTURE_OPTIONS, OPTIONS, Record, check_sizes
from mixvae.single_cell.choices import check_categories
from mixvae.single_cell.data import check_genes, check_kind
from mixvae.single_cell.model import LONGEST_WARMUP, MixtureSCVI
from mixvae.single_cell.priors import weights_to_come
from mixvae.single_cell.queries import OBSM_KEY
from mixvae.single_cell.reading import files_of
from mixvae.single_cell.recipes import PLAIN_NAMES, Training, as_registry, check_seed, recipe_of
from mixvae.single_cell.training import fit, is_legacy, standing
from mixvae.single_cell.writing import write_cells, write_on_disk
from mixvae.training import launch
from mixvae.training._processes import as_one, check_same, first_alone

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LATENT_KEY = "X_mixvae"
FEWEST = 10
"""Smallest number of cells out of which scvi-tools keeps one for validation."""
CLASSES: dict[str, type[SCVI]] = {"mixvae.single_cell.MixtureSCVI": MixtureSCVI, "scvi.model.SCVI": SCVI}
"""The classes of model that a run may have, by recorded name."""


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

    def columns(self) -> list[str]:
        """Columns of `obs` that the cells must have."""
        return _columns(self.setup())

    def check_columns(self) -> None:
        """Check that batch and covariates are different columns.

        Raises:
            ValueError: a column is named twice.
        """
        columns = [self.batch_key, *self.categorical_covariate_keys, *self.continuous_covariate_keys]
        for key in columns:
            if key is not None and columns.count(key) > 1:
                raise ValueError(f"the column {key!r} is named twice among batch and covariates: name it once")

    def model(self, adata: AnnData) -> MixtureSCVI:
        """Make an untrained model for cells that have been set up.

        Raises:
            TooLarge: it does not fit into memory.
        """
        sizes = f"a model of {short(self.components)} components and latent size {short(self.latent)}"
        with guarding(sizes, "give fewer components or a smaller latent size"):
            return MixtureSCVI(
                adata, n_components=self.components, n_latent=self.latent, gene_likelihood=self.likelihood
            )

    def training(self, cells: int) -> Training:
        """How to train the model; by default the number of epochs depends on the number of cells.

        Raises:
            ValueError: a number is out of range, or there are too few cells.
        """
        if cells < FEWEST:
            raise ValueError(f"a training needs at least {FEWEST} cells, a tenth of them to validate on; got {cells}")
        epochs = get_max_epochs_heuristic(cells) if self.epochs is None else self.epochs
        return Training(epochs, self.patience, min(LONGEST_WARMUP, epochs), seed=self.seed)


def _columns(setup: Mapping[str, Any]) -> list[str]:
    """Columns of `obs` that arguments of `setup_anndata` name."""
    one = [setup.get(name) for name in ("batch_key", "labels_key", "size_factor_key")]
    several = [setup.get(name) or [] for name in ("categorical_covariate_keys", "continuous_covariate_keys")]
    return [key for key in [*one, *sum(several, [])] if key is not None]


def train(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    settings: Settings,
    progress: Progress = SILENT,
    *,
    backed: bool = False,
    fabric: Fabric | None = None,
) -> MixtureSCVI:
    """Train on the cells of a file, or of several; the same call again resumes a killed run.

    Args:
        files: one or several files or folders, as `read_cells` takes them.
        out: the run directory, for `mixvae.open_run`.
        settings: what to train.
        progress: where to report progress; silent by default.
        backed: leave the counts, the X of .h5ad files, on disk, and read each batch when it is needed.
        fabric: the device, and the processes that train together, as returned by `mixvae.training.launch`; this
            process by default.

    Raises:
        ValueError: the run is finished, was begun with other settings or other cells, or is being trained by another
            process; files differ in their genes.
        FloatingPointError: the ELBO became NaN or infinite; the last good checkpoint is kept.
    """
    out, files = Path(out).expanduser(), _listed(files)
    check_seed(settings.seed)
    at_least(1, latent=settings.latent)
    settings.check_columns()
    fabric = launch() if fabric is None else fabric
    with as_one(fabric, lambda: "the same command resumes it", quiet=True):
        adata = read_cells(files, settings.columns(), settings.layer, backed=backed)
        training = replace(settings.training(adata.n_obs), accelerator=fabric.device.type, processes=fabric.world_size)
        scvi.settings.seed = settings.seed
        MixtureSCVI.setup_anndata(adata, **settings.setup())
        model = settings.model(adata)
        recipe = recipe_of(model, training)
        check_same(fabric, lambda: recipe.sha256, "cells")
        first_alone(fabric, lambda: _check_unfinished(out, recipe, training))
        source = ", ".join(str(Path(file).absolute()) for file in files)
        fit(model, out, training, recipe, source=source, progress=progress, fabric=fabric)
    return model


def _check_unfinished(out: Path, recipe: Recipe, training: Training) -> None:
    """Check that a directory has no run, or one that can be continued.

    Raises:
        ValueError: the run is finished, or of something else.
    """
    run = standing(out, recipe, training)
    if run is not None and run.why_not_recipe(recipe, training.epochs, training.patience) == "":
        raise ValueError(f"{out} is a finished run: give another --out, or `{typed('sc', 'embed', out)} FILE.h5ad`")


def _listed(files: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [files] if isinstance(files, str | Path) else list(files)


def load(run: str | Path, adata: AnnData) -> MixtureSCVI:
    """Load a run for cells with the same genes; no pickle is read. An SCVI becomes a mixture of one.

    Args:
        run: the run directory, or the address of a run on the hub, `hub://ORG/NAME@REVISION`.
        adata: the cells, whose batches and covariates must occur in the training.

    Raises:
        ValueError: it is not a finished run of cells, one of its files is damaged, genes differ, or a batch was not
            seen in training.
    """
    path = directory_of(run)
    cls, record, source, content = _read_legacy(path) if is_legacy(path) else _read(path)
    check_genes(adata.var_names, record.genes)
    weights = weights_from_bytes(content, source)
    check_sizes(record.settings, weights, str(source))
    fitting = plain_errors(f"the model of {path} cannot be made for these cells")
    with fitting, guarding(f"the model of {path}", "train a smaller one"), weights_to_come():
        registry = as_registry(record.registry)
        check_categories(adata, registry)
        cls.setup_anndata(adata, source_registry=registry, **record.registry["setup_args"])
        model = cls(adata, **record.settings)
    load_tensors(model.module, weights, str(source))
    _finish(model)
    return model if isinstance(model, MixtureSCVI) else MixtureSCVI.from_scvi_model(model, 1, noise=0.0)


def _read(path: Path) -> tuple[type[SCVI], Record, Path, bytes]:
    """Class and record of a finished run's model, and path and content of its weights."""
    layout = Layout(path)
    if not layout.manifest.exists():
        raise ValueError(f"{path} is not a run of `mixvae sc train`: it has no run.json")
    opened = open_run(path)
    described = opened.manifest["model"]
    kind = described.get("class") if isinstance(described, dict) else None
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(f"{path} is a run, but not of cells: `mixvae sc train` makes those")
    options = MIXTURE_OPTIONS if CLASSES[kind] is MixtureSCVI else OPTIONS
    record = Record.from_json(described, options, str(layout.manifest))
    with plain_errors(f"{layout.manifest} is damaged, restore the file from a copy"):
        is_done = opened.is_done
    if not is_done:
        raise ValueError(f"{path} has not finished training: repeat its `mixvae sc train` command")
    return CLASSES[kind], record, layout.weights, read_part(layout.manifest, "weights")[1]


def _read_legacy(path: Path) -> tuple[type[SCVI], Record, Path, bytes]:
    """The same for a run from before runs had an identity: settings.json, registry.json and model.safetensors."""
    weights = path / "model.safetensors"
    if not weights.exists():
        raise ValueError(f"{path} is a run of an earlier mixvae that has not finished training: train a new one")
    begun, registry = read_json(path / "settings.json"), read_json(path / "registry.json")
    if not isinstance(begun, dict):
        raise ValueError(f"{path / 'settings.json'} must hold an object; got {short(begun)}: restore it from a copy")
    settings = {**asdict(Settings()), **begun}
    described = {
        "settings": {name: settings[plain] for name, plain in PLAIN_NAMES.items()},
        "genes": begun.get("genes"),
        "registry": registry,
    }
    if isinstance(registry, dict):
        setup = {name: None if settings[name] in ([], ()) else settings[name] for name in Settings().setup()}
        described["registry"] = registry | {"setup_args": setup}
    record = Record.from_json(described, MIXTURE_OPTIONS, f"{path / 'settings.json'} or {path / 'registry.json'}")
    return MixtureSCVI, record, weights, read_regular(weights)


def take_weights(model: SCVI, run: Run) -> None:
    """Load the weights of a finished run into a model, after checking their checksum.

    Raises:
        FileNotFoundError: they are missing.
        ValueError: they are damaged, or of another architecture.
    """
    layout = run.layout
    _, content = read_part(layout.manifest, "weights")
    load_tensors(model.module, weights_from_bytes(content, layout.weights), str(layout.weights))
    _finish(model)


def finished(path: Path, model: SCVI, training: Training, source: str, start: Mapping[str, Any] | None = None) -> Run:
    """The finished run of a model in a directory, trained first if necessary.

    Args:
        path: the run directory.
        model: the untrained model; `take_weights` gives it the run's.
        training: how to train it; a run with another goal is refused.
        source: file or name of the cells, for the record.
        start: the weights from which the model starts, if they are not random: their sha256 and the noise on them.

    Raises:
        ValueError: something else is there, another process is training it, or a file is damaged.
    """
    recipe = recipe_of(model, training, start)
    run = standing(path, recipe, training, same_goal=True)
    if run is None or not run.is_done:
        run = fit(model, path, training, recipe, source=source)
    return run


def _finish(model: SCVI) -> None:
    model.is_trained_ = True
    model.module.eval()


def embed(
    run: str | Path,
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    backed: bool = False,
    responsibilities: bool = True,
) -> AnnData:
    """Write a copy of the cells with latents, `X_mixvae`, and responsibilities, `X_mixvae_responsibilities`, in `obsm`.

    Args:
        run: the run directory, or the address of a run on the hub, `hub://ORG/NAME@REVISION`.
        files: one or several files or folders, as `read_cells` takes them, with the genes of the run, in any order and
            among others.
        out: the .h5ad file to write.
        backed: leave the counts, the X of .h5ad files, on disk, and write the embedding block by block.
        responsibilities: whether to write responsibilities too; 64 draws of every cell are decoded for them, which
            takes many times as long as the latents.
    """
    out, files = Path(out).expanduser(), list(files_of(_listed(files)))
    if os.path.realpath(out) in map(os.path.realpath, files):
        raise ValueError(f"{out} is one of the files that are read: name another one to write")
    check_file(out)
    path = directory_of(run)
    setup, genes = _needed(path)
    layer = setup.get("layer")
    adata = read_cells(files, _columns(setup), layer, backed=backed, copied=not backed)
    for key in adata.obs:
        check_kind(adata.obs, key)  # or it could not be written
    model = load(path, with_genes(adata, genes, layer))
    computed = {LATENT_KEY: partial(_latents, model)}
    if responsibilities:
        computed[OBSM_KEY] = partial(_responsibilities, model)
    with plain_errors(f"{out} cannot be written"), atomic(out) as temporary:
        if isinstance(adata, Atlas):
            write_on_disk(adata, files, temporary, computed)
        else:
            adata.obsm.update({key: compute(None) for key, compute in computed.items()})
            write_cells(adata, temporary)
    return adata


def _needed(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Arguments of `setup_anndata`, and the genes, of a finished run."""
    record = (_read_legacy(path) if is_legacy(path) else _read(path))[1]
    return record.registry["setup_args"], record.genes


def _latents(model: MixtureSCVI, indices: np.ndarray | None) -> np.ndarray:
    latents = model.get_latent_representation(indices=indices)
    assert isinstance(latents, np.ndarray)
    return latents


def _responsibilities(model: MixtureSCVI, indices: np.ndarray | None) -> np.ndarray:
    return model.get_responsibilities(indices=indices, key_added=None)
