"""From runs to one self-contained HTML page: the table, learning curves, and pictures of what was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixvae import figures, pages, runs
from mixvae.evaluation import paired_gain
from mixvae.files import RunDirectory, read_json, write_bytes
from mixvae.pages import Column
from mixvae.representation import Representation

SHOWN = 1000
"""Examples in the latent picture."""


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
    Column(
        "gain", "gain", "gain_se", 3, "paired gain in pooled nats over the first row; ± standard error", signed=True
    ),
    Column("JSD", "jsd", digits=3, about="Jensen–Shannon divergence of the components, nats"),
    Column("effective S", "effective_components", digits=2, about="exp of the mean JSD"),
    Column("seconds", "train_seconds", digits=0, about="training time"),
)


@dataclass(frozen=True)
class Comparison:
    """Evaluated runs beside each other.

    Args:
        table: results of each run, ordered by data and number of components, with the paired gain in pooled nats over
            the first run on the same examples as `gain` and `gain_se`.
    """

    table: list[dict[str, Any]]

    @property
    def warnings(self) -> list[str]:
        """What makes the comparison unfair."""
        rows, notes = self.table, []
        if any(not _same_examples(row, rows[0]) for row in rows):
            kinds = {"data checksums": "data_sha256", "splits": "split", "numbers of examples": "examples"}
            differing = [name for name, key in kinds.items() if len({row[key] for row in rows}) > 1]
            notes.append(
                f"The runs were evaluated on different examples, by their {' and '.join(differing)}: their numbers do "
                "not compare, and gains are given only within the same examples."
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

    @property
    def figure(self) -> Figure:
        """Paired gains with their standard errors."""
        return figures.gains(
            [(_label(row, self.table), row["gain"], row["gain_se"]) for row in self.table if "gain" in row],
            "paired gain in pooled log-likelihood (nats)",
        )


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Put evaluated runs beside each other, aligned by data and number of components.

    Raises:
        FileNotFoundError: a run was not evaluated yet.
        ValueError: the runs are of different data.
    """
    rows = []
    names = _names([Path(path) for path in paths])
    for path, name in zip(paths, names, strict=True):
        run = RunDirectory(Path(path))
        if not run.results.exists():
            raise FileNotFoundError(f"{run.path} has no results.json: run `mixvae evaluate {run.path}` first")
        row = read_json(run.results)
        rows.append(row | {"run": name, "path": str(run.path), "nelbo": -row["elbo"]})
    by_data = {row["data"]: row["run"] for row in rows}
    if len(by_data) > 1:
        named = ", ".join(f"{data} ({run})" for data, run in by_data.items())
        raise ValueError(f"runs of different data do not compare: {named}; report those of each data set by themselves")
    rows.sort(key=lambda row: (*_examples(row), row["components"]))
    firsts: dict[tuple[Any, ...], np.ndarray] = {}
    for row in rows:
        examples = _examples(row)
        if examples in firsts:
            row["gain"], row["gain_se"] = paired_gain(_pooled(row), firsts[examples])
        else:
            firsts[examples] = _pooled(row)
    return Comparison(rows)


def _names(paths: Sequence[Path]) -> list[str]:
    """Shortest endings of paths that tell them apart: S2, or a/S2 and b/S2."""
    whole = [path.resolve().parts for path in paths]
    names = []
    for parts in whole:
        others = [other for other in whole if other != parts]
        enough = (n for n in range(1, len(parts)) if not any(other[-n:] == parts[-n:] for other in others))
        names.append("/".join(parts[-next(enough, len(parts)) :]))
    return names


def _pooled(row: dict[str, Any]) -> np.ndarray:
    """Pooled bound of every example of a run's evaluation."""
    path = RunDirectory(Path(row["path"])).examples
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run `mixvae evaluate {row['path']}` again")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["pooled"]


def _examples(row: dict[str, Any]) -> tuple[Any, ...]:
    """Which examples an evaluation is of."""
    return row["data_sha256"], row["split"], row["examples"]


def _same_examples(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two evaluations are of the same examples, so that their difference is paired."""
    return _examples(row) == _examples(other)


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
    comparison = compare(paths)
    rows = comparison.table
    target = Path(out) if out is not None else RunDirectory(Path(paths[0])).report
    sections = []
    for row in rows:
        run = RunDirectory(Path(row["path"]))
        drawn = {name: figures.png(figure) for name, figure in pictures(run.path).items()}
        for name, picture in drawn.items():
            write_bytes(run.figures / f"{name.replace(' ', '_')}.png", picture)
        embedded = {name: pages.embed(picture) for name, picture in drawn.items()}
        sections.append({"row": row, "figures": embedded, "representation": _representation(run)})
    curves = {_label(row, rows): RunDirectory(Path(row["path"])).read_metrics() for row in rows}
    return pages.render(
        "report.html",
        target,
        columns=COLUMNS,
        rows=pages.table(COLUMNS, rows),
        first=rows[0],
        warnings=comparison.warnings,
        gains=pages.embed(comparison.figure) if any("gain" in row for row in rows) else "",
        curves=pages.embed(figures.learning_curves(curves)),
        sections=sections,
    )


def _representation(run: RunDirectory) -> dict[str, Any] | None:
    """Table of what the latents of a run tell about labels, if that was measured."""
    if not run.representation.exists():
        return None
    measured = read_json(run.representation)
    rows = Representation(measured["scores"]).table
    metrics = [key.removesuffix("_std") for key in rows[0] if key.endswith("_std")]
    columns = [Column("features", "features"), *(Column(m.upper(), m, f"{m}_std", 3) for m in metrics)]
    return {"columns": columns, "rows": pages.table(columns, rows), "split": measured["split"]}


def _label(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Shortest label that tells a run from the others."""
    alone = sum(other["components"] == row["components"] for other in rows) == 1
    return f"S = {row['components']}" if alone else row["run"]
