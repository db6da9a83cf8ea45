"""Typed configuration, read from YAML and flags, and the model that it describes. Imports no torch by itself."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import jsonargparse
import yaml

if TYPE_CHECKING:
    from torch import Tensor

    from mixvae.model import MixtureVAE

Spec = str | dict[str, Any]
"""A class by name or import path, or `{class_path: …, argument: value, …}`."""


@dataclass
class DataConfig:
    """Which data.

    Args:
        name: digits, mnist, fashion_mnist, cifar10, or the path of your own array file or folder of images.
        root: folder of the standard data sets; else $MIXVAE_DATA, the cache, the system's folder, a download.
        binarize: stochastic (training anew at every step, the rest once), fixed (once), threshold, or none.
        seed: seed of the split and of the binarisation, not of the training.
        limit: use only so many training examples.
    """

    name: str = "digits"
    root: str | None = None
    binarize: Literal["stochastic", "fixed", "threshold", "none"] = "stochastic"
    seed: int = 0
    limit: int | None = None


@dataclass
class ModelConfig:
    """Which model. Classes are named by import path, or by bare name within mixvae.

    Args:
        components: number of mixture components S.
        latent: latent size D.
        posterior: class of the posterior.
        encoder: class of an encoder; any module that returns mean and log-variance.
        prior: class of the prior, such as StandardNormal, GaussianMixture or VampPrior.
        decoder: class of the decoder.
        likelihood: Bernoulli, ContinuousBernoulli or Gaussian.
        weights: mixture weights, one per component; uniform by default.
        learn_weights: train the mixture weights.
        shape: event shape of the data; filled in by training.
    """

    components: int = 1
    latent: int = 40
    posterior: Spec = "SeparateEncoders"
    encoder: Spec = "GatedEncoder"
    prior: Spec = "StandardNormal"
    decoder: Spec = "MLP"
    likelihood: Spec = "Bernoulli"
    weights: list[float] | None = None
    learn_weights: bool = False
    shape: list[int] | None = None


@dataclass
class TrainingConfig:
    """How to train.

    Args:
        epochs: passes over the training examples at most.
        batch: examples per step, over all devices together.
        draws: draws per component and example.
        bound: bound to maximise: elbo, miselbo, pooled or iwelbo, or an import path.
        optimizer: class of the optimiser.
        schedule: class of the learning-rate schedule, which steps once per epoch.
        warmup: epochs over which the KL part's weight β rises linearly to 1.
        patience: epochs without a better validation MISELBO that end the training.
        clip: largest norm of the gradient.
        ema: decay of a running average of the weights, which is then validated and kept.
        save_every: seconds between checkpoints.
        accelerator: auto, cpu, cuda, … as Lightning Fabric knows them.
        devices: number of devices.
        strategy: auto or ddp.
        precision: 32-true, bf16-mixed, … as Lightning Fabric knows them.
        threads: CPU threads; torch's own choice by default.
    """

    epochs: int = 100
    batch: int = 100
    draws: int = 1
    bound: str = "elbo"
    optimizer: Spec = field(default_factory=lambda: {"class_path": "torch.optim.Adam", "lr": 5e-4, "fused": True})
    schedule: Spec | None = None
    warmup: int = 0
    patience: int | None = None
    clip: float | None = None
    ema: float | None = None
    save_every: float = 30.0
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int | None = None


@dataclass
class Config:
    """Everything that a run is made from.

    Args:
        data: which data.
        model: which model.
        training: how to train.
        seed: seed of initial weights, shuffling and draws.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0


def presets() -> dict[str, Path]:
    """Configurations that come with mixvae, by name."""
    folder = Path(str(files("mixvae") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(name: str | Path) -> Path:
    """File of a preset's name, or of a path.

    Raises:
        ValueError: there is no such preset or file; the nearest preset is named.
    """
    known = presets()
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_file():
        return Path(name)
    hint = f"did you mean {near}?" if (near := nearest(str(name), known)) else f"presets are {', '.join(known)}"
    raise ValueError(f"there is no preset or file {str(name)!r}: {hint}")


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str | None:
    """Return the known name that is most like a mistyped one."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add every field of `Config` to a parser."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Config)


def read(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a preset or YAML file, with flags such as `--seed=3` on top.

    Raises:
        ValueError: there is no such file, it is not YAML, or a key or a value is wrong.
    """
    path = locate(name)
    check_keys(path)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_arguments(parser)
    try:
        return from_namespace(parser.parse_args([f"--config={path}", *overrides]))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def from_namespace(namespace: jsonargparse.Namespace) -> Config:
    """Make the typed configuration from parsed arguments."""
    values = namespace.as_dict() if isinstance(namespace, jsonargparse.Namespace) else dict(namespace)
    return Config(
        DataConfig(**values["data"]),
        ModelConfig(**values["model"]),
        TrainingConfig(**values["training"]),
        values["seed"],
    )


def check_keys(path: Path) -> None:
    """Refuse a YAML file with keys that do not exist.

    Raises:
        ValueError: the file is not YAML, or a key is unknown; the nearest one is named.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys such as data, model and training; it holds {type(content).__name__}")
    known = set(_keys(Config))
    for key in _given(content, known):
        if key not in known:
            near = nearest(key, sorted(known))
            raise ValueError(f"{path}: unknown key {key}" + (f": did you mean {near}?" if near else ""))


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a configuration."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        yield prefix + entry.name
        if is_dataclass(hints[entry.name]):
            yield from _keys(hints[entry.name], f"{prefix}{entry.name}.")  # pyright: ignore[reportArgumentType]


def _given(content: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    """Dotted names in a YAML file, down to where a class's own arguments begin."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict) and any(other.startswith(f"{name}.") for other in known):
            yield from _given(value, known, f"{name}.")


def to_yaml(config: Config) -> str:
    """Return the complete configuration as YAML, enough to run again."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def resolve(name: str, room: str) -> Any:
    """Object by import path, or by bare name within one module.

    Args:
        name: `package.module.Class`, or a bare name.
        room: module that bare names are looked up in.

    Raises:
        ValueError: there is no such module or name; the nearest is named.
    """
    module_name, _, attribute = name.rpartition(".")
    module_name = module_name or room
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {name!r}: there is no module {error.name!r}") from None
    if not hasattr(module, attribute):
        near = nearest(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ValueError(f"{module_name} has no {attribute!r}" + (f": did you mean {near}?" if near else ""))
    return getattr(module, attribute)


def construct(spec: Spec, room: str, **context: Any) -> Any:
    """Call what a spec names with its own arguments, and with those of the context that it has parameters for.

    Args:
        spec: the class and its arguments.
        room: module that bare names are looked up in.
        context: what every class may ask for by a parameter's name, such as `shape` and `latent`.

    Raises:
        ValueError: the class does not exist, or an argument is unknown or missing.
    """
    kind, arguments = parse(spec, room)
    parameters = _parameters(kind)
    given = {name: value for name, value in context.items() if name in parameters} | arguments
    for name, parameter in parameters.items():
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in given and parameter.default is parameter.empty and not optional:
            raise ValueError(f"{kind.__name__} needs the argument {name!r}: give it beside class_path")
    return kind(**given)


def _parameters(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a callable; none where it does not tell them."""
    try:
        return inspect.signature(kind).parameters
    except ValueError:
        return {}


def parse(spec: Spec, room: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split a spec into its class and its arguments; an argument may be a class of its own.

    Raises:
        ValueError: the class does not exist, or has no such argument; the nearest is named.
    """
    content: dict[str, Any] = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    if not isinstance(content.get("class_path"), str):
        raise ValueError(f"a class is given by its name or as {{class_path: name, argument: value}}; got {spec}")
    kind = resolve(content.pop("class_path"), room)
    arguments = {**(content.pop("init_args", None) or {}), **content}
    parameters = _parameters(kind)
    open_ended = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in parameters and not open_ended:
            near = nearest(name, list(parameters))
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(parameters)}"
            raise ValueError(f"{kind.__name__} has no argument {name!r}: {hint}")
    nested = {n: construct(v, room) for n, v in arguments.items() if isinstance(v, dict) and "class_path" in v}
    return kind, arguments | nested


def build(config: ModelConfig, shape: Sequence[int] | None = None, examples: Tensor | None = None) -> MixtureVAE:
    """Build the model that a configuration describes, with random weights, and try it on a blank example.

    Args:
        config: the model's configuration.
        shape: event shape of the data; `config.shape` by default.
        examples: training examples, for priors that start from some.

    Raises:
        ValueError: a class or an argument is wrong, or its parts do not fit each other.
    """
    import torch
    from torch import nn

    from mixvae.model import MixtureVAE, evaluating

    shape = tuple(shape or config.shape or ())
    if not shape:
        raise ValueError("the shape of the data is unknown: give model.shape, such as [1, 28, 28]")
    if config.latent < 1:
        raise ValueError(f"latent must be at least 1; got {config.latent}")
    known = {"shape": shape, "latent": config.latent, "components": config.components}
    kind, arguments = parse(config.likelihood, "mixvae.decoders")
    if inspect.isclass(kind) and issubclass(kind, nn.Module):
        likelihood = construct(config.likelihood, "mixvae.decoders", **known)
    else:
        likelihood = partial(kind, **arguments) if arguments else kind
    posterior = construct(
        config.posterior,
        "mixvae.posteriors",
        build=lambda: construct(config.encoder, "mixvae.networks", **known),
        weights=config.weights,
        learn_weights=config.learn_weights,
        **known,
    )
    prior = construct(config.prior, "mixvae.priors", posterior=posterior, examples=examples, **known)
    decoder = construct(config.decoder, "mixvae.decoders", likelihood=likelihood, **known)
    model = MixtureVAE(posterior, prior, decoder)
    with plain_errors(f"the model's parts do not fit each other or data of shape {shape}"):
        with torch.no_grad(), evaluating(model):  # lazy layers take their sizes here
            model.posterior(torch.zeros(1, *shape))
            model.decoder(model.prior().sample((1,)))
    return model


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn the errors of networks that do not fit into a `ValueError` of one line."""
    try:
        yield
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{what}: {str(error).strip().splitlines()[0]}") from error


def settings(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.fit` that a configuration describes, with its classes imported."""
    values = asdict(config)
    for name in ("accelerator", "devices", "strategy", "precision", "threads"):
        del values[name]
    values["bound"] = resolve(config.bound, "mixvae.bounds")
    kind, arguments = parse(config.optimizer, "torch.optim")
    values["optimizer"] = partial(kind, **arguments)
    if config.schedule is not None:
        kind, arguments = parse(config.schedule, "torch.optim.lr_scheduler")
        values["schedule"] = partial(kind, **arguments)
    return values
