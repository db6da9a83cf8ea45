"""Opening runs and loading their models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mixvae import hub
from mixvae.datasets import Dataset
from mixvae.model import MixtureVAE
from mixvae.runs._run import Run


def open_run(
    path: str | Path | Run,
    *,
    data: Dataset | str | Path | None = None,
    model: MixtureVAE | None = None,
    trust: Sequence[str] = (),
) -> Run:
    """Open a run directory.

    Args:
        path: the run directory, or the address of a run on the hub, `hub://ORG/NAME@REVISION`, which is downloaded into
            the hub's cache; its `path` then ends with the commit.
        data: the data, or their new location if they were moved.
        model: a model of the same architecture, for a run whose own model cannot be named by import path.
        trust: packages whose classes the run may name besides those of mixvae, torch and zuko; not needed for a run
            that this user trained.

    Raises:
        FileNotFoundError: the directory is not a run.
        ValueError: its manifest is damaged.

    Example:
        >>> import mixvae
        >>> from mixvae.config import read
        >>> from mixvae.runs import train
        >>> _ = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/opened")
        >>> run = mixvae.open_run("runs/opened")
        >>> run.state, run.epoch, run.data.name
        ('done', 1, 'digits')
    """
    if isinstance(path, Run):
        return path
    run = Run(directory_of(path), data=data, model=model, trust=trust)
    run.manifest  # noqa: B018  (read now, to refuse anything but a run immediately)
    return run


def open_runs(paths: Iterable[str | Path | Run]) -> list[Run]:
    """Open several run directories; a data set that they share is read only once."""
    shared: dict[str, Dataset] = {}
    opened = []
    for path in paths:
        run = path if isinstance(path, Run) else Run(directory_of(path), shared=shared)
        run.manifest  # noqa: B018  (read now, to refuse anything but a run immediately)
        opened.append(run)
    return opened


def directory_of(path: str | Path) -> Path:
    """Directory of a run; one on the hub is downloaded."""
    return hub.fetch(path) if hub.is_address(path) else Path(path).expanduser()


def load(run: str | Path | Run, model: MixtureVAE | None = None, *, trust: Sequence[str] = ()) -> MixtureVAE:
    """Load a trained model, with the weights of its best epoch, in evaluation mode.

    Args:
        run: the run directory, or the address of a run on the hub, `hub://ORG/NAME@REVISION`.
        model: a model of the same architecture, for a run whose own model cannot be named by import path.
        trust: packages whose classes the run may name besides those of mixvae, torch and zuko.

    Raises:
        FileNotFoundError: the directory is not a run, or has not finished an epoch.
        ValueError: a file is damaged or of another architecture.

    Example:
        >>> import mixvae
        >>> from mixvae.config import read
        >>> from mixvae.runs import train
        >>> _ = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/loaded")
        >>> model = mixvae.load("runs/loaded")
        >>> model.sample(3).shape, model.training
        (torch.Size([3, 1, 8, 8]), False)
    """
    return open_run(run, model=model, trust=trust).load()
