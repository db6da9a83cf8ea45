"""Whether the content of a JSON file has the expected form, given as types."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from mixvae._resources import short


def conform(value: Any, hint: Any, where: str) -> None:
    """Refuse a value that does not have the expected form.

    Args:
        value: a value of JSON.
        hint: its type: a plain one, `list[…]`, `dict[str, …]`, a union, a `Literal`, `Any`, a `TypedDict`, or a
            dataclass, whose fields the value holds.
        where: what the value is, for the error.

    Raises:
        TypeError: it has another form; the message names the part at fault.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        pass
    elif origin in (Union, types.UnionType):
        if isinstance(value, list | Mapping) and (kinds := [one for one in inner if _holds_parts(one)]):
            conform(value, kinds[0], where)  # for its more specific error
        elif not any(_conforms(value, one) for one in inner):
            raise _unfit(value, where)
    elif origin is NotRequired:
        conform(value, inner[0], where)
    elif origin is Literal:
        if value not in inner:
            raise _unfit(value, where)
    elif origin is list:
        if not isinstance(value, list):
            raise _unfit(value, where)
        for i, part in enumerate(value):
            conform(part, inner[0], f"{where}[{i}]")
    elif origin is dict or is_typeddict(hint) or is_dataclass(hint):
        _conform_mapping(value, hint, where)
    elif not _is_plain(value, type(None) if hint is None else origin or hint):
        raise _unfit(value, where)


def _conform_mapping(value: Any, hint: Any, where: str) -> None:
    """Refuse a value that is not a mapping, or has parts of another form; only a TypedDict allows extra keys."""
    if not isinstance(value, Mapping):
        raise _unfit(value, where)
    if get_origin(hint) is dict:
        for key, part in value.items():
            conform(part, get_args(hint)[1], f"{where}.{key}")
        return
    hints = get_type_hints(hint, include_extras=True)
    if is_dataclass(hint) and (unknown := [key for key in value if key not in hints]):
        raise TypeError(f"{where} has an unknown part {short(unknown[0])}")
    whole = is_typeddict(hint) and getattr(hint, "__total__", False)
    for key, kind in hints.items():
        if key in value:
            conform(value[key], kind, f"{where}.{key}")
        elif whole and get_origin(kind) is not NotRequired:
            raise TypeError(f"{where} has no {key}")


def _holds_parts(hint: Any) -> bool:
    return get_origin(hint) in (list, dict) or is_typeddict(hint) or is_dataclass(hint)


def _conforms(value: Any, hint: Any) -> bool:
    try:
        conform(value, hint, "")
    except TypeError:
        return False
    return True


def _is_plain(value: Any, kind: Any) -> bool:
    """Whether a value is of a plain type; an integer is a float too, and a boolean is not a number."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float and isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, kind) and not (kind is int and abs(value) >= 2**63)


def _unfit(value: Any, where: str) -> TypeError:
    return TypeError(f"{where} cannot be {type(value).__name__} {short(value, 40)!r}")
