"""Where the cells of a grid are trained: the interface, its implementation on this machine, and all of them by name."""

from __future__ import annotations

import inspect
import os
import subprocess
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

from mixvae._failures import at_least
from mixvae.config import nearest
from mixvae.progress import Progress
from mixvae.sweeps._children import FINAL, failure, run_child
from mixvae.sweeps._ray import RayRunner
from mixvae.sweeps._tasks import Task


class Runner(Protocol):
    """Where the cells of a grid are trained."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Generator[tuple[str, str], None, None]:
        """Train and evaluate cells; closing the generator stops those still in training.

        Args:
            tasks: the cells. They may begin and end in any order.
            progress: where to report which cell begins.

        Yields:
            The name of each cell that has ended, and its error; an empty string if it succeeded.
        """
        ...


@dataclass(frozen=True)
class LocalRunner:
    """Trains every cell in a process on this machine.

    Args:
        jobs: number of cells to train in parallel, sharing the processor's cores.

    Example:
        >>> from mixvae.sweeps import LocalRunner
        >>> LocalRunner(2)
        LocalRunner(jobs=2)
    """

    jobs: int = 1

    def __post_init__(self) -> None:
        at_least(1, jobs=self.jobs)

    def run(self, tasks: Sequence[Task], progress: Progress) -> Generator[tuple[str, str], None, None]:
        """Train and evaluate cells, `jobs` at a time and in their order."""
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = os.environ | {"OMP_NUM_THREADS": threads} if self.jobs > 1 else None
        children = set[subprocess.Popen[str]]()

        def train(task: Task) -> tuple[str, str]:
            progress.announce(f"{task.name}: {task.doing}")
            status, last = run_child(task.words(), task.log, environment, children)
            error = failure(status, last)
            return task.name, error if status in (0, FINAL) else f"{error}; its log is {task.log}"

        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(train, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:  # pending cells are cancelled, the others save and stop
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(children):
                    child.terminate()
                raise


LOCAL = LocalRunner()
"""Trains one cell after another on this machine."""
RUNNERS: dict[str, Callable[..., Runner]] = {"local": LocalRunner, "ray": RayRunner}
"""Every runner, by its name on the command line."""


def choose_runner(on: str = "local", *, jobs: int | None = None, address: str | None = None) -> Runner:
    """Make a runner by its name, as `--on` does.

    Args:
        on: local or ray.
        jobs: number of cells to train in parallel; the runner's own choice by default.
        address: HOST:PORT of a cluster.

    Raises:
        ValueError: there is no such runner, or it has no such setting.

    Example:
        >>> from mixvae.sweeps import choose_runner
        >>> choose_runner("local", jobs=4)
        LocalRunner(jobs=4)
    """
    if on not in RUNNERS:
        near = nearest(on, list(RUNNERS))
        hint = f"did you mean {near}?" if near else f"choose {' or '.join(RUNNERS)}"
        raise ValueError(f"unknown --on {on!r}: {hint}")
    given = {name: value for name, value in (("jobs", jobs), ("address", address)) if value is not None}
    if unknown := given.keys() - inspect.signature(RUNNERS[on]).parameters:
        raise ValueError(f"--on {on} takes no --{unknown.pop()}: leave it out, or give --on ray")
    return RUNNERS[on](**given)
