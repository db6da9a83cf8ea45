"""Running the cells of a grid, wherever a runner trains them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixvae import config, reports, runs
from mixvae.evaluation import Evaluation
from mixvae.progress import SILENT, Progress
from mixvae.sweeps._grids import Grid
from mixvae.sweeps._runners import LOCAL, Runner
from mixvae.sweeps._tasks import Task


@dataclass
class Sweep:
    """Outcome of a sweep.

    Args:
        done: evaluations of the trained cells, by run directory.
        failed: error of each failed cell, by name.
    """

    done: dict[Path, Evaluation] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def sweep(grid: Grid, *, runner: Runner = LOCAL, progress: Progress = SILENT) -> Sweep:
    """Run every cell of a grid as `run_cells` does, and write one report."""
    result = run_cells(grid, runner=runner, progress=progress)
    if result.done:
        reports.write(list(result.done), grid.out / "report.html", list(result.done.values()))
    return result


def run_cells(grid: Grid, *, runner: Runner = LOCAL, progress: Progress = SILENT) -> Sweep:
    """Train and evaluate every cell of a grid, each in its own process.

    Finished cells are skipped, interrupted ones resumed, and a cell that fails is reported while the rest continues. A
    cell that another process trains is waited for. A folder whose content does not match the current grid is refused
    before anything runs.

    Args:
        grid: the cells.
        runner: where they are trained, as `choose_runner` returns it; one after another on this machine by default.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: a cell's folder holds something else, or results without weights that are not those asked for, or
            the runner cannot train there.
    """
    result, errors, tasks = Sweep(), dict[str, str](), list[Task]()
    trusted = sorted(config.granted().packages)
    for name, standing in grid.standing().items():
        path = grid.out / name
        if standing == "trained":
            if _stored(path, grid) is not None:
                progress.announce(f"{name}: already done")
                continue
            runs.open_run(path).refuse_remaking("evaluation")
        tasks.append(Task(name, grid.cells[name], grid.out, standing, grid.evaluation, trusted))
    if tasks:
        with closing(runner.run(tasks, progress)) as ended:
            for name, error in ended:
                errors[name] = error
                progress.announce(f"{name}: {'failed: ' + error if error else 'done'}")
    for name in grid.cells:
        evaluation = None if errors.get(name) else _stored(grid.out / name, grid)
        if evaluation is None:
            result.failed[name] = errors.get(name) or "its evaluation is missing: run the command again"
        else:
            result.done[grid.out / name] = evaluation
    return result


def _stored(path: Path, grid: Grid) -> Evaluation | None:
    """The stored evaluation of a cell; a legacy run's is from draws of the posterior, whatever was requested."""
    run = runs.open_run(path)
    settings: dict[str, Any] = grid.evaluation
    if run.is_legacy:
        settings["proposal"] = "posterior"
    return runs.find_evaluation(run, **settings)
