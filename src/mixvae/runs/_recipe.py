"""The recipe of a run: everything that determines its weights, in a form that can be compared and hashed.

Settings are of three kinds. The *identity* determines the weights and never changes. *Amendable* settings (learning
rate, weight decay, clipping) may change when a run is resumed, and a journal records the epoch of each change. *Goal
and runtime* (epochs, patience, paths, threads, devices, versions) are recorded, but are not part of the hash.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

import mixvae.config
from mixvae._failures import called, plain_errors
from mixvae.config import Config, Spec
from mixvae.datasets import Dataset
from mixvae.files import canonical, checksum
from mixvae.runs._data import data_identity
from mixvae.runs._sources import instructions, sources_of, sources_sha256
from mixvae.training import TrainingOptions

VERSION = 1
"""Version of the canonical form; raising it makes all older recipes different."""

AMENDABLE = ("learning_rate", "weight_decay", "clip")
COPIED = ("batch", "draws_per_component", "active", "score_all", "validation_components", "warmup")
"""Settings of a training that enter its identity as they are."""
SINCE = (
    "compile", "beta", "cycles", "free_bits", "schedule_every", "accumulate", "validation_bound", "validation_draws",
    "keep",
)  # fmt: skip
"""Settings that earlier versions did not have: they enter the identity only where they differ from the default."""
FILLED_IN = {
    "shape", "latent", "components", "likelihood", "posterior", "examples", "build", "weights", "learn_weights",
    "inputs",
}  # fmt: skip
"""Arguments of classes that are filled in from other settings of the configuration."""

Journal = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Recipe:
    """What a run is made from.

    Args:
        identity: nested plain values: data, model, training, seed, start.
        journal: amendable settings, with the epoch and step from which they held; the first entry is for epoch 0.

    Example:
        >>> from mixvae.runs import Recipe
        >>> entry = {"epoch": 0, "step": 0, "learning_rate": [1e-3], "weight_decay": [0.0], "clip": None}
        >>> one, other = (Recipe({"seed": seed}, (entry,)) for seed in (0, 1))
        >>> one.differences(other)
        ['seed is 0, not 1']
    """

    identity: Mapping[str, Any]
    journal: Journal

    @property
    def sha256(self) -> str:
        """Hash of identity and journal."""
        return checksum(canonical({"version": VERSION, "identity": self.identity, "journal": self.journal}))

    @property
    def past(self) -> set[str]:
        """Its hash, and those from before each amendment: weights of an epoch before it stay as they are."""
        return {replace(self, journal=self.journal[:n]).sha256 for n in range(1, len(self.journal) + 1)}

    @property
    def amendable(self) -> dict[str, Any]:
        """The amendable settings that currently hold."""
        return {name: self.journal[-1][name] for name in AMENDABLE}

    def differences(self, asked: Recipe) -> list[str]:
        """Where another recipe's identity differs, as `name is this, not that`; unknown checksums are ignored."""
        return list(_differences(self.identity, asked.identity))

    def amended(self, asked: Recipe, epoch: int, step: int) -> Recipe:
        """This recipe with the amendable settings of another, from a given step on."""
        if canonical(self.amendable) == canonical(asked.amendable):
            return self
        kept = [
            entry for entry in self.journal if (entry["epoch"], entry["step"]) != (epoch, step)
        ]  # an entry under which no step was taken is replaced
        return replace(self, journal=(*kept, {"epoch": epoch, "step": step, **asked.amendable}))

    def to_json(self) -> dict[str, Any]:
        """The form that `run.json` holds."""
        return {"version": VERSION, "sha256": self.sha256, "identity": self.identity, "journal": list(self.journal)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """From what `run.json` holds."""
        return cls(content["identity"], tuple(content["journal"]))


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Dotted names at which two nested values differ; None on either side of a checksum is unknown."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and old != new:
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{name}.{i}" if len(old) > 1 else name)
    elif canonical(old) != canonical(new):
        where, _, last = name.rpartition(".")
        if last in ("sha256", "labels_sha256", "source_sha256") and None in (old, new):
            return
        if last == "source_sha256":
            yield f"{where} has other code than it was trained with"
        else:
            yield f"{name} is {_short(old)}, not {_short(new)}"


def _short(value: Any) -> str:
    """A value, abbreviated."""
    text = str(value) or "''"
    return f"{text[:8]}…" if len(text) == 64 and " " not in text else text if len(text) < 60 else f"{text[:57]}…"


def recipe_of(config: Config, data: Dataset, start_sha256: str | None = None) -> Recipe:
    """Recipe of what a configuration describes.

    Args:
        config: the configuration.
        data: the data that it names.
        start_sha256: checksum of the initial weights, if it starts from a run.
    """
    return _of_config(config, data_identity(data), data.shape, start_sha256)


def _of_config(
    config: Config, data: Mapping[str, Any], shape: Sequence[int] | None, start_sha256: str | None
) -> Recipe:
    options = mixvae.config.options(config.training)
    model = {
        name: describe_spec(value, ROOM[name]) if name in ROOM and value is not None else value
        for name, value in _typed(config.model).items()
    }
    model["shape"] = None if shape is None else list(shape)
    start = None
    if config.start.run is not None:
        start = {"sha256": start_sha256, "noise": float(config.start.noise), "fresh": config.start.fresh}
    return _recipe(data, model, options, config.seed, config.training.precision, config.training.freeze, start)


def legacy_recipe(config: Config, data_sha256: str | None) -> Recipe:
    """Recipe of a run from before recipes existed; its data may be unknown."""
    data = {
        "sha256": data_sha256,
        "labels_sha256": None,
        "resample": config.data.binarize == "stochastic",
        "flip": config.data.flip,
    }
    return _of_config(config, data, config.model.shape, None)


ROOM = {
    "posterior": "mixvae.posteriors", "encoder": "mixvae.networks", "flow": "mixvae.flows", "prior": "mixvae.priors",
    "lower": "mixvae.networks", "decoder": "mixvae.decoders", "likelihood": "mixvae.decoders",
}  # fmt: skip
"""Modules in which bare class names of a model's configuration are looked up."""
LATER = {"log_var_range": [-6.0, 2.0]}
"""Options that earlier versions did not have, and the fixed value that each then had."""


def recipe_of_model(
    model: nn.Module,
    data: Dataset,
    options: TrainingOptions,
    *,
    seed: int,
    precision: str,
    label: str,
    spec: Mapping[str, Any] | None = None,
) -> Recipe:
    """Recipe for training a model that was built in Python: the arguments of its parts, and its tensors.

    Args:
        model: the model.
        data: its data.
        options: how it is trained.
        seed: seed of the training.
        precision: as in Lightning Fabric.
        label: the caller's name for the model.
        spec: the model's description by `config.describe`; without one, its submodules identify it.
    """
    tensors = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()}
    made = {"parts": parts_of(model)} if spec is None else {"spec": spec["model"]}
    described = {"label": label, "tensors": tensors, **made}
    if source := sources_of(model):
        described["source_sha256"] = source
    frozen = sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _recipe(data_identity(data), described, options, seed, precision, frozen, None, learning)


def parts_of(model: nn.Module) -> dict[str, str]:
    """Every submodule by name: its class, and its attributes other than tensors and modules."""
    described = {}
    for name, part in model.named_modules():
        held = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
        plain_ones = {key: plain(value) for key, value in held.items() if not isinstance(value, torch.Tensor)}
        plain_ones = _without_later(plain_ones)
        described[name] = f"{path_of(type(part))}({part.extra_repr()}) {canonical(plain_ones)}"
    return described


def _recipe(
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    options: TrainingOptions,
    seed: int,
    precision: str,
    freeze: list[str],
    start: Mapping[str, Any] | None,
    parameters: Sequence[nn.Parameter] = (),
) -> Recipe:
    groups, kind = describe_optimizer(options.optimizer, parameters)
    training = {
        "bound": describe_callable(options.bound),
        "gradient": describe_callable(options.gradient),
        **{name: getattr(options, name) for name in COPIED},
        "ema": None if options.ema is None else float(options.ema),
        "freeze": sorted(freeze),
        "precision": precision,
        "optimizer": {"class": kind, "groups": [_without(group, "lr", "weight_decay") for group in groups]},
        **_later(options),
        "schedule": None if options.schedule is None else describe_callable(options.schedule),
    }
    own = (options.bound, options.gradient, options.optimizer, options.schedule, options.beta)
    if source := sources_sha256(*own):
        training["source_sha256"] = source
    clip = options.clip
    first = {
        "epoch": 0,
        "step": 0,
        "learning_rate": [group["lr"] for group in groups],
        "weight_decay": [group.get("weight_decay", 0.0) for group in groups],
        "clip": None if clip is None else float(clip),
    }
    identity = {"data": data, "model": model, "training": training, "seed": seed, "start": start}
    return Recipe(identity, (first,))


def _later(options: TrainingOptions) -> dict[str, Any]:
    """Settings that earlier versions did not have, where they differ from the default."""
    defaults = {name: getattr(TrainingOptions, name) for name in SINCE}
    return {
        name: plain(getattr(options, name), numbers=float if isinstance(default, float) else None)
        for name, default in defaults.items() if getattr(options, name) != default
    }  # fmt: skip


def describe_options(options: TrainingOptions) -> dict[str, Any]:
    """All options as plain values, functions and classes by name."""
    return {entry.name: plain(getattr(options, entry.name)) for entry in fields(options)}


def describe_optimizer(
    make: Callable[..., torch.optim.Optimizer], parameters: Sequence[nn.Parameter] = ()
) -> tuple[list[dict[str, Any]], str]:
    """Options of each parameter group, including defaults but not those that are off, and the optimiser's class."""
    with plain_errors(f"the optimiser {called(make)} cannot be made"):
        made = make(list(parameters) or [nn.Parameter(torch.zeros(1))])
    groups = [{k: plain(v, numbers=float) for k, v in group.items() if k != "params"} for group in made.param_groups]
    kept = [{k: v for k, v in group.items() if v is not None and v is not False} for group in groups]
    return kept, path_of(type(made))


def describe_callable(make: Callable[..., Any]) -> Any:
    """A class or function with its arguments, defaults included, or an object with its attributes."""
    if isinstance(make, partial):
        named = {
            k: plain(v, numbers=float) for k, v in {**_defaults(make.func, numbers=float), **make.keywords}.items()
        }
        return {"class": path_of(make.func), **named, **({"": [plain(a) for a in make.args]} if make.args else {})}
    if not hasattr(make, "__qualname__"):
        return {"class": path_of(type(make)), "holds": plain(dict(getattr(make, "__dict__", {})))}
    return path_of(make)


def describe_spec(spec: Spec, room: str) -> dict[str, Any]:
    """A class of a configuration by its full name, with all arguments that are not filled in, defaults included."""
    path, arguments = mixvae.config.split(spec)
    kind = mixvae.config.resolve(path, room)
    parameters = mixvae.config.parameters(kind)
    described = {name: value for name, value in _defaults(kind).items() if name not in FILLED_IN}
    for name, value in arguments.items():
        annotation = str(parameters[name].annotation) if name in parameters else ""
        if isinstance(value, dict) and "class_path" in value:
            described[name] = describe_spec(value, room)
        elif isinstance(value, str) and annotation.startswith("Callable"):
            described[name] = path_of(mixvae.config.resolve(value, room))
        else:
            described[name] = plain(value)
    for name in described:
        annotation = str(parameters[name].annotation) if name in parameters else ""
        if "float" in annotation and "int" not in annotation:
            described[name] = plain(described[name], numbers=float)
    source = sources_sha256(kind)
    return {"class": path_of(kind), **_without_later(described), **({"source_sha256": source} if source else {})}


def _without_later(described: Mapping[str, Any]) -> dict[str, Any]:
    """Options without later additions that have their former fixed value, so that older runs keep their identity."""
    return {name: value for name, value in described.items() if name not in LATER or value != LATER[name]}


def _defaults(kind: Callable[..., Any], numbers: type[float] | None = None) -> dict[str, Any]:
    """Defaults of a callable's parameters."""
    parameters = mixvae.config.parameters(kind)
    return {n: plain(p.default, numbers=numbers) for n, p in parameters.items() if p.default is not p.empty}


def plain(value: Any, *, numbers: type[float] | None = None) -> Any:
    """A value in the form that JSON holds.

    Args:
        value: the value; anything but numbers and texts is named.
        numbers: `float` where integers represent real numbers.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return float(value) if numbers is float else value
    if isinstance(value, float):
        return value
    if isinstance(value, torch.Tensor):
        return plain(value.tolist(), numbers=numbers)
    if isinstance(value, Mapping):
        return {str(k): plain(v, numbers=numbers) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, numbers=numbers) for v in value]
    return describe_callable(value) if callable(value) else path_of(type(value))


def path_of(value: Any) -> str:
    """Shortest import path of a class or function; a local one is identified by its code."""
    name = getattr(value, "__qualname__", None)
    if name is None:
        return path_of(type(value))
    module = str(getattr(value, "__module__", ""))
    if "<" in name or module == "__main__":
        return f"{module}.{name}#{_code(value)[:12]}"
    parts = module.split(".")
    for length in range(1, len(parts)):
        outer = sys.modules.get(".".join(parts[:length]))
        public = getattr(outer, name, None)
        if (getattr(public, "__module__", None), getattr(public, "__qualname__", None)) == (module, name):
            return f"{'.'.join(parts[:length])}.{name}"
    return f"{module}.{name}"


def _code(value: Any) -> str:
    """Hash of a function's code, or of a class's source."""
    code = getattr(value, "__code__", None)
    if code is not None:
        cells = [_in_cell(cell) for cell in getattr(value, "__closure__", None) or ()]
        defaults = plain([value.__defaults__ or (), value.__kwdefaults__ or {}])
        return checksum(canonical([instructions(code), cells, defaults]))
    try:
        return checksum(inspect.getsource(value))
    except (OSError, TypeError):
        return checksum(str(value))


def _in_cell(cell: Any) -> Any:
    """Content of a function's closure cell."""
    try:
        value = cell.cell_contents
    except ValueError:  # an empty cell
        return None
    return parts_of(value) if isinstance(value, nn.Module) else plain(value)


def _typed(settings: Any) -> dict[str, Any]:
    """Fields of settings by name, integers as floats where the schema says so."""
    hints = {entry.name: str(entry.type) for entry in fields(settings)}
    return {
        name: plain(value, numbers=float) if "float" in hints[name] and "int" not in hints[name] else value
        for name, value in asdict(settings).items()
    }


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
