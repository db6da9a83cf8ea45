"""What commands print and write."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from mixvae.reports import Column, Comparison

LONGEST = 1000
"""Characters of an error, of which the middle is left out where it repeats a long value."""
PAGE = 180
"""Characters in a line of what is printed into a file."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, all but tabs and ends of lines."""


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what libraries log and warn of, which is about their own insides; errors are raised."""
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
    """Names that are separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def fail(message: str, status: int) -> None:
    """End the process with a line on standard error."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} […] {message[-LONGEST // 2 :]}"
    message = plain(message)
    print(f"mixvae: error: {message}" if status != 130 else f"mixvae: {message}", file=sys.stderr)
    raise SystemExit(status)


def plain(text: str) -> str:
    """Text without control characters, by which a name in a file could move the cursor or colour the terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def target(path: str | Path, *suffixes: str, option: str = "--out") -> Path:
    """A file to write, if it can be written: told before the work begins.

    Raises:
        ValueError: it has another suffix, is a directory, or its folder cannot be made or written to.
    """
    from mixvae.files.ordinary import check_replaceable

    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}; got {path}")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a directory: give the name of a file")
    check_replaceable(path)
    folder(path.parent, option=option)
    return path


def folder(path: str | Path, option: str = "--out") -> Path:
    """A folder to write into, if it is there or can be made.

    Raises:
        ValueError: something of that name is no folder, or nothing can be written there.
    """
    path = Path(path)
    there = next(place for place in (path, *path.parents) if place.exists() or place == place.parent)
    if not there.is_dir():
        raise ValueError(f"{option} {path} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path} cannot be written: {there} is read-only")
    return path


def write(path: Path, values: Any, draw: Callable[[], Any], *, as_array: bool) -> None:
    """Write an array, or a picture of it."""
    import numpy as np

    from mixvae import figures
    from mixvae.files import atomic

    if not as_array and (values.ndim < 4 or values.shape[-3] not in (1, 3)):
        raise ValueError(f"these data are not images but of shape {values.shape}: give --out a name that ends in .npy")
    with atomic(path) as temporary:
        if as_array:
            np.save(temporary, values)
        else:
            temporary.write_bytes(figures.png(draw()))
    show(f"wrote {path}")


@contextmanager
def progress_bar(what: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on standard error where that is a terminal: what moves it to (done, total), and what prints above it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, markup=False, emoji=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what)
        yield (
            lambda done, total: progress.update(task, completed=done, total=total),
            lambda line: console.print(plain(line), highlight=False),
        )


def _console() -> Console:
    """The terminal, or a wide page where there is none."""
    from rich.console import Console

    width = None if Console().is_terminal else PAGE
    return Console(width=width, markup=False, emoji=False)  # what users named is printed as they wrote it


def show(what: Any) -> None:
    """Print to the terminal, or in full width to a file."""
    what = plain(what) if isinstance(what, str) else what
    _console().print(what, highlight=False, soft_wrap=isinstance(what, str))


def show_comparison(comparison: Comparison) -> None:
    """Print the table of one or more runs, and what makes it unfair."""
    from mixvae.reports import COLUMNS

    first = comparison.table[0]
    show_rows(COLUMNS, comparison.table, f"{first['data']}, {first['examples']} {first['split']} examples, nats")
    for note in comparison.warnings:
        show(f"note: {note}")


def show_rows(columns: Sequence[Column], rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print rows as a table, or as several below each other where its columns are too many for the width."""
    from rich.table import Table

    for part in _parts(columns, rows, _console().width):
        table = Table(title=plain(title))
        for i, column in enumerate(part):
            table.add_column(column.title, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(plain(column.text(row)) for column in part))
        show(table)


def _parts(columns: Sequence[Column], rows: Sequence[dict[str, Any]], width: int) -> list[list[Column]]:
    """Columns in groups that fit into a width, each led by the two that name the rows."""

    def needed(part: Sequence[Column]) -> int:
        longest = (max(len(text) for text in (column.title, *map(column.text, rows))) for column in part)
        return 1 + sum(cell + 3 for cell in longest)  # a border and two spaces each

    leading = list(columns[:2])
    parts = [list(leading)]
    for column in columns[2:]:
        if len(parts[-1]) > 2 and needed([*parts[-1], column]) > width:
            parts.append(list(leading))
        parts[-1].append(column)
    return parts


def show_scores(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of means with standard deviations over repetitions."""
    from rich.table import Table

    metrics = [key.removesuffix("_std") for key in rows[0] if key.endswith("_std")]
    title = f"accuracy, and agreement of k-means: mean ± standard deviation over {rows[0]['repetitions']} repetitions"
    table = Table("features", *(metric.upper() for metric in metrics), title=title)
    for row in rows:
        table.add_row(row["features"], *(f"{row[m]:.3f} ± {row[f'{m}_std']:.3f}" for m in metrics))
    show(table)
