"""All runs in a folder at a glance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixvae._tables import Row, Tabular
from mixvae.runs import _legacy as legacy
from mixvae.runs._evaluating import evaluation_of
from mixvae.runs._run import Run

SHOWN = ("nll", "nll_se", "tight", "pareto_k_unreliable", "nll_pooled", "nll_pooled_se")
"""Results shown in the table."""


@dataclass(frozen=True, repr=False)
class Listing(Tabular):
    """Runs of a folder.

    Args:
        table: one row per run.
    """

    table: list[Row]


def listing(folder: str | Path = "runs") -> Listing:
    """One row for each run in a folder and below it: what it is, its progress, and its latest results.

    Args:
        folder: the folder.

    Returns:
        Rows of run, state (training, stopped, done, damaged or legacy), recipe (the hash that identifies it), data,
        components, epochs, goal, validation, and, if it was evaluated, nll, nll_se, tight, pareto_k_unreliable,
        nll_pooled, nll_pooled_se, split, total_draws and proposal.

    Raises:
        FileNotFoundError: there is no such folder.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import listing, train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/digits")
        >>> [(row["run"], row["state"], row["epochs"]) for row in listing("runs").table]
        [('digits', 'done', 1)]
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name one that holds runs")
    return Listing([_row(run, path) for run in find_runs(path)])


def _row(run: Run, folder: Path) -> Row:
    """What is known of one run."""
    row: Row = {"run": str(run.path.relative_to(folder)), "path": str(run.path), "state": run.state}
    if row["run"] == ".":
        row["run"] = run.name
    try:
        progress = run.manifest["progress"]
        row |= {
            "recipe": run.recipe.sha256[:8],
            "data": run.manifest["runtime"]["data"]["name"],
            "components": run.recipe.identity["model"].get("components")
            or (run.manifest["model"] or {}).get("components"),
            "epochs": progress["epoch"],
            "goal": run.manifest["goal"]["epochs"],
            "validation": progress["best"],
        }
        evaluation = evaluation_of(run)
        identity = evaluation.identity
        row |= {"components": identity.components, "split": identity.split, "total_draws": identity.total_draws}
        row |= {name: evaluation.results.get(name) for name in SHOWN} | {"proposal": identity.proposal}
    except FileNotFoundError:  # it has not been evaluated
        pass
    except (OSError, ValueError):
        row["state"] = "damaged"
    return row


def find_runs(folder: Path) -> Iterator[Run]:
    """All runs in a folder and below it, links included, by path."""
    visited: set[Path] = set()
    paths = []
    for place, below, files in os.walk(folder, followlinks=True):
        path = Path(place)
        if path.resolve() in visited:
            below.clear()  # a link to a folder already visited
            continue
        visited.add(path.resolve())
        if "run.json" in files or ("config.yaml" in files and legacy.is_run(path)):
            paths.append(path)
    for path in sorted(paths):
        yield Run(path)
