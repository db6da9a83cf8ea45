"""All runs of a folder at a glance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixvae.runs import legacy
from mixvae.runs.evaluating import evaluation_of
from mixvae.runs.run import Run


def listing(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """One row for each run in a folder and below it: what it is, how far it has come, and its latest figures.

    Args:
        folder: the folder.

    Returns:
        Rows of run, state (training, stopped, done, damaged or legacy), recipe (the hash that tells runs apart), data,
        components, epochs, goal, validation, and, where it was evaluated, nll_pooled, nll_pooled_se, split and draws.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: name one that holds runs")
    return [_row(run, path) for run in find_runs(path)]


def _row(run: Run, folder: Path) -> dict[str, Any]:
    """What is known of one run."""
    row: dict[str, Any] = {"run": str(run.path.relative_to(folder)), "path": str(run.path), "state": run.state}
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
        row |= {"components": identity.components, "split": identity.split, "draws": identity.draws}
        row |= {name: evaluation.results.get(name) for name in ("nll_pooled", "nll_pooled_se")}
    except FileNotFoundError:  # it was not evaluated
        pass
    except (OSError, ValueError):
        row["state"] = "damaged"
    return row


def find_runs(folder: Path) -> Iterator[Run]:
    """All runs in a folder and below it, links included, by path."""
    seen: set[Path] = set()
    found = []
    for place, below, files in os.walk(folder, followlinks=True):
        path = Path(place)
        if path.resolve() in seen:
            below.clear()  # a link to what was seen
            continue
        seen.add(path.resolve())
        if "run.json" in files or ("config.yaml" in files and legacy.is_run(path)):
            found.append(path)
    for path in sorted(found):
        yield Run(path)
