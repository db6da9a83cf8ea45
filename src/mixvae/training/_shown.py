"""How far a training has come, as shown to the user."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from mixvae.progress import SILENT, Progress, Silent
from mixvae.training._history import Epoch, in_words, within

SECONDS = 0.1
"""Seconds between two reports within an epoch."""
NOBODY = Silent()
"""Where all processes of a training but the first report; the first speaks for all."""


def tell(progress: Progress, text: str) -> None:
    """Report a line where progress is shown, or as a warning where it is silent by default.

    Args:
        progress: where progress is reported.
        text: the line.
    """
    progress.announce(f"warning: {text}")
    if progress is SILENT:
        warnings.warn(text, stacklevel=6)  # where `fit` was called


class Shown:
    """Reports of a training in steps, so that a bar moves within an epoch too. Reads nothing from the device.

    Args:
        progress: where to report.
        epochs: maximum number of epochs.
        steps: steps of an epoch.
    """

    def __init__(self, progress: Progress, epochs: int, steps: int):
        self.progress, self.epochs, self.steps = progress, epochs, steps
        self.last = time.monotonic()

    def step(self, epochs_done: int, step: int, rows: Sequence[Epoch]) -> None:
        """Report a step, if the last report was a while ago."""
        self._within(epochs_done, step, f"step {step}/{self.steps}", rows)

    def validating(self, epochs_done: int, examples: int, of: int, rows: Sequence[Epoch]) -> None:
        """Report how many examples are validated, likewise."""
        self._within(epochs_done, self.steps, f"validating {examples}/{of}", rows)

    def epoch(self, row: Epoch, *, over: bool) -> None:
        """Report an epoch that has ended; if it was the last one, all is done."""
        done = row["epoch"] * self.steps
        self.last = time.monotonic()
        self.progress.update(done, done if over else self.epochs * self.steps, in_words(row, self.epochs))

    def _within(self, epochs_done: int, step: int, what: str, rows: Sequence[Epoch]) -> None:
        now = time.monotonic()
        if now - self.last < SECONDS:
            return
        self.last = now
        text = within(epochs_done + 1, self.epochs, what, rows[-1] if rows else None)
        total = self.epochs * self.steps
        self.progress.update(min(epochs_done * self.steps + step, total - 1), total, text)  # all is done after the last
