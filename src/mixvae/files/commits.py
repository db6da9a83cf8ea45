"""One commit point for several files: they are staged under names by their content, then one JSON file names them.

A reader believes a file only if its checksum is the one that the JSON file names, and the JSON file only if its own
checksum is right. A process that is killed before the JSON file is replaced has changed nothing; one that is killed
after it leaves staged files that readers know to look for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixvae.files.atomic import canonical, checksum, read_json, remove_orphans, sync_folder, write_bytes, write_json

ATTEMPTS = 20
"""How often a reader looks again when a writer commits while it reads."""


def commit(manifest: Path, content: Mapping[str, Any], parts: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Write some files and the JSON file that names their checksums, so that all of them count or none.

    Args:
        manifest: the JSON file.
        content: what it holds beside the checksums; its `files` are parts of an earlier commit that stay as they are.
        parts: path beside the manifest and bytes of every new part, by the part's name.

    Returns:
        What the JSON file holds now.

    Raises:
        OSError: a file cannot be written; what was committed before stays.
    """
    files = dict(content.get("files", {}))
    for name, (path, data) in parts.items():
        files[name] = {"path": path, "sha256": checksum(data), "bytes": len(data)}
        write_bytes(_staged(manifest, files[name]), data)
    whole = {**content, "files": files}
    whole.pop("checksum", None)
    whole["checksum"] = checksum(canonical(whole))
    write_json(manifest, whole)
    settle(manifest, whole)
    return whole


def settle(manifest: Path, content: Mapping[str, Any]) -> None:
    """Give staged files of a commit their ordinary names, and take away old orphans. Only for who may write."""
    for entry in content["files"].values():
        staged, path = _staged(manifest, entry), manifest.parent / entry["path"]
        if staged.exists():
            os.replace(staged, path)
            sync_folder(path.parent)
    for folder in {manifest.parent, *((manifest.parent / e["path"]).parent for e in content["files"].values())}:
        remove_orphans(folder)


def read_manifest(manifest: Path) -> dict[str, Any]:
    """Read the JSON file of a commit.

    Raises:
        FileNotFoundError: nothing was committed.
        ValueError: the file is damaged.
    """
    content = read_json(manifest)
    if not isinstance(content, dict) or content.get("checksum") != checksum(
        canonical({key: value for key, value in content.items() if key != "checksum"})
    ):
        raise ValueError(f"{manifest} is damaged: its checksum is wrong; restore the file from a copy")
    return content


def read_part(manifest: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """Read one file of a commit and the JSON file that names it.

    Raises:
        FileNotFoundError: nothing was committed, or a file is missing.
        KeyError: the commit has no such part.
        ValueError: the file is not the one that was committed.
    """
    content = read_manifest(manifest)
    for _ in range(ATTEMPTS):
        entry = content["files"][name]
        for path in (_staged(manifest, entry), manifest.parent / entry["path"]):
            data = path.read_bytes() if path.exists() else None
            if data is not None and checksum(data) == entry["sha256"]:
                return content, data
        newer = read_manifest(manifest)
        if newer == content:
            break
        content = newer
    path = manifest.parent / content["files"][name]["path"]
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: restore the file from a copy")
    raise ValueError(f"{path} is truncated, damaged or replaced: it is not what {manifest.name} names")


def _staged(manifest: Path, entry: Mapping[str, Any]) -> Path:
    path = manifest.parent / entry["path"]
    return path.with_name(f".{path.stem}.{entry['sha256'][:16]}.staged{path.suffix}")
