"""Whose classes may be imported and called: an allowlist, and what the user trusts beyond it. Imports no torch.

A class that is named in a *file* (YAML, a grid, a run's configuration) is looked up only if it is on the allowlist for
its place, or covered by a `Trust` that the user gave. Only names are checked, before anything is imported. What a user
types as a flag or passes in Python is trusted: they ran it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import yaml

from mixvae.config._bounded import load_yaml

OWN: dict[str, tuple[str, frozenset[str]]] = {
    "posterior": ("mixvae.posteriors", frozenset({"OneHotPosterior", "SeparateEncoders", "TwoLevelPosterior"})),
    "encoder": (
        "mixvae.networks",
        frozenset(
            {"GatedConvEncoder", "GatedConvTrunk", "GatedEncoder", "GatedTrunk", "TwoLevelConv", "TwoLevelDense"}
        ),
    ),
    "lower": ("mixvae.networks", frozenset({"GaussianNetwork"})),
    "flow": ("mixvae.flows", frozenset({"CouplingFlow", "InverseAutoregressiveFlow", "ZukoFlow"})),
    "prior": ("mixvae.priors", frozenset({"GaussianMixturePrior", "StandardNormal", "VampPrior"})),
    "decoder": ("mixvae.decoders", frozenset({"ConvDecoder", "Decoder", "MLPDecoder", "PixelCNNDecoder"})),
    "likelihood": (
        "mixvae.decoders",
        frozenset({"Bernoulli", "ContinuousBernoulli", "GaussianLikelihood", "LogisticMixture"}),
    ),
    "bound": ("mixvae.bounds", frozenset({"elbo", "iwelbo", "miselbo", "pooled"})),
    "gradient": (
        "mixvae.gradients",
        frozenset({"doubly_reparameterised", "proportional", "reparameterised", "sticking_the_landing"}),
    ),
}
"""Module and names of mixvae's own classes and functions, for every setting that names one."""
OPTIMIZERS = frozenset(
    "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam".split()
)
SCHEDULES = frozenset(
    "ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR "
    "MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR".split()
)
LOGGERS = "lightning_fabric.loggers"
"""Module of the loggers that a file may name; others, such as those of `lightning`, start services or send data."""
NESTED = re.compile(r"(torch\.nn|torch\.distributions|zuko\.transforms|zuko\.flows)\.[A-Z][A-Za-z0-9]*")
"""Classes that may be arguments: modules, distributions and transforms, but no functions."""
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
"""The name of a class, bare or as a path."""
MODEL_PLACES = ("posterior", "encoder", "flow", "prior", "lower", "decoder", "likelihood")


@dataclass(frozen=True)
class Trust:
    """What a user trusts beyond the allowlist.

    Args:
        packages: packages and modules all of whose classes are trusted.
        everything: whether everything is trusted, as for what the user typed.
        folders: where to look for the classes, after installed packages and instead of the working folder; for runs
            that this user trained, whose classes must be the ones used then, not others of the same name.

    Example:
        >>> from mixvae.config import Trust
        >>> Trust(frozenset({"mypackage"})).covers("mypackage.encoders.Encoder")
        True
    """

    packages: frozenset[str] = frozenset()
    everything: bool = False
    folders: tuple[str, ...] | None = None

    def covers(self, path: str) -> bool:
        """Whether a class with this path is trusted."""
        return self.everything or any(path == p or path.startswith(f"{p}.") for p in self.packages)


NOBODY = Trust()
EVERYBODY = Trust(everything=True)
_granted: ContextVar[Trust] = ContextVar("granted", default=NOBODY)
_working_folder: ContextVar[bool] = ContextVar("working_folder", default=False)


@contextmanager
def granting(*packages: str, working_folder: bool = False) -> Iterator[None]:
    """Trust some packages wherever a file names their classes, within a `with` block.

    Args:
        packages: packages and modules all of whose classes are trusted, besides those granted already.
        working_folder: whether to look for trusted classes in the working folder too, after everything else.

    Example:
        >>> from mixvae.config import granted, granting
        >>> with granting("mypackage"):  # as for mixvae.open_run("runs/from_a_colleague")
        ...     granted().covers("mypackage.Encoder")
        True
        >>> granted().covers("mypackage.Encoder")
        False
    """
    whole = _granted.get().packages | {package for package in packages if package}
    tokens = _granted.set(Trust(whole)), _working_folder.set(working_folder or _working_folder.get())
    try:
        yield
    finally:
        _granted.reset(tokens[0])
        _working_folder.reset(tokens[1])


def granted() -> Trust:
    """What `granting` or `--trust` currently trusts."""
    return _granted.get()


def check_config(content: Mapping[str, Any], source: str, trust: Trust = NOBODY) -> list[str]:
    """Refuse the content of a configuration that names something neither on the allowlist nor trusted.

    Args:
        content: the configuration as nested plain values; it may be incomplete or wrong.
        source: where it comes from, for the error message.
        trust: what the user trusts.

    Returns:
        The names that only `trust` covers.

    Raises:
        ValueError: a class is not trusted; the message names it, its place and the option that would trust it.

    Example:
        >>> from mixvae.config import Trust, check_config
        >>> content = {"model": {"encoder": "mypackage.Encoder", "decoder": "MLPDecoder"}}
        >>> check_config(content, "run.yaml", Trust(frozenset({"mypackage"})))
        ['mypackage.Encoder']
    """
    return list(_checked(_named(content), source, trust))


def check_description(content: Any, source: str, trust: Trust = NOBODY) -> list[str]:
    """The same for the description of a model, as `config.describe` returns it."""
    return list(_checked(_named_in_description(content), source, trust))


def _checked(named: Iterator[tuple[str, str, bool]], source: str, trust: Trust) -> Iterator[str]:
    for where, path, allowed in named:
        if allowed:
            continue
        if not (trust.covers(path) or granted().covers(path)):
            package, name = path.partition(".")[0], path.rpartition(".")[2]
            own = name in OWN.get(where.rpartition(".")[2], ("", ()))[1]
            raise ValueError(
                f"{source} names {path} as {where}, which is not part of mixvae: its code would run; "
                + (f"write {name} for mixvae's own; " if own else "")
                + f"if you trust it, give --trust {package} (trust=[{package!r}] in Python)"
            )
        if trust.folders is None or granted().covers(path):
            look_in_working_folder()
        else:
            _look_in(trust.folders)
        yield path


def look_in_working_folder() -> None:
    """Find trusted classes in the working folder too, if `granting` allows it."""
    if _working_folder.get() and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing in it shadows an installed package


def _look_in(folders: tuple[str, ...]) -> None:
    """Find classes in known folders, ahead of the working folder if that is searched."""
    for folder in folders:
        if folder not in sys.path:
            here = _working_folder.get() and sys.path[-1:] == [os.getcwd()]
            sys.path.insert(len(sys.path) - here, folder)


def _named(content: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Place and path of everything that a configuration would import, and whether it is on the allowlist."""
    model, training = content.get("model"), content.get("training")
    for place in MODEL_PLACES:
        if isinstance(model, Mapping) and model.get(place) is not None:
            yield from _named_in_spec(model[place], f"model.{place}", place)
    if isinstance(training, Mapping):
        for place in ("bound", "gradient", "optimizer", "schedule"):
            if training.get(place) is not None:
                yield from _named_in_spec(training[place], f"training.{place}", place)
        named = _as_parsed(training.get("loggers"))
        for i, spec in enumerate(named if isinstance(named, list | tuple) else [] if named is None else [named]):
            yield from _named_in_spec(spec, f"training.loggers[{i}]", "logger")


def _named_in_spec(spec: Any, where: str, place: str) -> Iterator[tuple[str, str, bool]]:
    """Names in one class of a configuration and its arguments."""
    spec = _as_parsed(spec)
    if isinstance(spec, str):
        if not NAME.fullmatch(spec):
            raise ValueError(
                f"{where} must be the name of a class, as package.module.Name, or {{class_path: name, …}} with all its "
                f"braces; got {spec[:60]!r}"
            )
        yield where, spec, _is_allowed(spec, place)
    elif isinstance(spec, Mapping):
        if (path := _class_of(spec, where)) is not None:
            yield where, path, _is_allowed(path, place)
        for name, value in spec.items():
            if name != "class_path":
                yield from _named_in_argument(value, f"{where}.{name}")
    else:
        raise ValueError(f"{where} must be the name of a class or {{class_path: name, …}}; got {str(spec)[:60]}")


def _as_parsed(value: Any) -> Any:
    """A value as the parser reads it: a text such as `{class_path: name}` becomes the class that it spells out."""
    if not isinstance(value, str) or NAME.fullmatch(value):
        return value
    try:
        inner = load_yaml(value)
    except (yaml.YAMLError, ValueError):  # the parser cannot read it either, and keeps it as a text
        return value
    return inner if isinstance(inner, Mapping | list) else value


def _class_of(spec: Mapping[str, Any], where: str) -> str | None:
    """Name of the class in a mapping, if there is one.

    Raises:
        ValueError: the name is not a text.
    """
    path = spec.get("class_path")
    if "class_path" in spec and not isinstance(path, str):
        raise ValueError(f"{where}: class_path must be the name of a class; got {str(path)[:60]}")
    return path


def _named_in_argument(value: Any, where: str) -> Iterator[tuple[str, str, bool]]:
    """Names in an argument, at any depth."""
    value = _as_parsed(value)
    if isinstance(value, str):
        if "." in value and NAME.fullmatch(value):  # it could name something to import
            yield where, value, _is_allowed(value, "")
    elif isinstance(value, Mapping):
        if (path := _class_of(value, where)) is not None:
            yield where, path, _is_allowed(path, "")
        for name, part in value.items():
            if name != "class_path":
                yield from _named_in_argument(part, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _named_in_argument(part, where)


def _is_allowed(path: str, place: str) -> bool:
    """Whether a path is on the allowlist of a place, or on that of arguments if no place is given."""
    module, _, name = path.rpartition(".")
    if place == "optimizer":
        return name in OPTIMIZERS and module in ("", "torch.optim")
    if place == "schedule":
        return name in SCHEDULES and module in ("", "torch.optim.lr_scheduler")
    if place == "logger":
        return name in ("CSVLogger", "TensorBoardLogger") and module in ("", LOGGERS)
    if place:
        room, names = OWN[place]
        return name in names and (module in ("", "mixvae", room) or module.startswith(f"{room}."))
    rooms = {room for room, names in OWN.values() if name in names}
    own = any(module in ("", "mixvae", room) or module.startswith(f"{room}.") for room in rooms)
    return own or NESTED.fullmatch(path) is not None


DESCRIBED = re.compile(
    r"mixvae(\.(networks|posteriors|priors|decoders|flows|model|distributions))?\.[A-Z][A-Za-z0-9]*"
    r"|torch\.nn\.[A-Z][A-Za-z0-9]*|torch\.(b?float16|float32|float64)|torch\.sigmoid|functools\.partial"
)
"""What the description of a model may name: modules of mixvae and torch, and the function that a VampPrior uses."""


def _named_in_description(content: Any, where: str = "the model") -> Iterator[tuple[str, str, bool]]:
    """Names in the description of a model, at any depth."""
    if isinstance(content, Mapping):
        for key in ("class_path", "object", "partial"):
            path = content.get(key)
            if isinstance(path, str):
                yield where, path, DESCRIBED.fullmatch(path) is not None
        if "attribute" in content:
            yield where, str(content["attribute"]), False
        for name, part in content.items():
            yield from _named_in_description(part, f"{where}.{name}" if name not in ("args", "init_args") else where)
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _named_in_description(part, where)
