"""Import paths of classes and functions, and the objects they name."""

from __future__ import annotations

import importlib
from typing import Any

from mixvae._failures import said

HOMES = ("torch", "torch.nn.functional", "torch.special", "math", "operator", "builtins")
"""Modules that export functions whose `__module__` is another module or none."""


def path_of(value: Any, where: str) -> str:
    """Shortest import path of a class or function.

    Args:
        value: the class or function.
        where: its place in the model, for the error message.

    Raises:
        ValueError: another process would not find it there.
    """
    module, name = str(getattr(value, "__module__", None)), str(getattr(value, "__qualname__", value))
    what = f"{where} is {name}" if not isinstance(value, type) else f"{where} is of class {name}"
    if module == "__main__":
        raise ValueError(f"{what} of the script itself (__main__): move it to a module that can be imported")
    if "<" in name:
        raise ValueError(f"{what}, which was made inside a function: move it to the top of its module")
    parts, short = module.split("."), getattr(value, "__name__", name)
    packages = [".".join(parts[: i + 1]) for i in range(len(parts))]  # names in packages outlive those in modules
    for path in (*(f"{package}.{name}" for package in packages), *(f"{home}.{short}" for home in HOMES)):
        try:
            if imported(path) is value:
                return path
        except ValueError:
            continue
    raise ValueError(f"{what}, which is not what importing {module}.{name} gives: give it that name in its module")


def imported(path: str) -> Any:
    """Import a class, a function or a dtype by its path, nested ones too.

    Raises:
        ValueError: there is no such module or name, or importing it failed.
    """
    names = path.split(".")
    for length in range(len(names) - 1, 0, -1):
        module = ".".join(names[:length])
        try:
            target: Any = importlib.import_module(module)
            for name in names[length:]:
                target = getattr(target, name)
        except ModuleNotFoundError as error:
            if module != error.name and not module.startswith(f"{error.name}."):
                raise ValueError(f"cannot import {path!r}: there is no module {error.name!r}") from None
            continue
        except Exception as error:  # noqa: BLE001  (third-party modules may raise anything)
            raise ValueError(f"cannot import {path!r}: {said(error)}") from None
        return target
    raise ValueError(f"cannot import {path!r}: there is no module {names[0]!r}: put its folder on PYTHONPATH")
