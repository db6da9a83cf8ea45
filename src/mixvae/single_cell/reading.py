"""Cells from a file of any kind, or one line on why it cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from mixvae._resources import TooLarge, check
from mixvae.files import one_line
from mixvae.single_cell.checked import Unfit, check_annotated, check_file, check_hdf5, check_matrices, check_texts

MATRIX = re.compile(r"(.*)matrix\.mtx(\.gz)?")
"""Name of a 10x matrix; what precedes it also precedes the names of its cells and genes."""
ENTRY = 12
"""Minimum number of bytes of an entry of a sparse matrix: a number, its row and its column."""


@contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """Turn whatever a reader of files raises into one line.

    Args:
        file: the file that the block reads.

    Raises:
        Unfit: the block raised; its error is the cause.
        TooLarge: the file exceeds the memory.
    """
    try:
        yield
    except (Unfit, TooLarge):
        raise
    except ImportError as error:
        package = error.name or "loompy"
        raise Unfit(f"{file} cannot be read without the package {package}: pip install {package}") from error
    except Exception as error:  # h5py, zarr, anndata, loompy and scanpy may raise anything
        raise Unfit(f"{file} cannot be read as cells: {one_line(error)}") from error


def read_file(file: str | Path, *, copied: bool = False) -> AnnData:
    """Read the cells of one file that itself holds all of them.

    Args:
        file: an .h5ad, a .loom, an .h5 by Cell Ranger, or a matrix.mtx beside its barcodes.tsv and features.tsv.
        copied: also refuse what can be read but not written again.

    Raises:
        ValueError: there is no such file, it is of another kind or damaged, an entry is in another file, or it exceeds
            the memory.
    """
    file = Path(file)
    kind = kind_of(file)
    check_file(file)
    with reading(file):
        if kind != ".mtx":
            check_hdf5(file, copied=copied)
        cells = READERS.get(kind or "", _read_h5ad)(file)
        check_matrices(cells, file)
    if copied:
        check_texts(cells, file)
    return cells


def files_of(paths: Sequence[str | Path]) -> Iterator[Path]:
    """The files, with those of each folder in the order of their names.

    Raises:
        ValueError: a folder holds none, or files of several kinds.
    """
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.is_dir():
            yield path
            continue
        held = sorted(file for file in path.iterdir() if not file.name.startswith(".") and kind_of(file) is not None)
        kinds = sorted({str(kind_of(file)) for file in held})
        if len(kinds) != 1:
            what = f"files of several kinds, {', '.join(kinds)}" if held else "no .h5ad, .h5, .loom or matrix.mtx file"
            raise ValueError(f"the folder {path} holds {what}: name the files to read")
        yield from held


def kind_of(file: Path) -> str | None:
    """Suffix by which a file's reader is chosen; None for others, which are assumed to be .h5ad."""
    suffix = ".mtx" if file.name.endswith(".mtx.gz") else file.suffix
    return suffix if suffix in READERS else None


def names_of(files: Sequence[Path]) -> list[str]:
    """Shortest names that tell files apart: without folder and suffix if possible.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.single_cell.reading import names_of
        >>> names_of([Path("data/a.h5ad"), Path("data/b.h5ad")]), names_of([Path("a/cells.h5ad"), Path("b/cells.h5ad")])
        (['a', 'b'], ['a/cells.h5ad', 'b/cells.h5ad'])
    """
    short = [_stem(file) for file in files]
    return short if len(set(short)) == len(files) else list(map(str, files))


def _stem(file: Path) -> str:
    """Name of a file without its suffix; for a matrix.mtx, what precedes this name, or the folder."""
    if matrix := MATRIX.fullmatch(file.name):
        return matrix[1].rstrip("_-.") or file.absolute().parent.name
    return file.stem


def _read_h5ad(file: Path) -> AnnData:
    with h5py.File(file, "r") as content:
        check_annotated(content, file)
    return anndata.read_h5ad(file)


def _read_10x(file: Path) -> AnnData:
    """Read an .h5 by Cell Ranger, or an .h5ad under this name.

    Raises:
        Unfit: it is neither, or holds several genomes separately.
    """
    import scanpy

    with h5py.File(file, "r") as content:
        if "obs" in content:
            return _read_h5ad(file)
        genomes = [name for name, part in content.items() if isinstance(part, h5py.Group) and "barcodes" in part]
    if not genomes:
        raise Unfit(f"{file} holds no matrix of Cell Ranger and no AnnData: give the file that one of them wrote")
    if len(genomes) > 1:
        raise Unfit(
            f"{file} holds several genomes, {', '.join(genomes)}: write one of them as .h5ad, "
            f"scanpy.read_10x_h5(file, genome={genomes[0]!r}).write_h5ad(…)"
        )
    cells = scanpy.read_10x_h5(file)
    cells.var_names_make_unique()
    return cells


def _read_mtx(file: Path) -> AnnData:
    """Read a matrix, genes by cells, and the tables beside it; all of them may be compressed.

    Raises:
        Unfit: a table is missing or has another length.
        TooLarge: it does not fit.
    """
    name = MATRIX.fullmatch(file.name)
    if name is None:
        raise Unfit(f"{file} is not named as 10x names it, matrix.mtx or …matrix.mtx: rename it")
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
    """The table of a matrix under one of these names, as text."""
    there = [file.parent / f"{prefix}{name}.tsv{suffix}" for name in names for suffix in (".gz", "")]
    for path in filter(Path.is_file, there):
        with reading(path):
            return pd.read_csv(path, header=None, sep="\t", dtype=str, keep_default_na=False)
    raise Unfit(f"{file} has no {prefix}{names[0]}.tsv or {there[0].name} beside it, which names what it holds")


READERS: dict[str, Callable[[Path], AnnData]] = {
    ".h5ad": _read_h5ad,
    ".h5": _read_10x,
    ".loom": anndata.io.read_loom,
    ".mtx": _read_mtx,
}
"""What reads a file, by suffix."""
