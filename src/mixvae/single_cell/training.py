"""One training on cells that becomes a run: Lightning trains, and `RunStore` saves every epoch."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.model import SCVI
from torch.utils.data import DistributedSampler

from mixvae._resources import machine
from mixvae.files import state_from_bytes, weights_to_bytes
from mixvae.progress import SILENT, Progress
from mixvae.runs import Layout, Recipe, Run, RunStore
from mixvae.runs._recipe import path_of
from mixvae.runs._requests import git_commit, versions
from mixvae.runs._standing import refuse, standing_run
from mixvae.runs._store import read_run
from mixvae.single_cell.recipes import MONITOR, OPTIMIZER, Training, options_of, registry_of
from mixvae.training import Epoch, is_over, launch
from mixvae.training._processes import environments, first_alone, nodes_of
from mixvae.training._signals import end, requeueing

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STREAM = 1_000_003
"""An epoch's seed is its number plus the seed of the training times this."""


def standing(path: Path, asked: Recipe, training: Training, *, same_goal: bool = False) -> Run | None:
    """The run in a directory, if it has this recipe; None if the directory is empty.

    Args:
        path: the run directory.
        asked: the requested recipe.
        training: the requested training.
        same_goal: also refuse a run that was begun with another number of epochs or another patience.

    Raises:
        ValueError: something else is there.
    """
    if is_legacy(path):
        raise ValueError(
            f"{path} is a legacy run, which `mixvae sc embed` reads but which cannot be resumed: train it again in "
            "another folder"
        )
    run = standing_run(path, resume=True)
    if run is None:
        return None
    reason = run.why_not_recipe(asked, training.epochs, training.patience)
    old, goal = run.manifest["goal"], training.goal
    different = run.recipe.differences(asked)
    if len(different) == 1 and different[0].startswith("training.kl_warmup ") and old["epochs"] != goal["epochs"]:
        reason = f"epochs is {old['epochs']}, not {goal['epochs']}, and therefore {different[0]}"
    elif same_goal and not different:
        changed = [f"{name} is {old.get(name)}, not {new}" for name, new in goal.items() if old.get(name) != new]
        reason = changed[0] if changed else reason
    refuse(run, reason)
    return run


def is_legacy(path: Path) -> bool:
    """Whether a directory is a run of `mixvae sc train` from before runs had an identity."""
    return (path / "settings.json").exists() and not Layout(path).manifest.exists()


def fit(
    model: SCVI,
    path: Path,
    training: Training,
    recipe: Recipe,
    *,
    source: str,
    progress: Progress = SILENT,
    fabric: Fabric | None = None,
) -> Run:
    """Train a model into a run directory, from the beginning or from the last committed epoch.

    The commit that finishes the run also adds its weights.

    Args:
        model: an untrained `MixtureSCVI` or `scvi.model.SCVI`.
        path: the run directory.
        training: how to train.
        recipe: the recipe of model, cells and training, as returned by `recipe_of`.
        source: file or name of the cells, for the record.
        progress: where to report each epoch, once it is on disk; silent by default.
        fabric: the processes that train together, as returned by `launch`; this process by default.

    Raises:
        ValueError: another process is training this run, it has another recipe, or one of its files is damaged.
        FloatingPointError: the ELBO became NaN or infinite; the last good checkpoint is kept.
    """
    description = {
        "class": path_of(type(model)),
        "settings": options_of(model),
        "genes": list(map(str, model.adata.var_names)),
        "registry": registry_of(model),
    }
    store = RunStore(path, recipe, training.goal, _runtime(source, path, training), model=description)
    fabric = launch() if fabric is None else fabric

    def begin() -> tuple[bytes | None, list[Epoch]]:
        state = store.begin()
        return state, [] if state is None else read_run(path)["rows"]

    try:
        state, rows = first_alone(fabric, begin)
        if not rows or not _over(rows[-1], training):
            with requeueing(first=fabric.is_global_zero), _ending():
                _train(model, training, _Epochs(store, training, rows, progress), state, fabric)
        fabric.barrier()  # so that every process sees the last commit
    finally:
        store.close()
        with suppress(OSError):
            path.rmdir()  # nothing was committed
    return Run(path)


@contextmanager
def _ending() -> Iterator[None]:
    """End after SIGTERM or Ctrl-C as other trainings do: Lightning ends with status 0 or 1, and reports nothing."""
    old = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        end(signal.SIGTERM, saved=True, first=False)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, old)  # Lightning ignores it from now on
        raise KeyboardInterrupt from None


def _over(row: Mapping[str, Any], training: Training) -> bool:
    return is_over(row["epoch"], row["best_epoch"], training.epochs, 0, training.patience)


def _train(model: SCVI, training: Training, epochs: _Epochs, state: bytes | None, fabric: Fabric) -> None:
    """Train by Lightning, from the bytes of a checkpoint if there is one."""
    with TemporaryDirectory(prefix="mixvae-") as folder:
        plan: dict[str, Any] = {**OPTIMIZER, "n_epochs_kl_warmup": training.warmup}
        if training.draws_per_component > 1:
            plan["draws_per_component"] = training.draws_per_component
        options: dict[str, Any] = {"plugins": environments("lightning.fabric")}
        if training.processes > 1:  # parts of SCVI have no gradient, such as the encoder of an observed library size
            nodes = nodes_of(fabric)
            options |= {"devices": training.processes // nodes, "num_nodes": nodes}
            options |= {"strategy": "ddp_find_unused_parameters_true"}
            options |= {"log_save_dir": folder}  # a pickle of scvi-tools, otherwise in the working folder
        if state is not None:
            state_from_bytes(state, epochs.store.layout.state)  # refuses all but tensors and plain values
            options["ckpt_path"] = str(Path(folder) / "state.ckpt")
            Path(options["ckpt_path"]).write_bytes(state)
        if training.split is not None:
            options["datasplitter_kwargs"] = {"external_indexing": list(training.split)}
        model.train(
            max_epochs=training.epochs,
            batch_size=training.batch // training.processes,
            accelerator=training.accelerator,
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            plan_kwargs=plan,
            callbacks=[epochs],
            **options,
        )


class _Epochs(Callback):
    """Commits every epoch, ends the training, and seeds every epoch by its number.

    The noise of an epoch thus does not depend on the history of the training, and a resumed run ends with the same
    weights, bit for bit, as an uninterrupted one.
    """

    def __init__(self, store: RunStore, training: Training, rows: Sequence[Epoch], progress: Progress):
        self.store, self.training, self.rows, self.progress = store, training, list(rows), progress
        self.started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Seed the order of the epoch's cells."""
        del pl_module
        sampler = trainer.train_dataloader.sampler
        if isinstance(sampler, DistributedSampler):
            sampler.seed = self.training.seed * STREAM  # it adds the epoch
            return
        while hasattr(sampler, "sampler"):  # scvi-tools wraps the random sampler in one of batches
            sampler = sampler.sampler
        sampler.generator = torch.Generator().manual_seed(self._seed(trainer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed the noise of the epoch at its first batch: how much was drawn before depends on resuming."""
        del pl_module, batch
        if batch_idx == 0:
            torch.manual_seed(self._seed(trainer) * trainer.world_size + trainer.global_rank)

    def _seed(self, trainer: Any) -> int:
        return self.training.seed * STREAM + trainer.current_epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Commit the epoch, with the weights if it is the last one, and report it."""
        row = self._row(trainer)
        over = _over(row, self.training)
        self.rows.append(row)
        with TemporaryDirectory(prefix="mixvae-") as folder:
            path = Path(folder) / "state.ckpt"
            try:
                trainer.save_checkpoint(path)  # all processes together, of which the first writes it
            except OSError as error:
                raise OSError(f"cannot write a checkpoint to {folder}: {error.strerror or error}") from error
            if trainer.is_global_zero:
                self._commit(trainer, path.read_bytes(), pl_module.module.state_dict() if over else None)
        trainer.should_stop = trainer.should_stop or over

    def _commit(self, trainer: Any, state: bytes, weights: dict[str, torch.Tensor] | None) -> None:
        """Commit the last row's epoch, and report it."""
        row = self.rows[-1]
        progress = {
            "epoch": row["epoch"],
            "step": trainer.global_step,
            "best_epoch": row["best_epoch"],
            "best": self.rows[row["best_epoch"] - 1]["validation"],
            "seconds": row["seconds"],
        }
        self.store.log(row)
        self.store.commit(state, None if weights is None else weights_to_bytes(weights), self.rows, progress)
        words = f"epoch {row['epoch']}/{self.training.epochs}  validation {row['validation']:.1f}"
        self.progress.update(row["epoch"], self.training.epochs, words)

    def _row(self, trainer: Any) -> Epoch:
        """The record of an epoch: bounds, where higher is better, and whatever scvi-tools logs, unchanged.

        Raises:
            ValueError: there are no cells to validate on.
            FloatingPointError: a bound is NaN or infinite.
        """
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        epoch = trainer.current_epoch + 1
        if MONITOR not in logged:
            raise ValueError("no cells are left to validate on: train on more cells")
        bound, validation = -logged.get("elbo_train", math.nan), -logged[MONITOR]
        if not (math.isfinite(bound) and math.isfinite(validation)):
            raise FloatingPointError(f"the ELBO became {bound} in epoch {epoch}, {validation} on the validation cells")
        best = self.rows[-1]["best_epoch"] if self.rows else 0
        if not best or validation > self.rows[best - 1]["validation"]:
            best = epoch
        finite = {name: value if math.isfinite(value) else None for name, value in logged.items()}
        own = {"epoch": epoch, "bound": bound, "validation": validation, "best_epoch": best}
        return {**own, "seconds": time.perf_counter() - self.started, **finite}


def _runtime(source: str, path: Path, training: Training) -> dict[str, Any]:
    """What is recorded about a training but is not part of its identity."""
    relative = os.path.relpath(source, path.absolute()) if Path(source).is_absolute() else None
    return {
        "data": {"name": source, "origin": None, "relative": relative, "sizes": training.sizes},
        "processes": training.processes,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions() | {name: version(name) for name in ("scvi-tools", "lightning", "anndata")},
        "git_commit": git_commit(),
    }
