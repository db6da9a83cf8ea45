"""The user's own files and folders: an existing split is kept, otherwise one is made by a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mixvae._arrays import names_in, read_npz
from mixvae.datasets._columns import LABELS as LABELS
from mixvae.datasets._columns import PARTS as PARTS
from mixvae.datasets._columns import SEPARATED, Labelled, read_parquet, read_table
from mixvae.datasets._formats import ARRAY_SUFFIXES, check_unread, read_array
from mixvae.datasets._matlab import read_mat
from mixvae.datasets._pictures import read_images
from mixvae.datasets._splits import Split, as_split

READERS: dict[str, Callable[[Path], Labelled]] = {
    **dict.fromkeys(ARRAY_SUFFIXES, read_array),
    **dict.fromkeys(SEPARATED, read_table),
    ".parquet": read_parquet,
    ".mat": read_mat,
}
"""How files are read, by their suffix; text may be gzipped."""
FEWEST = 10
"""Minimum number of examples that are split into three."""


def read_own(path: Path, seed: int, size: tuple[int, int] | None = None) -> tuple[Split, Split, Split]:
    """Training, validation and test examples from a file or folder.

    A `.npz` of `x_train` and `x_test`, or a folder of `train` and `test`, keeps its split; without a validation part,
    a tenth of the training examples, chosen by the seed, becomes one. Anything else is split 80 : 10 : 10.

    Args:
        path: the file or folder.
        seed: seed of the split.
        size: height and width that images of a folder are scaled to.

    Raises:
        ValueError: it is of another kind, damaged, or has too few examples.
    """
    named = named_parts(path)
    if not named:
        x, y = read_one(path, size)
        whole = as_split(x, y, name=str(path))
        enough(path, len(whole))
        return whole.divided((len(whole) // 10, len(whole) // 10), seed)
    if path.is_dir():
        found = {part: read_images(path / name, named=True, size=size) for part, name in named.items()}
    else:
        labels = {part: name.replace("x_", "y_", 1) for part, name in named.items()}
        check_unread(path, names_in(path), {name: labels[part] for part, name in named.items()})
        arrays = read_npz(path, str(path), {*named.values(), *labels.values()})
        found = {part: (arrays[name], arrays.get(labels[part])) for part, name in named.items()}
    check_whole(path, found)
    return together(found, str(path), seed)


def read_files(files: Mapping[str, Path], seed: int, size: tuple[int, int] | None = None) -> tuple[Split, Split, Split]:
    """Training, validation and test examples, each from a file or folder of its own.

    Args:
        files: the files or folders of `train` and `test`, and of `validation` if there is one; else a tenth of the
            training examples, chosen by the seed, takes its place.
        seed: seed of the split.
        size: height and width that images of folders are scaled to.

    Raises:
        ValueError: one is damaged or is itself split, or they do not fit together.
    """
    found = {part: read_undivided(files[part], size, named=True) for part in PARTS if part in files}
    return together(found, " and ".join(map(str, files.values())), seed)


def read_undivided(path: Path, size: tuple[int, int] | None = None, *, named: bool = False) -> Labelled:
    """All examples of a file or folder that has no parts.

    Raises:
        ValueError: it has parts.
    """
    if parts := named_parts(path):
        one = parts.get("test", next(iter(parts.values())))
        remedy = f"name one of them, such as {path / one}" if path.is_dir() else f"save one, such as {one}, as .npy"
        raise ValueError(f"{path} is divided into {', '.join(parts.values())}: {remedy}")
    return read_one(path, size, named=named)


def read_one(path: Path, size: tuple[int, int] | None = None, *, named: bool = False) -> Labelled:
    """Examples, and labels if there are any, of a file or folder without parts.

    Args:
        path: the file or folder.
        size: height and width that images of a folder are scaled to.
        named: whether labels of a folder are the names of the classes, rather than their numbers.
    """
    if path.is_dir():
        return read_images(path, named=named, size=size)
    suffix = path.suffix.lower()
    if suffix == ".gz" and (packed := Path(path.stem).suffix.lower()) in SEPARATED:
        suffix = packed
    if suffix not in READERS:
        raise ValueError(f"{path} must be a folder of images or end in {', '.join(READERS)}")
    return READERS[suffix](path)


def together(found: Mapping[str, Labelled], name: str, seed: int) -> tuple[Split, Split, Split]:
    """Parts with one numbering of their classes and one scale."""
    if len({y is None for _, y in found.values()}) > 1:
        raise ValueError(f"some parts of {name} have classes and others none: give all of them, or none")
    labels = [y for _, y in found.values() if y is not None]
    if len({y.dtype.kind in "US" for y in labels}) > 1:
        raise ValueError(f"the classes of {name} are numbers in one part and text in another: give one of the two")
    known = sorted({label for y in labels for label in y.tolist()})
    shapes = {part: x.shape[1:] for part, (x, _) in found.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the parts of {name} hold examples of different shapes: {shapes}")
    scales = {part: _scale(x) for part, (x, _) in found.items()}
    if len(set(scales.values()) - {""}) > 1:
        raise ValueError(f"the parts of {name} hold pixels of different kinds, {scales}: save all of them as one kind")
    sizes = np.cumsum([0, *(len(x) for x, _ in found.values())])
    numbered = np.concatenate([np.searchsorted(known, y) for y in labels]) if labels else None
    together = as_split(np.concatenate([x for x, _ in found.values()]), numbered, name=name)
    splits = {
        part: together.take(slice(int(low), int(high)))
        for part, low, high in zip(found, sizes[:-1], sizes[1:], strict=True)
    }
    if "validation" not in splits:
        enough(name, len(splits["train"]))
        splits["train"], splits["validation"], _ = splits["train"].divided((len(splits["train"]) // 10, 0), seed)
    return splits["train"], splits["validation"], splits["test"]


def _scale(x: np.ndarray) -> str:
    """What the numbers of an image mean, which must be the same in all parts; empty if unknown."""
    if x.ndim < 3 or not x.size:
        return ""
    if x.dtype.kind == "f":
        return "real numbers"
    return "whole numbers" if x.max() > 1 else "booleans" if x.dtype.kind == "b" else ""


def enough(path: Path | str, examples: int) -> None:
    """Refuse too few examples to split.

    Raises:
        ValueError: there are too few.
    """
    if examples < FEWEST:
        raise ValueError(f"{path} holds {examples} examples; a split into three needs at least {FEWEST}")


def check_whole(path: Path, found: Mapping[str, object]) -> None:
    """Refuse parts without training or test examples.

    Raises:
        ValueError: one is missing.
    """
    if missing := [name for name in ("train", "test") if name not in found]:
        raise ValueError(f"{path} has parts {', '.join(found)} but no {missing[0]}: add it, or give one part alone")


def named_parts(path: Path) -> dict[str, str]:
    """Folders, or arrays of an archive, that hold the parts of a split, by part; empty if there are none.

    Raises:
        ValueError: a folder also has others.
    """
    if path.is_dir():
        inside = {
            child.name.lower(): child.name
            for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
        }  # fmt: skip
        named = {part: inside[name] for part, names in PARTS.items() for name in names if name in inside}
        others = [child for name, child in inside.items() if child not in named.values() and name != "__macosx"]
        if named and others:
            raise ValueError(
                f"{path} has folders {', '.join(sorted(named.values()))} of a split, but also {others[0]}: move one or "
                "the other elsewhere"
            )
        return named
    if path.suffix.lower() != ".npz":
        return {}
    names = names_in(path)
    if "x" in names:
        return {}
    return {part: f"x_{n}" for part, alternatives in PARTS.items() for n in alternatives if f"x_{n}" in names}
