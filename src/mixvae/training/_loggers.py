"""Loggers: where hyperparameters and metrics go besides the run itself."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mixvae._failures import said
from mixvae.progress import Progress
from mixvae.training._history import Epoch
from mixvae.training._kinds import listed, shown


@runtime_checkable
class Logger(Protocol):
    """What a training needs of a logger: any of Lightning's has it.

    Such as `lightning_fabric.loggers.CSVLogger` and `TensorBoardLogger`, or `WandbLogger` and `MLFlowLogger` of
    `lightning.pytorch.loggers`.

    Example:
        >>> from lightning_fabric.loggers import CSVLogger
        >>> from mixvae.training import Logger
        >>> isinstance(CSVLogger("logs"), Logger)
        True
    """

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Record the settings of the training, by dotted name; called once when it begins or is resumed."""
        ...

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Record the metrics of an epoch; `step` is its number, from 1."""
        ...

    def finalize(self, status: str) -> None:
        """End the record; the status is `success`, or `failed` after an error, Ctrl-C or another signal."""
        ...


class Loggers:
    """The loggers of one training. One that fails is dropped, which is reported once; the training goes on.

    Args:
        given: the user's loggers.
        folder: the run directory, which also gets TensorBoard's files where that is installed.
        progress: where failures are reported.
        before: loggers that Fabric already has, which come first.

    Raises:
        ValueError: they are not a list, or one is not a logger.
    """

    def __init__(self, given: Sequence[Logger], folder: Path | None, progress: Progress, before: Sequence[Logger] = ()):
        self.all: list[Logger] = [*before, *listed("loggers", given, '[lightning_fabric.loggers.CSVLogger("logs")]')]
        for one in self.all:
            if not isinstance(one, Logger) or isinstance(one, type):
                raise ValueError(
                    "a logger has log_hyperparams, log_metrics and finalize, as lightning_fabric.loggers.CSVLogger(…) "
                    f"does; got {shown(one)}"
                )
        self.folder, self.progress = folder, progress

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Record the settings, nested as they may be."""

        def record(logger: Logger) -> None:
            with suppress(NotImplementedError):  # Fabric's CSVLogger takes none
                logger.log_hyperparams(dict(flat(settings)))

        self._each(record)

    def log(self, row: Epoch) -> None:
        """Record an epoch."""
        if self.folder is not None:
            self._begin_tensorboard(self.folder)
        metrics = {name: value for name, value in row.items() if name != "epoch" and value is not None}
        self._each(lambda logger: logger.log_metrics(metrics, row["epoch"]))  # pyright: ignore[reportArgumentType]

    def finish(self, status: str) -> None:
        """End all records."""
        if status == "success":
            self._each(lambda logger: logger.finalize(status))
            return
        for logger in self.all:  # the training's own error is the one reported
            with suppress(Exception):
                logger.finalize(status)

    def _begin_tensorboard(self, folder: Path) -> None:
        """Begin TensorBoard's files in the run directory, if it is installed."""
        self.folder = None
        if importlib.util.find_spec("tensorboard"):
            from lightning_fabric.loggers.tensorboard import TensorBoardLogger

            self.all.append(TensorBoardLogger(folder, "tensorboard", version=""))

    def _each(self, act: Callable[[Logger], object]) -> None:
        for logger in list(self.all):
            try:
                act(logger)
            except Exception as error:  # noqa: BLE001  (a service that is gone may raise anything)
                self.all.remove(logger)
                line = f"{type(logger).__name__} failed and is no longer used; the training continues: {said(error)}"
                self.progress.announce(f"warning: {line}")
                warnings.warn(line, stacklevel=2)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested mappings by dotted name.

    Example:
        >>> from mixvae.training._loggers import flat
        >>> dict(flat({"seed": 0, "training": {"epochs": 5}}))
        {'seed': 0, 'training.epochs': 5}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
