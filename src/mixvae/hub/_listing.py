"""Which files a run on the hub consists of: its manifest lists them with their checksums."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mixvae.files import checksum, read_manifest, read_regular
from mixvae.files._forms import conform

MANIFEST = "run.json"
"""The record of a run, which contains its own checksum."""
CARD = "README.md"
"""The model card: for people, who may edit it on the hub. Nothing reads it, and it has no checksum."""
LISTED = re.compile(r"config\.yaml|model\.safetensors|evaluations/\w[\w.-]*\.(json|npz)", re.ASCII)
"""The only other files that are ever downloaded."""


class Entry(TypedDict):
    """A file of a run."""

    path: str
    sha256: str
    bytes: int


class Shared(TypedDict):
    """What the manifest of a run holds as `hub`: its other files, or where it was pulled from."""

    files: NotRequired[list[Entry]]
    repo: NotRequired[str]
    commit: NotRequired[str]


class _Content(TypedDict):
    files: dict[str, Entry]
    hub: NotRequired[Shared]


def entry_of(path: str, content: bytes) -> Entry:
    """What a manifest says about a file.

    Example:
        >>> from mixvae.hub import entry_of
        >>> entry_of("config.yaml", b"seed: 0")["bytes"]
        7
    """
    return {"path": path, "sha256": checksum(content), "bytes": len(content)}


def listed(content: Mapping[str, Any], source: str) -> list[Entry]:
    """The files of a run besides its manifest.

    Args:
        content: the content of the manifest.
        source: where it is from, for the error message.

    Raises:
        ValueError: it is not a manifest that `mixvae push` wrote.
    """
    try:
        conform(content, _Content, "it")
    except TypeError as error:
        raise ValueError(f"{source} was not written by `mixvae push`: {error}") from None
    entries = [*content["files"].values(), *content.get("hub", {}).get("files", [])]
    if strange := [entry["path"] for entry in entries if not LISTED.fullmatch(entry["path"])]:
        raise ValueError(
            f"{source} was not written by `mixvae push`: it lists {strange[0][:60]!r}, which is not needed to use a run"
        )
    return entries


def read_listed(path: Path, entry: Entry) -> bytes:
    """Read a file of a run and check it.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not the one that the manifest lists.
    """
    if path.stat().st_size == entry["bytes"]:
        content = read_regular(path)
        if checksum(content) == entry["sha256"]:
            return content
    raise ValueError(f"{path} is not what {MANIFEST} lists: it is truncated, damaged or replaced")


def is_listed(path: Path, entry: Entry) -> bool:
    """Whether a file is there and is the one that the manifest lists."""
    try:
        read_listed(path, entry)
    except (OSError, ValueError):
        return False
    return True


def is_manifest(path: Path) -> bool:
    """Whether a file is an intact manifest."""
    try:
        read_manifest(path)
    except (OSError, ValueError):
        return False
    return True


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a run with all of its files, as listed."""
    manifest = folder / MANIFEST
    return is_manifest(manifest) and all(
        is_listed(folder / entry["path"], entry) for entry in listed(read_manifest(manifest), str(manifest))
    )
