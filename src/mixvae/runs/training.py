"""Trainings that become runs: from a configuration, or of a model that was built in Python."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric

import mixvae.config
from mixvae import datasets
from mixvae.config import Config, StartConfig
from mixvae.datasets import Dataset
from mixvae.model import MixtureVAE
from mixvae.runs.evaluating import git_commit, versions
from mixvae.runs.opening import open_run
from mixvae.runs.recipe import Recipe, path_of, recipe_of, recipe_of_model
from mixvae.runs.run import Run, open_data
from mixvae.runs.standing import refuse, standing_run
from mixvae.runs.starting import new_model
from mixvae.runs.store import Layout, RunStore
from mixvae.training import Trainer, TrainingOptions, keep_freed_memory, launch
from mixvae.training.processes import as_one, first_alone


def train(config: Config, out: str | Path, *, resume: bool = False, amend: bool = True) -> Run:
    """Train what a configuration describes, from the beginning or from where the run directory stands.

    Args:
        config: data, model and training.
        out: the run directory.
        resume: go on with a run that exists, to give it more epochs for example. What decides its weights must be
            that of `config`; learning rate, weight decay and clipping may change, and the run keeps a record of it.
        amend: whether they may change. A run that is finished is left alone where they do not.

    Raises:
        ValueError: something in the configuration or the data is wrong, `out` exists and `resume` was not asked
            for, it belongs to another configuration, or another process trains it. Nothing is written then.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
    """
    path = Path(out).expanduser()
    wanted = config.training
    if config.start.run is None and config.start != StartConfig():
        raise ValueError("start.noise and start.fresh are of a training that starts from a run: give start.run too")
    fabric = launch(wanted.accelerator, wanted.devices, wanted.strategy, wanted.precision)
    keep_freed_memory()
    loaded: list[Dataset] = []

    def begin() -> Config:
        there = standing_run(path, resume=resume)
        name, root = datasets.resolve_paths(config.data.name, config.data.root)
        if there is not None:
            name = datasets.search(name, path, there.manifest["runtime"]["data"].get("relative"))
        located = replace(config, data=replace(config.data, name=name, root=root))
        loaded.append(open_data(located.data))
        return located

    def again() -> str:
        begun = Layout(path).manifest.exists()
        return f"`mixvae train --resume {path}` goes on where it was" if begun else "give the command again"

    with as_one(fabric, again, quiet=True):
        config = first_alone(fabric, begin)
        data = loaded[0] if loaded else open_data(config.data)
        _check_same_data(fabric, data)
        options = mixvae.config.options(wanted)

        def compare() -> tuple[Recipe, bool]:
            there = standing_run(path, resume=resume)
            if there is not None:
                start = there.start_of(config, recorded=amend)
            else:
                start = None if config.start.run is None else open_run(config.start.run).weights_sha256
            recipe = recipe_of(config, data, start)
            if there is not None:
                refuse(there, there.why_not_recipe(recipe, wanted.epochs, wanted.patience, amend=amend))
            return recipe, there is not None

        recipe, started = first_alone(fabric, compare)
        model, config = new_model(config, data, started=started)
        store = RunStore(
            path,
            recipe,
            {"epochs": wanted.epochs, "patience": wanted.patience},
            _runtime(data, path, fabric, save_every=wanted.save_every, strategy=wanted.strategy),
            config=asdict(config),
            text=mixvae.config.to_yaml(config),
        )
        trainer = Trainer(model, data, options, seed=config.seed, store=store, fabric=fabric, threads=wanted.threads)
        _run(trainer, store)
    return Run(path, data=data)


def _run(trainer: Trainer, store: RunStore) -> list[dict[str, Any]]:
    """Train under the store's lease."""
    try:
        rows = trainer.run()
        trainer.fabric.barrier()  # so that every process finds the last commit
        return rows
    finally:
        store.close()


def _check_same_data(fabric: Fabric, data: Dataset) -> None:
    """Refuse data that are not the same in all processes, in all of them.

    Raises:
        ValueError: they differ.
    """
    first = fabric.broadcast(data.sha256())
    same = fabric.all_reduce(torch.tensor(float(first == data.sha256()), device=fabric.device), reduce_op="sum")
    differing = fabric.world_size - round(float(cast(torch.Tensor, same)))
    if differing:
        raise ValueError(f"{differing} of {fabric.world_size} processes have other data: copy the same files to all")


def _runtime(data: Dataset, path: Path, fabric: Fabric, **more: Any) -> dict[str, Any]:
    """What is recorded of a training and is no part of its identity."""
    origin = None if data.origin is None else dict(data.origin)
    relative = None
    if origin is not None and Path(origin["name"]).is_absolute():
        relative = os.path.relpath(origin["name"], path.absolute())
    return {
        "data": {
            "name": data.name,
            "origin": origin,
            "relative": relative,
            "sizes": {name: len(data.split(name)) for name in ("train", "validation", "test")},
        },
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.platform()}",
        "versions": versions(),
        "git_commit": git_commit(),
        **more,
    }


def _spec(model: MixtureVAE, data: Dataset) -> dict[str, Any]:
    """How a model built in Python is built again, or why it cannot be."""
    try:
        return {"spec": mixvae.config.describe(model, data.shape)}
    except ValueError as error:
        return {"unnamed": str(error)}


def _changed(options: TrainingOptions, changed: Mapping[str, Any]) -> TrainingOptions:
    """Options with some of them changed."""
    known = TrainingOptions.__dataclass_fields__
    for name in changed:
        if name not in known:
            near = mixvae.config.nearest(name, list(known))
            raise TypeError(
                f"fit has no option {name!r}: " + (f"did you mean {near}?" if near else "see TrainingOptions")
            )
    return replace(options, **changed)


def fit(
    model: MixtureVAE,
    data: Dataset,
    options: TrainingOptions | None = None,
    *,
    seed: int = 0,
    run: str | Path | None = None,
    amend: bool = False,
    label: str = "",
    fabric: Fabric | None = None,
    **changed: Any,
) -> list[dict[str, Any]]:
    """Train a model by maximising a bound, and leave it with the weights of the epoch best on validation.

    With `run` the training becomes a run directory, which can be evaluated, reported and loaded as one that the command
    line trains. It can be killed at any instant: calling `fit` again goes on from the last checkpoint and ends with
    the same weights, bit for bit, at the same number of threads. A run of another model, other data or other settings
    is refused.

    Args:
        model: the model, as `MixtureVAE` or a module with its `forward`.
        data: training and validation examples.
        options: how it is trained; `TrainingOptions()` by default.
        seed: seed of shuffling, binarisation and draws.
        run: the run directory; nothing is written by default.
        amend: go on with an unfinished run under another learning rate, weight decay or clipping, and record it; the
            optimiser's other options, such as `fused=True` of the default one, stay as they were.
        label: what you call the model; models of different labels are different.
        fabric: device, precision and processes, as `launch` gives them; this process by default.
        **changed: options to change, such as `fit(model, data, epochs=20)`: those of `TrainingOptions`.

    Returns:
        One row per epoch: epoch, bound, validation, beta, learning_rate, best_epoch, seconds.

    Raises:
        TypeError: there is no such option.
        ValueError: a number is out of range, the run was made from something else, a file of it is damaged, or another
            process trains it.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    options = _changed(options or TrainingOptions(), changed)
    fabric = fabric or launch()
    if run is None:
        with as_one(fabric, lambda: "give the call again", quiet=False):
            return Trainer(model, data, options, seed=seed, store=None, fabric=fabric).run()
    path = Path(run).expanduser()
    precision = str(fabric._precision.precision)  # noqa: SLF001  (Fabric shows it nowhere else)

    described: dict[str, Any] = {"label": label, "class": path_of(type(model)), **_spec(model, data)}

    def compare() -> Recipe:
        recipe = recipe_of_model(
            model, data, options, seed=seed, precision=precision, label=label, spec=described.get("spec")
        )
        there = standing_run(path, resume=True)
        if there is not None:
            refuse(
                there,
                there.why_not_recipe(recipe, options.epochs, options.patience, amend=amend),
                "pass amend=True to change it",
            )
        return recipe

    with as_one(fabric, lambda: "the same call goes on where it was", quiet=False):
        recipe = first_alone(fabric, compare)
        goal = {"epochs": options.epochs, "patience": options.patience}
        store = RunStore(
            path, recipe, goal, _runtime(data, path, fabric, save_every=options.save_every), model=described
        )
        trainer = Trainer(model, data, options, seed=seed, store=store, fabric=fabric)
        described["components"] = trainer.components
        return _run(trainer, store)
