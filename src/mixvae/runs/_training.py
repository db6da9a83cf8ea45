"""Trainings that become runs: from a configuration, or of a model built in Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lightning_fabric import Fabric

import mixvae.config
from mixvae import datasets
from mixvae._failures import typed
from mixvae._resources import machine
from mixvae.config import Config, StartConfig
from mixvae.datasets import Dataset
from mixvae.model import MixtureVAE
from mixvae.progress import SILENT, Progress
from mixvae.runs._data import open_data
from mixvae.runs._opening import open_run
from mixvae.runs._recipe import Recipe, describe_options, path_of, recipe_of, recipe_of_model
from mixvae.runs._requests import git_commit, versions
from mixvae.runs._run import Run
from mixvae.runs._standing import refuse, standing_run
from mixvae.runs._starting import check_effects, new_model
from mixvae.runs._store import Layout, RunStore
from mixvae.training import (
    Callback,
    Epoch,
    History,
    Logger,
    Trainer,
    TrainingOptions,
    keep_freed_memory,
    launch,
)
from mixvae.training._kinds import check_kinds
from mixvae.training._processes import as_one, check_same, first_alone, nodes_of
from mixvae.training._trial import check_binary


def train(
    config: Config, out: str | Path, *, resume: bool = False, amend: bool = True, progress: Progress = SILENT
) -> Run:
    """Train what a configuration describes, from the beginning or from the run's last checkpoint.

    Args:
        config: data, model and training.
        out: the run directory.
        resume: resume an existing run, for example to give it more epochs. Whatever determines its weights must match
            `config`; learning rate, weight decay and clipping may change, and the run records the change.
        amend: whether these may change. If not, a finished run is left alone.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: something in the configuration or the data is wrong, `out` exists without `resume` or belongs to
            another configuration, or another process is training it. Nothing is written then.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/trained")
        >>> run.is_done, len(run.metrics), run.model.posterior.components
        (True, 1, 1)
    """
    path = Path(out).expanduser()
    training = config.training
    if config.start.run is None and config.start != StartConfig():
        raise ValueError("start.noise and start.fresh need a training that starts from a run: give start.run too")
    fabric = launch(training.accelerator, training.devices, training.strategy, training.precision, training.nodes)
    keep_freed_memory()
    loaded: list[Dataset] = []

    def begin() -> Config:
        existing = standing_run(path, resume=resume)
        paths = datasets.absolute_paths(config.data.arguments())
        if existing is None:
            check_effects(config)
        else:
            paths = datasets.located(paths, path, datasets.relatives_in(existing.manifest["runtime"]["data"]))
        located = replace(config, data=replace(config.data, **paths))
        loaded.append(open_data(located.data, progress))
        return located

    def again() -> str:
        begun = Layout(path).manifest.exists()
        return f"`{typed('train', '--resume', path)}` resumes it" if begun else "run the command again"

    with as_one(fabric, again, quiet=True):
        config = first_alone(fabric, begin)
        data = loaded[0] if loaded else open_data(config.data)
        check_same(fabric, data.sha256, "data")
        options = mixvae.config.options(training)

        def compare() -> tuple[Recipe, bool]:
            existing = standing_run(path, resume=resume)
            if existing is not None:
                start = existing.start_of(config, recorded=amend)
            else:
                start = None if config.start.run is None else open_run(config.start.run).weights_sha256
            recipe = recipe_of(config, data, start)
            if existing is not None:
                refuse(existing, existing.why_not_recipe(recipe, training.epochs, training.patience, amend=amend))
            return recipe, existing is not None

        recipe, started = first_alone(fabric, compare)
        loggers = mixvae.config.loggers(training) if fabric.is_global_zero else []
        model, config = new_model(config, data, fabric, started=started)
        if config.data.binarize != "none":
            check_binary(model)
        store = RunStore(
            path,
            recipe,
            {"epochs": training.epochs, "patience": training.patience},
            _runtime(data, path, fabric, save_every=training.save_every, strategy=training.strategy),
            config=asdict(config),
            text=mixvae.config.to_yaml(config),
        )
        trainer = Trainer(
            model, data, options, seed=config.seed, store=store, fabric=fabric, threads=training.threads,
            progress=progress, loggers=loggers, settings=asdict(config),
        )  # fmt: skip
        if not started and fabric.is_global_zero and datasets.becomes_binary(data.train):
            progress.announce(f"binarising the grey values of {data.name} at every step (data.binarize stochastic)")
        _run(trainer, store)
    return Run(path, data=data)


def _run(trainer: Trainer, store: RunStore) -> History:
    """Train under the store's lease."""
    try:
        rows = trainer.run()
        trainer.fabric.barrier()  # so that every process sees the last commit
        return rows
    finally:
        store.close()


def _runtime(data: Dataset, path: Path, fabric: Fabric, **more: Any) -> dict[str, Any]:
    """What is recorded about a training but is not part of its identity."""
    origin = None if data.origin is None else dict(data.origin)
    relatives = {} if origin is None else datasets.relative_paths(origin, path)
    return {
        "data": {
            "name": data.name,
            "origin": origin,
            "relative": relatives.pop("name", None),
            **({"relatives": relatives} if relatives else {}),
            "sizes": {name: len(data.split(name)) for name in ("train", "validation", "test")},
            "given": data.record(),
        },
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "nodes": nodes_of(fabric),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
        "git_commit": git_commit(),
        **more,
    }


def _spec(model: MixtureVAE, data: Dataset) -> dict[str, Any]:
    """How to rebuild a model that was built in Python, or why that is impossible."""
    try:
        return {"spec": mixvae.config.describe(model, data.shape)}
    except ValueError as error:
        return {"unnamed": str(error)}


def _changed(options: TrainingOptions, changed: Mapping[str, Any]) -> TrainingOptions:
    """Options with some of them changed.

    Raises:
        TypeError: there is no such option; the message says what takes it, or which name is close.
    """
    for name in changed:
        if name not in TrainingOptions.__dataclass_fields__:
            raise TypeError(f"fit has no option {name!r}: {_remedy(name)}")
    return replace(options, **changed)


def _remedy(name: str) -> str:
    """What to pass to `fit` instead of an option that it does not have."""
    for setting, more in mixvae.config.takers(name).items():
        group, option, argument = setting.split(".")
        if group == "training":
            home = "torch.optim" if option == "optimizer" else "torch.optim.lr_scheduler"
            kind = more.removeprefix(", of ").split(" ")[0] or "Adam"
            return f"it belongs to the {option}{more}: pass {option}=functools.partial({home}.{kind}, {argument}=…)"
    own = [own for own, one in inspect.signature(fit).parameters.items() if one.kind is not one.VAR_KEYWORD]
    near = mixvae.config.nearest(name, [*TrainingOptions.__dataclass_fields__, *own])
    return f"did you mean {near}?" if near else "see TrainingOptions"


def _with_batches(options: TrainingOptions, data: Dataset, *, asked: bool) -> TrainingOptions:
    """Options with the batch size of data whose batches are made elsewhere.

    Raises:
        ValueError: another batch size is requested.
    """
    plan = data.train.plan
    if plan is None:
        return options
    if options.batch != plan.batch and (asked or options.batch != TrainingOptions.batch):
        raise ValueError(
            f"batch is {options.batch}, but the DataLoader makes batches of {plan.batch}: leave batch out, or change "
            "the DataLoader's"
        )
    return replace(options, batch=plan.batch)


def fit(
    model: MixtureVAE,
    data: Dataset | Any,
    options: TrainingOptions | None = None,
    *,
    seed: int = 0,
    run: str | Path | None = None,
    amend: bool = False,
    label: str = "",
    fabric: Fabric | None = None,
    progress: Progress = SILENT,
    callbacks: Sequence[Callback | Callable[[Epoch], object]] = (),
    loggers: Sequence[Logger] = (),
    **changed: Any,
) -> History:
    """Train a model by maximising a bound, and leave it with the weights of the epoch that is best on validation.

    With `keep="last"` these are the last epoch's.

    With `run`, the training becomes a run directory, which can be evaluated, reported and loaded like one trained from
    the command line. It can be killed at any time: calling `fit` again resumes from the last checkpoint and ends with
    the same weights, bit for bit, given the same number of threads. A run of another model, other data or other
    settings is refused.

    Args:
        model: the model, a `MixtureVAE` or a module with its `forward`.
        data: training and validation examples: a `Dataset`, or whatever `mixvae.datasets.as_dataset` can turn into one,
            such as an array, a torch `Dataset`, or `(train, validation)` of arrays or DataLoaders. A DataLoader decides
            the batches.
        options: how to train; `TrainingOptions()` by default.
        seed: seed of shuffling, binarisation and draws.
        run: the run directory; nothing is written by default.
        amend: resume an unfinished run under another learning rate, weight decay or clipping, and record the change;
            the optimiser's other options, such as the default's `fused=True`, must stay the same.
        label: your name for the model; models with different labels are different.
        fabric: device, precision and processes, as returned by `launch`; this process by default.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.
        callbacks: what to call at every step and epoch, each a `mixvae.training.Callback` or a function of an epoch's
            row. They can end the training by raising `StopTraining`.
        loggers: Lightning loggers that receive the settings once and the metrics of every epoch, such as
            `lightning_fabric.loggers.CSVLogger("logs")`; on resuming, those of the epochs that follow. TensorBoard's
            files are in the run directory anyway, if it is installed.
        **changed: options of `TrainingOptions` to change, as in `fit(model, data, epochs=20)`.

    Returns:
        One row per epoch, whose columns `mixvae.training.Epoch` defines. It has a `figure`.

    Raises:
        TypeError: there is no such option.
        ValueError: an argument does not match its annotation, or is out of range, the run was made from something else,
            one of its files is damaged, or another process is training it.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint has been written.

    Example:
        >>> from functools import partial
        >>> import mixvae
        >>> data = mixvae.load_dataset("digits", limit=40)
        >>> posterior = mixvae.SeparateEncoders(partial(mixvae.networks.GatedEncoder, data.shape, 2, (16,)), 3)
        >>> decoder = mixvae.MLPDecoder(2, data.shape, (16,))
        >>> model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), decoder)
        >>> history = mixvae.fit(model, data, epochs=1, run="runs/S3")
        >>> len(history), mixvae.load("runs/S3").posterior.components
        (1, 3)
    """
    check_kinds(get_type_hints(fit), options=options, seed=seed, run=run, amend=amend, label=label, fabric=fabric)
    data = datasets.as_dataset(data, progress=progress)
    options = _with_batches(_changed(options or TrainingOptions(), changed), data, asked="batch" in changed)
    fabric = fabric or launch()
    settings = {"seed": seed, "label": label, "data": {"name": data.name}, "model": {"class": path_of(type(model))}}
    if loggers or fabric.loggers:
        settings["training"] = describe_options(options)
    door: dict[str, Any] = {
        "seed": seed, "fabric": fabric, "progress": progress, "callbacks": callbacks, "loggers": loggers,
        "settings": settings,
    }  # fmt: skip
    if run is None:
        with as_one(fabric, lambda: "repeat the call", quiet=False):
            check_same(fabric, data.sha256, "data")
            return Trainer(model, data, options, store=None, **door).run()
    path = Path(run).expanduser()
    precision = str(fabric._precision.precision)  # noqa: SLF001  (Fabric exposes it nowhere else)

    described: dict[str, Any] = {"label": label, "class": path_of(type(model)), **_spec(model, data)}

    def compare() -> Recipe:
        recipe = recipe_of_model(
            model, data, options, seed=seed, precision=precision, label=label, spec=described.get("spec")
        )
        existing = standing_run(path, resume=True)
        if existing is not None:
            refuse(
                existing,
                existing.why_not_recipe(recipe, options.epochs, options.patience, amend=amend),
                "pass amend=True to change it",
            )
        return recipe

    with as_one(fabric, lambda: "the same call resumes it", quiet=False):
        check_same(fabric, data.sha256, "data")
        recipe = first_alone(fabric, compare)
        goal = {"epochs": options.epochs, "patience": options.patience}
        store = RunStore(
            path, recipe, goal, _runtime(data, path, fabric, save_every=options.save_every), model=described
        )
        trainer = Trainer(model, data, options, store=store, **door)
        described["components"] = trainer.components
        return _run(trainer, store)
