"""From runs to one self-contained HTML page: the table, learning curves, and pictures of what was learnt."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

from mixvae import figures, runs
from mixvae.evaluation import paired_gain
from mixvae.files import RunDirectory, read_json, write_bytes, write_text

SHOWN = 1000
"""Examples in the latent picture."""


@dataclass(frozen=True)
class Column:
    """One column of the comparison.

    Args:
        title: its heading.
        value: key of its value among the results.
        error: key of the value's standard error, if it has one.
        digits: decimals.
        about: what the heading means.
    """

    title: str
    value: str
    error: str | None = None
    digits: int = 2
    about: str = ""


COLUMNS = (
    Column("run", "run"),
    Column("S", "components", digits=0, about="mixture components"),
    Column("parameters", "parameters", digits=0),
    Column("−ELBO", "nelbo", about="negative evidence lower bound, nats"),
    Column("MISELBO NLL", "nll_miselbo", about="negative log-likelihood bound by MISELBO, nats"),
    Column(
        "pooled NLL",
        "nll_pooled",
        "nll_pooled_se",
        about="tightest bound, nats; ± standard error over examples",
    ),
    Column("gain", "gain", "gain_se", 3, "paired gain in pooled nats over the first row; ± standard error"),
    Column("JSD", "jsd", digits=3, about="Jensen–Shannon divergence of the components, nats"),
    Column("effective S", "effective_components", digits=2, about="exp of the mean JSD"),
    Column("seconds", "train_seconds", digits=0, about="training time"),
)


def compare(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Results of evaluated runs, fewest components first, with the paired gain over the first one.

    Raises:
        FileNotFoundError: a run was not evaluated yet.
    """
    rows = []
    for path in paths:
        run = RunDirectory(Path(path))
        if not run.results.exists():
            raise FileNotFoundError(f"{run.path} has no results.json: run `mixvae evaluate {run.path}` first")
        row = read_json(run.results)
        rows.append(row | {"run": run.path.name, "path": str(run.path), "nelbo": -row["elbo"]})
    rows.sort(key=lambda row: row["components"])
    first = _pooled(rows[0])
    for row in rows[1:]:
        if _same_examples(row, rows[0]):
            row["gain"], row["gain_se"] = paired_gain(_pooled(row), first)
    return rows


def _pooled(row: dict[str, Any]) -> np.ndarray:
    """Pooled bound of every example of a run's evaluation."""
    path = RunDirectory(Path(row["path"])).examples
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `mixvae evaluate {row['path']}` again")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["pooled"]


def _same_examples(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two evaluations are of the same examples, so that their difference is paired."""
    return all(row[key] == other[key] for key in ("data_sha256", "split", "examples"))


def warnings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What makes a comparison unfair."""
    notes = []
    if any(not _same_examples(row, rows[0]) for row in rows):
        notes.append(
            "The runs were evaluated on different examples: their numbers do not compare, and no gain is given."
        )
    if len({row["draws"] for row in rows}) > 1:
        drawn = ", ".join(f"{row['run']} {row['draws']}" for row in rows)
        notes.append(f"The runs were evaluated with different numbers of draws per example ({drawn}).")
    for row in rows:
        if (row["pareto_k_unreliable"] or 0) > 0.05:
            notes.append(
                f"{row['run']}: Pareto k̂ exceeds 0.7 for {row['pareto_k_unreliable']:.0%} of the examples; "
                "its pooled bound is valid but not tight. Use more draws."
            )
    return notes


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the comparison as text."""
    return [_cell(row, column) for column in COLUMNS]


def _cell(row: dict[str, Any], column: Column) -> str:
    value = row.get(column.value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return value
    text = f"{value:,.{column.digits}f}"
    error = row.get(column.error) if column.error else None
    return text if error is None else f"{text} ± {error:.{column.digits}f}"


def pictures(path: str | Path) -> dict[str, Figure]:
    """Figures of one run: samples and reconstructions of images, the latent means, and how components cooperate."""
    drawn: dict[str, Figure] = {}
    originals, rebuilt = runs.reconstruct(path)
    if originals.ndim == 4 and originals.shape[1] in (1, 3):
        drawn["samples"] = figures.images(runs.sample(path, 64), columns=16)
        drawn["reconstructions"] = figures.reconstructions(originals, rebuilt)
    features = runs.encode_split(path, examples=SHOWN)
    drawn["latent means"] = figures.latent_means(features["mean"], features.get("labels"))
    if features["mean"].shape[1] > 1:
        drawn |= runs.cooperation(path)[1]
    return drawn


def write(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of some runs as one HTML file without any network request.

    Args:
        paths: evaluated runs.
        out: the file; `report.html` in the first run's directory by default.

    Returns:
        The file written.
    """
    rows = compare(paths)
    target = Path(out) if out is not None else RunDirectory(Path(paths[0])).report
    sections = []
    for row in rows:
        run = RunDirectory(Path(row["path"]))
        drawn = pictures(run.path)
        for name, figure in drawn.items():
            write_bytes(run.figures / f"{name.replace(' ', '_')}.png", figures.png(figure))
        sections.append({"row": row, "figures": {name: _embed(figure) for name, figure in drawn.items()}})
    curves = {_label(row, rows): RunDirectory(Path(row["path"])).read_metrics() for row in rows}
    template = (files("mixvae") / "templates" / "report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    html = page.render(
        columns=COLUMNS,
        rows=[cells(row) for row in rows],
        first=rows[0],
        warnings=warnings(rows),
        curves=_embed(figures.learning_curves(curves)),
        sections=sections,
    )
    write_text(target, html)
    return target


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Shortest label that tells a run from the others."""
    alone = sum(other["components"] == row["components"] for other in rows) == 1
    return f"S = {row['components']}" if alone else row["run"]


def _embed(figure: Figure) -> str:
    """Return a figure as the address of an image within the page."""
    return "data:image/png;base64," + base64.b64encode(figures.png(figure)).decode()
