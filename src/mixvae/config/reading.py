"""Configurations from presets, YAML files and flags. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
import yaml

from mixvae.config.schema import Config, DataConfig, ModelConfig, StartConfig, TrainingConfig
from mixvae.config.trust import NOBODY, Trust, check_config


def shipped(folder: str) -> dict[str, Path]:
    """YAML files of one folder that come with mixvae, by name."""
    path = Path(str(files("mixvae") / folder))
    return {file.stem: file for file in sorted(path.glob("*.yaml"))}


def presets() -> dict[str, Path]:
    """Configurations that come with mixvae, by name."""
    return shipped("presets")


def locate(name: str | Path, folder: str = "presets") -> Path:
    """File by the name of one that comes with mixvae, or by its path.

    Raises:
        ValueError: there is no such file; the nearest name is suggested.
    """
    known = shipped(folder)
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_file():
        return Path(name)
    what = folder.removesuffix("s")
    hint = f"did you mean {near}?" if (near := nearest(str(name), known)) else f"{folder} are {', '.join(known)}"
    raise ValueError(f"there is no {what} or file {str(name)!r}: {hint}")


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str | None:
    """Return the known name that is most like a mistyped one."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add every field of `Config` to a parser."""
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Config)


def flags(options: Mapping[str, Any]) -> list[str]:
    """Flags for options in dotted form, such as `{"model.components": 3}`."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in options.items()}
    return [f"--{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}" for key, text in texts.items()]


def read(name: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Config:
    """Read a configuration from a preset or YAML file, with flags such as `--seed=3` on top.

    Args:
        name: name of a preset, or path of a file.
        overrides: flags, which may name any class.
        trust: packages whose classes the file may name beside those of mixvae, torch and zuko.

    Raises:
        ValueError: there is no such file, it is not YAML, a key or a value is wrong, or a class is not trusted.
    """
    path = locate(name)
    check_file(path, Trust(frozenset(trust)))
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_arguments(parser)
    try:
        return from_namespace(parser.parse_args([f"--config={path}", *overrides]))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def from_dict(content: Mapping[str, Any]) -> Config:
    """Make the typed configuration from its own plain values, as `dataclasses.asdict` gives them."""
    return Config(
        DataConfig(**content["data"]),
        ModelConfig(**content["model"]),
        TrainingConfig(**content["training"]),
        content["seed"],
        StartConfig(**content["start"]),
    )


def from_namespace(namespace: jsonargparse.Namespace) -> Config:
    """Make the typed configuration from parsed arguments."""
    values = namespace.as_dict() if isinstance(namespace, jsonargparse.Namespace) else dict(namespace)
    return from_dict(values)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: the file is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None


def check_file(path: Path, trust: Trust = NOBODY) -> None:
    """Refuse a YAML file with keys that do not exist, or with classes that are not trusted.

    Raises:
        ValueError: the file is not YAML, a key is unknown, with the nearest one, or a class is not trusted.
    """
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys such as data, model and training; it holds {type(content).__name__}")
    known = set(_keys(Config))
    for key in _given(content, known):
        if key not in known:
            near = nearest(key, sorted(known))
            raise ValueError(f"{path}: unknown key {key}" + (f": did you mean {near}?" if near else ""))
    check_config(content, str(path), trust)


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in dotted form, such as `{"model.components": 3}`, as a file would hold them."""
    content: dict[str, Any] = {}
    for name, value in options.items():
        place = content
        *outer, last = name.split(".")
        for part in outer:
            inner = place.get(part)
            place[part] = inner if isinstance(inner, dict) else {} if inner is None else {"class_path": inner}
            place = place[part]
        place[last] = value
    return content


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a configuration."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        yield prefix + entry.name
        if is_dataclass(hints[entry.name]):
            yield from _keys(hints[entry.name], f"{prefix}{entry.name}.")  # pyright: ignore[reportArgumentType]


def _given(content: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    """Dotted names in a YAML file, down to where a class's own arguments begin."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict) and any(other.startswith(f"{name}.") for other in known):
            yield from _given(value, known, f"{name}.")


def changes(one: Config, other: Config) -> list[str]:
    """Dotted names of the settings that differ."""
    old, new = (dict(_flat(asdict(config))) for config in (one, other))
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries by dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_yaml(config: Config) -> str:
    """Return the complete configuration as YAML, enough to run again."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
