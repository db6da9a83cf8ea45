"""Tables of numbers, one example per row, with or without a column of classes: as text or Parquet."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mixvae._arrays import FEWER
from mixvae._resources import TooLarge, check, short

Labelled = tuple[np.ndarray, np.ndarray | None]
"""Examples (N, …), and labels (N,) or None."""
SEPARATED: dict[str, Callable[[Iterable[str]], Iterator[list[str]]]] = {
    ".csv": csv.reader,
    ".tsv": lambda lines: csv.reader(lines, delimiter="\t"),
    ".txt": lambda lines: map(str.split, lines),
    ".amat": lambda lines: map(str.split, lines),
}
"""How lines of text are divided into values: at commas, at tabs, or at spaces as in static MNIST."""
LABELS = ("label", "labels", "class", "target", "y")
"""Headings of a column that holds classes."""
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
"""What the parts of a split are called in files and folders."""
LARGEST_TABLE = 2**32
"""Maximum number of bytes of a table in text, which is read line by line."""
LONGEST_LINE = 2**24
"""Maximum number of characters in a line."""
INDEX = re.compile(r"__index_level_\d+__")
"""Columns that pandas adds to a Parquet file and that hold no values."""


def read_table(path: Path) -> Labelled:
    """Read a table of numbers in text, gzipped or not: values separated as the suffix says, with or without headings.

    A column with a heading such as `label` or `class` holds the classes, which may be text.

    Returns:
        Examples (N, D), and labels (N,) or None.

    Raises:
        ValueError: it is empty or too large, a line has a different number of values, or a value is not a number.
    """
    packed = path.suffix.lower() == ".gz"
    separated = SEPARATED[Path(path.stem if packed else path.name).suffix.lower()]
    if path.stat().st_size > LARGEST_TABLE:
        raise _too_much_text(path)
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else open(path, encoding="utf-8-sig", newline="") as file
        ):
            return _table(path, separated(_lines(file, path)))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: save it as that") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not a table: {error}") from None


def _too_much_text(path: Path) -> TooLarge:
    return TooLarge(f"{path} has more than {LARGEST_TABLE // 2**30} GiB of text: save it as .npy")


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """Lines of text, bounded in length and number.

    Raises:
        TooLarge: a line, or the whole, is longer.
    """
    size = 0
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and line[-1] != "\n":
            raise TooLarge(f"{path} has a line of more than {LONGEST_LINE:,} characters: give one line per example")
        size += len(line)
        if size > LARGEST_TABLE:
            raise _too_much_text(path)
        yield line


def _table(path: Path, lines: Iterable[list[str]]) -> Labelled:
    """The table of divided lines."""
    rows: list[np.ndarray] = []
    labels: list[str] = []
    headings: list[str] | None = None
    column = width = None
    for number, line in enumerate(lines, 1):
        if not line or line == [""]:
            continue
        if width is None:
            width = len(line)
            if _are_headings(line, path):
                headings = [name.strip() for name in line]
                column = _column_of_labels(headings)
                continue
        if len(line) != width:
            raise ValueError(f"{path}, line {number}, has {len(line)} values, the first line {width}")
        if column is not None:
            labels.append(line.pop(column).strip())
            if not labels[-1]:
                raise ValueError(f"{path}, line {number}, has no class: give every example one")
        try:
            rows.append(np.array(line, dtype=np.float64))
        except ValueError:
            bad = next(i for i, value in enumerate(line) if not _is_number(value))
            place = bad + (column is not None and bad >= column)
            name = f"column {headings[place]}" if headings else f"value {place + 1}"
            if not line[bad].strip():
                raise ValueError(
                    f"{path}, line {number}, {name}, is empty: remove the example or impute the value"
                ) from None
            raise ValueError(
                f"{path}, line {number}, {name}: {line[bad][:40]!r} is not a number; name a column of classes "
                f"{LABELS[0]!r}, and code other text as numbers"
            ) from None
    if not rows:
        raise ValueError(f"{path} holds no examples")
    x = np.stack(rows)
    whole = x.astype(np.int64) if (x == np.rint(x)).all() and np.abs(x).max() < 2**53 else x
    return whole, np.array(labels) if column is not None else None


def _column_of_labels(headings: list[str]) -> int | None:
    """Number of the column that holds classes.

    Raises:
        ValueError: several could.
    """
    found = [i for i, name in enumerate(headings) if name.strip().lower() in LABELS]
    if len(found) > 1:
        names = " and ".join(headings[i].strip() for i in found)
        raise ValueError(f"the columns {names} could each hold the classes: keep or rename all but one of them")
    return found[0] if found else None


def _are_headings(line: list[str], path: Path) -> bool:
    """Whether the first line of a table names its columns.

    Raises:
        ValueError: a column has no name, or it cannot be told whether the line is an example.
    """
    numbers = [float(value) for value in line if _is_number(value)]
    if len(numbers) == len(line):
        start, most = numbers[0], 3
        if len(line) >= most and start in (0, 1) and numbers == [start + i for i in range(len(line))]:
            shown = ", ".join(f"{value:g}" for value in numbers[:most]) + (", …" if len(line) > most else ",")
            raise ValueError(
                f"{path}: the first line, {shown} looks like numbers of columns: name them, such as x0, or leave that "
                "line out"
            )
        return False
    named = not numbers or _column_of_labels(line) is not None
    numbered = len(numbers) > 1 and numbers == list(range(len(numbers)))
    if (named or numbered) and "" in (names := [value.strip() for value in line]):
        at = names.index("") + 1
        raise ValueError(
            f"{path}: column {at} has no name, as the index of a data frame: save it without, by to_csv(index=False)"
        )
    return named


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_parquet(path: Path) -> Labelled:
    """Read a Parquet file of numbers, one example per row: columns of numbers, or of lists of one length.

    A column named `label` or `class`, for example, holds the classes, which may be text; columns in which pandas stores
    an index are left out. Missing numbers are NaN.

    Returns:
        Examples (N, D), and labels (N,) or None.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged, empty or too large, or a column holds something else.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{path}: Parquet files need pyarrow: pip install 'mixvae[tables]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            values = sum(
                file.metadata.row_group(group).column(i).num_values
                for group in range(file.metadata.num_row_groups)
                for i in range(file.metadata.num_columns)
            )
            check(8 * max(values, file.metadata.num_rows), f"{path}, unpacked,", FEWER)
            names = [name for name in file.schema_arrow.names if not INDEX.fullmatch(name)]
            table = file.read(columns=names)
    except (TooLarge, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001  (damage shows as any kind)
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is a truncated or damaged Parquet file: {short(lines[0], 200)}") from None
    column = _column_of_labels(names)
    labels = None if column is None else _classes(table.column(column).combine_chunks(), path)
    values = [_numbers(table.column(i).combine_chunks(), name, path) for i, name in enumerate(names) if i != column]
    if not values or not len(table):
        raise ValueError(f"{path} holds no examples")
    return np.concatenate(values, axis=1), labels


def _classes(column: Any, path: Path) -> np.ndarray:
    """A column of classes."""
    if column.null_count:
        raise ValueError(f"{path} lacks the class of {column.null_count} examples: give every example one")
    listed = column.to_pylist()
    return np.array(listed if all(isinstance(value, int | float) for value in listed) else [str(v) for v in listed])


def _numbers(column: Any, name: str, path: Path) -> np.ndarray:
    """A column of numbers as an array (N, 1), or of lists of W numbers as (N, W).

    Raises:
        ValueError: it holds something else, or its lists differ in length.
    """
    import pyarrow

    types, rows, width = pyarrow.types, len(column), 1
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        inner = column.flatten()  # without numbers from missing lists
        if column.null_count or (len(column) and len(inner) % len(column)):
            raise _uneven(path, name)
        each = len(inner) // len(column) if len(column) else 0
        if not types.is_fixed_size_list(column.type) and set(column.value_lengths().to_pylist()) - {each}:
            raise _uneven(path, name)
        column, width = inner, width * each
    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise ValueError(
            f"{path}, column {name!r}, holds {kind}, not numbers; name a column of classes {LABELS[0]!r}, and code "
            "the rest as numbers, or leave it out"
        )
    return column.to_numpy(zero_copy_only=False).reshape(rows, width)


def _uneven(path: Path, name: str) -> ValueError:
    return ValueError(f"{path}, column {name!r}, holds lists of different lengths: give examples of one length")
