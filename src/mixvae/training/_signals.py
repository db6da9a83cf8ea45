"""Signals after which a training saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals after which a training saves and ends."""


class StopSignal:
    """The signal that this process received while it listened; `number` is 0 until there is one."""

    def __init__(self):
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note Ctrl-C, SIGTERM and SIGHUP instead of ending; a second Ctrl-C ends immediately."""
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
