"""Progress of a training, for people."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0
"""Seconds between progress lines where there is no terminal to draw a bar on."""


def announce(text: str) -> None:
    """Say on standard error what takes a while now."""
    Console(stderr=True, markup=False, emoji=False).print(text, highlight=False, soft_wrap=True)


class Display:
    """Progress of a training: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, epochs: int):
        self.console = Console(stderr=True, markup=False, emoji=False)
        self.epochs = epochs
        self.printed = -math.inf
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
        self.progress = Progress(*columns, console=self.console, transient=True)
        self.task = self.progress.add_task("training", total=epochs)
        self.started: tuple[int, float] | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Show the newest epoch."""
        epoch = row["epoch"]
        first, since = self.started or (epoch - 1, row["seconds"])
        self.started = first, since
        pace = (row["seconds"] - since) / (epoch - first - 1) if epoch > first + 1 else row["seconds"] / epoch
        text = (
            f"epoch {epoch}/{self.epochs}  bound {row['bound']:.2f}  validation {row['validation']:.2f}"
            f"  best {row['best_epoch']}  β {row['beta']:.2f}  {pace:.3g} s/epoch"
        )
        if self.console.is_terminal:
            self.progress.update(self.task, completed=epoch, description=text)
        elif epoch == self.epochs or time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(f"{text}  {pace * (self.epochs - epoch):.0f} s left", highlight=False, soft_wrap=True)
