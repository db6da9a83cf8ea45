"""The report on some runs: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixvae import figures, runs
from mixvae._tables import Row
from mixvae.evaluation import Evaluation
from mixvae.files import write_bytes
from mixvae.reports import _pages as pages
from mixvae.reports._columns import CONFIGURATIONS, scores
from mixvae.reports._comparison import compare, label
from mixvae.reports._pages import Column, filled
from mixvae.reports._settings import differing, facts, reproduction, settings
from mixvae.runs import Run

SHOWN = 1000
"""Examples in the latent picture."""


def pictures(run: str | Path | Run) -> dict[str, Figure]:
    """Figures of one run: image samples and reconstructions, latent means, and how components cooperate."""
    run = runs.open_run(run)
    drawn: dict[str, Figure] = {}
    originals, rebuilt = runs.reconstruct(run)
    if originals.ndim == 4 and originals.shape[1] in (1, 3):
        drawn["samples"] = figures.images(runs.sample(run, 64), columns=16)
        drawn["reconstructions"] = figures.reconstructions(originals, rebuilt)
    features = runs.encode_split(run, examples=SHOWN)
    drawn["latent means"] = figures.latent_means(features["mean"], features.get("labels"))
    if features["mean"].shape[1] > 1:
        drawn |= runs.cooperation(run)[1]
    return drawn


def write(
    paths: Sequence[str | Path | Run],
    out: str | Path | None = None,
    evaluations: Sequence[Evaluation] | None = None,
) -> Path:
    """Write the report on some runs as one HTML file that makes no network requests.

    Pictures are also saved in each run's `figures`, unless that folder is not writable.

    Args:
        paths: evaluated runs.
        out: the file; `report.html` in the first run's directory by default.
        evaluations: an evaluation of each; by default the one that `runs.evaluation_of` returns.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: a run has not been evaluated yet.
        OSError: the file cannot be written; nothing is left behind.
        ValueError: the runs are on different data, or one of their files is damaged.
    """
    opened = runs.open_runs(paths)
    comparison = compare(opened, evaluations)
    rows = comparison.table
    target = Path(out).expanduser() if out is not None else opened[0].layout.report
    by_path = {str(run.path): run for run in opened}
    sections: list[dict[str, Any]] = []
    files: dict[Path, bytes] = {}
    scored = {path: _representation(run) for path, run in by_path.items()}  # first: reports damage immediately
    held = {row["run"]: settings(by_path[row["path"]]) for row in rows}
    known: Sequence[Column] = ()
    for row, evaluation in zip(rows, comparison.evaluations, strict=True):
        run = by_path[row["path"]]
        drawn = {name: figures.png(figure) for name, figure in pictures(run).items()} if run.has_weights else {}
        files |= {run.layout.figures / f"{name.replace(' ', '_')}.png": picture for name, picture in drawn.items()}
        if representation := scored[row["path"]]:
            representation["known"], known = known, known or representation["columns"]
        embedded = {name: pages.embed(picture) for name, picture in drawn.items()}
        sections.append(
            {
                "row": row, "facts": facts(run, row), "figures": embedded, "representation": representation,
                "settings": held[row["run"]], "reproduction": reproduction(run, evaluation, row),
            }
        )  # fmt: skip
    curves = {label(row, rows): by_path[row["path"]].metrics for row in rows}
    pages.render(
        "report.html",
        target,
        configurations=_table(CONFIGURATIONS, comparison.configurations) if comparison.has_several else None,
        trainings=_table(comparison.columns, rows),
        settings={"runs": list(held), "rows": differing(held)},
        first=rows[0],
        warnings=[*comparison.warnings, *without_weights(opened)],
        gains=pages.embed(comparison.figure) if comparison.has_gains else "",
        splits=pages.embed(comparison.splits) if comparison.has_splits else "",
        curves=pages.embed(figures.learning_curves(curves)),
        cooperation=any(epoch.get("used_components", 1) > 1 for epochs in curves.values() for epoch in epochs),
        sections=sections,
    )
    for path, picture in files.items():
        with suppress(OSError):  # the page has it
            write_bytes(path, picture)
    return target


def without_weights(opened: Sequence[Run]) -> list[str]:
    """A note on runs that came without weights, or none."""
    names = ", ".join(run.path.name for run in opened if not run.has_weights)
    return [f"Without weights, and hence without pictures: {names}."] if names else []


def _representation(run: Run) -> dict[str, Any] | None:
    """Table of how well a run's latents predict labels, if measured; preferably on the test split."""
    stored = sorted(runs.representations(run), key=lambda pair: pair[0] != "test")
    if not stored:
        return None
    split, found = stored[0]
    return _table(*scores(found.table)) | {"split": split}


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """Non-empty columns, and rows of texts and sorting keys, for a template."""
    columns = filled(columns, rows)
    return {"columns": columns, "rows": pages.table(columns, rows)}
