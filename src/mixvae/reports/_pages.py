"""Self-contained HTML pages: table columns, embedded pictures, templates. No network requests, ever."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from mixvae import figures
from mixvae._tables import counted
from mixvae.files import write_text
from mixvae.reports._words import WORDS

MISSING = "–"
PER_INCH = 108
"""CSS pixels per inch of a figure: its 10-point text is then as large as the page's, 15 pixels."""
NOT_TIGHT, UNKNOWN = "not tight", "tightness unknown"
MARKS = {
    "*": f"{NOT_TIGHT}, or too few draws to know: log p(x) is estimated from below, so the true NLL may be lower",
    "?": "Pareto k̂ is unreliable for too many examples, so this error is not to be relied on",
}
"""Marks after values and errors that need a caveat, and what they mean."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: its heading.
        value: key of its value in a row.
        error: key of the value's error, if it has one.
        digits: decimals.
        about: what the heading means; by default what `WORDS` says about it.
        error_about: what the error is.
        signed: whether to show a plus before positive values.
        negated: whether to show −value, such as the −ELBO of an ELBO.
        trust: beginning of the keys NAME_tight and NAME_reliable, which are False in rows whose value is not tight, and
            whose error is not to be relied on; NAME_tight is None where that is unknown.
        page_only: whether it is left out in a terminal, and shown on a page only when asked for.
        positive: whether a value that rounds to zero is shown as smaller than the last decimal, as for p values.

    Example:
        >>> from mixvae.reports import Column
        >>> Column("gain", "gain", "gain_se", 3, signed=True).text({"gain": 0.5, "gain_se": 0.1})
        '+0.500 ± 0.100'
        >>> loose = {"nll": 93.456, "nll_se": 0.1, "nll_tight": False, "nll_reliable": False}
        >>> Column("NLL", "nll", "nll_se", trust="nll").text(loose)
        '93.46 ± 0.10? *'
        >>> Column("p", "p", digits=4, positive=True).text({"p": 1e-9})
        '<0.0001'
    """

    title: str
    value: str
    error: str | None = None
    digits: int = 2
    about: str = ""
    signed: bool = False
    negated: bool = False
    trust: str | None = None
    page_only: bool = False
    error_about: str = ""
    positive: bool = False

    @property
    def name(self) -> str:
        """The heading without its error."""
        return self.title.partition(" ±")[0]

    @property
    def meaning(self) -> str:
        """What the heading means; empty if it speaks for itself."""
        return self.about or WORDS.get(self.title, "")

    @property
    def hint(self) -> str:
        """What the heading and its error mean, in one line."""
        return ", ± ".join(filter(None, (self.meaning, self.error_about)))

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's value as text, with its error and its marks."""
        text = self.unmarked(row)
        return f"{text} *" if self.note(row) else text

    def note(self, row: Mapping[str, Any]) -> str:
        """Says that the row's value is not tight, or not known to be, if so."""
        tight = row.get(f"{self.trust}_tight", True)
        if tight is True or self.unmarked(row) == MISSING:
            return ""
        return "tight?" if tight is None else NOT_TIGHT

    def unmarked(self, row: Mapping[str, Any]) -> str:
        """The row's value as text, with its error, but without the mark for a value that is not tight."""
        value = self._shown(row)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        if isinstance(value, str):
            return value
        if self.positive and value < 0.5 * 10**-self.digits:
            return f"<{10**-self.digits:.{self.digits}f}"
        text = f"{value:{'+' if self.signed else ''},.{self.digits}f}".replace("-", "−")
        error = row.get(self.error) if self.error else None
        if error is None or math.isnan(error):
            return text
        return f"{text} ± {error:.{self.digits}f}" + ("?" if row.get(f"{self.trust}_reliable") is False else "")

    def key(self, row: Mapping[str, Any]) -> str:
        """The row's sorting key in this column."""
        value = self._shown(row)
        return "" if value is None else str(value)

    def _shown(self, row: Mapping[str, Any]) -> Any:
        value = row.get(self.value)
        return -value if self.negated and isinstance(value, int | float) else value


class Cell(NamedTuple):
    """Text of a cell, its sorting key, and a note on it."""

    text: str
    key: str
    note: str


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    """Texts, sorting keys and notes of rows.

    Example:
        >>> from mixvae.reports import Column, table
        >>> rows = [{"components": 2, "nll": 93.456, "nll_tight": False}]
        >>> table([Column("S", "components", digits=0), Column("NLL", "nll", trust="nll")], rows)[0][1]
        Cell(text='93.46', key='93.456', note='not tight')
    """
    return [[Cell(column.unmarked(row), column.key(row), column.note(row)) for column in columns] for row in rows]


def filled(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns in which some row has a value.

    Example:
        >>> from mixvae.reports import Column, filled
        >>> columns = [Column("S", "components"), Column("gain", "gain")]
        >>> [column.title for column in filled(columns, [{"components": 1}])]
        ['S']
    """
    return [column for column in columns if any(column.unmarked(row) != MISSING for row in rows)]


def meanings(columns: Sequence[Column], known: Sequence[Column] = ()) -> dict[str, str]:
    """What a table's headings and errors mean, where they do not speak for themselves.

    Args:
        columns: the table's columns.
        known: columns already explained, whose meanings are left out.

    Example:
        >>> from mixvae.reports import Column, meanings
        >>> error = "standard error over examples"
        >>> meanings([Column("S", "components"), Column("gain ± over examples", "gain", about="Δ", error_about=error)])
        {'S': 'components of the mixture', 'gain': 'Δ', '±': 'standard error over examples'}
    """
    errors: dict[str, list[str]] = {}
    for column in columns:
        if column.error_about:
            errors.setdefault(column.error_about, []).append(column.name)
    found = {column.name: column.meaning for column in columns if column.meaning}
    found |= {"±" if len(errors) == 1 else f"± of {', '.join(names)}": about for about, names in errors.items()}
    before = meanings(known) if known else {}
    return {name: about for name, about in found.items() if before.get(name) != about}


def legend(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the marks that occur in a table mean.

    Example:
        >>> from mixvae.reports import Column, legend
        >>> legend([Column("NLL", "nll", trust="nll")], [{"nll": 93.4, "nll_tight": False}])
        ['* not tight, or too few draws to know: log p(x) is estimated from below, so the true NLL may be lower']
    """
    texts = [column.text(row) for column in columns if column.trust for row in rows]
    return [f"{mark} {meaning}" for mark, meaning in MARKS.items() if any(mark in text for text in texts)]


def embed(picture: Figure | bytes) -> str:
    """Data URL of a picture, a figure or PNG.

    Example:
        >>> from mixvae.reports import embed
        >>> embed(b"PNG")
        'data:image/png;base64,UE5H'
    """
    content = picture if isinstance(picture, bytes) else figures.png(picture)
    return "data:image/png;base64," + base64.b64encode(content).decode()


class Look(NamedTuple):
    """What a page says about a picture: its kind, alternative text, and size in CSS pixels, 0 if unknown."""

    kind: str
    alt: str
    width: int
    height: int


def looked_at(address: str) -> Look:
    """What a picture says about itself: `figures.png` puts its kind, a description and its scale into the file."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            recorded, scale = image.info, PER_INCH / image.info.get("dpi", (PER_INCH,))[0]
            width, height = (round(scale * side) for side in image.size)
        return Look(str(recorded.get("Comment") or figures.PLOT), str(recorded.get("Description") or ""), width, height)
    except (OSError, ValueError, Image.DecompressionBombError):  # a picture that came with someone else's results
        return Look(figures.PLOT, "", 0, 0)


def render(template: str, target: Path, **context: Any) -> Path:
    """Fill a template that comes with mixvae, and write the page atomically."""
    environment = Environment(
        loader=FileSystemLoader(str(files("mixvae") / "templates")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"looked_at": looked_at, "counted": counted, "meanings": meanings}
    write_text(target, environment.get_template(template).render(**context))
    return target
