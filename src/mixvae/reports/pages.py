"""Self-contained HTML pages: columns of tables, pictures within the page, templates. No network request, ever."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from mixvae import figures
from mixvae.files import write_text

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: its heading.
        value: key of its value in a row.
        error: key of the value's error, if it has one.
        digits: decimals.
        about: what the heading means.
        signed: whether a positive value has a plus.
    """

    title: str
    value: str
    error: str | None = None
    digits: int = 2
    about: str = ""
    signed: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's value as text, with its error."""
        value = row.get(self.value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        if isinstance(value, str):
            return value
        text = f"{value:{'+' if self.signed else ''},.{self.digits}f}".replace("-", "−")
        error = row.get(self.error) if self.error else None
        return text if error is None or math.isnan(error) else f"{text} ± {error:.{self.digits}f}"

    def key(self, row: Mapping[str, Any]) -> str:
        """What the row is sorted by in this column."""
        value = row.get(self.value)
        return "" if value is None else str(value)


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str]]]:
    """Texts and sorting keys of rows."""
    return [[(column.text(row), column.key(row)) for column in columns] for row in rows]


def embed(picture: Figure | bytes) -> str:
    """Address of a picture, a figure or PNG, within the page."""
    content = picture if isinstance(picture, bytes) else figures.png(picture)
    return "data:image/png;base64," + base64.b64encode(content).decode()


def render(template: str, target: Path, **context: Any) -> Path:
    """Fill a template that comes with mixvae, and write the page atomically."""
    environment = Environment(
        loader=FileSystemLoader(str(files("mixvae") / "templates")),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    write_text(target, environment.get_template(template).render(**context))
    return target
