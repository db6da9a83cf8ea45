"""Whole files or none: atomic writes, JSON, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ORPHAN_SECONDS = 3600.0
"""Age at which a file that a killed process left behind is taken away."""


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only when the block ends well.

    The file is flushed to disk before the rename and the folder after it, so a crash at any instant leaves either the
    old file or the new one, never half of one. Temporary names are unique: two writers never share one.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_orphans(folder: Path, seconds: float = ORPHAN_SECONDS) -> None:
    """Take away what killed processes left in a folder: unfinished and uncommitted files of a certain age."""
    for pattern in (".*.partial*", ".*.staged*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > seconds:
                    path.unlink()


def one_line(error: BaseException) -> str:
    """First line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically from memory, so that a full disk is reported in the system's own words."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {one_line(error)}") from None


def canonical(value: Any) -> str:
    """One text for one value: JSON with sorted keys, floats exactly, by `float.hex`."""
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _exact(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(part) for part in value]
    return value.hex() if isinstance(value, float) else value


def checksum(content: bytes | str) -> str:
    """SHA-256 of some bytes, or of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
