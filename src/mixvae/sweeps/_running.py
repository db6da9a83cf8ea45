"""Running the cells of a grid, each in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixvae import config, reports, runs
from mixvae._failures import at_least
from mixvae.evaluation import Evaluation
from mixvae.files import write_text
from mixvae.progress import SILENT, Progress
from mixvae.sweeps._grids import Grid
from mixvae.training import _lives as lives

DOING = {"new": "training", "unfinished": "resuming", "trained": "evaluating"}
"""What a sweep does to a cell, by its state."""


@dataclass
class Sweep:
    """Outcome of a sweep.

    Args:
        done: evaluations of the trained cells, by run directory.
        failed: error of each failed cell, by name.
    """

    done: dict[Path, Evaluation] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def sweep(grid: Grid, *, jobs: int = 1, progress: Progress = SILENT) -> Sweep:
    """Run every cell of a grid as `run_cells` does, and write one report."""
    result = run_cells(grid, jobs=jobs, progress=progress)
    if result.done:
        reports.write(list(result.done), grid.out / "report.html", list(result.done.values()))
    return result


def run_cells(grid: Grid, *, jobs: int = 1, progress: Progress = SILENT) -> Sweep:
    """Train and evaluate every cell of a grid, each in its own process.

    Finished cells are skipped, interrupted ones resumed, and a cell that fails is reported while the rest continues. A
    folder whose content does not match the grid as it is now is refused before anything runs.

    Args:
        grid: the cells.
        jobs: number of cells to run in parallel, sharing the processor's cores.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: jobs is not positive, or a cell's folder holds something else.
    """
    at_least(1, jobs=jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else None
    result, standing, children = Sweep(), grid.standing(), set[subprocess.Popen[str]]()
    trusted = sorted(config.granted().packages)  # here, since each thread has its own grants

    def run(name: str) -> tuple[str, str]:
        path = grid.out / name
        if standing[name] == "trained" and _stored(path, grid) is not None:
            progress.announce(f"{name}: done already")
            return name, ""
        file = grid.out / "cells" / f"{name}.yaml"
        write_text(file, config.to_yaml(grid.cells[name]))
        progress.announce(f"{name}: {DOING[standing[name]]}")
        words = [str(file), str(path), json.dumps(grid.evaluation), *trusted]
        script = "import sys; from mixvae.sweeps import run_cell; run_cell(*sys.argv[1:])"
        status, said = _run_child([sys.executable, "-P", "-c", script, *words], environment, children)
        error = f"killed by {signal.Signals(-status).name}" if status < 0 else (said or f"ended with status {status}")
        progress.announce(f"{name}: {'done' if status == 0 else 'failed: ' + error}")
        return name, "" if status == 0 else error

    with ThreadPoolExecutor(jobs) as pool:
        try:
            ended = list(pool.map(run, grid.cells))
        except BaseException:  # cells that have not begun are cancelled, the others save and stop
            for child in children:
                child.terminate()
            raise
    for name, error in ended:
        evaluation = None if error else _stored(grid.out / name, grid)
        if evaluation is None:
            result.failed[name] = error or "its evaluation is missing: give the command again"
        else:
            result.done[grid.out / name] = evaluation
    return result


def _stored(path: Path, grid: Grid) -> Evaluation | None:
    """The stored evaluation of a cell; that of a legacy run is by draws from the posterior, whatever is asked for."""
    run = runs.open_run(path)
    settings: dict[str, Any] = grid.evaluation
    if run.is_legacy:
        settings["proposal"] = "posterior"
    return runs.find_evaluation(run, **settings)


def _run_child(
    command: Sequence[str], environment: dict[str, str] | None, children: set[subprocess.Popen[str]] | None = None
) -> tuple[int, str]:
    """Run a process that ends when this one does; return its status and the last line of its standard error.

    The child calls `lives.stop_with_parent`. While it runs, it is in `children`.
    """
    running = set() if children is None else children
    with lives.start(command, environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        running.add(child)
        last = ""
        for line in child.stderr:
            last = line.strip() or last
        status = child.wait()
        running.discard(child)
        return status, last


def run_cell(file: str, out: str, evaluation: str, *trust: str) -> None:
    """Train and evaluate one cell of a sweep, as a child of `run_cells`; resumes an unfinished run."""
    lives.stop_with_parent()
    try:
        with config.granting(*trust, working_folder=True):
            run = runs.train(config.read(file), out, resume=True, amend=False)
            runs.evaluate(run, **json.loads(evaluation))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(" ".join(str(error).split()))
