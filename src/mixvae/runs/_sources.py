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
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from mixvae.files import canonical, checksum

FOLDERS = tuple(
    f"{Path(folder).resolve()}{os.sep}"
    for folder in (
        *map(sysconfig.get_path, ("purelib", "platlib", "stdlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    )
)
"""Where packages are that are known by their names."""
PLAIN = (bool, int, float, str)
"""Kinds of global values that belong to the code that refers to them."""
DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
"""Nodes that may begin with a docstring."""


def sources_sha256(*things: Any) -> str | None:
    """Checksum of the source of users' classes and functions, and of what they refer to; None if there are none.

    What a class or function refers to by name, its bases included, is followed through the user's own modules.
    Comments, docstrings and layout do not count; installed packages and lambdas are left out.

    Args:
        things: classes, functions, partial functions, or objects, which stand for their classes.
    """
    found: dict[int, str] = {}
    for thing in things:
        _collect(_named(thing), found)
    return checksum(canonical(sorted(set(found.values()) - {""}))) if any(found.values()) else None


def sources_of(model: nn.Module) -> str | None:
    """The same for the classes of a model's parts, and for classes and functions that these hold."""
    kinds = (type, FunctionType, functools.partial)
    held = [value for part in model.modules() for value in vars(part).values() if isinstance(value, kinds)]
    return sources_sha256(*{type(part) for part in model.modules()}, *held)


def _named(thing: Any) -> Any:
    """The class or function that a thing is, or is made by."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if isinstance(thing, type | FunctionType) else type(thing)


def _collect(one: type | FunctionType, found: dict[int, str]) -> None:
    """Add the source of a class or function, by its id, and that of everything it refers to."""
    if id(one) in found or one.__name__ == "<lambda>" or not _is_own(one.__module__):
        return
    tree = _tree(one)
    found[id(one)] = _compiled(one) if tree is None else ast.unparse(tree)
    for base in one.__mro__[1:] if isinstance(one, type) else ():
        _collect(base, found)
    module = vars(sys.modules[one.__module__])
    for name, value in _referred(tree, module) if tree is not None else ():
        if isinstance(value, type | FunctionType):
            _collect(value, found)
        elif isinstance(value, PLAIN):
            found[id(one)] += f"\n{name} = {value!r}"


def _referred(tree: ast.AST, module: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names that a source mentions, with their values: globals of its module, and attributes of imported modules."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    dotted = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for name in sorted(names & module.keys()):
        yield name, module[name]
    for name, attribute in sorted(dotted):
        if isinstance(inside := module.get(name), ModuleType) and hasattr(inside, attribute):
            yield f"{name}.{attribute}", getattr(inside, attribute)


@functools.cache
def _is_own(module: str) -> bool:
    """Whether a module is neither mixvae's nor installed; packages that are installed to be edited are the user's."""
    top = module.split(".")[0]
    if top == "__main__":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or top == "mixvae" or top in sys.stdlib_module_names:
        return False
    if os.path.abspath(file).startswith(FOLDERS) or str(Path(file).resolve()).startswith(FOLDERS):
        return False
    return all(map(_is_editable, _distributions().get(top, ())))


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Installed distributions by the packages that they provide."""
    return dict(packages_distributions())


def _is_editable(name: str) -> bool:
    """Whether a distribution is installed to be edited where it is."""
    try:
        return '"editable": true' in (distribution(name).read_text("direct_url.json") or "")
    except PackageNotFoundError:
        return False


def _tree(one: Any) -> ast.Module | None:
    """Source without comments, docstrings and layout; None if it is gone, as that of a notebook."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _compiled(one: Any) -> str:
    """Code of a class's methods, or of a function, where there is no source."""
    functions = vars(one) if isinstance(one, type) else {one.__name__: one}
    codes = {name: instructions(value.__code__) for name, value in functions.items() if isinstance(value, FunctionType)}
    return str(canonical(codes)) if codes else ""


def instructions(code: CodeType) -> list[Any]:
    """A function's bytecode, constants and names, including those of nested functions."""
    constants = [instructions(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]
