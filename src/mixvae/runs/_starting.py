"""Models from which trainings start: new ones, and trained ones with added components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mixvae.config
from mixvae._failures import at_least, plain_errors
from mixvae._resources import together
from mixvae.config import Config, StartConfig
from mixvae.datasets import Dataset, has_root
from mixvae.files import load_tensors
from mixvae.model import MixtureVAE, evaluating
from mixvae.priors import TwoLevelPrior
from mixvae.runs._opening import open_run
from mixvae.runs._run import Run
from mixvae.training._trial import check_values

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EXAMPLES = 10_000
"""Maximum number of training examples from which a prior may choose its pseudo-inputs."""


def check_effects(config: Config) -> None:
    """Refuse settings that would have no effect on a new training, before anything is read.

    Raises:
        ValueError: a setting would have none; the error names it and what it needs.
    """
    data, model, training = config.data, config.model, config.training
    if model.flow_per_component and model.flow is None:
        raise ValueError("model.flow_per_component needs a flow: give model.flow too, or leave it out")
    if training.scored == "active" and training.active is None:
        raise ValueError("training.scored is active, but all components are: give training.active too, or leave it out")
    kind, arguments = mixvae.config.parse(model.posterior, "mixvae.posteriors")
    if str(kind.__module__).startswith("mixvae."):
        for name in {"components", "latent", "weights", "learn_weights"} & arguments.keys():
            if arguments[name] != getattr(model, name):
                raise ValueError(
                    f"model.posterior has {name} {arguments[name]}, the model {getattr(model, name)}: give "
                    f"model.{name} alone"
                )
    if data.root is not None and not has_root(data.name):
        raise ValueError(
            f"data.root is the folder of a data set by name, but {data.name} needs none: leave data.root out"
        )


def new_model(config: Config, data: Dataset, fabric: Fabric, *, started: bool = False) -> tuple[MixtureVAE, Config]:
    """Build a model from its seed or its start, and test it on two examples, before anything is written.

    The first process reads the start for all processes.
    """
    if config.model.shape is not None and tuple(config.model.shape) != tuple(data.shape):
        raise ValueError(
            f"model.shape is {config.model.shape}, but the data have shape {list(data.shape)}: leave it out"
        )
    at_least(0, seed=config.seed)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:EXAMPLES]
    examples = data.train.batch(chosen, generator)
    with together(_copies(config)):
        model = mixvae.config.build(config.model, data.shape, examples)
    if config.start.run is not None and not started:
        from mixvae.training._processes import first_alone

        weights, rng = first_alone(fabric, lambda: (_extended(config).state_dict(), torch.get_rng_state()))
        torch.set_rng_state(rng)
        load_tensors(model, weights, f"the start {config.start.run}")
    prior = model.prior
    model.freeze(*config.training.freeze)
    if model.prior is not prior:
        raise ValueError("a prior that follows the encoders can be frozen only with `mixvae extend RUN --freeze prior`")
    trial = data.train.batch(slice(0, 2), generator)
    state = torch.get_rng_state()
    with plain_errors("the model cannot take the data"), torch.no_grad(), evaluating(model):
        model(trial)
        check_values(model, data.test)
    torch.set_rng_state(state)
    return model, replace(config, model=replace(config.model, shape=list(data.shape)))


def _copies(config: Config) -> int:
    """Fewest copies of its weights that a training holds: the best epoch's, gradients and the optimiser's state."""
    if config.training.freeze:
        return 2
    spec = config.training.optimizer
    name = str(spec if isinstance(spec, str) else spec.get("class_path")).rpartition(".")[2]
    return 5 if name in ("Adam", "AdamW", "NAdam", "RAdam") else 3


def _extended(config: Config) -> MixtureVAE:
    """Model from which a configuration starts, with components added and parts frozen as configured."""
    start = open_run(str(config.start.run)).load()
    start.freeze(*config.training.freeze)  # first, so that the prior remains that of the old components
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
    """Configuration of a run that continues a trained one with more components.

    Args:
        run: the trained run.
        components: total number of components, one more by default; with the run's own number it is just trained
            further.
        freeze: parts to hold fixed, such as decoder and prior; a VampPrior becomes the Gaussians that it currently is.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        fresh: start the added components from random weights instead of copies.
        epochs: epochs to train; the run's own setting by default. There is no warm-up.

    Raises:
        ValueError: the run already has more components, a part cannot be frozen, or the data have changed.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import extension, train
        >>> _ = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/S1")
        >>> extension("runs/S1", 3).model.components
        3
    """
    run = open_run(run)
    old = run.config
    passes = old.training.epochs if epochs is None else epochs
    run.data  # noqa: B018  (so that changed data are refused now)
    if components is None:
        components = old.model.components + 1
    weights = old.model.weights
    if weights is not None:
        weights = [weights[i % len(weights)] for i in range(components)]
    config = replace(
        old,
        data=run.data_config,
        model=replace(old.model, components=components, weights=weights),
        training=replace(old.training, freeze=list(freeze), warmup=0, epochs=passes),
        start=StartConfig(str(run.path.absolute()), noise, fresh),
    )
    start = run.load()
    prior: Any = start.prior
    start.freeze(*freeze)
    start.extended(components)  # refuses fewer than the run has
    if start.prior is not prior:  # a prior that followed the encoders became Gaussians of its own
        held: Any = start.prior.top if isinstance(start.prior, TwoLevelPrior) else start.prior
        config.model.prior = {"class_path": type(held).__name__, "clusters": len(held.mean)}
    return config
