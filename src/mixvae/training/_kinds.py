"""Whether arguments match their annotations, the single definition of what is allowed; errors take one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch

from mixvae import bounds, gradients

WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a string", Path: "a path", NoneType: "None",
}  # fmt: skip
"""Names for values of each type."""
HOMES: dict[str, tuple[Any, str]] = {
    "bound": (bounds, "elbo"),
    "gradient": (gradients, "reparameterised"),
    "optimizer": (torch.optim, "Adam"),
    "schedule": (torch.optim.lr_scheduler, "StepLR"),
}
"""Options that are functions or classes: the module of the named ones, and the one to show as an example."""
LONGEST = 60
"""Maximum number of characters of a value that an error shows."""


def check_kinds(kinds: Mapping[str, Any], **values: object) -> None:
    """Refuse values that do not match their annotations.

    Args:
        kinds: annotations by name: numbers, texts, literals, classes, functions, and unions of these.
        values: the values by the same names.

    Raises:
        ValueError: a value does not match.

    Example:
        >>> from mixvae.training._kinds import check_kinds
        >>> check_kinds({"epochs": int, "clip": float | None}, epochs=3, clip=None)
        >>> check_kinds({"epochs": int}, epochs=2.5)
        Traceback (most recent call last):
        ...
        ValueError: epochs must be a whole number; got 2.5
    """
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            instead = f": pass {_instead(name, value)}" if name in HOMES else ""
            raise ValueError(f"{name} must be {_expected(kinds[name])}; got {shown(value)}{instead}")


def listed(name: str, given: Any, example: str) -> list[Any]:
    """A value given as a list; a single object, a text or a mapping is not a list.

    Args:
        name: name of the argument.
        given: its value.
        example: a valid value.

    Raises:
        ValueError: it is not a list.
    """
    if isinstance(given, str | Mapping) or callable(given) or not isinstance(given, Iterable):
        raise ValueError(f"{name} must be a list, such as {example}; got {shown(given)}")
    return list(given)


def shown(value: object) -> str:
    """A value in at most one line."""
    if isinstance(value, str | Real | Mapping | list | tuple | NoneType):
        text = " ".join(repr(value).split())
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    if isinstance(value, type) or inspect.isroutine(value):
        return f"the {'class' if isinstance(value, type) else 'function'} {value.__name__}"
    return f"an object of class {type(value).__name__}"


def plain_number(value: Any) -> Any:
    """A number of another library, such as numpy, as a Python number; anything else as it is."""
    if not isinstance(value, Real) or isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value matches an annotation."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is Callable:
        return callable(value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def _expected(kind: Any) -> str:
    """A kind in words."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _either([_expected(each) for each in get_args(kind)])
    if origin is Literal:
        return _either([str(each) for each in get_args(kind)])
    if origin is Callable:
        return "a function or a class"
    return WORDS.get(kind) or f"an object of class {kind.__name__}"


def _either(words: list[str]) -> str:
    """Alternatives, in words."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _instead(option: str, value: object) -> str:
    """The Python code for a value given by name, as a configuration's mapping, or as the object to be made."""
    home, usual = HOMES[option]
    name, arguments = value if isinstance(value, str) else type(value).__name__, dict[str, Any]()
    if isinstance(value, Mapping):
        inner = value.get("init_args")
        arguments = {**value, **(inner if isinstance(inner, Mapping) else {})}
        name = arguments.pop("class_path", usual)
        arguments.pop("init_args", None)
    known = {n.lower(): n for n, v in vars(home).items() if callable(v) and _belongs(v, home) and n[0] != "_"}
    near = difflib.get_close_matches(str(name).rpartition(".")[2].lower(), known, 1)
    found = known[near[0]] if near else usual
    path = f"{home.__name__}.{found}"
    if option not in ("optimizer", "schedule"):
        return path
    taken = list(inspect.signature(getattr(home, found)).parameters.values())[1:]
    shape = {p.name: "…" for p in taken if p.default is p.empty or p.name == "lr"}
    shape |= {str(key): repr(part) for key, part in arguments.items()}
    return f"functools.partial({', '.join([path, *(f'{key}={part}' for key, part in shape.items())])})"


def _belongs(value: Any, home: Any) -> bool:
    """Whether a class or function is defined in a module or package, not merely imported there."""
    return str(getattr(value, "__module__", None)).startswith(home.__name__)
