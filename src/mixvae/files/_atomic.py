"""Whole files or none: atomic writes, JSON, checksums."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixvae._resources import check
from mixvae.files._ordinary import check_replaceable

ORPHAN_SECONDS = 3600.0
"""Age at which a file that a killed process left behind is removed."""
_PARTIAL = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.partial(\.[^.]*)?")
_STAGED = re.compile(r"\..+\.([0-9a-f]{16})\.staged(\.[^.]*)?")
_LIKE_FLOAT = re.compile(r"=*(-?0x[01]\.[0-9a-f]+p[+-]\d+|-?inf|nan)")

LARGEST_JSON = 2**28
"""Maximum number of bytes in a JSON file: a million epochs need fewer."""


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only if the block ends without an error.

    The file is flushed to disk before the rename and the folder after it, so a crash at any instant leaves either the
    old file or the new one, never half of one. Temporary names are unique: two writers never share one.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file is kept.
        ValueError: the path is a pipe or a device, which a file would replace.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import atomic
        >>> path = Path(tempfile.mkdtemp(), "note.txt")
        >>> with atomic(path) as temporary:
        ...     _ = temporary.write_text("hello")
        >>> path.read_text()
        'hello'
    """
    path = Path(path)
    check_replaceable(path)
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
    """Flush the names in a folder to disk, if the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_orphans(
    folder: Path, seconds: float = ORPHAN_SECONDS, now: float | None = None, of: Collection[str] | None = None
) -> None:
    """Remove what killed processes left in a folder: unfinished and uncommitted files older than a given age.

    A staged file that is named by a JSON file here or one folder up is committed, and is only waiting for its final
    name.

    Args:
        folder: the folder.
        seconds: the age.
        now: current time by the clock with which the file system stamps files; this machine's clock by default.
        of: stems of the files whose remains are removed; all files by default.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import remove_orphans
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".note.7-0123abcd.partial.txt").touch()
        >>> remove_orphans(folder, seconds=-1)
        >>> list(folder.iterdir())
        []
    """
    now = time.time() if now is None else now
    with suppress(OSError):
        for path in folder.iterdir():
            partial, staged = _PARTIAL.fullmatch(path.name), _STAGED.fullmatch(path.name)
            if partial is None and staged is None:
                continue
            if of is not None and path.name.lstrip(".").split(".")[0] not in of:
                continue
            with suppress(OSError):
                if now - path.stat().st_mtime > seconds and not (staged and _is_named(staged[1], folder)):
                    path.unlink()


def _is_named(digest: str, folder: Path) -> bool:
    """Whether a JSON file in a folder, or in the one above it, holds a checksum that begins with this."""
    for place in (folder, folder.parent):
        for path in place.glob("*.json"):
            with suppress(OSError, ValueError):  # an unreadable file names nothing
                if not _PARTIAL.fullmatch(path.name) and digest.encode() in read_regular(path):
                    return True
    return False


def one_line(error: BaseException) -> str:
    """First line of an error's message.

    Example:
        >>> from mixvae.files import one_line
        >>> one_line(ValueError("too small" + chr(10) + "details"))
        'too small'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically from memory, so that a full disk is reported in the system's own words.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import write_bytes
        >>> path = Path(tempfile.mkdtemp(), "note")
        >>> write_bytes(path, b"hello")
        >>> path.read_bytes()
        b'hello'
    """
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import write_text
        >>> path = Path(tempfile.mkdtemp(), "note.txt")
        >>> write_text(path, "q(z|x) ≥ 0")
        >>> path.read_text(encoding="utf-8")
        'q(z|x) ≥ 0'
    """
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: JSON cannot hold a value, such as NaN; nothing is written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixvae.files import read_json, write_json
        >>> path = Path(tempfile.mkdtemp(), "results.json")
        >>> write_json(path, {"elbo": -48.5})
        >>> read_json(path)
        {'elbo': -48.5}
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Content of a JSON file. File names that are not UTF-8 come back from `read_json` unchanged.

    Raises:
        ValueError: JSON cannot hold a value, such as NaN.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes JSON's own escape of it


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or larger than any of ours.
    """
    path = Path(path)
    content = read_regular(path, LARGEST_JSON)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {one_line(error)}; restore the file from a copy") from None


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Read an ordinary file only: a device never ends, and a pipe waits for a writer.

    Args:
        path: the file.
        most: maximum number of bytes; as many as fit into memory by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an ordinary file, or too large.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.files import read_regular
        >>> read_regular(Path("/dev/zero"))
        Traceback (most recent call last):
        ValueError: /dev/zero is not an ordinary file: restore it from a copy
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not an ordinary file: restore it from a copy")
    if most is not None and status.st_size > most:
        raise ValueError(f"{path} is larger than {most // 2**20} MiB, the limit for records of mixvae")
    check(status.st_size, f"{path} of {status.st_size} bytes", "restore it from a copy")
    return path.read_bytes()


def canonical(value: Any) -> str:
    """The same text for the same value in JSON: keys sorted, tuples as lists, floats exactly, by `float.hex`.

    Different values have different texts: 1, 1.0, True, "1" and the text of a float all differ.

    Raises:
        TypeError: JSON cannot hold a value.
        ValueError: a key is neither text nor an integer, or two keys become the same text.

    Example:
        >>> from mixvae.files import canonical
        >>> canonical({"b": (1, 1.0), "a": "1"})
        '{"a":"1","b":[1,"0x1.0000000000000p+0"]}'
    """
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        exact = {_key(key): _exact(part) for key, part in value.items()}
        if len(exact) < len(value):
            raise ValueError(f"two keys of a dictionary are the same text: {list(value)}")
        return exact
    if isinstance(value, list | tuple):
        return [_exact(part) for part in value]
    if isinstance(value, str):
        return f"={value}" if _LIKE_FLOAT.fullmatch(value) else value
    return value.hex() if isinstance(value, float) else value


def _key(key: object) -> str:
    """A key as JSON holds it."""
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise ValueError(f"keys are text or integers; got {key!r}")
    return str(key)


def checksum(content: bytes | str) -> str:
    """SHA-256 of bytes, or of a text in UTF-8.

    Example:
        >>> from mixvae.files import checksum
        >>> checksum("abc")[:16], checksum(b"abc") == checksum("abc")
        ('ba7816bf8f01cfea', True)
    """
    return hashlib.sha256(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content).hexdigest()
