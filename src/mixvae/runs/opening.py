"""Opening runs and loading their models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mixvae.datasets import Dataset
from mixvae.model import MixtureVAE
from mixvae.runs.run import Run


def open_run(
    path: str | Path | Run,
    *,
    data: Dataset | str | Path | None = None,
    model: MixtureVAE | None = None,
    trust: Sequence[str] = (),
) -> Run:
    """Open a run directory.

        run = mixvae.open_run("runs/S4")
        run.evaluate(total_draws=5000)["nll_pooled"]

    Args:
        path: the run directory.
        data: the data, or where they are now, if they are not where they were.
        model: a model of the same architecture, for a run whose own model cannot be named by import path.
        trust: packages whose classes it may name beside those of mixvae, torch and zuko; a run of your own that this
            user trained needs none.

    Raises:
        FileNotFoundError: the directory is not a run.
        ValueError: its manifest is damaged.
    """
    if isinstance(path, Run):
        return path
    run = Run(Path(path).expanduser(), data=data, model=model, trust=trust)
    run.manifest  # noqa: B018  (read now, so that what is no run is refused now)
    return run


def open_runs(paths: Iterable[str | Path | Run]) -> list[Run]:
    """Open some run directories, which read a data set that several of them share only once."""
    shared: dict[str, Dataset] = {}
    opened = []
    for path in paths:
        run = path if isinstance(path, Run) else Run(Path(path).expanduser(), shared=shared)
        run.manifest  # noqa: B018  (read now, so that what is no run is refused now)
        opened.append(run)
    return opened


def load(run: str | Path | Run, model: MixtureVAE | None = None, *, trust: Sequence[str] = ()) -> MixtureVAE:
    """Load a trained model, with the weights of its best epoch, in evaluation mode.

        model = mixvae.load("runs/demo/S4")

    Args:
        run: the run directory.
        model: a model of the same architecture, for a run whose own model cannot be named by import path.
        trust: packages whose classes it may name beside those of mixvae, torch and zuko.

    Raises:
        FileNotFoundError: the directory is not a run, or has not finished an epoch.
        ValueError: a file is damaged or of another architecture.
    """
    return open_run(run, model=model, trust=trust).load()
