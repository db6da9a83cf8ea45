"""Experiments by name: runs, their results, and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixvae import config, report, runs


def demo(
    out: str | Path = "runs/demo",
    *,
    components: Sequence[int] = (1, 2, 4),
    draws: int = 2000,
    seed: int = 0,
    epochs: int | None = None,
    say: Callable[[str], object] = print,
) -> tuple[list[dict[str, Any]], Path]:
    """Train S = 1, 2, 4 on the embedded digits, evaluate each, and write one report. What is done is not done again.

    Args:
        out: folder of the runs and of `report.html`.
        components: the numbers of components S.
        draws: total draws per test example.
        seed: seed of every training.
        epochs: passes over the training examples; the preset's 150 by default.
        say: takes a line on what happens now.

    Returns:
        The comparison's rows, and the report's path.
    """
    folder = Path(out)
    paths = [folder / f"S{s}" for s in components]
    for s, path in zip(components, paths, strict=True):
        say(f"training S = {s} in {path}")
        wanted = config.read("digits", [f"--model.components={s}", f"--seed={seed}"])
        if epochs is not None:
            wanted.training.epochs = epochs
        runs.train(wanted, path, resume=(path / "config.yaml").exists())
        say(f"evaluating S = {s} with {draws} draws")
        runs.evaluate(path, draws)
    return report.compare(paths), report.write(paths, folder / "report.html")
