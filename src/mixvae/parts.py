"""The base class of a model's parts, which remember their constructor arguments."""

from __future__ import annotations

import inspect
import types
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

LARGEST_TENSOR = 4096
"""Elements up to which a tensor argument is remembered by value; for a larger one, only shape and dtype are."""


@dataclass(frozen=True)
class Blank:
    """What is remembered of a large tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Unnamed:
    """What is remembered of a value that another process cannot import by its path."""

    what: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Say why it can no longer be called.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.what} was not kept when its model was pickled: use a class or a function of a module")


@dataclass
class Arguments:
    """Arguments of a constructor: positional only where they cannot be passed by name."""

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


class _Constructor:
    """The signature of a class of parts, as `inspect` reads it: that of its constructor.

    Without it, Python 3.11.2 reports the `Part.__new__` that every class inherits, which takes anything.
    """

    def __get__(self, part: Part | None, kind: type[Part]) -> inspect.Signature:
        if part is not None:
            raise AttributeError("a part is called as its `forward`, not as its class")
        constructor = inspect.signature(types.MethodType(kind.__init__, kind))  # without `self`
        return constructor.replace(return_annotation=inspect.Signature.empty)


class Part(nn.Module):
    """A `torch.nn.Module` that remembers its constructor's arguments, so that a run's model can be rebuilt.

    A model of such parts, trained by `fit(…, run="runs/mine")`, is loaded by `load("runs/mine")` without building it
    first, provided that its classes can be imported (from your own module, not from the script that runs) and its
    arguments are plain values, classes, functions of a module, `functools.partial` objects of these, or parts
    themselves.

    Arguments are remembered by reference, not registered: they add nothing to `state_dict`, `parameters` or `modules`.

    Example:
        >>> from torch import nn
        >>> from mixvae.parts import Part, arguments_of
        >>> class MyNetwork(Part):
        ...     def __init__(self, latent: int, width: int = 64):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 784))
        >>> sorted(arguments_of(MyNetwork(40)).named.items())
        [('latent', 40), ('width', 64)]
    """

    starting_only: ClassVar[tuple[str, ...]] = ()
    """Optional arguments that determine only the initial weights: not remembered, because the weights are saved."""
    __signature__ = _Constructor()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the instance as usual, and remember the arguments that its constructor is about to receive."""
        part = super().__new__(cls)
        object.__setattr__(part, "_arguments", _bound(cls, args, kwargs))  # bypasses nn.Module's registering
        return part

    def frozen(self) -> Part:
        """The part to use when this one is held fixed: itself, unless it follows other parts, as a VampPrior does."""
        return self

    def amend_arguments(self, **changed: Any) -> None:
        """Update the remembered arguments of a part that was changed in place; names it does not have are ignored."""
        arguments = arguments_of(self)
        if arguments is not None:
            amended = {k: kept(v) for k, v in changed.items() if k in arguments.named}
            object.__setattr__(self, "_arguments", replace(arguments, named=arguments.named | amended))


def arguments_of(part: Part) -> Arguments | None:
    """Arguments of a part's constructor, defaults included; None for a part whose constructor did not run."""
    return part.__dict__.get("_arguments")


def _bound(cls: type[Part], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """Arguments by name, defaults included, wherever they can be passed by name."""
    signature = inspect.signature(cls.__init__)
    try:
        bound = signature.bind(None, *args, **kwargs)
    except TypeError:  # the constructor will raise it; or a copy or pickle is being restored, without arguments
        return None
    omitted = {n for n in cls.starting_only if n in signature.parameters and _is_optional(signature.parameters[n])}
    itself, *parameters = signature.parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) and p.name in bound.arguments for p in parameters):
        named = {k: kept(v) for k, v in bound.kwargs.items() if k not in omitted}
        return Arguments(tuple(kept(v) for v in bound.args[1:]), named)
    arguments = dict(bound.arguments)
    arguments.pop(itself.name, None)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    named = {name: kept(value) for name, value in arguments.items() if name not in omitted}
    return Arguments((), _defaults(parameters, omitted | arguments.keys()) | named)


def _is_optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def _defaults(parameters: list[inspect.Parameter], without: set[str]) -> dict[str, Any]:
    """Defaults that can be named, so that a later version with other defaults builds the same part."""
    values = {p.name: kept(p.default) for p in parameters if _is_optional(p) and p.name not in without}
    return {name: value for name, value in values.items() if not isinstance(value, Unnamed)}


def kept(value: Any) -> Any:
    """What is remembered of an argument: itself if it is plain, named or a module; otherwise a description."""
    if value is None or isinstance(value, bool | str | nn.Module | Distribution | torch.dtype | Blank | Unnamed):
        return value
    if isinstance(value, Tensor):
        large = value.numel() > LARGEST_TENSOR
        return Blank(tuple(value.shape), value.dtype) if large else value.detach().cpu().clone()
    if isinstance(value, Integral | Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, tuple):
        return tuple(kept(v) for v in value)
    if isinstance(value, list):
        return [kept(v) for v in value]
    if isinstance(value, Mapping):
        items = {k: kept(v) for k, v in value.items()}
        return OrderedDict(items) if isinstance(value, OrderedDict) else items
    if isinstance(value, partial):
        function = kept(value.func)
        if isinstance(function, Unnamed):
            return function
        return partial(function, *map(kept, value.args), **{k: kept(v) for k, v in value.keywords.items()})
    if isinstance(value, types.MethodType):
        return (
            value if isinstance(value.__self__, nn.Module | type) else Unnamed(f"a method of {a_kind(value.__self__)}")
        )
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return _named(value)
    return Unnamed(a_kind(value))


def _named(value: Any) -> Any:
    """A class or function, unless it was made inside a function."""
    name = value.__qualname__
    if "<lambda>" in name:
        return Unnamed(f"a lambda (line {value.__code__.co_firstlineno} of {value.__code__.co_filename})")
    if "<locals>" in name:
        kind = "class" if isinstance(value, type) else "function"
        return Unnamed(f"the {kind} {value.__name__}, which was made inside a function")
    return value


def a_kind(value: object) -> str:
    """Type of an object with its article."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
