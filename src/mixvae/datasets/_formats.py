"""Readers of standard file formats: IDX, CIFAR-10's binary version, and arrays."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mixvae._arrays import FEWER, check_pickle, map_npy, members, names_in, read_npz
from mixvae._resources import TooLarge, check, short
from mixvae.datasets._columns import LABELS, PARTS

ARRAY_SUFFIXES = (".npy", ".npz", ".pt")
CIFAR_RECORD = 1 + 3 * 32 * 32
PARTED = (*itertools.chain.from_iterable(PARTS.values()), "dev", "eval")
"""What follows x_ or y_ in the names of arrays of a part of the data."""
LARGEST_ARCHIVE = 2**31
"""Maximum number of bytes that CIFAR-10's archive may unpack to; the real one has 184 million."""
DEEPEST_IDX = 4
"""Maximum number of axes of an IDX file."""
COPIES = 2
"""Minimum number of copies of the examples in memory at once while they are read and split."""


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (0x08), the number of dimensions, each size as a big-endian 32-bit
    integer, then the values.

    Raises:
        ValueError: the file is truncated, damaged, or not IDX.

    References:
        LeCun, Cortes and Burges, The MNIST database (1998), http://yann.lecun.com/exdb/mnist/
    """
    try:
        with open(path, "rb") as plain:
            if plain.read(2) != b"\x1f\x8b":
                plain.seek(0)
                return _read_idx(plain, path, os.fstat(plain.fileno()).st_size)
        with gzip.open(path) as unpacked:
            return _read_idx(unpacked, path)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from None


def _read_idx(file: IO[bytes] | Any, path: Path, size: int | None = None) -> np.ndarray:
    """Read an IDX file from a stream: what its header promises, and at most one byte more."""
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {start.hex() or 'nothing'}")
    if not 1 <= start[3] <= DEEPEST_IDX:
        raise ValueError(f"{path} promises {start[3]} axes; images have 3 and labels 1")
    header = file.read(4 * start[3])
    if len(header) < 4 * start[3]:
        raise ValueError(f"{path} is truncated: its header ends early")
    shape = struct.unpack(f">{start[3]}I", header)
    promised = math.prod(shape)
    if size is None:
        check(COPIES * promised, f"{path}, {shape},", FEWER)
    elif size != promised + 4 + len(header):
        found = size - 4 - len(header)
        raise ValueError(f"{path} is truncated or damaged: {promised} bytes promised, {found} found")
    content = file.read(promised)
    found = len(content) + len(file.read(1))
    if found != promised:
        more = "more" if found > promised else found
        raise ValueError(f"{path} is truncated or damaged: {promised} bytes promised, {more} found")
    return np.frombuffer(content, np.uint8).reshape(shape)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant to be seen, such as those that Macs leave beside and around others."""
    return name.startswith(".") or name == "__MACOSX"


def read_cifar(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read CIFAR-10's binary version from its archive or from the folder that it unpacks to.

    Returns:
        Images (N, 3, 32, 32) and labels (N,) of each file, such as "data_batch_1" and "test_batch".

    Raises:
        ValueError: the archive or a file in it is truncated or damaged.

    References:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
        https://www.cs.toronto.edu/~kriz/cifar.html
    """
    contents: dict[str, bytes] = {}
    if path.is_dir():
        files = [file for file in sorted(path.glob("*_batch*.bin")) if file.is_file() and not is_hidden(file.name)]
        check(COPIES * sum(file.stat().st_size for file in files), str(path), FEWER)
        contents = {file.stem: file.read_bytes() for file in files}
    else:
        try:
            with gzip.open(path) as unpacked, tarfile.open(fileobj=_Bounded(unpacked, path), mode="r|") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
                for member in archive:
                    name = Path(member.name)
                    is_batch = member.isreg() and name.suffix == ".bin" and not is_hidden(name.name)
                    file = archive.extractfile(member) if is_batch else None
                    if file is not None:
                        contents[name.stem] = file.read()
        except (TooLarge, FileNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001  (damage shows as any kind)
            raise ValueError(f"{path} is a truncated or damaged archive: {short(error, 200)}") from None
    batches = {}
    for name, content in sorted(contents.items()):
        if not content or len(content) % CIFAR_RECORD:
            raise ValueError(
                f"{path}: {name}.bin has {len(content)} bytes, not a multiple of {CIFAR_RECORD}: it is truncated"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
        batches[name] = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    return batches


class _Bounded:
    """A stream that raises an error when an archive unpacks to more than any real one."""

    def __init__(self, file: IO[bytes] | Any, path: Path):
        self.file, self.path, self.left = file, path, LARGEST_ARCHIVE

    def read(self, size: int) -> bytes:
        """Read the next bytes."""
        if size > self.left:
            raise TooLarge(
                f"{self.path} unpacks to more than {LARGEST_ARCHIVE // 2**20} MiB; CIFAR-10 has 176: it is another file"
            )
        content = self.file.read(size)
        self.left -= len(content)
        return content


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read examples, and labels if there are any, from `.npy`, `.npz` or `.pt`.

    An `.npz` archive holds `x` and optionally `y`; a `.pt` file holds a tensor, or a dictionary of them.
    No pickle is executed.

    Raises:
        ValueError: the file is damaged, or holds no `x`.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file that can be read whole: give one on disk")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return map_npy(path), None
    if suffix == ".npz":
        content: Any = read_npz(path, str(path), ("x", "y"))
        names = names_in(path)
    else:
        content = _read_pt(path)
        names = sorted(map(str, content)) if isinstance(content, dict) else []
    if not isinstance(content, dict):
        return _numpy(content, path, "it"), None
    if "x" not in content:
        raise ValueError(f"{path} must hold the examples under the name x; it holds {short(names)}")
    check_unread(path, names, {"x": "y"})
    labels = content.get("y")
    return _numpy(content["x"], path, "x"), None if labels is None else _numpy(labels, path, "y")


def check_unread(path: Path, names: Iterable[str], read: Mapping[str, str]) -> None:
    """Refuse a file with arrays that are examples or classes by their names, and would be overlooked.

    Args:
        path: the file.
        names: names of all its arrays.
        read: names of arrays of examples that are read, and of their classes.

    Raises:
        ValueError: it has some.
    """
    for name in names:
        root, _, part = name.lower().partition("_")
        is_of_data = part in PARTED if part else root in LABELS
        if name not in {*read, *read.values()} and root in ("x", *LABELS) and is_of_data:
            x, y = next(iter(read.items()))
            raise ValueError(f"{path} holds {name}, which is not read: classes of {x} are named {y}; leave others out")


def _read_pt(path: Path) -> Any:
    """Content of a torch file; nothing in it is executed."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(info.file_size for info in members(archive, str(path)).values())
            check(unpacked, f"{path}, unpacked,", FEWER)
        with open(path, "rb") as file:
            check_pickle(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old kinds of tensors, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, TooLarge):
        raise
    except Exception as error:  # noqa: BLE001  (damage shows as any kind, and a forbidden pickle as one of its own)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is truncated, damaged, or holds more than tensors: {short(lines[0], 200)}") from None


def _numpy(value: object, path: Path, name: str) -> np.ndarray:
    """Return an array, whatever library it comes from.

    Raises:
        ValueError: it is not an array, or is a tensor that does not hold plain numbers.
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{path} must hold an array or tensor; {name} is a {type(value).__name__}")
    for is_so, kind, remedy in (
        (value.is_meta, "without values (meta)", "save one with values"),
        (value.is_quantized, "quantised", "save .dequantize() of it"),
        (value.is_nested, "nested", "save one of a single shape"),
        (value.layout != torch.strided, f"sparse ({value.layout})", "save .to_dense() of it"),
        (value.is_complex(), "complex", "save its real and imaginary parts side by side"),
    ):
        if is_so:
            raise ValueError(f"{path} must hold a dense tensor of numbers; {name} is {kind}: {remedy}")
    check(
        COPIES * value.numel() * min(4, value.element_size()), f"{path}, {name} of shape {tuple(value.shape)},", FEWER
    )
    plain = value.detach().resolve_neg()
    return plain.float().numpy() if plain.is_floating_point() else plain.numpy()
