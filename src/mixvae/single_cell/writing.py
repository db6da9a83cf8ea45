"""Writes cells to .h5ad files, whole or block by block. A full disk ends in an error rather than a crash."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import anndata
import h5py
import numpy as np
from anndata import AnnData

from mixvae.single_cell.atlas import Atlas
from mixvae.single_cell.disk import BLOCK, Part


def write_cells(cells: AnnData, out: Path) -> None:
    """Write cells to an .h5ad file as `AnnData.write_h5ad` does.

    Args:
        cells: cells in memory; columns of few different texts become categories.
        out: the file.

    Raises:
        OSError: the disk is full.
    """
    with _hdf5(out, "w") as file:
        _write(file, cells)


def write_on_disk(
    cells: Atlas, files: Sequence[Path], out: Path, computed: Mapping[str, Callable[[np.ndarray], np.ndarray]]
) -> None:
    """Write cells whose counts are on disk to one .h5ad file, with arrays for `obsm` as they are computed.

    A single file is copied with everything that it holds; for several, counts, `obs` and `var` are concatenated.

    Args:
        cells: what `read_cells` returned for the files.
        files: their files.
        out: the file.
        computed: functions that compute part of an array, (cells, size), from the numbers of these cells, by key of
            `obsm`.

    Raises:
        OSError: the disk is full.
    """
    if len(files) == 1:
        shutil.copyfile(files[0], out)
    else:
        with _hdf5(out, "w") as file:
            _write(file, AnnData(obs=cells.obs.copy(), var=cells.var.copy()))
            _write_counts(file, cells.X.parts)
    with _hdf5(out, "r+") as file:
        _write_obsm(file, cells.n_obs, computed)


class _Disk(io.RawIOBase):
    """A file that keeps its first error to itself, and writes nothing after it.

    HDF5 writes when it closes a file, too; if that fails, its own state is broken, and the process crashes at its end.

    Args:
        file: the file.
    """

    def __init__(self, file: io.FileIO):
        self.file = file
        self.error: OSError | None = None

    def readinto(self, buffer: Any) -> int | None:
        return self.file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None) -> int:
        self._try(lambda: self.file.truncate(size))
        return self.tell() if size is None else size

    def write(self, content: Any) -> int:
        self._try(lambda: self._write(memoryview(content)))
        return len(content)

    def _write(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self.file.write(rest) :]

    def _try(self, act: Callable[[], object]) -> None:
        try:
            if self.error is None:
                act()
        except OSError as error:
            self.error = error


@contextmanager
def _hdf5(path: Path, mode: Literal["w", "r+"]) -> Iterator[h5py.File]:
    """An HDF5 file to write to, which is closed properly whatever happens.

    Raises:
        OSError: the disk is full.
    """
    with open(path, "w+b" if mode == "w" else "r+b", buffering=0) as raw:
        disk = _Disk(raw)
        try:
            with h5py.File(disk, mode) as file:
                yield file
        finally:
            if disk.error is not None:  # and whatever else went wrong because of it
                raise disk.error


def _write(file: h5py.File, cells: AnnData) -> None:
    """Write cells as the content of a file."""
    cells.strings_to_categoricals()
    if cells.raw is not None:
        cells.strings_to_categoricals(cells.raw.var)
    anndata.io.write_elem(file, "/", cells)
    if cells.raw is None:
        del file["raw"]  # an entry for nothing, which older versions of anndata cannot read


def _write_counts(file: h5py.File, parts: Sequence[Part]) -> None:
    """Write counts of several files as one sparse matrix."""
    kind = np.result_type(*(part.dtype for part in parts))
    written: Any = None
    for part in parts:
        for rows in _blocks(part.shape[0]):
            block = part.read(rows).astype(kind)
            if written is None:
                anndata.io.write_elem(file, "X", block, dataset_kwargs={"indptr_dtype": "int64"})
                written = anndata.io.sparse_dataset(cast("Any", file["X"]))
            else:
                written.append(block)


def _write_obsm(file: h5py.File, cells: int, computed: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> None:
    """Write arrays to `obsm` as they are computed."""
    if "obsm" not in file:
        anndata.io.write_elem(file, "obsm", {})
    group: Any = file["obsm"]
    for rows in _blocks(cells):
        for key, compute in computed.items():
            values = compute(rows)
            if rows[0] == 0:
                group.pop(key, None)
                made = group.create_dataset(key, (cells, *values.shape[1:]), values.dtype)
                made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            group[key][rows[0] : rows[-1] + 1] = values


def _blocks(cells: int) -> Iterator[np.ndarray]:
    """Numbers of cells, a block at a time."""
    for first in range(0, cells, BLOCK):
        yield np.arange(first, min(first + BLOCK, cells))
