"""Counts that stay on disk, in one file or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
from numpy.lib.mixins import NDArrayOperatorsMixin

from mixvae.single_cell.checked import check_places
from mixvae.single_cell.choices import find_cells
from mixvae.single_cell.reading import reading

BLOCK = 4096
"""Number of cells read or written at once if their counts stay on disk."""


def on_disk() -> ValueError:
    """The error to raise where counts on disk would have to be in memory."""
    return ValueError(
        "these counts are on disk, to be read and summed only: adata.X[rows] reads some of them, and "
        "adata.to_memory() makes an AnnData with all"
    )


@dataclass(frozen=True)
class Part:
    """Counts of one file, of which only the requested rows are read.

    Args:
        counts: a sparse dataset of anndata, a dataset of h5py, or a matrix in memory; (cells, genes of the file).
        name: the file, for error messages.
        order: positions of the genes in the file; None if all are taken in order.
    """

    counts: Any
    name: str
    order: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self.counts.shape[0], self.counts.shape[1] if self.order is None else len(self.order)

    @property
    def dtype(self) -> np.dtype:
        """Type of the counts; 16-bit ones, for which there are no sparse matrices, become 32-bit."""
        return np.dtype(np.float32) if self.counts.dtype == np.float16 else self.counts.dtype

    def read(self, rows: np.ndarray) -> sp.csr_matrix:
        """Read rows, in ascending order; consecutive ones are read at once, which is faster.

        Raises:
            ValueError: they cannot be read.
        """
        different, repeats = np.unique(rows, return_inverse=True)
        first, last = int(different[0]), int(different[-1]) + 1
        follow = last - first == len(different)
        with reading(self.name):
            block: Any = sp.csr_matrix(self.counts[slice(first, last) if follow else different], dtype=self.dtype)
            check_places(block, "X", self.name)
        block = block if len(different) == len(rows) else block[repeats]
        return block if self.order is None else block[:, self.order]

    def taking(self, order: np.ndarray) -> Part:
        """The same with only some of its genes, by their positions."""
        return Part(self.counts, self.name, order if self.order is None else self.order[order])


class Unread(NDArrayOperatorsMixin):
    """Values on disk in place of an array; any access to them is refused. scvi-tools asks only for their number."""

    shape = (0,)

    def __getattr__(self, name: str) -> Any:
        raise on_disk()

    def __getitem__(self, index: Any) -> Any:
        raise on_disk()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise on_disk()

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        raise on_disk()


class Rows(sp.csr_matrix):
    """Counts of files, one below another, of which only the requested cells are read.

    scvi-tools takes it for a sparse matrix. It can be indexed and summed; what needs all values at once is refused.

    Args:
        parts: the counts of each file.
        cells: numbers of the cells, counted through all files; by default all in order.
    """

    def __init__(self, parts: Sequence[Part], cells: np.ndarray | None = None):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.cells = np.arange(self.starts[-1]) if cells is None else cells
        self.n_genes = parts[0].shape[1]
        super().__init__((len(self.cells), self.n_genes), dtype=np.float32)
        del self.data, self.indices, self.indptr  # whatever scipy computes from these is refused

    def __getattr__(self, name: str) -> Any:
        """Refuse the arrays of a sparse matrix in memory.

        Raises:
            ValueError: one is requested.
        """
        if name == "data":
            return Unread()
        if name in ("indices", "indptr"):
            raise on_disk()
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setitem__(self, index: Any, value: Any) -> None:
        """Refuse to write.

        Raises:
            ValueError: always.
        """
        raise on_disk()

    def __repr__(self) -> str:
        """Say how many there are, without reading any."""
        return f"<counts on disk of {len(self.cells)} cells and {self.n_genes} genes>"

    __str__ = __repr__

    @property
    def dtype(self) -> np.dtype:
        """Type of the counts that are read."""
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> Any:
        """Read cells, by a slice, numbers or a mask, and genes of them, as of a sparse matrix in memory.

        Raises:
            ValueError: there are no such cells, or they cannot be read.
        """
        rows, *genes = index if isinstance(index, tuple) else (index,)
        numbers = find_cells(rows, len(self.cells))
        found = self._read(self.cells[numbers.ravel()])
        places: Any = slice(None) if isinstance(rows, slice) else np.arange(numbers.size).reshape(numbers.shape)
        places = 0 if numbers.ndim == 0 else places
        return found[(places, *genes)] if genes else found

    def _read(self, numbers: np.ndarray) -> sp.csr_matrix:
        """Read cells by their numbers through all files."""
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        which = np.searchsorted(self.starts, ascending, side="right") - 1
        blocks = [self.parts[i].read(ascending[which == i] - self.starts[i]) for i in np.unique(which).tolist()]
        empty = [sp.csr_matrix((0, self.n_genes), dtype=np.float32)]
        found = cast("Any", sp.vstack(blocks or empty, "csr", dtype=np.float32))
        return found if (order[1:] > order[:-1]).all() else found[np.argsort(order)]

    def _blocks(self) -> Iterator[sp.csr_matrix]:
        """All cells in order, a block at a time."""
        for first in range(0, max(len(self.cells), 1), BLOCK):
            yield self._read(self.cells[first : first + BLOCK])

    def sum(self, axis: int | None = None, dtype: Any = np.float64, out: None = None) -> Any:
        """Sum over cells, genes or both, which reads all counts; in float64, as sums of many float32 are inexact."""
        sums = [block.sum(axis, dtype, out) for block in self._blocks()]
        return np.concatenate(sums) if axis in (1, -1) else sum(sums)

    def copy(self) -> Rows:
        """The same, as it cannot be changed."""
        return self

    def taking(self, cells: np.ndarray, genes: np.ndarray) -> Rows:
        """The same with only some of the cells and genes, by their positions."""
        in_order = np.array_equal(genes, np.arange(self.n_genes))
        return Rows(self.parts if in_order else [part.taking(genes) for part in self.parts], self.cells[cells])
