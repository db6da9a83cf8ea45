"""YAML within bounds: size, depth, and aliases counted as what they expand to. Imports no torch.

A text is first parsed as a stream of events, in time linear in its length. Only a text within the bounds is turned into
values, wherever it comes from: a file, a flag, or a run's configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse
import yaml

MODE = "mixvae_yaml"
"""Name under which jsonargparse knows this reader."""
LARGEST = 2**20
"""Maximum number of bytes in a YAML file."""
DEEPEST = 50
"""Deepest nesting of lists and mappings."""
MOST = 20_000
"""Maximum number of values in a file; an alias counts as everything it expands to."""
LONGEST = 4096
"""Maximum number of characters in one value."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class OutOfBounds(ValueError):
    """YAML that is larger, deeper or longer than any configuration, or ambiguous."""


class _Loader(_LOADER):  # pyright: ignore[reportGeneralTypeIssues]
    """A safe loader that refuses duplicate keys; other loaders silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return a mapping whose keys differ; a merged key (<<) may be overridden.

        Raises:
            OutOfBounds: a key is given twice.
        """
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, key.value
                if name in lines:
                    where = f"lines {lines[name]} and {line}" if lines[name] != line else f"line {line} twice"
                    raise OutOfBounds(f"ambiguous: {name!r} is on {where}, within one block: join them")
                lines[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: the file is not YAML, or exceeds what any configuration holds.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OutOfBounds(f"larger than {LARGEST // 2**20} MiB, the limit for configurations")
        return load_yaml(content.decode("utf-8"))
    except OutOfBounds as error:
        raise ValueError(f"{path} is {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None


def load_yaml(text: str, source: str = "") -> Any:
    """Value of a YAML text.

    Args:
        text: the text.
        source: what to call it in the error.

    Raises:
        OutOfBounds: it exceeds what any configuration holds, or a key is given twice.
        yaml.YAMLError: it is not YAML.
        ValueError: a value in it is invalid, such as a 13th month.
    """
    check_bounds(text, source)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
    except OutOfBounds as error:
        raise OutOfBounds(f"{source} is {error}" if source else str(error)) from None


def check_bounds(text: str, source: str = "") -> None:
    """Refuse a YAML text that is too long, too deep or, with its aliases written out, too large.

    Args:
        text: the text.
        source: what to call it in the error.

    Raises:
        OutOfBounds: it is too long, too deep or too large.
        yaml.YAMLError: it is not YAML.
    """
    try:
        _check_bounds(text)
    except OutOfBounds as error:
        raise OutOfBounds(f"{source} is {error}" if source else str(error)) from None


def _check_bounds(text: str) -> None:
    if len(text) > LARGEST:
        raise OutOfBounds(f"larger than {LARGEST // 2**20} MiB, the limit for configurations")
    sizes: dict[str, int | None] = {}  # of each anchor's value; None while it is open
    heights: dict[str, int] = {}
    open_nodes: list[list[Any]] = []  # anchor, values so far, height so far

    def close(anchor: str | None, size: int, height: int) -> None:
        if anchor is not None:
            sizes[anchor], heights[anchor] = size, height
        if len(open_nodes) + height > DEEPEST:
            raise OutOfBounds(f"nested more than {DEEPEST} levels deep, the limit for configurations")
        if open_nodes:
            open_nodes[-1][1] += size
            open_nodes[-1][2] = max(open_nodes[-1][2], height + 1)

    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            if event.anchor is not None:
                sizes[event.anchor] = None
            open_nodes.append([event.anchor, 1, 1])
            if len(open_nodes) > DEEPEST:  # `close` finds this too, but only after reading the whole text
                raise OutOfBounds(f"nested more than {DEEPEST} levels deep, the limit for configurations")
        elif isinstance(event, yaml.CollectionEndEvent):
            close(*open_nodes.pop())
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST:
                raise OutOfBounds(
                    f"too long: it has a value of more than {LONGEST:,} characters, the limit for configurations"
                )
            close(event.anchor, 1, 0)
        elif isinstance(event, yaml.AliasEvent) and event.anchor in sizes:  # an unknown one is refused on loading
            size = sizes[event.anchor]
            if size is None:
                raise OutOfBounds(f"endless: the alias *{event.anchor} is part of the value that it refers to")
            close(None, size, heights[event.anchor])
        if open_nodes and open_nodes[-1][1] > MOST:
            raise OutOfBounds(
                f"too large: it has more than {MOST:,} values, aliases written out, the limit for configurations"
            )


def _load_flag(text: str) -> Any:
    """Load YAML for jsonargparse: a flag's value or a file that `read_yaml` has already read."""
    load_yaml(text)
    return jsonargparse.get_loader("yaml")(text)


jsonargparse.set_loader(MODE, _load_flag, (yaml.YAMLError,))
