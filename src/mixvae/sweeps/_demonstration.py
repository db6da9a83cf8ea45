"""The demo: three mixtures on the embedded digits, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixvae import config, reports, runs
from mixvae.evaluation import Evaluation
from mixvae.progress import SILENT, Progress
from mixvae.sweeps._grids import Grid


def demo(
    out: str | Path = "runs/demo",
    *,
    components: Sequence[int] = (1, 2, 4),
    total_draws: int = 2000,
    seed: int = 0,
    epochs: int | None = None,
    progress: Progress = SILENT,
) -> tuple[reports.Comparison, Path]:
    """Train S = 1, 2, 4 on the embedded digits, evaluate each, and write one report. Finished work is not repeated.

    Args:
        out: folder of the runs and of `report.html`.
        components: numbers of components S.
        total_draws: total draws per test example.
        seed: seed of every training.
        epochs: passes over the training examples; the preset's 150 by default.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Returns:
        The comparison, and the path of the report.
    """
    cells = {f"S{s}": config.read("digits", [f"--model.components={s}", f"--seed={seed}"]) for s in components}
    for cell in cells.values():
        cell.training.epochs = epochs or cell.training.epochs
    grid = Grid(Path(out).expanduser(), cells, total_draws)
    grid.standing()
    done: dict[Path, Evaluation] = {}
    for name, cell in cells.items():
        path = grid.out / name
        progress.announce(f"training S = {cell.model.components} in {path}")
        run = runs.train(cell, path, resume=True, amend=False, progress=progress)
        progress.announce(f"evaluating S = {cell.model.components} with {total_draws} draws")
        done[path] = runs.evaluate(run, **grid.evaluation, progress=progress)
    evaluations = list(done.values())
    return reports.compare(list(done), evaluations), reports.write(list(done), grid.out / "report.html", evaluations)
