"""Arrays from `.npy` and `.npz` files: sizes are checked before memory is allocated, and nothing is executed."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mixvae._resources import TooLarge, check, short

HEADER = 10_000
"""Maximum number of characters in a header, as in NumPy itself."""
FEWER = "give fewer or smaller examples"
MEMBERS = 10_000
"""Maximum number of files in an archive."""


def map_npy(path: Path) -> np.ndarray:
    """Array in a `.npy` file, mapped into memory: the system reads what is used, and nothing is written to the file.

    Raises:
        ValueError: it is damaged, or holds objects.
    """
    with _intact(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, fortran, dtype = _header(file)
        _check_promise(math.prod(shape) * max(1, dtype.itemsize), size - file.tell(), shape)
        if not math.prod(shape):  # empty, which cannot be mapped
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def read_npz(content: Path | bytes, source: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` archive by name.

    Args:
        content: the file, or its content.
        source: what errors call the file.
        names: only these, if present; all by default.

    Raises:
        ValueError: it is damaged, holds objects, or is larger than memory.
    """
    opened = io.BytesIO(content) if isinstance(content, bytes) else content
    with _intact(source), zipfile.ZipFile(opened) as archive:
        known = members(archive, source)
        chosen = {n: info for n, info in known.items() if names is None or n.removesuffix(".npy") in names}
        check(sum(info.file_size for info in chosen.values()), f"{source}, unpacked,", FEWER)
        arrays = {}
        for name, info in chosen.items():
            with archive.open(info) as file:  # yields no more bytes than the directory promises
                arrays[name.removesuffix(".npy")] = _read(file, info.file_size, f"{source}, {name},")
                file.read(1)  # at the end of the file, zipfile compares the checksum
        return arrays


def names_in(path: Path) -> list[str]:
    """Names of the arrays in a `.npz` archive.

    Raises:
        ValueError: it is damaged.
    """
    with _intact(path), zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in members(archive, str(path)))


def members(archive: zipfile.ZipFile, source: str) -> dict[str, zipfile.ZipInfo]:
    """Files of an archive by name.

    Raises:
        ValueError: there are too many.
    """
    infos = archive.infolist()
    if len(infos) > MEMBERS:
        raise TooLarge(f"{source} holds {len(infos)} files, more than {MEMBERS:,}: give an archive of a few arrays")
    return {info.filename: info for info in infos}


def _read(file: IO[bytes] | Any, size: int, what: str) -> np.ndarray:
    """Read an array from a stream of `size` bytes, after checking its header against that size and against memory."""
    shape, fortran, dtype = _header(file)
    count = math.prod(shape)
    _check_promise(count * max(1, dtype.itemsize), size, shape)
    check(count * max(1, dtype.itemsize), what, FEWER)
    data = np.empty(count, dtype)
    view = data.view(np.uint8).reshape(-1) if count else np.empty(0, np.uint8)
    done = 0
    while done < len(view):
        part = file.read(min(len(view) - done, 2**24))
        if not part:
            raise ValueError(f"it ends after {done} of {len(view)} bytes")
        view[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    return data.reshape(shape[::-1]).T if fortran else data.reshape(shape)


def _header(file: IO[bytes] | Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array that a stream holds.

    Raises:
        ValueError: it is damaged, or holds objects.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers that Python 2 wrote
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, HEADER)
        elif version in ((2, 0), (3, 0)):  # the same layout, in another encoding
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, HEADER)
        else:
            raise ValueError(f"it is of format {version}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which only a pickle could restore")
    if any(n < 0 for n in shape) or len(shape) > 32:
        raise ValueError(f"its header promises the shape {short(shape)}")
    return shape, fortran, dtype


def _check_promise(needed: int, size: int, shape: tuple[int, ...]) -> None:
    """Refuse an array that promises more bytes than its file has.

    Raises:
        ValueError: it does.
    """
    if needed > size:
        raise ValueError(f"its header promises the shape {short(shape)}, {short(needed)} bytes, and it has {size}")


@contextmanager
def _intact(source: object) -> Iterator[None]:
    """Turn any error that shows a file to be damaged into a one-line `ValueError`.

    Raises:
        ValueError: it is damaged.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, TooLarge):
        raise
    except Exception as error:  # noqa: BLE001  (damage can raise anything)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found = short(lines[0], 200)
        raise ValueError(f"{source} is truncated, damaged, or holds pickled objects: {found}") from None


def check_pickle(file: IO[bytes]) -> None:
    """Refuse a torch file that requests memory by a mere number: `bytearray(n)`, which torch's loader allows.

    Args:
        file: the file, open for reading; it is read from its beginning.

    Raises:
        ValueError: it does.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    else:
        file.seek(0)
        pickles = [file.read()]
    if any(b"bytearray" in content for content in pickles):
        raise ValueError("it holds a bytearray, which no tensor needs")
