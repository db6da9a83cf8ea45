"""One commit point for several files: they are staged under names by content, then one JSON file lists them.

A reader trusts a file only if its checksum is the one in the JSON file, and the JSON file only if its own checksum is
right. A process that is killed before the JSON file is replaced has changed nothing; one that is killed afterwards
leaves staged files that readers know to look for.

Two writers of one JSON file take turns by a lock on its folder, if the file system has locks. If it has none, two
commits in the same instant can leave a file that is not the listed one: readers refuse it, and it is made again.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mixvae.files._atomic import (
    canonical,
    checksum,
    json_bytes,
    read_json,
    read_regular,
    remove_orphans,
    sync_folder,
    write_bytes,
)

ATTEMPTS = 20
"""How many times a reader retries when a writer commits while it reads."""
TURN_SECONDS = 5.0
"""How long a writer waits for another, which may have been stopped, before it continues without a lock."""


def commit(
    manifest: Path,
    content: Mapping[str, Any],
    parts: Mapping[str, tuple[str, bytes]],
    check: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Write some files and the JSON file with their checksums, so that all of them count or none.

    Args:
        manifest: the JSON file.
        content: what it holds besides the checksums; its `files` are parts of an earlier commit that stay unchanged.
        parts: path and bytes of every new part, by the part's name; a path is a name beside the manifest, or one
            folder below it.
        check: called at the last moment before the commit counts; if it raises, the commit does not count.

    Returns:
        What the JSON file holds now.

    Raises:
        OSError: a file cannot be written; the previous commit remains.
        ValueError: JSON cannot hold the content, or a path is elsewhere; nothing is written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import commit, read_part
        >>> manifest = Path(tempfile.mkdtemp(), "run.json")
        >>> content = commit(manifest, {"epoch": 3}, {"weights": ("model.bin", b"...")})
        >>> read_part(manifest, "weights") == (content, b"...")
        True
    """
    files = dict(content.get("files", {}))
    for name, (path, data) in parts.items():
        files[name] = {"path": path, "sha256": checksum(data), "bytes": len(data)}
    whole = {key: value for key, value in content.items() if key != "checksum"} | {"files": files}
    if fault := _fault(whole):
        raise ValueError(f"{manifest} cannot be committed: {fault}")
    whole["checksum"] = checksum(canonical(whole))
    text = json_bytes(whole)
    for name, (_, data) in parts.items():
        write_bytes(_staged(manifest, files[name]), data)
    with _turn(manifest.parent):
        if check is not None:
            check()
        write_bytes(manifest, text)
        with suppress(OSError):  # it counts already: readers find staged files, and the next commit settles them
            settle(manifest, whole)
    return whole


def settle(manifest: Path, content: Mapping[str, Any]) -> None:
    """Give staged files of a commit their final names, and remove old orphans. Only for a process that may write.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import commit, settle
        >>> manifest = Path(tempfile.mkdtemp(), "run.json")
        >>> settle(manifest, commit(manifest, {}, {"weights": ("model.bin", b"...")}))
        >>> sorted(path.name for path in manifest.parent.iterdir())
        ['model.bin', 'run.json']
    """
    folders = {manifest.parent}
    for entry in content["files"].values():
        staged, path = _staged(manifest, entry), manifest.parent / entry["path"]
        folders.add(path.parent)
        if staged.exists():
            os.replace(staged, path)
            sync_folder(path.parent)
    written = manifest.stat().st_mtime  # ages are by the clock of the file system, which may be another machine's
    for folder in folders:
        remove_orphans(folder, now=written)


def read_manifest(manifest: Path) -> dict[str, Any]:
    """Read the JSON file of a commit.

    Raises:
        FileNotFoundError: nothing was committed.
        ValueError: the file is damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import commit, read_manifest
        >>> manifest = Path(tempfile.mkdtemp(), "run.json")
        >>> _ = commit(manifest, {"epoch": 3}, {})
        >>> read_manifest(manifest)["epoch"]
        3
    """
    content = read_json(manifest)
    fault = "it is not an object" if not isinstance(content, dict) else _wrong_checksum(content) or _fault(content)
    if fault:
        raise ValueError(f"{manifest} is damaged: {fault}; restore the file from a copy")
    return content


def has_part(manifest: Path, name: str) -> bool:
    """Whether a commit names a file that is there; see `commit`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import commit, has_part, settle
        >>> manifest = Path(tempfile.mkdtemp(), "run.json")
        >>> settle(manifest, commit(manifest, {}, {"weights": ("model.bin", b"...")}))
        >>> has_part(manifest, "weights"), has_part(manifest, "state")
        (True, False)
    """
    entry = read_manifest(manifest)["files"].get(name)
    return entry is not None and any(
        path.exists() for path in (_staged(manifest, entry), manifest.parent / entry["path"])
    )


def read_part(manifest: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """Read one file of a commit and the JSON file that lists it; see `commit`.

    Raises:
        FileNotFoundError: nothing was committed, or a file is missing.
        ValueError: the file is not the one that was committed, or the commit has no such part.
    """
    content = read_manifest(manifest)
    for _ in range(ATTEMPTS):
        if name not in content["files"]:
            raise ValueError(f"{manifest} names no {name}: it was written by something else")
        entry = content["files"][name]
        for path in (_staged(manifest, entry), manifest.parent / entry["path"]):
            with suppress(FileNotFoundError):  # a staged file may get its final name at any moment
                if entry.get("bytes", size := path.stat().st_size) != size:
                    continue
                data = read_regular(path)
                if checksum(data) == entry["sha256"]:
                    return content, data
        newer = read_manifest(manifest)
        if newer == content:
            break
        content = newer
    path = manifest.parent / content["files"][name]["path"]
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: restore the file from a copy")
    raise ValueError(f"{path} is truncated, damaged or replaced: it is not what {manifest.name} names")


def is_intact(manifest: Path, entry: Mapping[str, Any]) -> bool:
    """Whether one file of a commit is unchanged; it may be missing or still waiting for its final name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import commit, is_intact
        >>> manifest = Path(tempfile.mkdtemp(), "run.json")
        >>> entry = commit(manifest, {}, {"weights": ("model.bin", b"...")})["files"]["weights"]
        >>> _ = (manifest.parent / "model.bin").write_bytes(b"edited")
        >>> is_intact(manifest, entry)
        False
    """
    if _staged(manifest, entry).exists():
        return True
    try:
        return checksum(read_regular(manifest.parent / entry["path"])) == entry["sha256"]
    except FileNotFoundError:
        return True


def _wrong_checksum(content: Mapping[str, Any]) -> str:
    """What is wrong with a JSON file's own checksum; empty if nothing is."""
    try:
        own = checksum(canonical({key: value for key, value in content.items() if key != "checksum"}))
    except RecursionError:
        return "it is nested too deeply"
    return "" if content.get("checksum") == own else "its checksum is wrong"


def _fault(content: Mapping[str, Any]) -> str:
    """What is wrong with the files that a JSON file lists; empty if nothing is."""
    files = content.get("files")
    if not isinstance(files, dict):
        return "it names no files"
    for name, entry in files.items():
        whole = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("path", "sha256"))
        if not whole or not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
            return f"{name} has no path or no checksum"
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts or len(path.parts) not in (1, 2) or "\0" in entry["path"]:
            return f"{name} lies neither beside it nor one folder below: {entry['path']!r}"
    if len({PurePosixPath(entry["path"]) for entry in files.values()}) < len(files):
        return "two of its files have one path"
    return ""


def _staged(manifest: Path, entry: Mapping[str, Any]) -> Path:
    path = manifest.parent / entry["path"]
    return path.with_name(f".{path.stem}.{entry['sha256'][:16]}.staged{path.suffix}")


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Keep other writers in a folder waiting, if the file system can do that."""
    descriptor = -1
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        until = time.monotonic() + TURN_SECONDS
        while not _locked(descriptor) and time.monotonic() < until:
            time.sleep(0.01)
    try:
        yield
    finally:
        if descriptor >= 0:
            with suppress(OSError):  # a forked child may hold a copy of the descriptor: closing ours is not enough
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Try to take a lock; returns whether it is ours."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
