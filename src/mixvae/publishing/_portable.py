"""Records of runs without the paths of the machine that wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from mixvae.datasets import PATHS

SEPARATOR = ", "
"""What separates the names of data in several files."""
_PATH = r"(?:file:/*)?(?:~[\w.-]*/|/[\w.~+@%-]+/)[\w.~+@%/-]*"
"""A path from the root or a home folder, of at least two parts: a single slash may be that of a fraction."""
_WHOLE = re.compile(r"(?:file:/*)?(?:~[^/]*|/[^/]+)/.*", re.DOTALL)
_WITHIN = re.compile(rf"(?<![\w./~:+-]){_PATH}")


def portable(value: Any) -> Any:
    """A nested JSON value in which only the last part of every path from the root or a home folder is kept.

    Example:
        >>> from mixvae.publishing._portable import portable
        >>> portable({"name": "/home/ada/digits.npz", "about": "see ~/notes.txt", "class": "mixvae.Bernoulli"})
        {'name': 'digits.npz', 'about': 'see notes.txt', 'class': 'mixvae.Bernoulli'}
    """
    if isinstance(value, Mapping):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [portable(part) for part in value]
    return _without_paths(value) if isinstance(value, str) else value


def _without_paths(text: str) -> str:
    whole = text.split(SEPARATOR)
    if all(map(_WHOLE.fullmatch, whole)):
        return SEPARATOR.join(map(last_part, whole))
    return _WITHIN.sub(lambda found: last_part(found[0]), text)


def last_part(path: str) -> str:
    """Name of a file or folder, without the folders above it."""
    return PurePath(path).name


def portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `run.json` without paths; of data and start, only the file names are kept.

    Recipe, description of the model, genes and categories are unchanged: they make the run what it is.

    Args:
        record: the content.

    Raises:
        ValueError: a path is part of the recipe, so that changing it would change the recipe.
    """
    for name, text in _texts(record["recipe"]["identity"]):
        if portable(text) != text:
            raise ValueError(f"its recipe holds a path of this machine, {name} {text[:80]!r}")
    config, runtime = portable(record["config"]), portable(record["runtime"])
    if config is not None:
        config["data"] = _names(config["data"])
        if start := config.get("start", {}).get("run"):
            config["start"]["run"] = last_part(start)
    data = {key: part for key, part in runtime["data"].items() if key not in ("relative", "relatives")}
    if data.get("origin") is not None:
        data["origin"] = _names(data["origin"])
    model = record["model"]
    if model is not None and "unnamed" in model:
        model = {**model, "unnamed": portable(model["unnamed"])}
    return {**record, "config": config, "runtime": {**runtime, "data": data}, "model": model}


def _names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a data set with names in place of paths."""
    named = {name: last_part(options[name]) for name in PATHS if options.get(name) is not None}
    return {**options, **named, "root": None}


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a nested value, with their dotted names."""
    if isinstance(value, str):
        yield name, value
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _texts(part, f"{name}.{key}" if name else str(key))
