"""Cells from one or more files, and cells whose counts stay on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.experimental import AnnCollection
from scvi.data._constants import _SCVI_UUID_KEY

from mixvae._resources import TooLarge
from mixvae.single_cell.checked import Unfit, check_annotated, check_file, check_hdf5
from mixvae.single_cell.data import MissingKey, check_keys, find_genes
from mixvae.single_cell.disk import Part, Rows, on_disk
from mixvae.single_cell.reading import files_of, kind_of, names_of, read_file, reading

FILE_KEY = "file"
"""Column of `obs` that says which of several files a cell is from."""


def read_cells(
    paths: Sequence[str | Path],
    keys: Iterable[str | None] = (),
    layer: str | None = None,
    *,
    backed: bool = False,
    copied: bool = False,
) -> AnnData:
    """Read the cells of one or several files, which must have the same genes; their order is that of the first file.

    A file is an .h5ad, a .loom, an .h5 by Cell Ranger, or a matrix.mtx beside its barcodes.tsv and features.tsv; a
    folder stands for its files in the order of their names. Several files are concatenated, first to last, with the
    columns of `obs` that they share and the column `file`.

    Args:
        paths: the files and folders.
        keys: columns of `obs` that every file must have.
        layer: layer that every file must have.
        backed: leave the counts, the `X` of .h5ad files, on disk; of the rest only `obs` and `var` are read.
        copied: refuse what can be read but not written again.

    Raises:
        ValueError: a file is missing, is of another kind or damaged, is given twice, lacks a column, has other genes
            than the first, or exceeds the memory.
    """
    files = list(files_of(paths))
    places = list(map(os.path.realpath, files))
    for i, file in enumerate(files):
        if places[i] in places[:i]:
            raise ValueError(f"{file} is given twice, so that its cells would count twice: leave one out")
    if backed:
        return _on_disk(files, list(keys), layer)
    return _together([read_file(file, copied=copied) for file in files], files, list(keys), layer)


def with_genes(cells: AnnData, genes: Sequence[str], layer: str | None = None) -> AnnData:
    """Cells with the genes of a model, found by name, in its order, and a copy of `obs`, for the model to set up.

    Args:
        cells: what `read_cells` returned.
        genes: names of the model's genes.
        layer: layer of the counts; `X` by default. The matrix is shared with `cells` where its genes are in order.

    Raises:
        MissingKey: there is no such layer.
        ValueError: genes are missing, or several have the same name.
    """
    check_keys(cells, [], layer)
    places = find_genes(cells.var_names, genes)
    frames = {"obs": cells.obs.copy(), "var": pd.DataFrame(index=pd.Index(genes, dtype=object))}
    in_order = np.array_equal(places, np.arange(cells.n_vars))
    if isinstance(cells, Atlas):
        return Atlas(AnnData(**frames), cells.X if in_order else cells.X.taking(np.arange(cells.n_obs), places))
    counts: Any = cells.X if layer is None else cells.layers[layer]
    counts = counts if in_order or counts is None else counts[:, places]
    return AnnData(counts, **frames) if layer is None else AnnData(layers={layer: counts}, **frames)


def _together(parts: list[AnnData], files: Sequence[Path], keys: Sequence[str | None], layer: str | None) -> AnnData:
    """Concatenate files that have the same genes, in the order of the first."""
    names = names_of(files)
    if len(parts) == 1:
        if FILE_KEY in keys and FILE_KEY not in parts[0].obs:  # for a model that was trained on several
            parts[0].obs[FILE_KEY] = pd.Categorical(names * parts[0].n_obs)
        return parts[0]
    genes = parts[0].var_names
    for i, (file, part) in enumerate(zip(files, parts, strict=True)):
        try:
            check_keys(part, [key for key in keys if key != FILE_KEY], layer)
        except MissingKey as error:
            raise MissingKey(f"{file}: {error}") from None
        if FILE_KEY in part.obs:
            raise ValueError(f"{file} has a column {FILE_KEY!r} of its own, where the file's name goes: rename it")
        part.raw = None
        if not part.var_names.equals(genes):
            _check_shared(part.var_names, genes, file, files[0])
            parts[i] = part[:, genes].copy()
    separator = None if pd.Index(chain.from_iterable(part.obs_names for part in parts)).is_unique else "-"
    return anndata.concat(parts, label=FILE_KEY, keys=names, join="inner", merge="same", index_unique=separator)


def _check_shared(genes: pd.Index, first: pd.Index, file: Path, first_file: Path) -> None:
    """Check that a file's genes are those of the first file, in any order.

    Raises:
        ValueError: the genes differ, or have ambiguous names.
    """
    for where, names in ((first_file, first), (file, genes)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise ValueError(
                f"several genes of {where} are named {str(twice)!r}: adata.var_names_make_unique() renames them"
            )
    shared = first.intersection(genes)
    if len(shared) < max(len(first), len(genes)):
        raise ValueError(
            f"{first_file} and {file} have different genes, {len(shared)} shared ones of {len(first)} and "
            f"{len(genes)}: write each file with the shared ones only, adata[:, shared].copy(), or all as one, "
            'anndata.concat(…, join="inner")'
        )


class Atlas(AnnData):
    """Cells whose counts stay on disk; scvi-tools takes it for a backed AnnData.

    Indexing makes an atlas of the chosen cells and genes, whose counts stay on disk too; `to_memory` reads them.

    Args:
        frames: cells without counts.
        counts: their counts.
    """

    def __init__(self, frames: AnnData, counts: Rows):
        super().__init__(frames)
        self._X: Any = counts

    def __getitem__(self, index: Any) -> Atlas:
        """Some of the cells and genes."""
        frames = (pd.DataFrame({"place": np.arange(len(names))}, names) for names in (self.obs_names, self.var_names))
        places = AnnData(**dict(zip(("obs", "var"), frames, strict=True)))[index]
        cells, genes = (frame["place"].to_numpy() for frame in (places.obs, places.var))
        taken = self._frames()[index].copy()
        taken.uns.pop(_SCVI_UUID_KEY, None)  # other cells than those that were set up
        return Atlas(taken, self.X.taking(cells, genes))

    def _frames(self) -> AnnData:
        """Everything but the counts."""
        frames = AnnData(self)
        frames.X = None
        return frames

    def copy(self, filename: object = None) -> Atlas:
        """A copy whose counts stay where they are.

        Raises:
            ValueError: a file is given.
        """
        if filename is not None:
            self.write_h5ad()
        return Atlas(self._frames().copy(), self.X)

    def to_memory(self, *, copy: bool = False) -> AnnData:
        """The cells with all of their counts in memory."""
        cells = self._frames().copy() if copy else self._frames()
        cells.X = self.X[:]
        return cells

    def write_h5ad(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to write.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "cells whose counts stay on disk cannot be written: adata.to_memory().write_h5ad(…) writes them, and a "
            "model is saved without them, save_anndata=False"
        )

    write = write_h5ad

    @classmethod
    def of(cls, collection: AnnCollection) -> Atlas:
        """The cells of a collection of anndata, with the `X` of its parts, such as backed AnnData, as counts.

        Args:
            collection: the collection.

        Raises:
            ValueError: it converts values.

        Example:
            >>> import numpy as np
            >>> from anndata import AnnData
            >>> from anndata.experimental import AnnCollection
            >>> from mixvae.single_cell import Atlas
            >>> parts = [AnnData(np.ones((n, 3), np.float32)) for n in (4, 2)]  # or anndata.read_h5ad(…, backed="r")
            >>> Atlas.of(AnnCollection(parts, index_unique="-")).X[[5, 0]].toarray()
            array([[1., 1., 1.],
                   [1., 1., 1.]], dtype=float32)
        """
        if collection.convert is not None:
            raise ValueError("a collection that converts values cannot be read: make it without convert=…")
        genes = collection.var_names
        parts = [
            Part(part.X, str(part.filename or f"part {i} of the collection"), _order(part.var_names, genes))
            for i, part in enumerate(collection.adatas)
        ]
        return cls(AnnData(obs=collection.obs, var=pd.DataFrame(index=genes)), Rows(parts))

    @property
    def isbacked(self) -> bool:
        """True."""
        return True

    @property
    def X(self) -> Rows:  # noqa: N802
        """The counts."""
        return self._X

    @X.setter
    def X(self, value: object) -> None:  # noqa: N802
        raise on_disk()


def _on_disk(files: Sequence[Path], keys: Sequence[str | None], layer: str | None) -> AnnData:
    """Cells of .h5ad files with their counts left there.

    Raises:
        ValueError: the counts of a file are not rows of `X`.
    """
    if layer is not None:
        raise ValueError(f"only X can stay on disk, not the layer {layer!r}: write a file whose X holds the counts")
    frames, counts = zip(*map(_opened, files), strict=True)
    cells = _together(list(frames), files, keys, None)
    parts = [
        Part(part, str(file), _order(frame.var_names, cells.var_names))
        for file, frame, part in zip(files, frames, counts, strict=True)
    ]
    return Atlas(cells, Rows(parts))


def _order(names: pd.Index, genes: pd.Index) -> np.ndarray | None:
    """Positions of genes among the names in a file; None if they are all in order."""
    return None if names.equals(genes) else names.get_indexer(genes)


def _opened(path: Path) -> tuple[AnnData, Any]:
    """The cells of an .h5ad file without counts, and a reader of the counts.

    Raises:
        ValueError: it is of another kind or damaged, or its counts are not rows of `X`.
    """
    check_file(path)
    if kind_of(path) not in (None, ".h5ad", ".h5"):
        raise Unfit(f"only .h5ad files can stay on disk, not {path}: read it into memory, or write it as .h5ad")
    with reading(path):
        with suppress(TooLarge):  # counts need not fit
            check_hdf5(path)
        file = h5py.File(path, "r")
        check_annotated(file, path)
        counts: Any = file.get("X")
        kind = None if counts is None else str(counts.attrs.get("encoding-type"))
        if kind not in ("csr_matrix", "array"):
            raise Unfit(f"{path} must hold counts by rows to stay on disk, csr_matrix or array; X is {kind}")
        frames = AnnData(**{name: anndata.io.read_elem(file[name]) for name in ("obs", "var")})
        counts = anndata.io.sparse_dataset(counts) if kind == "csr_matrix" else counts
        if counts.shape != frames.shape or counts.dtype.kind not in "biuf":
            raise Unfit(
                f"{path}: X must hold a number for each of its {frames.n_obs} cells and {frames.n_vars} genes; it has "
                f"the shape {counts.shape} and the type {counts.dtype}"
            )
        return frames, counts
