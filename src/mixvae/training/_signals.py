"""Signals after which a training saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mixvae.training._cluster import requeue

REQUEUE = signal.SIGUSR1
"""Signal after which a SLURM job goes back into the queue: `#SBATCH --signal=USR1@90` sends it before time is up."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, REQUEUE)
"""Signals after which a training saves and ends."""


class StopSignal:
    """The signal that this process received while it listened; `number` is 0 until there is one."""

    def __init__(self):
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 instead of ending; a second Ctrl-C ends immediately."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            del frame
            if self.number == number == signal.SIGINT:
                raise KeyboardInterrupt  # pressed twice: do not wait for the step to end
            self.number = number

        caught = [n for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores SIGHUP, and so do we
        old = {number: signal.signal(number, note) for number in caught}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def end(number: int, where: str = "", *, saved: bool, first: bool) -> NoReturn:
    """End a training after a signal; after SIGUSR1, requeue its job of SLURM.

    Args:
        number: the signal; 0 if only another process received it.
        where: how far the training has come, in words.
        saved: whether there is a checkpoint to resume from.
        first: whether this is the first process, which requeues the job.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
        SystemExit: it was another signal; the status is 128 plus its number.
        Failed: the job cannot be requeued.

    Example:
        >>> import signal
        >>> from mixvae.training._signals import end
        >>> end(signal.SIGTERM, saved=True, first=True)
        Traceback (most recent call last):
        SystemExit: 143
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(f"{where}, after a checkpoint: repeat the call to resume" if saved else where)
    if number == REQUEUE and saved and first:
        requeue()
    raise SystemExit(128 + (number or signal.SIGTERM))


@contextmanager
def requeueing(*, first: bool) -> Iterator[None]:
    """End at once after SIGUSR1: for a training whose last checkpoint is always recent.

    Args:
        first: whether this is the first process, which requeues the job.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(REQUEUE, lambda number, frame: end(number, saved=True, first=first))
    try:
        yield
    finally:
        signal.signal(REQUEUE, old)
