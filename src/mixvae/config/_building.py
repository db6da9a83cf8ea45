"""Models and trainings from configurations: classes by import path. Imports torch only to build."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from mixvae._failures import called, plain_errors, said
from mixvae._resources import built_mixture
from mixvae.config._schema import ModelConfig, Spec, TrainingConfig
from mixvae.config._suggesting import nearest
from mixvae.config._trust import LOGGERS, NAME

if TYPE_CHECKING:
    from torch import Tensor

    from mixvae.model import MixtureVAE
    from mixvae.training import Logger, TrainingOptions


MOST_NAMED = 20
"""Maximum number of names of a module that an error lists when none is close."""


def resolve(name: str, room: str) -> Any:
    """Object by import path, or by bare name within one module.

    Args:
        name: `package.module.Class`, or a bare name.
        room: module that bare names are looked up in.

    Raises:
        ValueError: there is no such module or name; the closest name is suggested.

    Example:
        >>> from mixvae.config import resolve
        >>> resolve("VampPrior", "mixvae.priors").__name__, resolve("torch.nn.ELU", "mixvae.networks").__name__
        ('VampPrior', 'ELU')
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a class or function: give one such as package.module.Name")
    module_name, _, attribute = name.rpartition(".")
    module_name = module_name or room
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {name!r}: there is no module {error.name!r}") from None
    except Exception as error:  # noqa: BLE001  (third-party modules may raise anything)
        raise ValueError(f"cannot import {name!r}: {said(error)}") from error
    if not hasattr(module, attribute):
        near = nearest(attribute, [n for n in vars(module) if not n.startswith("_")])
        own = [n for n, v in vars(module).items() if _belongs(v, module_name) and not n.startswith("_")]
        hint = f": did you mean {near}?" if near else f": it has {', '.join(own)}" if 0 < len(own) <= MOST_NAMED else ""
        raise ValueError(f"{module_name} has no {attribute!r}{hint}")
    return getattr(module, attribute)


def _belongs(value: object, module_name: str) -> bool:
    """Whether a function or class is defined in a module or below it."""
    return callable(value) and str(getattr(value, "__module__", "")).startswith(module_name)


def construct(spec: Spec, room: str, **context: Any) -> Any:
    """Call what a spec names, with the spec's arguments and whatever part of the context it has parameters for.

    Args:
        spec: the class and its arguments.
        room: module that bare names are looked up in.
        context: values that any class receives if it has a parameter of that name, such as `shape` and `latent`.

    Raises:
        ValueError: the class does not exist, or an argument is unknown or missing.

    Example:
        >>> from mixvae.config import construct
        >>> construct({"class_path": "Linear", "out_features": 2}, "torch.nn", in_features=3, shape=(1, 8, 8))
        Linear(in_features=3, out_features=2, bias=True)
    """
    kind, arguments = parse(spec, room)
    known = parameters(kind)
    passed = {name: value for name, value in context.items() if name in known} | arguments
    for name, parameter in known.items():
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in passed and parameter.default is parameter.empty and not optional:
            raise ValueError(f"{_name(kind)} needs the argument {name!r}: give it beside class_path")
    with plain_errors(f"{called(kind, **arguments)} cannot be made"):
        return kind(**passed)


def _name(kind: Callable[..., Any]) -> str:
    """Name of a class or function."""
    return str(getattr(kind, "__name__", type(kind).__name__))


def parameters(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters of a callable; empty if it has no signature."""
    try:
        return inspect.signature(kind).parameters
    except (ValueError, TypeError):
        return {}


def split(spec: Spec) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a class; the arguments may be beside `class_path` or under `init_args`.

    Raises:
        ValueError: the spec has another form.

    Example:
        >>> from mixvae.config import split
        >>> split({"class_path": "VampPrior", "pseudo_inputs": 50})
        ('VampPrior', {'pseudo_inputs': 50})
    """
    if isinstance(spec, str):
        spec = {"class_path": spec}
    content: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {}  # a list of pairs is not a mapping
    path, inner = content.pop("class_path", None), content.pop("init_args", None) or {}
    if not isinstance(path, str):
        raise ValueError(f"a class is given by its name or as {{class_path: name, argument: value}}; got {spec}")
    if not isinstance(inner, Mapping):
        raise ValueError(f"init_args of {path} must map arguments to values; got {inner!r}")
    return path, {**inner, **content}


def parse(spec: Spec, room: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split a spec into its class and arguments; an argument may itself be a class.

    Raises:
        ValueError: the class does not exist, or has no such argument; the closest is suggested.

    Example:
        >>> from mixvae.config import parse
        >>> kind, arguments = parse({"class_path": "VampPrior", "pseudo_inputs": 50}, "mixvae.priors")
        >>> kind.__name__, arguments
        ('VampPrior', {'pseudo_inputs': 50})
    """
    path, arguments = split(spec)
    kind = _function(path, room)
    known = parameters(kind)
    open_ended = not known or any(p.kind is p.VAR_KEYWORD for p in known.values())
    for name in arguments:
        if name not in known and not open_ended:
            near = nearest(name, list(known))
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{_name(kind)} has no argument {name!r}: {hint}")
    resolved: dict[str, Any] = {}
    for name, value in arguments.items():
        wants_class = name in known and str(known[name].annotation).startswith("Callable")
        if isinstance(value, dict) and "class_path" in value:
            resolved[name] = construct(value, room)
        elif isinstance(value, str) and wants_class:
            resolved[name] = resolve(value, room) if "." in value else _own_class(value, room, name)
    return kind, arguments | resolved


def _own_class(value: str, room: str, argument: str) -> Any:
    """A class of a module by its bare name, as in a file: not a function, nor anything that the module imports.

    Raises:
        ValueError: it is something else.
    """
    kind = resolve(value, room)
    if not (inspect.isclass(kind) and _belongs(kind, room)):
        raise ValueError(f"{argument} must be a class of {room}, or a path such as package.module.Name; got {value!r}")
    return kind


def _function(name: str, room: str) -> Callable[..., Any]:
    """Import a class or function.

    Raises:
        ValueError: there is none, or it cannot be called.
    """
    function = resolve(name, room)
    if not callable(function):
        raise ValueError(f"{name} is not a class or function but of type {type(function).__name__}")
    return function


def build(config: ModelConfig, shape: Sequence[int] | None = None, examples: Tensor | None = None) -> MixtureVAE:
    """Build the model that a configuration describes, with random weights, and test it on a blank example.

    Args:
        config: the model's configuration.
        shape: event shape of the data; `config.shape` by default.
        examples: training examples, for priors that are initialised from examples.

    Raises:
        ValueError: a class or an argument is wrong, or the parts do not fit each other.

    Example:
        >>> import torch
        >>> from mixvae.config import ModelConfig, build
        >>> encoder = {"class_path": "GatedEncoder", "hidden": [16]}
        >>> model = build(ModelConfig(components=3, latent=2, encoder=encoder), shape=(1, 8, 8))
        >>> model(torch.zeros(5, 1, 8, 8)).log_q.shape  # draws, components, scored components, examples
        torch.Size([1, 3, 3, 5])
    """
    shape = tuple(shape or config.shape or ())
    if not shape:
        raise ValueError("the shape of the data is unknown: give model.shape, such as [1, 28, 28]")
    if config.latent < 1:
        raise ValueError(f"latent must be at least 1; got {config.latent}")
    return built_mixture(partial(_build, config, shape, examples), config.components, config.latent, shape)


def _build(config: ModelConfig, shape: tuple[int, ...], examples: Tensor | None) -> MixtureVAE:
    """Build the model for data of a known shape."""
    import torch
    from torch import nn

    from mixvae.model import MixtureVAE, evaluating
    from mixvae.posteriors import FlowPosterior, Posterior

    known = {"shape": shape, "latent": config.latent, "components": config.components}
    kind, arguments = parse(config.likelihood, "mixvae.decoders")
    if inspect.isclass(kind) and issubclass(kind, nn.Module):
        likelihood = construct(config.likelihood, "mixvae.decoders", **known)
    else:
        likelihood = partial(kind, **arguments) if arguments else kind
    posterior = construct(
        config.posterior,
        "mixvae.posteriors",
        build=partial(construct, config.encoder, "mixvae.networks", **known),
        weights=config.weights,
        learn_weights=config.learn_weights,
        **known,
    )
    if config.flow is not None:
        posterior = FlowPosterior(
            posterior,
            partial(construct, config.flow, "mixvae.flows", **known),
            config.latent,
            per_component=config.flow_per_component,
        )
    if not isinstance(posterior, Posterior):
        raise ValueError(f"{type(posterior).__name__} is not a Posterior: derive it from mixvae.MixturePosterior")
    top = construct(config.prior, "mixvae.priors", posterior=posterior.top_level(), examples=examples, **known)
    below = None if config.lower is None else construct(config.lower, "mixvae.networks", inputs=config.latent, **known)
    prior = posterior.joint_prior(top, below, config.latent)
    blank = torch.zeros(1, *shape)
    fit_together = plain_errors(f"the model's parts do not fit each other or data of shape {shape}")
    with fit_together, torch.no_grad():  # lazy layers get their sizes here
        with evaluating(posterior):
            event = posterior(blank).event_shape[0]  # two levels have more latents than `latent`
        decoder = construct(config.decoder, "mixvae.decoders", likelihood=likelihood, **known | {"latent": event})
        with evaluating(decoder):
            decoder(torch.zeros(1, event))
    return MixtureVAE(posterior, prior, decoder)


def options(config: TrainingConfig) -> TrainingOptions:
    """Training options that a configuration describes, with its classes imported.

    Example:
        >>> from mixvae.config import TrainingConfig, options
        >>> options(TrainingConfig(bound="miselbo", epochs=20)).bound.__name__
        'miselbo'
    """
    from mixvae.training import TrainingOptions

    values = {name: value for name, value in asdict(config).items() if name in TrainingOptions.__dataclass_fields__}
    values["bound"] = _function(config.bound, "mixvae.bounds")
    values["gradient"] = _function(config.gradient, "mixvae.gradients")
    kind, arguments = parse(config.optimizer, "torch.optim")
    values["optimizer"] = partial(kind, **arguments)
    if config.schedule is not None:
        kind, arguments = parse(config.schedule, "torch.optim.lr_scheduler")
        values["schedule"] = partial(kind, **arguments)
    return TrainingOptions(**values, score_all=config.scored == "all")


def loggers(config: TrainingConfig) -> list[Logger]:
    """Loggers that a configuration names, each newly created; bare names are those of `lightning_fabric.loggers`.

    Raises:
        ValueError: there is no such class, or it refuses its arguments.

    Example:
        >>> from mixvae.config import TrainingConfig, loggers
        >>> config = TrainingConfig(loggers=[{"class_path": "CSVLogger", "root_dir": "logs"}])
        >>> [type(one).__name__ for one in loggers(config)]
        ['CSVLogger']
    """
    return [construct(spec, LOGGERS) for spec in config.loggers]
