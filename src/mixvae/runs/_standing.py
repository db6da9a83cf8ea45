"""Whether a training may start or resume in a directory: the one place that decides."""

from __future__ import annotations

from pathlib import Path

from mixvae._failures import typed
from mixvae.config import Config
from mixvae.datasets import Dataset
from mixvae.runs._opening import open_run
from mixvae.runs._recipe import AMENDABLE
from mixvae.runs._run import Run
from mixvae.runs._store import Layout


def standing(config: Config, out: str | Path, data: Dataset | None = None) -> str:
    """State of a run directory relative to a configuration: `new`, `unfinished` or `trained`.

    Args:
        config: the configuration.
        out: the run directory.
        data: its data; loaded by default.

    Raises:
        ValueError: something else is there, such as a run with other settings or data.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import standing, train
        >>> config = read("digits", ["--data.limit=40", "--training.epochs=1"])
        >>> before, run = standing(config, "runs/digits"), train(config, "runs/digits")
        >>> before, standing(config, "runs/digits")
        ('new', 'trained')
    """
    run = standing_run(Path(out).expanduser(), resume=True, legacy=True)
    if run is None:
        return "new"
    reason = run.why_not(config, data)
    if reason == "unfinished" and run.is_legacy:
        raise ValueError(f"{run.path} is a legacy run, which cannot be resumed: train it again in another folder")
    refuse(run, reason)
    return reason or "trained"


def standing_run(path: Path, *, resume: bool, legacy: bool = False) -> Run | None:
    """The run that is already in a directory, if any.

    Raises:
        ValueError: something is there that cannot be resumed.
    """
    layout = Layout(path)
    if layout.manifest.exists():
        if not resume:
            raise ValueError(
                f"{path} already exists: resume it with `{typed('train', '--resume', path)}`, or choose another --out"
            )
        return open_run(path)
    if layout.is_empty:
        return None
    if not resume:
        raise ValueError(f"{path} already exists and is not a run: choose another --out")
    if Run(path).is_legacy:
        if legacy:
            return open_run(path)
        raise ValueError(f"{path} is a legacy run, which cannot be resumed: train it again in another folder")
    raise ValueError(f"{path} is not a run: it has no run.json")


def refuse(run: Run, reason: str, amending: str = "") -> None:
    """Refuse a run that was made from something else.

    Args:
        run: the run.
        reason: what `Run.why_not` returned.
        amending: how the caller lets learning rate, weight decay or clipping change, if at all.

    Raises:
        ValueError: the run was made from something else.
    """
    if not reason or reason == "unfinished":
        return
    if reason.startswith("its training"):
        raise ValueError(f"{run.path}: {reason}")
    amendable = amending and any(reason.startswith(f"training.{name} ") for name in AMENDABLE)
    how = f"{amending}, resume it unchanged," if amendable else "resume it unchanged,"
    raise ValueError(f"{run.path} was made from something else: {reason}; {how} or train a new run in another folder")
