"""Cells from one or several files, and cells whose counts stay on disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, cast

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from anndata.experimental import concat_on_disk

from mixvae._resources import TooLarge, check
from mixvae.files import one_line
from mixvae.single_cell.checked import Unfit, check_h5ad, check_texts
from mixvae.single_cell.data import MissingKey, check_keys, read_h5ad

FILE_KEY = "file"
"""Column of `obs` that says which of several files a cell is from."""
MATRIX = re.compile(r"(.*)matrix\.mtx(\.gz)?")
"""Name of a 10x matrix; what precedes it also precedes the names of its cells and genes."""
ENTRY = 12
"""Least bytes of an entry of a sparse matrix: a number, its row and its column."""
BLOCK = 4096
"""Cells that are embedded at once if they are on disk."""


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
    folder stands for its files in order of their names. Several files are put together, first to last, with the columns
    of `obs` that they share and the column `file`.

    Args:
        paths: the files and folders.
        keys: columns of `obs` that every file must have.
        layer: layer that every file must have.
        backed: leave the counts, the `X` of .h5ad files, on disk; of the rest only `obs` and `var` are read.
        copied: refuse what can be read but not written again.

    Raises:
        ValueError: a file is missing, is of another kind or damaged, lacks a column, has other genes than the first, or
            exceeds the memory.
    """
    files = list(files_of(paths))
    if backed:
        return _on_disk(files, list(keys), layer)
    return _together([_read(file, copied=copied) for file in files], files, list(keys), layer)


def names_of(files: Sequence[Path]) -> list[str]:
    """Shortest names that tell files apart: without folder and suffix if these suffice.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.single_cell.atlas import names_of
        >>> names_of([Path("data/a.h5ad"), Path("data/b.h5ad")]), names_of([Path("a/cells.h5ad"), Path("b/cells.h5ad")])
        (['a', 'b'], ['a/cells.h5ad', 'b/cells.h5ad'])
    """
    short = [_stem(file) for file in files]
    return short if len(set(short)) == len(files) else list(map(str, files))


def embed_on_disk(
    cells: AnnData,
    paths: Sequence[str | Path],
    out: Path,
    computed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> None:
    """Copy cells, all in one file, and write arrays to its `obsm` as they are computed, some cells at a time.

    Args:
        cells: what `read_cells` made of them.
        paths: their files and folders.
        out: the copy.
        computed: what makes a part of each array, (cells, size), from the numbers of these cells, by key of `obsm`.
    """
    files = list(files_of(paths))
    if len(files) == 1:
        shutil.copyfile(files[0], out)
    else:
        named = dict(zip(names_of(files), files, strict=True))
        separator = None if _is_distinct(map(_names, files)) else "-"
        concat_on_disk(named, out, label=FILE_KEY, merge="same", index_unique=separator)
    with h5py.File(out, "r+") as file:
        if "obsm" not in file:
            file.create_group("obsm").attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        group: Any = file["obsm"]
        for first in range(0, cells.n_obs, BLOCK):
            numbers = np.arange(first, min(first + BLOCK, cells.n_obs))
            for key, compute in computed.items():
                values = compute(numbers)
                if first == 0:
                    group.pop(key, None)
                    made = group.create_dataset(key, (cells.n_obs, *values.shape[1:]), values.dtype)
                    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
                group[key][numbers[0] : numbers[-1] + 1] = values


def _names(file: Path) -> pd.Index:
    """Names of the cells of an .h5ad file."""
    with h5py.File(file, "r") as content:
        frame: Any = anndata.io.read_elem(content["obs"])
    return frame.index


def _is_distinct(names: Iterable[Iterable[Any]]) -> bool:
    every = list(chain.from_iterable(names))
    return len(set(every)) == len(every)


def files_of(paths: Sequence[str | Path]) -> Iterator[Path]:
    """The files, with each folder's in order of their names.

    Raises:
        ValueError: a folder holds none, or files of several kinds.
    """
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.is_dir():
            yield path
            continue
        held = sorted(file for file in path.iterdir() if _kind(file) is not None)
        kinds = sorted({str(_kind(file)) for file in held})
        if len(kinds) != 1:
            what = f"files of several kinds, {', '.join(kinds)}" if held else "no .h5ad, .h5, .loom or matrix.mtx file"
            raise ValueError(f"the folder {path} holds {what}: name the files to read")
        yield from held


def _kind(file: Path) -> str | None:
    """Suffix of a file of cells; None for others, and hidden ones, as files are while they are written."""
    if file.name.startswith("."):
        return None
    if MATRIX.fullmatch(file.name):
        return ".mtx"
    return file.suffix if file.suffix in READERS else None


def _stem(file: Path) -> str:
    """Name of a file without its suffix; of a matrix.mtx what precedes this name, or the folder."""
    if matrix := MATRIX.fullmatch(file.name):
        return matrix[1].rstrip("_-.") or file.absolute().parent.name
    return file.stem


def _read(file: Path, *, copied: bool) -> AnnData:
    """The cells of one file.

    Raises:
        ValueError: it cannot be read.
    """
    read = READERS.get(".mtx" if file.name.endswith(".mtx.gz") else file.suffix)
    if read is None or (read is _read_10x and _is_h5ad(file)):
        return read_h5ad(file, copied=copied)
    if not file.exists():
        raise Unfit(f"there is no file {file}")
    try:
        cells = read(file)
    except (Unfit, TooLarge):
        raise
    except ImportError as error:
        name = error.name or "loompy"
        raise ValueError(f"{file} cannot be read without the package {name}: pip install {name}") from error
    except Exception as error:  # h5py, loompy and scanpy may raise anything
        raise ValueError(f"{file} cannot be read as cells ({file.suffix}): {one_line(error)}") from error
    if copied:
        check_texts(cells, file)
    return cells


def _is_h5ad(file: Path) -> bool:
    """Whether a file that is named .h5 is an .h5ad one."""
    with suppress(OSError), h5py.File(file, "r") as content:
        return "obs" in content
    return False


def _read_10x(file: Path) -> AnnData:
    import scanpy

    check_h5ad(file)
    cells = scanpy.read_10x_h5(file)
    cells.var_names_make_unique()
    return cells


def _read_loom(file: Path) -> AnnData:
    check_h5ad(file)
    return anndata.io.read_loom(file)


def _read_mtx(file: Path) -> AnnData:
    """Read a matrix, genes by cells, and the tables beside it; all of them may be compressed.

    Raises:
        Unfit: a table is missing or has another length.
        TooLarge: it does not fit.
    """
    name = MATRIX.fullmatch(file.name)
    if name is None:
        raise Unfit(f"{file} is named otherwise than 10x names it, matrix.mtx or …matrix.mtx: rename it")
    genes, cells, entries, *_ = scipy.io.mminfo(file)
    check(ENTRY * int(entries), f"{file}, unpacked,", "give a file of fewer cells or genes")
    features, barcodes = _table(file, name[1], "features", "genes"), _table(file, name[1], "barcodes")
    if (len(features), len(barcodes)) != (genes, cells):
        raise Unfit(
            f"{file} has {genes} genes and {cells} cells, and the tables beside it name {len(features)} and "
            f"{len(barcodes)}: give those that belong to it"
        )
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()}, index=features[min(1, features.columns[-1])].to_numpy())
    obs = pd.DataFrame(index=barcodes[0].to_numpy())
    adata = AnnData(sp.csr_matrix(scipy.io.mmread(file).T, dtype=np.float32), obs, var)
    adata.var_names_make_unique()
    if 2 in features:
        adata.var["feature_types"] = features[2].to_numpy()
        adata = adata[:, adata.var["feature_types"].to_numpy() == "Gene Expression"].copy()
    return adata


def _table(file: Path, prefix: str, *names: str) -> pd.DataFrame:
    """The table of a matrix by one of these names, as text."""
    there = [file.parent / f"{prefix}{name}.tsv{suffix}" for name in names for suffix in (".gz", "")]
    for path in filter(Path.is_file, there):
        return pd.read_csv(path, header=None, sep="\t", dtype=str, keep_default_na=False)
    raise Unfit(f"{file} has no {prefix}{names[0]}.tsv or {there[0].name} beside it, which names what it holds")


READERS: dict[str, Callable[[Path], AnnData] | None] = {
    ".h5ad": None,
    ".h5": _read_10x,
    ".loom": _read_loom,
    ".mtx": _read_mtx,
}
"""What reads a file, by suffix; None for `read_h5ad`, which also takes files of other names."""


def _together(parts: list[AnnData], files: Sequence[Path], keys: Sequence[str | None], layer: str | None) -> AnnData:
    """Put files together that have the same genes, in the order of the first."""
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
    separator = None if _is_distinct(part.obs_names for part in parts) else "-"
    return anndata.concat(parts, label=FILE_KEY, keys=names, join="inner", merge="same", index_unique=separator)


def _check_shared(genes: pd.Index, first: pd.Index, file: Path, first_file: Path) -> None:
    """Check that a file's genes are those of the first file, in any order.

    Raises:
        ValueError: they are others, or cannot be told apart.
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


class Rows(sp.csr_matrix):
    """Counts of files, one below another, of which only the rows that are asked for are read.

    scvi-tools takes it for a sparse matrix; it can be indexed by rows, and nothing else.

    Args:
        parts: what reads each file's rows, a sparse dataset of anndata or a dataset of h5py.
        orders: places of the genes in each file; None where they are in order.
    """

    def __init__(self, parts: Sequence[Any], orders: Sequence[np.ndarray | None]):
        self.parts, self.orders = list(parts), list(orders)
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        super().__init__((int(self.starts[-1]), parts[0].shape[1]), dtype=np.float32)

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """Read rows, by a slice, numbers or a mask."""
        cells = int(self.starts[-1])
        if isinstance(rows, slice):
            numbers = np.arange(*rows.indices(cells))
        else:
            numbers = np.atleast_1d(np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows))
        numbers = np.where(numbers < 0, numbers + cells, numbers)
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        which = np.searchsorted(self.starts, ascending, side="right") - 1
        blocks = [self._read(i, ascending[which == i] - self.starts[i]) for i in np.unique(which).tolist()]
        empty = [sp.csr_matrix((0, self.parts[0].shape[1]), dtype=np.float32)]
        found = cast("Any", sp.vstack(blocks or empty, "csr"))
        return found if (order[1:] > order[:-1]).all() else found[np.argsort(order)]

    def _read(self, part: int, rows: np.ndarray) -> sp.csr_matrix:
        """Rows of one file, in ascending order; those that follow each other are read at once, which is faster."""
        different, repeats = np.unique(rows, return_inverse=True)
        first, last = int(different[0]), int(different[-1]) + 1
        follow = last - first == len(different)
        block: Any = sp.csr_matrix(self.parts[part][slice(first, last) if follow else different], dtype=np.float32)
        block = block if len(different) == len(rows) else block[repeats]
        order = self.orders[part]
        return block if order is None else block[:, order]


class Atlas(AnnData):
    """Cells whose counts stay on disk; scvi-tools takes it for a backed AnnData.

    Args:
        frames: cells without counts.
        counts: their counts.
    """

    def __init__(self, frames: AnnData, counts: Rows):
        super().__init__(obs=frames.obs, var=frames.var)
        self._counts = counts

    @property
    def isbacked(self) -> bool:
        """True."""
        return True

    @property
    def X(self) -> Rows:  # noqa: N802
        """The counts."""
        return self._counts


def _on_disk(files: Sequence[Path], keys: Sequence[str | None], layer: str | None) -> AnnData:
    """Cells of .h5ad files with their counts left there.

    Raises:
        ValueError: the counts of a file are not rows of `X`.
    """
    if layer is not None:
        raise ValueError(f"only X can stay on disk, not the layer {layer!r}: write a file whose X holds the counts")
    frames, counts = zip(*map(_opened, files), strict=True)
    cells = _together(list(frames), files, keys, None)
    genes = cells.var_names
    orders = [None if part.var_names.equals(genes) else part.var_names.get_indexer(genes) for part in frames]
    return Atlas(cells, Rows(counts, orders))


def _opened(path: Path) -> tuple[AnnData, Any]:
    """The cells of an .h5ad file without counts, and what reads these."""
    try:
        with suppress(TooLarge):  # counts need not fit
            check_h5ad(path)
        file = h5py.File(path, "r")
        counts: Any = file.get("X")
        kind = None if counts is None else str(counts.attrs.get("encoding-type"))
        if kind not in ("csr_matrix", "array"):
            raise Unfit(f"{path} must hold counts by rows to stay on disk, csr_matrix or array; X is {kind}")
        frames: dict[str, Any] = {name: anndata.io.read_elem(file[name]) for name in ("obs", "var")}
        return AnnData(**frames), anndata.io.sparse_dataset(counts) if kind == "csr_matrix" else counts
    except Unfit:
        raise
    except Exception as error:  # h5py and anndata may raise anything
        raise ValueError(f"{path} cannot be read as AnnData (.h5ad): {one_line(error)}") from error
