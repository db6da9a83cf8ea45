"""Trainings that become runs: from a configuration, or of a model that was built in Python."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric

import mixvae.config
from mixvae import datasets
from mixvae.bounds import Bound, elbo
from mixvae.config import Config, StartConfig
from mixvae.datasets import Dataset
from mixvae.files import load_tensors
from mixvae.gradients import Estimator, reparameterised
from mixvae.model import MixtureVAE, evaluating
from mixvae.runs.evaluating import git_commit, versions
from mixvae.runs.recipe import Recipe, path_of, recipe_of, recipe_of_model
from mixvae.runs.run import Run, open_data, open_run
from mixvae.runs.store import Layout, RunStore
from mixvae.training import MakeOptimizer, MakeSchedule, Trainer, keep_freed_memory, launch

EXAMPLES = 10_000
"""Training examples that a prior may choose its pseudo-inputs from."""
DEFAULT_OPTIMIZER: MakeOptimizer = partial(torch.optim.Adam, lr=5e-4, fused=True)
Result = TypeVar("Result")


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
    fabric = launch(wanted.accelerator, wanted.devices, wanted.strategy, wanted.precision)
    keep_freed_memory()
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    settings = mixvae.config.settings(wanted)

    def begin() -> Config:
        standing = _standing(path, resume=resume)
        where = {}
        if standing is not None and not standing.is_legacy:
            recorded = standing.manifest["runtime"]["data"]
            where = {"name": datasets.search(config.data.name, path, recorded.get("relative"))}
        name, root = datasets.resolve_paths(where.get("name", config.data.name), config.data.root)
        return replace(config, data=replace(config.data, name=name, root=root))

    config = _in_first_process(fabric, begin)
    data = open_data(config.data)

    def compare() -> tuple[Recipe, str]:
        start = None if config.start.run is None else open_run(config.start.run).weights_sha256
        recipe = recipe_of(config, data, start)
        _allow(_standing(path, resume=resume), recipe, wanted.epochs, wanted.patience, amend=amend)
        return recipe, data.sha256()

    recipe, checksum = _in_first_process(fabric, compare)
    if checksum != data.sha256():
        raise ValueError(f"the data of process {fabric.global_rank} are not those of the first process: copy them there")
    model, config = _new_model(config, data, started=Layout(path).manifest.exists())
    store = RunStore(
        path,
        recipe,
        {"epochs": wanted.epochs, "patience": wanted.patience},
        _runtime(data, path, fabric) | {name: getattr(wanted, name) for name in ("devices", "strategy", "save_every")},
        config=asdict(config),
        text=mixvae.config.to_yaml(config),
    )
    trainer = Trainer(model, data, seed=config.seed, store=store, fabric=fabric, threads=wanted.threads, **settings)
    _run(trainer, store)
    return Run(path, data=data)


def _run(trainer: Trainer, store: RunStore) -> list[dict[str, Any]]:
    """Train under the store's lease."""
    try:
        return trainer.run()
    finally:
        store.close()


def _in_first_process(fabric: Fabric, act: Callable[[], Result]) -> Result:
    """Do something in the first process only; the others get its result, or end with it in silence."""
    outcome: tuple[bool, Any] = (False, None)
    if fabric.is_global_zero:
        try:
            outcome = (True, act())
        except (ValueError, OSError) as error:
            fabric.broadcast((False, None))
            raise error from None
    done, result = fabric.broadcast(outcome)
    if not done:
        raise SystemExit(2)
    return cast(Result, result)


def _standing(path: Path, *, resume: bool) -> Run | None:
    """The run that stands in a directory already, if any.

    Raises:
        ValueError: something is there that cannot be gone on with.
    """
    layout = Layout(path)
    if layout.manifest.exists():
        if not resume:
            raise ValueError(f"{path} exists already: go on with it by --resume {path}, or choose another --out")
        return open_run(path)
    if layout.is_empty:
        return None
    if not resume:
        raise ValueError(f"{path} exists already, and is not a run: choose another --out")
    if Run(path).is_legacy:
        raise ValueError(f"{path} is a run of an earlier mixvae, which cannot be gone on with: train it anew")
    raise ValueError(f"{path} is not a run: it has no run.json")


def _allow(run: Run | None, asked: Recipe, epochs: int, patience: int | None, *, amend: bool) -> None:
    """Refuse to go on with a run that was made from something else.

    Raises:
        ValueError: it was.
    """
    if run is None:
        return
    reason = run.why_not_recipe(asked, epochs, patience, amend=amend)
    if not reason or reason == "unfinished":
        return
    raise ValueError(
        f"{run.path} was made from something else: {reason}; go on with it unchanged, or train a new run in another folder"
    )


def _runtime(data: Dataset, path: Path, fabric: Fabric) -> dict[str, Any]:
    """What is recorded of a training and is no part of its identity."""
    origin = None if data.origin is None else dict(data.origin)
    relative = None
    if origin is not None and Path(origin["name"]).is_absolute():
        relative = os.path.relpath(origin["name"], path.absolute())
    return {
        "data": {"name": data.name, "origin": origin, "relative": relative},
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {platform.platform()}",
        "versions": versions(),
        "git_commit": git_commit(),
    }


def fit(
    model: MixtureVAE,
    data: Dataset,
    *,
    epochs: int = 100,
    batch: int = 100,
    draws: int = 1,
    bound: Bound = elbo,
    gradient: Estimator = reparameterised,
    active: int | None = None,
    score_all: bool = True,
    validation_components: int | None = None,
    optimizer: MakeOptimizer = DEFAULT_OPTIMIZER,
    schedule: MakeSchedule | None = None,
    warmup: int = 0,
    patience: int | None = None,
    clip: float | None = None,
    ema: float | None = None,
    seed: int = 0,
    run: str | Path | None = None,
    amend: bool = False,
    label: str = "",
    fabric: Fabric | None = None,
    save_every: float = 30.0,
) -> list[dict[str, Any]]:
    """Train a model by maximising a bound, and leave it with the weights of the epoch best on validation.

    With `run` the training becomes a run directory, which can be evaluated, reported and loaded as one that the command
    line trains. It can be killed at any instant: calling `fit` again goes on from the last checkpoint and ends with
    the same weights, bit for bit, at the same number of threads. A run of another model, other data or other settings
    is refused.

    Args:
        model: the model, as `MixtureVAE` or a module with its `forward`.
        data: training and validation examples.
        epochs: passes over the training examples at most.
        batch: examples per step, over all devices together.
        draws: draws L per component.
        bound: what is maximised, in nats per example.
        gradient: how it is differentiated: `reparameterised`, `sticking_the_landing` or `doubly_reparameterised`.
        active: components S to draw from at each step, chosen at random; all by default.
        score_all: score every draw under all components (S2A, unbiased for the bound of the whole mixture), or
            only under the active ones (S2S: cheaper, and a lower bound of it).
        validation_components: components to draw from in validation, the same at every epoch; all by default.
        optimizer: makes an optimiser from parameters.
        schedule: makes a learning-rate schedule from an optimiser; it steps once per epoch.
        warmup: epochs over which β rises linearly to 1.
        patience: epochs without a better validation MISELBO, after the warm-up, that end the training.
        clip: largest norm of the gradient.
        ema: decay of a running average of the weights, which is then what is validated and kept.
        seed: seed of shuffling, binarisation and draws.
        run: the run directory; nothing is written by default.
        amend: go on with an unfinished run under another learning rate, weight decay or clipping, which the run records.
        label: what you call the model; models of different labels are different.
        fabric: device, precision and processes, as `launch` gives them; this process by default.
        save_every: seconds between checkpoints.

    Returns:
        One row per epoch: epoch, bound, validation, beta, learning_rate, best_epoch, seconds.

    Raises:
        ValueError: a number is out of range, the run was made from something else, a file of it is damaged, or another
            process trains it.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    settings: dict[str, Any] = {
        "epochs": epochs, "batch": batch, "draws": draws, "bound": bound, "gradient": gradient, "active": active,
        "score_all": score_all, "validation_components": validation_components, "optimizer": optimizer,
        "schedule": schedule, "warmup": warmup, "patience": patience, "clip": clip, "ema": ema,
        "save_every": save_every,
    }  # fmt: skip
    fabric = fabric or launch()
    if run is None:
        return Trainer(model, data, seed=seed, store=None, fabric=fabric, **settings).run()
    path = Path(run).expanduser()
    precision = str(fabric._precision.precision)  # noqa: SLF001  (Fabric shows it nowhere else)

    def compare() -> Recipe:
        recipe = recipe_of_model(model, data, settings, seed=seed, precision=precision, label=label)
        _allow(_standing(path, resume=True), recipe, epochs, patience, amend=amend)
        return recipe

    recipe = _in_first_process(fabric, compare)
    goal = {"epochs": epochs, "patience": patience}
    store = RunStore(path, recipe, goal, _runtime(data, path, fabric), model={"label": label, "class": path_of(type(model))})
    return _run(Trainer(model, data, seed=seed, store=store, fabric=fabric, **settings), store)


def _new_model(config: Config, data: Dataset, *, started: bool = False) -> tuple[MixtureVAE, Config]:
    """Build a model from its seed or its start, and try it on two examples, before anything is written."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:EXAMPLES]
    examples = data.train.batch(chosen, generator)
    model = mixvae.config.build(config.model, data.shape, examples)
    if config.start.run is not None and not started:
        start = _extended(config)
        load_tensors(model, start.state_dict(), f"the start {config.start.run}")
    prior = model.prior
    model.freeze(*config.training.freeze)
    if model.prior is not prior:
        raise ValueError("a prior that follows the encoders is frozen by `mixvae extend RUN --freeze prior` only")
    trial = data.train.batch(slice(0, 2), generator)
    state = torch.get_rng_state()
    with mixvae.config.plain_errors("the model cannot take the data"), torch.no_grad(), evaluating(model):
        model(trial)
        for part in (data.validation, data.test):
            for rows in torch.arange(len(part)).split(EXAMPLES):
                model.check(part.batch(rows))
    torch.set_rng_state(state)
    return model, replace(config, model=replace(config.model, shape=list(data.shape)))


def _extended(config: Config) -> MixtureVAE:
    """Model that a configuration starts from, with its components added and what it freezes frozen."""
    start = open_run(str(config.start.run)).load()
    start.freeze(*config.training.freeze)  # first, so that a prior stays as the old components made it
    return start.extended(config.model.components, noise=config.start.noise, fresh=config.start.fresh)


def extension(
    run: str | Path | Run,
    components: int | None = None,
    *,
    freeze: Sequence[str] = (),
    noise: float = 0.01,
    fresh: bool = False,
    epochs: int | None = None,
) -> Config:
    """Configuration of a run that goes on from a trained one with more components.

    Args:
        run: the trained run.
        components: number of components in all, one more by default; as many as the run has to train it on.
        freeze: parts held fixed, such as decoder and prior; a VampPrior becomes the Gaussians that it is now.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        fresh: start the added components from random weights instead of copies.
        epochs: epochs to train; as many as the run's by default. There is no warm-up.

    Raises:
        ValueError: the run has more components already, or a part cannot be frozen.
    """
    run = open_run(run)
    old = run.config
    if components is None:
        components = old.model.components + 1
    weights = old.model.weights
    if weights is not None:
        weights = [weights[i % len(weights)] for i in range(components)]
    config = replace(
        old,
        model=replace(old.model, components=components, weights=weights),
        training=replace(old.training, freeze=list(freeze), warmup=0, epochs=epochs or old.training.epochs),
        start=StartConfig(str(run.path.absolute()), noise, fresh),
    )
    start = run.load()
    prior: Any = start.prior
    start.freeze(*freeze)
    start.extended(components)  # refuses fewer than there are
    if start.prior is not prior:  # a prior that followed the encoders became Gaussians of its own
        frozen: Any = getattr(start.prior, "top", start.prior)
        config.model.prior = {"class_path": type(frozen).__name__, "clusters": len(frozen.mean)}
    return config
