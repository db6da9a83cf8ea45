"""MATLAB's `.mat` files. Sizes are checked before SciPy reads, and nothing but plain numbers is read."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from mixvae._arrays import FEWER
from mixvae._resources import TooLarge, check, short
from mixvae.datasets._columns import LABELS, Labelled

BYTES = {
    "double": 8, "single": 4, "logical": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8,
}  # fmt: skip
"""Classes of plain numbers, and the bytes per number."""
EXAMPLES = ("x", "data")
"""Names of the variable that holds the examples, if there are several."""
HEADER = 128
"""Bytes before the first element of a version 5 file."""
COMPRESSED = 15
HDF5 = b"\x89HDF\r\n\x1a\n"
BLOCK = 2**20


def read_mat(path: Path) -> Labelled:
    """Read examples, one per row, and labels if there are any, from a `.mat` file.

    The examples are the variable `x` or `data`, or the only numeric one; labels are named `y`, `label` or `class`,
    for example.

    Raises:
        ValueError: the file is damaged or of version 7.3, or which variable holds the examples is unclear.
    """
    sizes = _sizes(path)
    lower = {name.lower(): name for name in sizes}
    label = next((lower[name] for name in LABELS if name in lower), None)
    others = [name for name in sizes if name != label]
    named = next((lower[name] for name in EXAMPLES if name in lower), None)
    chosen = others[0] if named is None and len(others) == 1 else named
    if chosen is None:
        raise ValueError(f"{path} must hold the examples under the name x; it holds {short(sorted(sizes))}")
    arrays = read_variables(path, [chosen] if label is None else [chosen, label])
    return arrays[chosen], None if label is None else arrays[label].ravel()


def read_variables(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read numeric variables by name; missing ones are left out.

    Raises:
        ValueError: the file is damaged, of version 7.3, or larger than memory.
    """
    from scipy.io import loadmat

    sizes = _sizes(path)
    chosen = [name for name in names if name in sizes]
    check(sum(sizes[name] for name in chosen), f"{path}, unpacked,", FEWER)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd variables
            content = loadmat(str(path), variable_names=chosen, appendmat=False)
        return {name: np.asarray(content[name]) for name in chosen}
    except Exception as error:  # noqa: BLE001  (damage shows as any kind)
        raise _damaged(path, error) from None


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of every variable of plain numbers, without reading them."""
    from scipy.io import whosmat

    if not path.is_file():
        raise ValueError(f"{path} is not a file that can be read whole: give one on disk")
    try:
        with open(path, "rb") as file:
            _check_unpacked(file, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = whosmat(str(path), appendmat=False)
    except (TooLarge, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001
        raise _damaged(path, error) from None
    return {name: math.prod(map(int, shape)) * BYTES[kind] for name, shape, kind in found if kind in BYTES}


def _check_unpacked(file: IO[bytes], path: Path) -> None:
    """Refuse a file whose elements unpack to more than memory holds: SciPy trusts the sizes in them.

    Raises:
        TooLarge: an element does, or the file is of version 7.3.
    """
    start = file.read(HEADER)
    file.seek(512)
    if start.startswith(b"MATLAB 7.3") or HDF5 in (start[:8], file.read(8)):
        raise TooLarge(f"{path} is of MATLAB's version 7.3 (HDF5): save it with -v7, as in save('x.mat', 'x', '-v7')")
    size = os.fstat(file.fileno()).st_size
    if not start.startswith(b"MATLAB"):
        if start[:1] in (b"\0", b"\1", b"\2") or start[3:4] in (b"\0", b"\1", b"\2"):  # version 4, without compression
            return
        raise ValueError("it does not begin like one")
    order = {b"IM": "<", b"MI": ">"}.get(start[126:128])
    if order is None:
        raise ValueError("its byte order is unknown")
    place, unpacked = HEADER, 0
    while place + 8 <= size:
        file.seek(place)
        kind, length = struct.unpack(f"{order}II", file.read(8))
        if place + 8 + length > size:
            raise ValueError(f"it ends after {size} of {place + 8 + length} bytes")
        if kind == COMPRESSED:
            unpacked = _unpacked(file, length, unpacked, path)
        place += 8 + length
        if kind != COMPRESSED and length % 8:
            place += 8 - length % 8


def _unpacked(file: IO[bytes], length: int, size: int, path: Path) -> int:
    """`size`, and the bytes that the next `length` bytes of the file unpack to, counted without keeping them.

    Raises:
        TooLarge: they do not fit into memory.
    """
    unpacker = zlib.decompressobj()
    while length and not unpacker.eof:
        content = file.read(min(length, BLOCK))
        if not content:
            break
        length -= len(content)
        while content:
            size += len(unpacker.decompress(content, BLOCK))
            content = unpacker.unconsumed_tail
            check(size, f"{path}, unpacked,", FEWER)
    return size


def _damaged(path: Path, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{path} is not a MATLAB file, or is truncated or damaged: {short(lines[0], 200)}")
