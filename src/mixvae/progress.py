"""Progress of long work: one protocol, silent unless someone wants to see it.

Every function of mixvae that takes a while has a parameter `progress`. `Terminal` shows it on a terminal; anything else
with its two methods, such as a notebook widget or a logger, can be passed in its place:

    with mixvae.progress.Terminal() as progress:
        mixvae.fit(model, data, epochs=20, progress=progress)

Example:
    >>> from mixvae.progress import Progress, Terminal
    >>> class Log:
    ...     def announce(self, text):
    ...         print(text)
    ...     def update(self, done, total, text=""):
    ...         print(f"{text}: {done} of {total}")
    >>> isinstance(Log(), Progress), isinstance(Terminal(), Progress)
    (True, True)
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mixvae._tables import plain

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_muted: ContextVar[bool] = ContextVar("muted", default=False)
PLAIN_SECONDS = 10.0
"""Seconds between lines where there is no terminal to draw a bar on."""


@runtime_checkable
class Progress(Protocol):
    """What long work reports about itself."""

    def announce(self, text: str) -> None:
        """Report what is starting, or what the result was."""
        ...

    def update(self, done: int, total: int, text: str = "") -> None:
        """Report how much is done.

        Args:
            done: steps, epochs, examples or bytes that are done.
            total: how many there are in total.
            text: what is being done, in a few words.
        """
        ...


class Silent:
    """Shows nothing: the default everywhere."""

    def announce(self, text: str) -> None:
        """Show nothing."""

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show nothing."""


SILENT = Silent()


@contextmanager
def muted() -> Iterator[None]:
    """Let every `Terminal` made within a `with` block show nothing, as `--quiet` does.

    Example:
        >>> from mixvae.progress import Terminal, muted
        >>> with muted():
        ...     Terminal().announce("nothing of this is seen")
    """
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


class Terminal:
    """A bar on standard error where that is a terminal; elsewhere a line every `PLAIN_SECONDS`, and at the end."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, markup=False, emoji=False, quiet=_muted.get())
        self.bar: Bar | None = None
        self.task: TaskID | None = None
        self._begin()

    def _begin(self) -> None:
        """Reset for the next piece of work."""
        self.first, self.started, self.printed = 0, math.nan, -math.inf

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def announce(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self.console.print(plain(text), highlight=False, soft_wrap=True)

    def update(self, done: int, total: int, text: str = "") -> None:
        """Move the bar, or print a line if one is due; the bar disappears at the end."""
        if self.console.quiet:
            return
        now = time.monotonic()
        if math.isnan(self.started):
            self.first, self.started = done, now
        if self.console.is_terminal:
            self._move(done, total, plain(text))
        elif done >= total or now - self.printed >= PLAIN_SECONDS:
            self.printed = now
            pace = (now - self.started) / (done - self.first) if done > self.first else math.nan
            left = "" if math.isnan(pace) or done >= total else f"  {pace * (total - done):.0f} s left"
            self.announce(f"{text or f'{done}/{total}'}{left}")
        if done >= total:
            self.close()

    def _move(self, done: int, total: int, text: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None:
            columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(text, total=total)
            self.bar.start()
        assert self.task is not None
        self.bar.update(self.task, completed=done, total=total, description=text)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self._begin()
