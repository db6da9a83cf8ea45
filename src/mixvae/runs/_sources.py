"""Checksums of users' own code: a class that was edited is another class, whatever its name."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import site
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from mixvae.files import canonical, checksum

INSTALLED = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (
        *map(sysconfig.get_path, ("purelib", "platlib", "stdlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
)
"""Folders of packages that are known by their names."""
DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""Nodes that may begin with a docstring."""


def sources_sha256(*things: Any) -> str | None:
    """Checksum of the source of users' classes and functions, and of their classes' bases; None if there are none.

    Comments, docstrings and layout do not count. Installed packages are left out, and so are functions that a class
    merely calls.

    Args:
        things: classes, functions, partial functions, or anything else, which has no source.
    """
    sources = {text for thing in things for text in _sources(thing)}
    return checksum(canonical(sorted(sources))) if sources else None


def sources_of(model: nn.Module) -> str | None:
    """The same for the classes of a model's parts, and for classes and functions that these hold."""
    held = [value for part in model.modules() for value in vars(part).values() if callable(value)]
    return sources_sha256(*(type(part) for part in model.modules()), *held)


def _sources(thing: Any) -> Iterator[str]:
    """Sources of a class and its bases, or of a function."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    known = thing if hasattr(thing, "__qualname__") else type(thing)
    for one in getattr(known, "__mro__", (known,)):
        if _is_own(str(getattr(one, "__module__", ""))) and (text := _source(one)):
            yield text


def _is_own(module: str) -> bool:
    """Whether a module is neither mixvae's nor installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.split(".")[0] == "mixvae":
        return False
    return not str(Path(file).resolve()).startswith(INSTALLED)


def _source(thing: Any) -> str | None:
    """Source without comments, docstrings and layout; None if it is gone."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
