"""Self-contained HTML pages: table columns, embedded pictures, templates. No network requests, ever."""

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
        signed: whether to show a plus before positive values.
        negated: whether to show −value, such as the −ELBO of an ELBO.

    Example:
        >>> from mixvae.reports import Column
        >>> Column("gain", "gain", "gain_se", 3, signed=True).text({"gain": 0.5, "gain_se": 0.1})
        '+0.500 ± 0.100'
    """

    title: str
    value: str
    error: str | None = None
    digits: int = 2
    about: str = ""
    signed: bool = False
    negated: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The row's value as text, with its error."""
        value = self._shown(row)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        if isinstance(value, str):
            return value
        text = f"{value:{'+' if self.signed else ''},.{self.digits}f}".replace("-", "−")
        error = row.get(self.error) if self.error else None
        return text if error is None or math.isnan(error) else f"{text} ± {error:.{self.digits}f}"

    def key(self, row: Mapping[str, Any]) -> str:
        """The row's sorting key in this column."""
        value = self._shown(row)
        return "" if value is None else str(value)

    def _shown(self, row: Mapping[str, Any]) -> Any:
        value = row.get(self.value)
        return -value if self.negated and isinstance(value, int | float) else value


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, str]]]:
    """Texts and sorting keys of rows.

    Example:
        >>> from mixvae.reports import Column, table
        >>> table([Column("S", "components", digits=0), Column("NLL", "nll")], [{"components": 2, "nll": 93.456}])
        [[('2', '2'), ('93.46', '93.456')]]
    """
    return [[(column.text(row), column.key(row)) for column in columns] for row in rows]


def embed(picture: Figure | bytes) -> str:
    """Data URL of a picture, a figure or PNG.

    Example:
        >>> from mixvae.reports import embed
        >>> embed(b"PNG")
        'data:image/png;base64,UE5H'
    """
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
