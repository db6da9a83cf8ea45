"""One cell of a grid to train and evaluate, and the process that does it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixvae import config, runs
from mixvae.files import write_text
from mixvae.files._lease import Lease, LeaseTaken
from mixvae.progress import Progress, Terminal
from mixvae.sweeps._children import FINAL, TRANSIENT
from mixvae.training import _lives as lives

DOING = {"new": "training", "unfinished": "resuming", "trained": "evaluating"}
"""What is done to a cell, by the state of its run directory."""
WAIT_SECONDS = 5.0
"""How often to check whether another process has stopped training a cell."""
SCRIPT = "import sys; from mixvae.sweeps import run_cell; run_cell(*sys.argv[1:])"


@dataclass(frozen=True)
class Task:
    """One cell to train and evaluate.

    Args:
        name: name of the cell.
        config: its configuration.
        folder: folder of the grid's run directories.
        standing: state of its run directory: new, unfinished or trained.
        evaluation: arguments of `runs.evaluate`.
        trusted: packages that the configuration may name beyond the allowlist.
    """

    name: str
    config: config.Config
    folder: Path
    standing: str
    evaluation: Mapping[str, Any]
    trusted: Sequence[str] = ()

    @property
    def out(self) -> Path:
        """Its run directory."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """What its process writes to standard error."""
        return self.folder / "cells" / f"{self.name}.log"

    @property
    def doing(self) -> str:
        """What is done to it, in one word."""
        return DOING[self.standing]

    def words(self) -> list[str]:
        """Write its configuration, and return the arguments with which Python trains and evaluates it."""
        file = self.folder / "cells" / f"{self.name}.yaml"
        write_text(file, config.to_yaml(self.config))
        return ["-c", SCRIPT, str(file), str(self.out), json.dumps(dict(self.evaluation)), *self.trusted]


def run_cell(file: str, out: str, evaluation: str, *trust: str) -> None:
    """Train and evaluate one cell, as the process that `Task.words` describes; resumes an unfinished run."""
    lives.stop_with_parent()
    try:
        with config.granting(*trust, working_folder=True), Terminal() as progress:
            cell = config.read(file)
            _wait_for_lease(Path(out), progress)
            run = runs.train(cell, out, resume=True, amend=False, progress=progress)
            runs.evaluate(run, **json.loads(evaluation), progress=progress)
    except (ValueError, OSError, FloatingPointError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(TRANSIENT if isinstance(error, OSError | LeaseTaken) else FINAL)


def _wait_for_lease(out: Path, progress: Progress) -> None:
    """Wait while another process trains a cell, such as one that an earlier sweep started elsewhere."""
    waiting = False
    while out.exists():
        try:
            Lease.acquire(out).release()
            return
        except LeaseTaken as error:
            if not waiting:
                progress.announce(f"{str(error).partition(':')[0]}: waiting until it ends")
            waiting = True
            time.sleep(WAIT_SECONDS)
