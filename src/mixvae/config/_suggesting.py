"""What an unknown name may have meant. Imports no torch, unless to look into classes for an argument."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from mixvae.config._schema import Config
from mixvae.config._trust import MODEL_PLACES, OPTIMIZERS, OWN, SCHEDULES

SHORTEST_PART = 3
"""Minimum letters of a part of a name that is matched on its own."""
MOST_SHOWN = 3
"""Maximum number of classes in a suggestion."""
IN_PYTHON = {
    "callbacks": "callbacks are objects, given in Python by fit(…, callbacks=[…]); a configuration has loggers",
    "progress": "progress is an object, given in Python by fit(…, progress=…)",
}
"""Arguments of `fit` that no configuration can hold, and what to do instead."""
OTHERWISE = {"callback": "callbacks", "learning_rate": "lr", "score_all": "scored", "scheduler": "schedule"}
"""Names under which settings and arguments are known elsewhere."""
FILLED_IN = ("shape", "latent", "components", "posterior", "examples", "build", "weights", "likelihood", "inputs")
"""Arguments of classes that are filled in from other settings."""


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str | None:
    """Return the known name closest to a mistyped one, as a whole or in one of its parts."""
    whole = difflib.get_close_matches(name, list(known), 1)
    if whole or len(name) < SHORTEST_PART:
        return next(iter(whole), None)
    parts = {part: full for full in reversed(list(known)) for part in re.split(r"[_.]", full)}
    return next((parts[part] for part in difflib.get_close_matches(name, list(parts), 1)), None)


def meant(name: str, known: Sequence[str], prefix: str = "") -> str:
    """What an unknown setting may have meant, as the end of an error; empty if nothing is near.

    A setting of the same name elsewhere takes precedence over an argument of some setting's class, and that over a
    similar name.

    Args:
        name: dotted name of the setting.
        known: dotted names of all settings.
        prefix: what precedes a name where it is typed.

    Example:
        >>> from mixvae.config._suggesting import meant
        >>> meant("training.lr", ["training.optimizer", "training.loggers"], "--")
        ': did you mean --training.optimizer.lr?'
        >>> meant("model.epochs", ["training.epochs"])
        ': did you mean training.epochs?'
    """
    last = name.rpartition(".")[2]
    last = OTHERWISE.get(last, last)
    if last in IN_PYTHON:
        return f": {IN_PYTHON[last]}"
    same = [other for other in known if other.rpartition(".")[2] == last]
    if same:
        return f": did you mean {prefix}{min(same, key=lambda other: other.count('.'))}?"
    if taking := takers(last):
        return f": did you mean {' or '.join(f'{prefix}{setting}{more}' for setting, more in taking.items())}?"
    near = nearest(name, known)
    return f": did you mean {prefix}{near}?" if near else ""


def takers(argument: str) -> dict[str, str]:
    """Settings whose class takes an argument, as `training.optimizer.lr`, and the classes that do if not the default.

    Args:
        argument: name of the argument.

    Example:
        >>> from mixvae.config._suggesting import takers
        >>> takers("lr"), takers("pseudo_inputs")
        ({'training.optimizer.lr': ''}, {'model.prior.pseudo_inputs': ', of VampPrior'})
    """
    argument = OTHERWISE.get(argument, argument)
    if argument in FILLED_IN or not argument.isidentifier():
        return {}
    usual, others = dict[str, str](), dict[str, str]()
    for setting, room, names, default in _classes():
        module = importlib.import_module(room)
        taking = sorted(n for n in names if argument in inspect.signature(getattr(module, n)).parameters)
        if default in taking:
            usual[f"{setting}.{argument}"] = ""
        elif taking:
            others[f"{setting}.{argument}"] = f", of {' or '.join(taking[:MOST_SHOWN])}"
    return usual or others


def _classes() -> Iterator[tuple[str, str, frozenset[str], str]]:
    """Settings that name a class: their module, the classes in it that files may name, and the default."""
    defaults = asdict(Config())
    rooms = {f"model.{place}": OWN[place] for place in MODEL_PLACES}
    rooms |= {
        "training.optimizer": ("torch.optim", OPTIMIZERS),
        "training.schedule": ("torch.optim.lr_scheduler", SCHEDULES),
    }
    for setting, (room, names) in rooms.items():
        group, _, name = setting.partition(".")
        spec = defaults[group][name]
        kind = spec["class_path"] if isinstance(spec, dict) else spec or ""
        yield setting, room, names, kind.rpartition(".")[2]
