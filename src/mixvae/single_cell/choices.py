"""Checks of selections of cells: by numbers, by labels, by groups to compare."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from mixvae._resources import short
from mixvae.config import nearest
from mixvae.single_cell.data import and_more, check_keys


def find_cells(indices: Any, cells: int) -> np.ndarray:
    """Numbers of the cells that are selected by numbers, from the end if negative, by a mask, or by a slice.

    Args:
        indices: numbers of any shape, one truth value for each cell, or a slice.
        cells: number of cells.

    Raises:
        ValueError: there are no such cells, or these are neither numbers nor a mask.

    Example:
        >>> from mixvae.single_cell.choices import find_cells
        >>> find_cells([True, False, True], 3), find_cells([2, -3], 3)
        (array([0, 2]), array([2, 0]))
    """
    if isinstance(indices, slice):
        return np.arange(cells)[indices]
    given = np.asarray(indices)
    kinds = {type(value) for value in given.flat} if given.dtype == object else set()
    if given.dtype == bool or kinds == {bool}:
        if given.shape != (cells,):
            raise ValueError(f"a mask must have one truth value for each of the {cells} cells; got {given.shape}")
        return np.flatnonzero(given)
    if given.size == 0:
        return given.astype(int)
    if given.dtype.kind not in "iu":
        raise ValueError(
            f"cells are chosen by whole numbers or by a mask; got {short(repr(given.flat[0]))}: "
            "adata.obs_names.get_indexer([…]) finds the numbers of names"
        )
    outside = given[(given < -cells) | (given >= cells)]
    if outside.size:
        raise ValueError(f"cells are numbered from 0 to {cells - 1}; got {outside.flat[0]}: leave it out")
    return np.where(given < 0, given + cells, given)


def chosen_cells(indices: Any, cells: int) -> np.ndarray:
    """Numbers of the cells that a query is about, at least one; all if nothing is chosen.

    Args:
        indices: as for `find_cells`, in one dimension; None for all.
        cells: number of cells.

    Raises:
        ValueError: there are no such cells, or none are chosen.
    """
    numbers = find_cells(slice(None) if indices is None else indices, cells)
    if numbers.ndim != 1:
        raise ValueError(f"indices must be a list of numbers or a mask; got {short(repr(indices))}: put it in a list")
    if not len(numbers):
        raise ValueError("indices choose no cells: give at least one, or leave them out for all cells")
    return numbers


def check_source(adata: AnnData | None, indices: Any, dataloader: object) -> None:
    """Check that cells are given either as an AnnData or by a data loader.

    Raises:
        ValueError: both are given.
    """
    if dataloader is not None and (adata is not None or indices is not None):
        raise ValueError("dataloader brings the cells instead of adata and indices: give one or the other")


def check_labels(labels: pd.Series, unlabeled: str) -> None:
    """Check that a classifier has several labels to tell apart, and warn if every cell has a label.

    Args:
        labels: label of each cell.
        unlabeled: the label of cells without one.

    Raises:
        ValueError: there are fewer than two labels.
    """
    names = [name for name in labels.unique() if name != unlabeled]
    listed = short(", ".join(map(str, names)))
    if len(names) < 2:
        raise ValueError(
            f"scANVI needs two labels or more; adata.obs[{labels.name!r}] has {listed or 'none'} besides "
            f"{unlabeled!r}, the label of cells without one: use MixtureSCVI, or name another column"
        )
    if len(names) == labels.nunique():
        near = nearest(str(unlabeled), list(map(str, names)))
        hint = f"did you mean {near!r}?" if near else f"they are {listed}"
        warnings.warn(
            f"no cell has the unlabeled_category {unlabeled!r}, so that all labels of adata.obs[{labels.name!r}] are "
            f"learned from: {hint}",
            UserWarning,
            stacklevel=3,
        )


def check_categories(adata: AnnData, registry: Mapping[str, Any]) -> None:
    """Check that cells have no batch, label or other category on which a model was not trained.

    Args:
        adata: the cells.
        registry: scvi-tools' setup of the cells that the model was trained on.

    Raises:
        MissingKey: a column is missing.
        ValueError: a cell has one.
    """
    states = {name: field["state_registry"] for name, field in registry["field_registries"].items()}
    known = {registry["setup_args"].get(f"{name}_key"): states[name] for name in ("batch", "labels") if name in states}
    columns = {key: state["categorical_mapping"] for key, state in known.items() if key is not None}
    columns |= states.get("extra_categorical_covs", {}).get("mappings", {})
    check_keys(adata, list(columns), None)
    for key, categories in columns.items():
        check_known(adata.obs[key], categories, "leave such cells out")


def check_known(column: pd.Series, categories: Collection[Any], otherwise: str) -> None:
    """Check that no cell has a category on which a model was not trained.

    Args:
        column: category of each cell; missing ones are left to others.
        categories: the categories on which the model was trained.
        otherwise: what to do with cells that have another category, unless it merely has another type.

    Raises:
        ValueError: a cell has one.
    """
    present = column.dropna()
    new = present[~present.isin(list(categories))]
    if len(new):
        alike = [category for category in categories if str(category) == str(new.iloc[0])]
        remedy = f"make them {type(alike[0]).__name__}, as there" if alike else otherwise
        raise ValueError(
            f"adata.obs[{column.name!r}] is {short(repr(new.iloc[0]) if alike else new.iloc[0])} for cell "
            f"{new.index[0]!r}{and_more(len(new) - 1, 'new for ')}, and the model was trained on "
            f"{short(', '.join(map(str, categories)))}: {remedy}"
        )


def check_groups(adata: AnnData, groupby: str | None, groups: Sequence[Any], chosen: Sequence[Any]) -> None:
    """Check what is to be compared: groups of cells by a column of `obs`, or cells by numbers.

    Args:
        adata: the cells.
        groupby: the column.
        groups: values of the column; None is left out.
        chosen: numbers or masks of cells; a text, a query of `obs`, and None are left out.

    Raises:
        MissingKey: there is no such column.
        ValueError: there is no such group, no cells are selected, or nothing is given.
    """
    chosen = [indices for indices in chosen if indices is not None]
    for indices in chosen:
        if not isinstance(indices, str):
            chosen_cells(indices, adata.n_obs)
    if groupby is None and not chosen:
        raise ValueError("name what to compare: groupby=…, a column of adata.obs, or idx1=…, numbers of cells")
    check_keys(adata, [groupby], None)
    known = [] if groupby is None else cast("Any", adata.obs[groupby]).dropna().unique().tolist()
    for group in groups:
        if groupby is not None and group is not None and group not in known:
            near = nearest(str(group), list(map(str, known)))
            hint = f"did you mean {near!r}?" if near else f"it has {short(', '.join(map(str, known)))}"
            raise ValueError(f"adata.obs[{groupby!r}] has no group {group!r}: {hint}")
