"""What the tables of runs and configurations show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixvae._tables import Row, counted
from mixvae.reports._configurations import MODEL
from mixvae.reports._pages import Column

_OVER_EXAMPLES = "standard error over the examples of one training"
BETWEEN = (
    "half width of the 95 % interval between trainings, by Student's t with the variance pooled over {}, or Welch's "
    "where a note says that variances differ"
)
"""What an error between trainings is, of the variance of some configurations."""
_PARTS = (
    ("ELBO gain", "elbo", "in the ELBO, only over a training of the same bound, nats", None, False),
    ("of which model", MODEL, "its part in log p(x), of a better model, nats", "gain", True),
    ("of which posterior", "posterior", "its part in −KL(q(z|x) ‖ p(z|x)), of a better posterior, nats", "gain", False),
)


def _split(error: str, of: str, of_model: str) -> tuple[Column, ...]:
    """Columns for the gain in the ELBO and its parts, with what their errors are, and what that of the model is."""
    return tuple(
        Column(
            title, f"gain_{part}", f"gain_{part}_{error}", 3, about,
            signed=True, trust=trust, page_only=page_only,
            error_about=of_model if part == MODEL else of,
        )
        for title, part, about, trust, page_only in _PARTS
    )  # fmt: skip


GAIN = Column(
    "gain ± over examples",
    "gain",
    "gain_se",
    3,
    "in log p(x), over the row above that has none, paired by example, nats",
    signed=True,
    trust="gain",
    error_about=_OVER_EXAMPLES,
)
GAIN_BETWEEN = Column(
    "gain ± between trainings",
    "gain",
    "gain_margin",
    3,
    "in mean log p(x), over the row above that has none, nats",
    signed=True,
    trust="gain",
    error_about=BETWEEN.format("all configurations"),
)
SPLIT = _split("se", _OVER_EXAMPLES, _OVER_EXAMPLES)
SPLIT_BETWEEN = _split(
    "margin", BETWEEN.format("the configurations trained by that bound"), BETWEEN.format("all configurations")
)
NLL = Column(
    "NLL ± over examples",
    "nll",
    "nll_se",
    about="−log p(x), estimated from above, nats, lower is better",
    trust="nll",
    error_about=_OVER_EXAMPLES,
)
NLL_BETWEEN = Column(
    "NLL ± between trainings",
    "nll",
    "nll_margin",
    about="−log p(x), estimated from above, mean over trainings, nats, lower is better",
    trust="nll",
    error_about=BETWEEN.format("all configurations"),
)
ELBO = Column(
    "−ELBO",
    "elbo",
    about="negative evidence lower bound, an upper bound on −log p(x), nats, lower is better",
    negated=True,
)
MISELBO = Column(
    "MISELBO NLL", "nll_miselbo", about="bound on −log p(x) by MISELBO, the paper's protocol, nats", page_only=True
)
POOLED = Column(
    "pooled NLL", "nll_pooled", about="bound on −log p(x) by draws from the posterior, nats", page_only=True
)
SLACK = Column(
    "log p(x) − own bound",
    "slack",
    about="how far the bound that was trained lies below log p(x), nats, if it was evaluated with as many draws, "
    "KL(q(z|x) ‖ p(z|x)) for the ELBO",
    trust="nll",
    page_only=True,
)
DRAWS = Column("draws per step", "draws_per_step", digits=0, about="decoder evaluations per example and step, S·L")
SECONDS = Column("seconds", "train_seconds", digits=0, about="training time of one model")
_SIZE = Column("S", "components", digits=0)
_BOUNDS = (MISELBO, POOLED, SLACK)
_COOPERATION = (
    Column("JSD", "jsd", digits=3, page_only=True),
    Column("effective S", "effective_components", digits=2),
    Column("parameters", "parameters", digits=0, page_only=True),
    SECONDS,
)
COLUMNS = (Column("run", "run"), _SIZE, DRAWS, NLL, GAIN, *SPLIT, ELBO, *_BOUNDS, *_COOPERATION)
"""Columns of single trainings."""
CONFIGURATIONS = (
    Column("configuration", "configuration", about="trainings that differ in their seed only"),
    _SIZE,
    Column("n", "trainings", digits=0, about="trainings with different seeds"),
    DRAWS,
    NLL_BETWEEN,
    GAIN_BETWEEN,
    *SPLIT_BETWEEN,
    *(replace(column, page_only=True) for column in (ELBO, *_BOUNDS, *_COOPERATION[:-1])),
    SECONDS,
)
"""Columns of configurations with several trainings: means over trainings."""


def scores(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Column], list[Row]]:
    """Columns and rows of a `Representation`'s table, in words.

    Example:
        >>> from mixvae.analysis import Representation
        >>> from mixvae.reports import scores
        >>> columns, rows = scores(Representation({"1 samples": {"knn": [0.75, 1.0]}}).table)
        >>> [column.text(row) for row in rows for column in columns]
        ['1 sample', '0.875 ± 0.177']
        >>> columns[1].title, columns[1].meaning
        ('KNN', 'accuracy of k nearest neighbours, k = 5')
    """
    metrics = [key.removesuffix("_std") for key in rows[0] if key.endswith("_std")]
    over = f"standard deviation over {counted(rows[0]['repetitions'], 'repetition')}"
    columns = [
        Column("features", "features", about="what stands for an example, those of all components side by side"),
        *(Column(metric.upper(), metric, f"{metric}_std", 3, error_about=over) for metric in metrics),
    ]
    return columns, [{**row, "features": _features(row["features"])} for row in rows]


def _features(name: str) -> str:
    """Name of features; for draws, it begins with their number."""
    number, _, noun = name.partition(" ")
    return counted(int(number), noun.removesuffix("s")) if number.isdecimal() else name
