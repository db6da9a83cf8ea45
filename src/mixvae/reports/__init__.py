"""From runs to one self-contained HTML page: a table, learning curves, and pictures of what was learnt."""

from mixvae.reports._comparison import COLUMNS, Comparison, compare
from mixvae.reports._page import pictures, write
from mixvae.reports._pages import Column, embed, render, table

__all__ = ["COLUMNS", "Column", "Comparison", "compare", "embed", "pictures", "render", "table", "write"]
