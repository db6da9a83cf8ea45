"""Checks of untrusted input, files of cells and records of models, before anything is made from it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from torch import Tensor

from mixvae._failures import LARGEST
from mixvae._resources import check, short

DEEPEST = 100
"""Maximum number of levels of groups in an .h5ad file."""


class Unfit(ValueError):
    """A file that cannot be read as cells."""


def check_file(path: Path) -> None:
    """Check that there is an ordinary file: a device never ends, and a pipe waits for a writer.

    Raises:
        Unfit: there is none, or it may not be read.
    """
    if not path.exists():
        raise Unfit(f"there is no file {path}")
    if not path.is_file():
        raise Unfit(f"{path} is not an ordinary file, but a folder, device or pipe: give an .h5ad file")
    if not os.access(path, os.R_OK):
        raise Unfit(f"{path} may not be read by this user: change its permissions")


def check_hdf5(path: Path, *, copied: bool = False) -> None:
    """Check that a file itself holds all of its cells, and fits into memory when unpacked; no array is read.

    Args:
        path: the .h5ad, .h5 or .loom file.
        copied: also refuse entries that anndata reads but cannot write.

    Raises:
        Unfit: it is of another kind, or an entry refers to another file.
        TooLarge: it does not fit.
    """
    if not h5py.is_hdf5(path):
        what = "not an HDF5 file, as .h5ad, .h5 and .loom files are" if path.stat().st_size else "empty"
        raise Unfit(f"{path} is {what}: give a file of one of these kinds, or a matrix.mtx")
    with h5py.File(path, "r") as file:
        _check_entries(file, path, copied=copied)
        check(_size(file, "", path, {}), f"{path}, unpacked,", "give a file of fewer cells or genes")


def check_annotated(file: h5py.File, path: Path) -> None:
    """Check that an HDF5 file holds one AnnData.

    Args:
        file: the open file.
        path: where it is, for the error message.

    Raises:
        Unfit: it holds something else.
    """
    if file.attrs.get("encoding-type") == "MuData":
        parts = list(file.get("mod", ()))
        raise Unfit(f"{path} holds MuData of {', '.join(parts)}: write one of them, mdata.mod[…].write_h5ad(…)")
    missing = [name for name in ("obs", "var") if name not in file]
    if missing:
        raise Unfit(f"{path} holds no AnnData, as it has no {' and no '.join(missing)}: give a file from write_h5ad")


def check_matrices(adata: AnnData, path: Path) -> None:
    """Check the positions of the values in sparse matrices, which scipy trusts and writes to, wherever they point.

    Args:
        adata: cells in memory.
        path: their file, for the error message.

    Raises:
        Unfit: a position lies outside its matrix.
    """
    groups = {"layers": adata.layers, "obsm": adata.obsm, "varm": adata.varm, "obsp": adata.obsp, "varp": adata.varp}
    held = {f"{name}[{key!r}]": part[key] for name, part in groups.items() for key in part}
    held |= {"X": adata.X, "raw.X": None if adata.raw is None else adata.raw.X}
    for name, matrix in held.items():
        if sp.issparse(matrix):
            check_places(matrix, name, path)


def check_places(matrix: Any, name: str, path: str | Path) -> None:
    """Check that the values of a sparse matrix by rows or columns have positions within it.

    Args:
        matrix: the matrix.
        name: its name, for the error message.
        path: its file, for the error message.

    Raises:
        Unfit: a position lies outside it.
    """
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise Unfit(f"{path}: the sparse matrix {name} is damaged, {error}: restore the file from a copy") from None


def _check_entries(file: h5py.File, path: Path, *, copied: bool) -> None:
    """Refuse entries that refer to other files; soft links, which stay within the file, are not followed."""
    visited, waiting = set(), [("", file)]
    while waiting:
        where, item = waiting.pop()
        if (address := _address(item)) in visited:
            continue
        visited.add(address)
        if isinstance(item, h5py.Dataset):
            _check_dataset(item, where, path, copied=copied)
            waiting += _categories(item, where)
        for name in item if isinstance(item, h5py.Group) else ():
            link = item.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _foreign(path, f"{where}/{name}", f"lies in another file, {short(link.filename)!r}")
            if isinstance(link, h5py.HardLink):
                waiting.append((f"{where}/{name}", item[name]))


def _check_dataset(item: h5py.Dataset, where: str, path: Path, *, copied: bool) -> None:
    if item.is_virtual:
        raise _foreign(path, where, "is put together from other files")
    if item.external:
        raise _foreign(path, where, f"lies in another file, {short(item.external[0][0])!r}")
    if copied and item.dtype.kind == "V" and item.dtype.names is None:
        raise Unfit(f"{path}: {where!r} is of a type that cannot be written again: take it out of the file")


def _foreign(path: Path, where: str, how: str) -> Unfit:
    return Unfit(f"{path}: {where!r} {how}; cells are read from one file only: give one that holds all of them")


def _categories(item: h5py.Dataset, where: str) -> list[tuple[str, Any]]:
    """Categories that a column of an old file refers to, and that may not be reachable otherwise."""
    reference = item.attrs.get("categories")
    return [(f"{where}.categories", item.file[reference])] if isinstance(reference, h5py.Reference) else []


def _size(item: Any, where: str, path: Path, known: dict[Any, int | None]) -> int:
    """Unpacked bytes of an entry and everything below it; an entry that is linked twice is read twice."""
    if isinstance(item, h5py.Dataset):
        own = (item.size or 0) * item.dtype.itemsize
        return own + sum(_size(part, place, path, known) for place, part in _categories(item, where))
    if not isinstance(item, h5py.Group):
        return 0
    address = _address(item)
    if address not in known:
        if where.count("/") > DEEPEST:
            raise Unfit(f"{path}: {short(where)!r} is nested more than {DEEPEST} levels deep: give a flatter file")
        known[address] = None  # it is being counted
        known[address] = _rows(item) + sum(_size(item.get(n), f"{where}/{n}", path, known) for n in item)
    if (total := known[address]) is None:
        raise Unfit(f"{path}: {where!r} holds itself: take that link out of the file")
    return total


def _rows(group: h5py.Group) -> int:
    """Bytes of the row pointers allocated for a sparse matrix by its shape alone, before its own are read."""
    kind = str(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format")))[:3]
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    return 0 if shape is None or kind not in ("csr", "csc") else 4 * int(np.ravel(shape)[("csr", "csc").index(kind)])


def _address(item: Any) -> tuple[int, ...]:
    """Unique address of an object in a file, by whatever name it is reached."""
    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def check_texts(adata: AnnData, path: Path) -> None:
    """Check that every name and text of cells and genes can be written to an .h5ad file.

    Raises:
        Unfit: one of them cannot.
    """
    for frame, of, one in ((adata.obs, "obs", "cell"), (adata.var, "var", "gene")):
        for name in frame.index[[_has_zero(value) for value in frame.index]]:
            raise Unfit(f"the {one} {name!r} of {path} holds a zero byte, which .h5ad cannot: rename it")
        for column in frame:
            values = frame[column].cat.categories if hasattr(frame[column], "cat") else frame[column]
            if values.dtype.kind not in "biufcmM" and any(map(_has_zero, values)):
                raise Unfit(f"{of} column {column!r} of {path} holds a zero byte, which .h5ad cannot: leave it out")


def _has_zero(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


@dataclass(frozen=True)
class _Form:
    """What a value of a record must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_categories(value: Any) -> bool:
    plain = isinstance(value, list) and all(isinstance(category, str | int | float) for category in value)
    return plain and len(set(value)) == len(value)


def _one_of(*names: str) -> _Form:
    return _Form(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


_SIZE = _Form("a whole number from 1 up", lambda value: type(value) is int and 1 <= value < LARGEST)
_FLAG = _Form("true or false", lambda value: isinstance(value, bool))
_SHARE = _Form("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
_WHERE = _one_of("encoder", "decoder", "none", "both")
_NAME = _Form("a name or null", lambda value: value is None or isinstance(value, str))
_NAMES = _Form("a list of names or null", lambda value: value is None or _is_names(value))
_GENES = _Form("a list of names", _is_names)
_OBJECT = _Form("an object", lambda value: isinstance(value, dict))
_CATEGORIES = _Form("a list of different categories", _is_categories)

OPTIONS = {
    "n_hidden": _SIZE,
    "n_latent": _SIZE,
    "n_layers": _SIZE,
    "dropout_rate": _SHARE,
    "dispersion": _one_of("gene", "gene-batch", "gene-label", "gene-cell"),
    "gene_likelihood": _one_of("zinb", "nb", "poisson", "normal"),
    "use_observed_lib_size": _FLAG,
    "latent_distribution": _one_of("normal", "ln"),
    "log_variational": _FLAG,
    "encode_covariates": _FLAG,
    "deeply_inject_covariates": _FLAG,
    "batch_representation": _one_of("one-hot", "embedding"),
    "use_batch_norm": _WHERE,
    "use_layer_norm": _WHERE,
}
"""Options of SCVI that a record may set."""
MIXTURE_OPTIONS = {
    **OPTIONS,
    "n_components": _SIZE,
    "freeze_decoder": _FLAG,
    "prior": _one_of("standard_normal", "gaussian_mixture", "vamp"),
    "n_prior_components": _SIZE,
}
"""Options of a mixture that a record may set."""
SETUP = {
    "layer": _NAME,
    "batch_key": _NAME,
    "labels_key": _NAME,
    "size_factor_key": _NAME,
    "categorical_covariate_keys": _NAMES,
    "continuous_covariate_keys": _NAMES,
}
"""Keys of counts, batches and covariates that a record may name."""


@dataclass(frozen=True)
class Record:
    """A run's record of its model of cells.

    Args:
        settings: arguments of the model.
        genes: names of the genes.
        registry: scvi-tools' setup of the cells.
    """

    settings: Mapping[str, Any]
    genes: list[str]
    registry: Mapping[str, Any]

    @staticmethod
    def from_json(content: Mapping[str, Any], options: Mapping[str, _Form], source: str) -> Record:
        """Make a record from JSON.

        Args:
            content: content of the file.
            options: forms of the settings.
            source: the file, for the error message.

        Raises:
            ValueError: it has another form.
        """
        for fault in filter(None, _faults(content, options)):
            raise ValueError(f"{source} describes no model of cells: {fault}; get the run again, or train it again")
        return Record(content["settings"], content["genes"], content["registry"])


def _faults(content: Mapping[str, Any], options: Mapping[str, _Form]) -> Iterator[str]:
    """What is wrong with a record, with empty texts for what is right; later checks rely on earlier ones."""
    yield from _closed(content.get("settings"), "settings", options)
    yield _fault(content.get("genes"), "genes", _GENES)
    yield _fault(registry := content.get("registry"), "registry", _OBJECT)
    yield from _closed(registry.get("setup_args"), "registry.setup_args", SETUP)
    where = "registry.field_registries"
    yield _fault(fields := registry.get("field_registries"), where, _OBJECT)
    for name in dict.fromkeys(("X", "batch", "labels", *fields)):
        yield _fault(field := fields.get(name), f"{where}.{name}", _OBJECT)
        yield _fault(state := field.get("state_registry"), f"{where}.{name}.state_registry", _OBJECT)
        if name in ("batch", "labels"):
            mapping = state.get("categorical_mapping")
            yield _fault(mapping, f"{where}.{name}.state_registry.categorical_mapping", _CATEGORIES)


def _closed(value: Any, where: str, forms: Mapping[str, _Form]) -> Iterator[str]:
    """What is wrong with an object that may hold only certain keys."""
    yield _fault(value, where, _OBJECT)
    for name, part in value.items():
        known = name in forms
        yield _fault(part, f"{where}.{name}", forms[name]) if known else f"{where} has {name!r}, which it cannot have"


def _fault(value: Any, where: str, form: _Form) -> str:
    return "" if form.fits(value) else f"{short(where)} must be {form.words}; got {short(repr(value))}"


def check_sizes(settings: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> None:
    """Check that the sizes of a model are those of its weights, before any memory is allocated for it.

    Args:
        settings: arguments of the model.
        weights: its weights by name.
        source: the file of the weights, for the error message.

    Raises:
        ValueError: the weights are of another model.
    """
    means = [name for name in weights if re.fullmatch(r"z_encoder\.(c\d+\.)?mean_encoder\.weight", name)]
    if not means or weights[means[0]].dim() != 2:
        raise ValueError(f"{source} is of another architecture: it has no encoder of cells; get the run again")
    first, (latent, hidden) = means[0].removesuffix("mean_encoder.weight"), weights[means[0]].shape
    layers = [n for n in weights if re.fullmatch(re.escape(first) + r"encoder\.fc_layers\.Layer \d+\.0\.weight", n)]
    sizes = {"n_components": len(means), "n_hidden": hidden, "n_layers": len(layers), "n_latent": latent}
    for name, size in sizes.items():
        if settings.get(name, size) != size:
            raise ValueError(
                f"{source} is of another architecture: settings.{name} is {settings[name]}, and that of the weights "
                f"{size}; get the run again"
            )
