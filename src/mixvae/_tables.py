"""What is printed: results as tables, and text without control characters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 20
"""Maximum number of rows printed; the others are counted."""


Row = dict[str, Any]
"""One row of a table: values by column name."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters that a terminal obeys, except tabs and newlines."""


def plain(text: str) -> str:
    """Text without control characters, with which a name in a file could move the cursor or colour the terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def counted(number: int, noun: str) -> str:
    """A number and what it counts; the noun's plural takes an s.

    Example:
        >>> from mixvae._tables import counted
        >>> counted(1, "test example"), counted(0, "draw"), counted(2000, "draw")
        ('1 test example', '0 draws', '2000 draws')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Tabular:
    """A result with a `table`, one dictionary per row; printing it shows that table."""

    @property
    def title(self) -> str:
        """Heading above the rows."""
        return type(self).__name__

    def __repr__(self) -> str:
        """The title and the table as text."""
        return f"{self.title}\n{text(self._shown)}"

    @property
    def _shown(self) -> list[Row]:
        """Rows as they print."""
        return self._rows

    @property
    def _rows(self) -> list[Row]:
        return self.table  # pyright: ignore[reportAttributeAccessIssue]  (a field of some, a property of others)

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ImportError("to_frame needs pandas, which is not installed: pip install pandas") from None
        return pd.DataFrame(self._rows)


def text(rows: Sequence[Row]) -> str:
    """Rows of values as aligned columns.

    Args:
        rows: the rows; the columns are all of their keys, in order.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows[:MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = ["  ".join(map(str.rjust, line, widths)) for line in [columns, *cells]]
    if len(rows) > MOST_ROWS:
        lines.append(f"… {len(rows) - MOST_ROWS} more")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value in a few characters."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return str(value)
