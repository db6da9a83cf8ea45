"""How a directory stands to what is asked for: the one place that decides whether a training may go on in it."""

from __future__ import annotations

from pathlib import Path

from mixvae.config import Config
from mixvae.datasets import Dataset
from mixvae.runs.opening import open_run
from mixvae.runs.recipe import AMENDABLE
from mixvae.runs.run import Run
from mixvae.runs.store import Layout


def standing(config: Config, out: str | Path, data: Dataset | None = None) -> str:
    """How a run directory stands to a configuration: `new`, `unfinished` or `trained`.

    Args:
        config: the configuration.
        out: the run directory.
        data: its data; loaded by default.

    Raises:
        ValueError: something else is there, such as a run that was made from other settings or data.
    """
    run = standing_run(Path(out).expanduser(), resume=True, legacy=True)
    if run is None:
        return "new"
    reason = run.why_not(config, data)
    if reason == "unfinished" and run.is_legacy:
        raise ValueError(f"{run.path} is a legacy run, which cannot be resumed: train it anew in another folder")
    refuse(run, reason)
    return reason or "trained"


def standing_run(path: Path, *, resume: bool, legacy: bool = False) -> Run | None:
    """The run that is in a directory already, if any.

    Raises:
        ValueError: something is there that cannot be gone on with.
    """
    layout = Layout(path)
    if layout.manifest.exists():
        if not resume:
            raise ValueError(
                f"{path} exists already: go on with it by `mixvae train --resume {path}`, or choose another --out"
            )
        return open_run(path)
    if layout.is_empty:
        return None
    if not resume:
        raise ValueError(f"{path} exists already, and is not a run: choose another --out")
    if Run(path).is_legacy:
        if legacy:
            return open_run(path)
        raise ValueError(f"{path} is a legacy run, which cannot be resumed: train it anew in another folder")
    raise ValueError(f"{path} is not a run: it has no run.json")


def refuse(run: Run, reason: str, amending: str = "") -> None:
    """Refuse a run that was made from something else.

    Args:
        run: the run.
        reason: what `Run.why_not` says.
        amending: how the caller allows a learning rate, weight decay or clipping to change, if it does.

    Raises:
        ValueError: it was.
    """
    if not reason or reason == "unfinished":
        return
    if reason.startswith("its training"):
        raise ValueError(f"{run.path}: {reason}")
    amendable = amending and any(reason.startswith(f"training.{name} ") for name in AMENDABLE)
    how = f"{amending}, go on with it unchanged," if amendable else "go on with it unchanged,"
    raise ValueError(f"{run.path} was made from something else: {reason}; {how} or train a new run in another folder")
