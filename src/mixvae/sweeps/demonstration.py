"""The demo: three mixtures of the embedded digits beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mixvae import config, reports, runs
from mixvae.evaluation import Evaluation
from mixvae.sweeps.grids import Grid


def demo(
    out: str | Path = "runs/demo",
    *,
    components: Sequence[int] = (1, 2, 4),
    draws: int = 2000,
    seed: int = 0,
    epochs: int | None = None,
    say: Callable[[str], object] = print,
) -> tuple[reports.Comparison, Path]:
    """Train S = 1, 2, 4 on the embedded digits, evaluate each, and write one report. What is done is not done again.

    Args:
        out: folder of the runs and of `report.html`.
        components: the numbers of components S.
        draws: total draws per test example.
        seed: seed of every training.
        epochs: passes over the training examples; the preset's 150 by default.
        say: takes a line on what happens now.

    Returns:
        The comparison, and the report's path.
    """
    cells = {f"S{s}": config.read("digits", [f"--model.components={s}", f"--seed={seed}"]) for s in components}
    for cell in cells.values():
        cell.training.epochs = epochs or cell.training.epochs
    grid = Grid(Path(out), cells, draws)
    grid.standing()
    done: dict[Path, Evaluation] = {}
    for name, cell in cells.items():
        path = grid.out / name
        say(f"training S = {cell.model.components} in {path}")
        run = runs.train(cell, path, resume=True, amend=False)
        say(f"evaluating S = {cell.model.components} with {draws} draws")
        done[path] = runs.evaluate(run, **grid.evaluation)
    evaluations = list(done.values())
    return reports.compare(list(done), evaluations), reports.write(list(done), grid.out / "report.html", evaluations)
