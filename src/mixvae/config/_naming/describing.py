"""From a model to JSON values."""

from __future__ import annotations

import inspect
import math
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from mixvae.config._naming.paths import path_of
from mixvae.parts import Blank, Part, Unnamed, arguments_of, kept

OPEN_ENDED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Describer:
    """Turns a model and its arguments into JSON values; refuses the first one that it cannot turn, and says why."""

    def __init__(self) -> None:
        self.nodes: dict[int, dict[str, Any]] = {}
        self.modules: list[tuple[str, nn.Module]] = []

    def value(self, value: Any, where: str) -> Any:
        """Describe one value, as kept by `mixvae.parts.kept`."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, list):
            return [self.value(v, f"{where}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self.value(list(value), where)}
        if isinstance(value, Mapping):
            items = [[self.value(k, where), self.value(v, f"{where}[{k!r}]")] for k, v in value.items()]
            return {"ordered" if isinstance(value, OrderedDict) else "dict": items}
        if isinstance(value, torch.Tensor):
            return {
                "tensor": self.value(value.tolist(), where),
                "shape": list(value.shape),
                "dtype": self.value(value.dtype, where),
            }
        if isinstance(value, Blank):
            return {"blank": list(value.shape), "dtype": self.value(value.dtype, where)}
        if isinstance(value, partial):
            called = {"partial": self.value(value.func, where), "args": self.value(list(value.args), where)}
            return called | {"init_args": {k: self.value(v, f"{where}.{k}") for k, v in value.keywords.items()}}
        if isinstance(value, types.MethodType):
            return {"attribute": value.__name__, "of": self.value(value.__self__, where)}
        if isinstance(value, nn.Module | Distribution):
            return self._instance(value, where)
        if isinstance(value, Unnamed):
            remedy = "give plain values, classes, functions of a module, or functools.partial of these, such as "
            raise ValueError(f"{where} is {value.what}: {remedy}partial(GatedEncoder, (1, 28, 28), 40)")
        return {"object": str(value) if isinstance(value, torch.dtype) else path_of(value, where)}

    def _instance(self, value: nn.Module | Distribution, where: str) -> dict[str, Any]:
        """Describe a module or a distribution once; further uses refer to its number."""
        if id(value) in self.nodes:
            first = self.nodes[id(value)]
            return {"ref": first.setdefault("id", 1 + sum("id" in node for node in self.nodes.values()))}
        node = self.nodes[id(value)] = {"class_path": path_of(type(value), where)}
        if isinstance(value, nn.Module):
            self.modules.append((where, value))
        positional, named = _arguments(value, where)
        if positional:
            node["args"] = [self.value(v, f"{where}[{i}]") for i, v in enumerate(positional)]
        node["init_args"] = {name: self.value(v, f"{where}.{name}") for name, v in named.items()}
        return node

    def refuse_unsaved(self, model: nn.Module) -> None:
        """Refuse a module that the model refers to but whose tensors it does not own."""
        own = {id(module) for module in model.modules()}
        for where, module in self.modules:
            if id(module) not in own and has_tensors(module):
                raise ValueError(
                    f"{where} is a {type(module).__name__} that is not a submodule of the model, so its weights are "
                    "not saved with the model's: use the one that belongs to the model, or make it a submodule"
                )


def has_tensors(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _arguments(value: nn.Module | Distribution, where: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and named arguments that would build a module or distribution again."""
    kind = type(value)
    if isinstance(value, Distribution):
        return (), _arguments_of_distribution(value)
    if isinstance(value, Part):
        recorded = arguments_of(value)
        if recorded is None:
            raise ValueError(f"{where} is a {kind.__name__} whose arguments were not recorded: build it again")
        named = {name: _current(value, name, v) for name, v in recorded.named.items()}
        return recorded.positional, named
    if kind.__module__.startswith("torch.nn.modules."):
        return _arguments_of_torch(value, where)
    taken = () if kind.__init__ is nn.Module.__init__ else list(inspect.signature(kind.__init__).parameters)[1:]
    if taken:
        raise ValueError(
            f"{where} is a {kind.__name__}, whose arguments ({', '.join(taken)}) are not recorded: subclass "
            "mixvae.Part instead of torch.nn.Module so that they are"
        )
    return (), {}


def _current(part: Part, name: str, recorded: Any) -> Any:
    """Current value of an argument: the submodule of the same name, if it replaced the recorded one."""
    child = dict(part.named_children()).get(name)
    if child is None or not isinstance(recorded, nn.Module | Distribution):
        return recorded
    wrapped = any(recorded is v for v in (*part.modules(), *vars(child).values()))
    return recorded if wrapped else child


def _arguments_of_torch(module: nn.Module, where: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Arguments of a module of torch.nn: its children, or its attributes of the same names."""
    children = {name: m for name, m in module._modules.items() if m is not None}
    if isinstance(module, nn.ModuleList):
        return [list(children.values())], {}
    if isinstance(module, nn.ModuleDict):
        return [children], {}
    if isinstance(module, nn.Sequential):
        numbered = list(children) == [str(i) for i in range(len(children))]
        return list(children.values()) if numbered else [OrderedDict(children)], {}
    named: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(type(module).__init__).parameters.items())[1:]:
        if name in module._parameters:  # (bias: whether there is one)
            named[name] = module._parameters[name] is not None
        elif hasattr(module, name) and not isinstance(value := kept(getattr(module, name)), Unnamed):
            named[name] = value
        elif parameter.default is parameter.empty and (parameter.kind not in OPEN_ENDED or has_tensors(module)):
            raise ValueError(
                f"{where} is a {type(module).__name__}, whose argument {name} cannot be read back: make it inside a "
                "subclass of mixvae.Part, which records its own"
            )
    return (), named


def _arguments_of_distribution(distribution: Distribution) -> Mapping[str, Any]:
    """Arguments of a distribution, from the attributes that hold them."""
    held = vars(distribution)
    natural = held.get("_param")
    named: dict[str, Any] = {}
    for name in list(inspect.signature(type(distribution).__init__).parameters)[1:]:
        for attribute in (name, f"_{name}", name.replace("distribution", "dist")):
            value = held.get(attribute)
            lazy = natural is not None and name in ("probs", "logits") and value is not natural
            if value is not None and not lazy:
                named[name] = kept(value)
                break
    return named
