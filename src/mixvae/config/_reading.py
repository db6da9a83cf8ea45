"""Configurations from presets, YAML files and flags. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
import yaml

from mixvae.config._bounded import MODE, check_bounds, load_yaml, read_yaml
from mixvae.config._flags import GROUPS, flags, is_file, options_in, spelled
from mixvae.config._schema import FILES, Config, DataConfig, ModelConfig, StartConfig, TrainingConfig, check_nulls
from mixvae.config._suggesting import meant, nearest
from mixvae.config._trust import EVERYBODY, NOBODY, Trust, check_config, granting

__all__ = [
    "Parser", "add_arguments", "changes", "check_file", "check_options", "check_parsed", "check_words", "flags",
    "from_dict", "from_namespace", "load_yaml", "locate", "nested", "presets", "read", "read_yaml", "spelled",
    "to_yaml", "typed_names",
]  # fmt: skip


def presets() -> dict[str, Path]:
    """Configurations that come with mixvae, by name.

    Example:
        >>> from mixvae.config import presets
        >>> presets()["digits"].name
        'digits.yaml'
    """
    folder = Path(str(files("mixvae") / "presets"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def locate(name: str | Path) -> Path:
    """Path of a preset, given its name, or of any other file.

    Raises:
        ValueError: there is no such file; the closest name is suggested.
    """
    known = presets()
    if str(name) in known:
        return known[str(name)]
    if Path(name).is_file():
        return Path(name)
    hint = f"did you mean {near}?" if (near := nearest(str(name), known)) else f"presets are {', '.join(known)}"
    raise ValueError(f"there is no preset or file {str(name)!r}: {hint}")


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises its errors instead of exiting, and reads YAML within bounds."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("parser_mode", MODE)
        super().__init__(*args, exit_on_error=False, allow_abbrev=False, **kwargs)


class ConfigFile(jsonargparse.ActionConfigFile):  # pyright: ignore[reportPrivateImportUsage]
    """The option `--config`: a file is checked before any of it is used; YAML typed in its place is trusted."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read a file or a text."""
        if is_file(values):
            check_file(Path(values).expanduser())
        super().__call__(parser, cfg, values, option_string)


def check_words(words: Sequence[str]) -> None:
    """Refuse unknown settings, values out of bounds, and a file for one group of options, which would go unchecked.

    Raises:
        ValueError: a word contains one of these, or the data are named twice.
    """
    known = [key for key in _known() if key not in GROUPS]
    for name, value in options_in(words):
        group, *inner = name.removeprefix("--").split(".")
        if group in GROUPS and inner and f"{group}.{inner[0]}" not in known:
            raise ValueError(f"unknown option {name}{meant(name.removeprefix('--'), known, '--')}")
        with suppress(yaml.YAMLError):  # the parser reports it
            check_bounds(value, name)
        if name.removeprefix("--") in GROUPS and is_file(value):
            raise ValueError(f"{name} takes values, not the file {value}: give the file with --config")
    typed = {name for name, _ in options_in(words)}
    files = sorted(typed & {"--data.train", "--data.validation", "--data.test"})
    if files and "--data.name" in typed:
        raise ValueError(f"--data.name and {files[0]} are both given: leave one of them out")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add every field of `Config` to a parser."""
    parser.add_argument("--config", action=ConfigFile, help="a YAML file with any of the options below")
    parser.add_class_arguments(Config)


@cache
def _parser() -> Parser:
    """The parser of a configuration, which takes longer to build than to use."""
    parser = Parser()
    add_arguments(parser)
    return parser


def read(name: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Config:
    """Read a configuration from a preset or YAML file, overridden by flags.

    Args:
        name: name of a preset, or path of a file.
        overrides: flags, which may name any class.
        trust: packages whose classes the file may name besides those of mixvae, torch and zuko.

    Raises:
        ValueError: there is no such file, it is not YAML, a key or a value is wrong, or a class is not trusted.

    Example:
        >>> from mixvae.config import read
        >>> config = read("digits", ["--model.components=4", "--seed=3"])
        >>> config.data.name, config.model.components, config.seed
        ('digits', 4, 3)
    """
    path = locate(name)
    check_file(path, Trust(frozenset(trust)))
    check_words(overrides)
    try:
        with granting(*trust):
            config = from_namespace(_parser().parse_args(spelled([f"--config={path}", *overrides])))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    check_parsed(config, str(path), [*trust, *typed_names(overrides)])
    return config


def typed_names(words: Sequence[str]) -> list[str]:
    """Classes not on the allowlist that a user typed, in options or in the text of a `--config`."""
    options: dict[str, Any] = {}
    names: list[str] = []
    for name, value in options_in(words):
        with suppress(yaml.YAMLError):  # the parser reports it
            if name.startswith(("--model.", "--training.")) and value:
                options[name.removeprefix("--")] = load_yaml(value, name)
            elif name == "--config" and not is_file(value) and isinstance(content := load_yaml(value, name), dict):
                names += check_config(content, name, EVERYBODY)
    return names + check_config(nested(options), "the command line", EVERYBODY)


def check_parsed(config: Config, source: str, trust: Sequence[str]) -> None:
    """Check the parsed configuration after its files and options have been checked: no spelling evades both checks.

    Args:
        config: the configuration.
        source: where it comes from, for the error message.
        trust: packages and classes that the user trusts.

    Raises:
        ValueError: a class is not trusted.
    """
    check_config(asdict(config), source, Trust(frozenset(trust)))


def from_dict(content: Mapping[str, Any]) -> Config:
    """Make the typed configuration from its plain values, as `dataclasses.asdict` returns them.

    Raises:
        ValueError: a setting that must not be null is, or a text is empty.
    """
    check_nulls(content)
    if not content["data"]["name"]:
        raise ValueError("data.name is empty: name a data set, a file or a folder")
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


def check_file(path: Path, trust: Trust = NOBODY) -> None:
    """Refuse a YAML file with keys that do not exist, or with classes that are not trusted.

    Raises:
        ValueError: the file is not YAML, a key is unknown (the closest one is suggested), or a class is not trusted.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys such as data, model and training; it holds {type(content).__name__}")
    known = _known()
    for group in GROUPS:
        if not isinstance(content.get(group, {}), dict):
            what = " ".join(f"{content[group]!r}"[:80].split())
            raise ValueError(f"{path}: {group} must map settings to values, as in `{group}: {{…}}`; got {what}")
    for key in _file_keys(content, known):
        if key not in known:
            raise ValueError(f"{path}: unknown key {key}{meant(key, known)}")
    data = content.get("data", {})
    files = [part for part in ("train", "validation", "test") if data.get(part) is not None]
    if files and data.get("name", FILES) != FILES:
        raise ValueError(f"{path}: data.name and data.{files[0]} are both given: leave one of them out")
    if dotted := next(_dotted(content), None):
        raise ValueError(
            f"{path}: {dotted!r} is not a key: write settings inside one another, as `model: {{latent: 2}}`"
        )
    check_config(content, str(path), trust)


def _dotted(content: Any) -> Iterator[str]:
    """Keys at any depth that the parser would split at their dots, and so misread."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(key, str) and not key.isidentifier():
                yield key
            yield from _dotted(value)
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _dotted(part)


def check_options(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Options of a file in dotted form, such as `{"model.components": 3}`, each checked on its own.

    Args:
        options: the options; a group may hold others, as in `{"model": {"components": 3}}`.
        source: the file.

    Returns:
        The options by their dotted names.

    Raises:
        ValueError: an option does not exist, or names a class that is not trusted.
    """
    known = [key for key in _known() if key not in GROUPS]
    flat: dict[str, Any] = {}
    for key, value in options.items():
        inside = key in GROUPS and isinstance(value, Mapping)
        flat |= {f"{key}.{name}": part for name, part in value.items()} if inside else {str(key): value}
    for key, value in flat.items():
        parts = key.split(".")
        if not (key in known or (".".join(parts[:2]) in known and all(part.isidentifier() for part in parts[2:]))):
            raise ValueError(f"{source}: unknown option {key}{meant(key, known)}")
        if dotted := next(_dotted(value), None):
            raise ValueError(f"{source}: {dotted!r} in {key} is not a key: write settings inside one another")
        check_config(nested({key: value}), source)
    return flat


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in dotted form as a file would hold them.

    Example:
        >>> from mixvae.config import nested
        >>> nested({"model.components": 3, "model.latent": 2})
        {'model': {'components': 3, 'latent': 2}}
    """
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


@cache
def _known() -> tuple[str, ...]:
    """Dotted names of all settings and their groups, sorted."""
    return tuple(sorted(_keys(Config)))


def _keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields of a configuration."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        yield prefix + entry.name
        if is_dataclass(hints[entry.name]):
            yield from _keys(hints[entry.name], f"{prefix}{entry.name}.")  # pyright: ignore[reportArgumentType]


def _file_keys(content: dict[str, Any], known: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Dotted names in a YAML file, down to the level where a class's own arguments begin."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict) and any(other.startswith(f"{name}.") for other in known):
            yield from _file_keys(value, known, f"{name}.")


def changes(one: Config, other: Config) -> list[str]:
    """Dotted names of the settings that differ.

    Example:
        >>> from mixvae.config import Config, changes
        >>> changes(Config(), Config(seed=1))
        ['seed']
    """
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
    """Return the complete configuration as YAML, enough to repeat the run.

    Example:
        >>> from mixvae.config import Config, to_yaml
        >>> to_yaml(Config()).splitlines()[:2]
        ['data:', '  name: digits']
    """
    return yaml.safe_dump(asdict(config), sort_keys=False)
