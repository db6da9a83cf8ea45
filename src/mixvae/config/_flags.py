"""Options as typed, in the form that the parser can merge. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from mixvae.config._bounded import read_yaml
from mixvae.config._schema import Config
from mixvae.config._trust import NAME

GROUPS = ("data", "model", "training", "start")
"""Keys of a configuration that hold other keys."""


def is_file(value: Any) -> bool:
    """Whether a value names something that exists and can be opened."""
    try:
        path = Path(value).expanduser() if isinstance(value, str | Path) else None  # as the parser does
        return path is not None and path.exists() and not path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, or the home of an unknown user
        return False


def options_in(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option and its value: what follows its `=`, or otherwise the next word."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name, value if equals else following


def check_once(words: Sequence[str]) -> None:
    """Refuse an option given twice with different values; parsers silently keep the last.

    Not for trainings, whose files and options override each other in the order given.

    Raises:
        ValueError: an option is given twice with different values.
    """
    given: dict[str, str] = {}
    for name, value in options_in(words):
        if given.setdefault(name, value) != value:
            raise ValueError(f"{name} is given twice, as {given[name]} and as {value}: leave one of them out")


def spelled(words: Sequence[str]) -> list[str]:
    """Options in a form that the parser can merge: a class by name, and its arguments in options of their own.

    `--model.prior VampPrior --model.prior.pseudo_inputs 3` becomes `--model.prior={class_path: VampPrior} …`, and so
    does `--model.prior.pseudo_inputs 3` after the `--config` of a file with `prior: VampPrior`. A class given as
    `--model.prior.class_path VampPrior` does not inherit the arguments of the class that it replaces.
    """
    words = list(words)
    classes = _classes(words)
    values = dict(options_in(words))
    for i, word in enumerate(words):
        name, end, _ = word.partition("=")[0].partition(".class_path")
        held = classes.get(name)
        same = isinstance(held, dict) and held.get("class_path") == values.get(f"{name}{end}")
        if end and name in classes and not same:  # an unchanged class keeps its arguments
            words[i] = word.replace(end, "", 1)
    options = [word.partition("=")[0] for word in words]
    for name, kind in classes.items():
        if not isinstance(kind, str):
            continue
        first = next((i for i, option in enumerate(options) if option.startswith(f"{name}.")), None)
        if first is not None and name not in options:
            words.insert(first, f"{name}={kind}")
            options.insert(first, name)
    rest, whole = iter(words), list[str]()
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("--") or not any(other.startswith(f"{name}.") for other in options):
            whole.append(word)
            continue
        value = value if equals else next(rest, "")
        named = NAME.fullmatch(value) and name.removeprefix("--") not in GROUPS
        before = (i for i, other in enumerate(whole) if other.startswith(f"{name}."))  # or it would replace these
        whole.insert(next(before, len(whole)), f"{name}={{class_path: {value}}}" if named else f"{name}={value}")
    return whole


def _classes(words: Sequence[str]) -> dict[str, Any]:
    """Options that are classes, with their values from the defaults and from the `--config` files among some words."""
    values = asdict(Config())
    for name, value in options_in(words):
        if name == "--config" and is_file(value):
            content = read_yaml(Path(value).expanduser())
            for group in GROUPS:
                settings = content.get(group) if isinstance(content, dict) else None
                values[group] |= settings if isinstance(settings, dict) else {}
    return {option: values[group][name] for option, (group, name) in _class_options().items()}


@cache
def _class_options() -> dict[str, tuple[str, str]]:
    """Options whose value is a class, and the group and name of each."""
    kinds = {group: get_type_hints(hint) for group, hint in get_type_hints(Config).items() if group in GROUPS}
    return {
        f"--{group}.{name}": (group, name)
        for group, hints in kinds.items() for name in hints if dict[str, Any] in get_args(hints[name])
    }  # fmt: skip


def flags(options: Mapping[str, Any]) -> list[str]:
    """Flags for options in dotted form.

    Example:
        >>> from mixvae.config import flags
        >>> flags({"model.components": 3, "model.encoder": {"class_path": "GatedEncoder", "hidden": [16]}})
        ['--model.components=3', '--model.encoder={class_path: GatedEncoder, hidden: [16]}']
    """
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in options.items()}
    return [f"--{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}" for key, text in texts.items()]
