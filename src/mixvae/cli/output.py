"""Printing and writing by commands."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixvae._tables import Row, counted, plain
from mixvae.progress import Terminal

if TYPE_CHECKING:
    from rich.console import Console

    from mixvae.reports import Column, Comparison

LONGEST = 1000
"""Maximum number of characters in an error; the middle of a longer one, such as a long value, is left out."""
PAGE = 120
"""Characters per line when printing to a file."""

NARROW = 10
"""Width in characters that a heading may always have, however narrow its column."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logs and warnings of libraries, which concern their internals; errors are still raised."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def names(words: str) -> list[str]:
    """Names separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def fail(message: str, status: int) -> None:
    """Exit with a line on standard error."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} […] {message[-LONGEST // 2 :]}"
    message = plain(message)
    print(f"mixvae: error: {message}" if status != 130 else f"mixvae: {message}", file=sys.stderr)
    raise SystemExit(status)


def target(path: str | Path, *suffixes: str, option: str = "--out") -> Path:
    """A file to write, checked to be writable before the work begins.

    Raises:
        ValueError: it has another suffix, is a directory, or its folder cannot be made or written to.
    """
    from mixvae.files import check_file

    path = Path(path).expanduser()
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}; got {path}")
    check_file(path, f"{option} {path}")
    return path


def folder(path: str | Path, option: str = "--out") -> Path:
    """A folder to write to, checked to exist or to be creatable.

    Raises:
        ValueError: something of that name is not a folder, or the folder is not writable.
    """
    from mixvae.files import check_folder

    path = Path(path).expanduser()
    check_folder(path, f"{option} {path}")
    return path


def write(path: Path, values: Any, draw: Callable[[], Any], *, as_array: bool) -> None:
    """Write an array, or a picture of it."""
    import numpy as np

    from mixvae import figures
    from mixvae.files import atomic

    if not as_array and (values.ndim < 4 or values.shape[-3] not in (1, 3)):
        raise ValueError(
            f"these data are not images but have shape {values.shape}: give --out a name that ends in .npy"
        )
    with atomic(path) as temporary:
        if as_array:
            np.save(temporary, values)
        else:
            temporary.write_bytes(figures.png(draw()))
    show(f"wrote {path}")


def _console() -> Console:
    """The terminal, or a wide page without one."""
    from rich.console import Console

    width = None if Console().is_terminal else PAGE
    return Console(width=width, markup=False, emoji=False)  # users' names are printed verbatim


def show(what: Any) -> None:
    """Print to the terminal, or in full width to a file."""
    what = plain(what) if isinstance(what, str) else what
    _console().print(what, highlight=False, soft_wrap=isinstance(what, str))


def show_comparison(comparison: Comparison) -> None:
    """Print the tables of runs and of configurations, and what makes the comparison unfair."""
    from mixvae.reports import CONFIGURATIONS

    first = comparison.table[0]
    examples = counted(first["examples"], f"{first['split']} example")
    about = f"{first['data']}, {examples}, nats"
    known: Sequence[Column] = ()
    if comparison.has_several:
        show_rows(CONFIGURATIONS, comparison.configurations, f"Configurations: {about}")
        about, known = f"Single trainings: {about}", CONFIGURATIONS
    show_rows(comparison.columns, comparison.table, about, known)
    for note in comparison.warnings:
        show(f"note: {note}")


def show_rows(columns: Sequence[Column], rows: Sequence[Row], title: str, known: Sequence[Column] = ()) -> None:
    """Print rows as a table of the non-empty columns, in parts if it is too wide, and explain what is in it.

    Args:
        columns: its columns; those that are `page_only` are left out.
        rows: its rows.
        title: what the table shows.
        known: columns already explained.
    """
    from rich.table import Table

    from mixvae.reports import filled, legend, meanings

    width = _console().width
    shown = [column for column in filled(columns, rows) if not column.page_only]
    for part in _parts(shown, rows, width):
        table = Table(title=plain(title))
        for i, column in enumerate(part):
            table.add_column(_heading(column, rows), justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(plain(column.text(row)) for column in part))
        show(table)
    if (words := meanings(shown, known)) and not Terminal().console.quiet:
        explanation = "; ".join(f"{name}: {meaning}" for name, meaning in words.items())
        show(textwrap.fill(explanation, min(width, PAGE), break_on_hyphens=False))
    for mark in legend(shown, rows):
        show(mark)


def _heading(column: Column, rows: Sequence[Row]) -> str:
    """A column's title in lines about as long as its values."""
    longest = max(map(len, (*column.title.split(), *(column.text(row) for row in rows))))
    return textwrap.fill(column.title, max(longest, NARROW), break_on_hyphens=False)


def _parts(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[list[Column]]:
    """Columns in groups that fit a width, each starting with the one or two columns that name the rows."""

    def needed(part: Sequence[Column]) -> int:
        longest = (max(map(len, (*_heading(column, rows).splitlines(), *map(column.text, rows)))) for column in part)
        return 1 + sum(cell + 3 for cell in longest)  # a border and two spaces each

    leading = [columns[0], *(column for column in columns[1:2] if not column.error)]
    others = columns[len(leading) :]

    def split(most: int) -> list[list[Column]]:
        parts = [list(leading)]
        for column in others:
            added = len(parts[-1]) - len(leading)
            if added and (added == most or needed([*parts[-1], column]) > width):
                parts.append(list(leading))
            parts[-1].append(column)
        return parts

    parts = split(len(others))
    even = split(math.ceil(len(others) / len(parts)))
    return even if len(even) == len(parts) else parts


def show_scores(rows: Sequence[Row], run: str = "") -> None:
    """Print how well latents predict labels, under the name of the run if there are several."""
    from mixvae.reports import scores

    title = "labels from latents"
    show_rows(*scores(rows), f"{run}: {title}" if run else title)
