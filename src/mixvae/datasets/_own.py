"""Files and folders of one's own: a split that they have is kept, and others are made by a seed."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from mixvae._arrays import names_in, read_npz
from mixvae.datasets._formats import ARRAY_SUFFIXES, read_array, read_images
from mixvae.datasets._splits import Split, as_split

TABLES = (".csv", ".amat", ".txt")
"""Text files of numbers: separated by commas, or by spaces as the static MNIST's are."""
LABELS = ("label", "labels", "class", "target", "y")
"""Headings of a column that holds classes."""
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
"""What the parts of a split are called in files and folders."""
FEWEST = 10
"""Fewest examples that are split into three."""
LARGEST_TABLE = 2**32
"""Most bytes of a table in text, which is read line by line."""
Labelled = tuple[np.ndarray, np.ndarray | None]


def read_own(path: Path, seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test examples from a file or folder.

    A `.npz` of `x_train` and `x_test`, or a folder of `train` and `test`, keeps its split; without a validation part,
    a tenth of the training examples, chosen by the seed, becomes one. Anything else is split 80 : 10 : 10.

    Raises:
        ValueError: it is of another kind, damaged, or has too few examples.
    """
    found = _parts(path)
    if found is None:
        x, y = _whole(path)
        whole = as_split(x, y, name=str(path))
        _enough(path, len(whole))
        return whole.divided((len(whole) // 10, len(whole) // 10), seed)
    known = sorted({label for _, y in found.values() if y is not None for label in y.tolist()})
    if missing := [name for name in ("train", "test") if name not in found]:
        raise ValueError(f"{path} has parts {', '.join(found)} but no {missing[0]}: add it, or give one part alone")
    if len({y is None for _, y in found.values()}) > 1:
        raise ValueError(f"some parts of {path} have classes and others none: give all of them, or none")
    shapes = {name: x.shape[1:] for name, (x, _) in found.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the parts of {path} hold examples of different shapes: {shapes}")
    sizes = np.cumsum([0, *(len(x) for x, _ in found.values())])
    labels = [np.searchsorted(known, y) for _, y in found.values() if y is not None]
    together = as_split(
        np.concatenate([x for x, _ in found.values()]), np.concatenate(labels) if labels else None, name=str(path)
    )
    splits = {
        name: together.take(slice(int(low), int(high)))
        for name, low, high in zip(found, sizes[:-1], sizes[1:], strict=True)
    }
    if "validation" not in splits:
        _enough(path, len(splits["train"]))
        splits["train"], splits["validation"], _ = splits["train"].divided((len(splits["train"]) // 10, 0), seed)
    return splits["train"], splits["validation"], splits["test"]


def _enough(path: Path, examples: int) -> None:
    if examples < FEWEST:
        raise ValueError(f"{path} holds {examples} examples; a split into three needs at least {FEWEST}")


def _parts(path: Path) -> dict[str, Labelled] | None:
    """The parts of a split that a folder or an archive has; None if it has none."""
    if path.is_dir():
        inside = {
            child.name.lower(): child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")
        }
        named = {part: inside[name] for part, names in PARTS.items() for name in names if name in inside}
        if not named:
            return None
        if others := [child for name, child in inside.items() if child not in named.values() and name != "__macosx"]:
            raise ValueError(
                f"{path} has folders {', '.join(sorted(child.name for child in named.values()))} of a split, and "
                f"{others[0].name} besides: move one of the two"
            )
        return {part: read_images(folder, named=True) for part, folder in named.items()}
    if path.suffix != ".npz":
        return None
    names = names_in(path)
    named = {part: f"x_{n}" for part, alternatives in PARTS.items() for n in alternatives if f"x_{n}" in names}
    if not named or "x" in names:
        return None
    labels = {part: name.replace("x_", "y_", 1) for part, name in named.items()}
    arrays = read_npz(path, str(path), {*named.values(), *labels.values()})
    return {part: (arrays[name], arrays.get(labels[part])) for part, name in named.items()}


def _whole(path: Path) -> Labelled:
    """Examples, and labels if there are any, of a file or folder without parts."""
    if path.is_dir():
        return read_images(path)
    if path.suffix in ARRAY_SUFFIXES:
        return read_array(path)
    if path.suffix in TABLES:
        return read_table(path)
    raise ValueError(f"{path} must be a folder of images or end in {', '.join((*ARRAY_SUFFIXES, *TABLES))}")


def read_table(path: Path) -> Labelled:
    """Read a table of numbers in text, one example per line: commas or spaces between them, headings or none.

    A column with a heading such as `label` or `class` holds the classes, which may be text.

    Returns:
        Examples (N, D), and labels (N,) or None.

    Raises:
        ValueError: it is empty or too large, a line has another number of values, or a value is no number.
    """
    if path.stat().st_size > LARGEST_TABLE:
        raise ValueError(f"{path} has more than {LARGEST_TABLE // 2**30} GiB of text: save it as .npy")
    commas = path.suffix == ".csv"
    rows: list[np.ndarray] = []
    labels: list[str] = []
    headings: list[str] | None = None
    column = width = None
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(csv.reader(file) if commas else map(str.split, file), 1):
            if not line or line == [""]:
                continue
            if width is None:
                width = len(line)
                if not all(map(_is_number, line)) and not any(map(_is_number, line)):
                    headings = [name.strip() for name in line]
                    column = next((i for i, name in enumerate(headings) if name.lower() in LABELS), None)
                    continue
            if len(line) != width:
                raise ValueError(f"{path}, line {number}, has {len(line)} values, the first line {width}")
            if column is not None:
                labels.append(line.pop(column).strip())
            try:
                rows.append(np.array(line, dtype=np.float64))
            except ValueError:
                bad = next(i for i, value in enumerate(line) if not _is_number(value))
                place = bad + (column is not None and bad >= column)
                name = f"column {headings[place]}" if headings else f"value {place + 1}"
                raise ValueError(
                    f"{path}, line {number}, {name}: {line[bad][:40]!r} is no number; name a column of classes "
                    f"{LABELS[0]!r}, and code other text as numbers"
                ) from None
    if not rows:
        raise ValueError(f"{path} holds no examples")
    x = np.stack(rows)
    whole = x.astype(np.int64) if (x == np.rint(x)).all() and np.abs(x).max() < 2**53 else x
    return whole, np.array(labels) if column is not None else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return bool(re.fullmatch(r"\s*", text))
    return True
