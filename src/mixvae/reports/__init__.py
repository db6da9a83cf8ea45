"""From runs to one self-contained HTML page: tables, learning curves, and pictures of what was learnt."""

from mixvae.reports._between import ONE_TRAINING, BetweenTrainings, Difference, between_trainings, student
from mixvae.reports._columns import (
    COLUMNS,
    CONFIGURATIONS,
    ELBO,
    GAIN,
    GAIN_BETWEEN,
    MISELBO,
    NLL,
    NLL_BETWEEN,
    POOLED,
    SPLIT,
    SPLIT_BETWEEN,
    scores,
)
from mixvae.reports._comparison import AMORTISED, Comparison, compare, looseness, marked
from mixvae.reports._configurations import PARTS, objective, parts, trust
from mixvae.reports._page import pictures, write
from mixvae.reports._pages import NOT_TIGHT, Cell, Column, embed, filled, legend, meanings, render, table
from mixvae.reports._settings import differing, settings

__all__ = [
    "AMORTISED",
    "COLUMNS",
    "CONFIGURATIONS",
    "ELBO",
    "GAIN",
    "GAIN_BETWEEN",
    "MISELBO",
    "NLL",
    "NLL_BETWEEN",
    "NOT_TIGHT",
    "ONE_TRAINING",
    "PARTS",
    "POOLED",
    "SPLIT",
    "SPLIT_BETWEEN",
    "BetweenTrainings",
    "Cell",
    "Column",
    "Comparison",
    "Difference",
    "between_trainings",
    "compare",
    "differing",
    "embed",
    "filled",
    "legend",
    "looseness",
    "marked",
    "meanings",
    "objective",
    "parts",
    "pictures",
    "render",
    "scores",
    "settings",
    "student",
    "table",
    "trust",
    "write",
]
