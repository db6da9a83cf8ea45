"""From runs to one self-contained HTML page: the table, learning curves, and pictures of what was learnt."""

from mixvae.reports.comparison import COLUMNS, Comparison, compare
from mixvae.reports.page import pictures, write
from mixvae.reports.pages import Column, embed, render, table

__all__ = ["COLUMNS", "Column", "Comparison", "compare", "embed", "pictures", "render", "table", "write"]
