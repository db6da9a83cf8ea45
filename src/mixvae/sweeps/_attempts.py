"""Retrying cells on machines that can be lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mixvae.progress import Progress
from mixvae.sweeps._tasks import Task

ATTEMPTS = 3
"""How many times a cell is tried. Each attempt resumes from the last checkpoint of the previous one."""


@dataclass(frozen=True)
class Started:
    """A cell has begun.

    Args:
        node: the machine it runs on.
    """

    node: str


@dataclass(frozen=True)
class Ended:
    """A cell has ended.

    Args:
        error: what went wrong; empty if it is done.
        final: whether another attempt would fail in the same way.
    """

    error: str = ""
    final: bool = False


class Cluster(Protocol):
    """Machines that train cells. An attempt is whatever `submit` returns."""

    def submit(self, task: Task) -> Any:
        """Queue a cell."""
        ...

    def wait(self, attempts: Sequence[Any]) -> tuple[Any, Started | Ended]:
        """The next event of one of the given attempts, and which attempt it concerns."""
        ...

    def cancel(self, attempts: Sequence[Any]) -> None:
        """Stop attempts; they may save."""
        ...


def run_all(
    cluster: Cluster, tasks: Sequence[Task], jobs: int | None, progress: Progress
) -> Generator[tuple[str, str], None, None]:
    """Train cells on a cluster, as `Runner.run` does, each in up to `ATTEMPTS` attempts.

    Args:
        cluster: the machines that train them.
        tasks: the cells.
        jobs: maximum number of cells queued at a time; all by default.
        progress: where to report progress.
    """
    waiting = deque((task, 1) for task in tasks)
    running: dict[Any, tuple[Task, int]] = {}
    try:
        while waiting or running:
            while waiting and (jobs is None or len(running) < jobs):
                task, number = waiting.popleft()
                running[cluster.submit(task)] = task, number
            attempt, event = cluster.wait(list(running))
            task, number = running[attempt]
            if isinstance(event, Started):
                doing = task.doing if number == 1 else f"attempt {number} of {ATTEMPTS}"
                progress.announce(f"{task.name}: {doing} on {event.node}")
                continue
            del running[attempt]
            if not event.error or event.final:
                yield task.name, event.error
            elif number == ATTEMPTS:
                yield task.name, f"{event.error} (attempt {number} of {ATTEMPTS}); its log is {task.log}"
            else:
                progress.announce(f"{task.name}: {event.error}; trying again")
                waiting.appendleft((task, number + 1))
    finally:
        cluster.cancel(list(running))
