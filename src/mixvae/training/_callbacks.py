"""Callbacks: user code that is called at every step and epoch of a training, and how it ends one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mixvae.training._history import Epoch
from mixvae.training._kinds import listed, shown


class StopTraining(Exception):  # noqa: N818  (a request, not an error)
    """Raised by a callback to end its training as patience does: with a checkpoint and the best epoch's weights.

    Raised at a step, it ends the training there: the epoch stays unfinished, and a model that has finished none keeps
    its current weights. The request is not recorded, so that the same call, or `mixvae train --resume`, continues.
    """


@dataclass(frozen=True)
class Step:
    """One step of a training. Its tensors are 0-dimensional and on the device: reading one waits for the device.

    Args:
        epoch: number of the epoch, from 1.
        step: number of the step within the epoch, from 1.
        steps: steps of an epoch.
        bound: the bound that was maximised, mean over the batch, in nats per example.
        beta: weight β of the KL part.
        learning_rate: learning rate of the first group of parameters at this step.
        gradient_norm: norm of the gradient of −bound before clipping.
    """

    epoch: int
    step: int
    steps: int
    bound: Tensor
    beta: Tensor
    learning_rate: Tensor
    gradient_norm: Tensor


@runtime_checkable
class Callback(Protocol):
    """An object that is called during a training. Derive from it and override either method, or both.

    Pass some to `fit(..., callbacks=[…])`; a plain function counts as `on_epoch`. They are called in the first process
    only, and are not part of a run's identity: random numbers that they draw from torch's generators do not change the
    training. `StopTraining` ends it; any other exception ends it too, and is raised once a checkpoint has been written.

    When a run is resumed, epochs that are done are not repeated to its callbacks. A step that was taken after the last
    checkpoint is taken again, and so is the call.

    Example:
        >>> from mixvae.training import Callback, StopTraining
        >>> class UntilGoodEnough(Callback):
        ...     def on_epoch(self, row):
        ...         if row["validation"] > -30:
        ...             raise StopTraining
        >>> isinstance(UntilGoodEnough(), Callback)
        True
    """

    def on_step(self, step: Step) -> None:
        """Called after every step of the optimiser."""

    def on_epoch(self, row: Epoch) -> None:
        """Called after every epoch, once validated, with its row of the history."""


class _Function(Callback):
    """A plain function of an epoch's row."""

    def __init__(self, function: Callable[[Epoch], object]):
        self.function = function

    def on_epoch(self, row: Epoch) -> None:
        self.function(row)


class Callbacks:
    """The callbacks of one training.

    Args:
        given: callbacks, and functions of an epoch's row.
        device: the device whose random generator they must leave as it is.

    Raises:
        ValueError: they are not a list, or one is neither.
    """

    def __init__(self, given: Sequence[Callback | Callable[[Epoch], object]], device: torch.device):
        self.all = [_as_callback(one) for one in listed("callbacks", given, "[print]")]
        self.devices = [device] if device.type == "cuda" else []
        self.stopping = False
        """Whether a callback asked to stop."""

    @property
    def at_steps(self) -> list[Callback]:
        """Callbacks with an `on_step` of their own, whether from their class or set on the object at any time."""
        return [one for one in self.all if getattr(one.on_step, "__func__", one.on_step) is not Callback.on_step]

    def step(self, step: Step) -> None:
        """Call the callbacks with an `on_step` of their own."""
        self._call([lambda one=one: one.on_step(step) for one in self.at_steps])

    def epoch(self, row: Epoch) -> None:
        """Call all callbacks after an epoch; each gets its own copy of the row."""
        self._call([lambda one=one: one.on_epoch(row.copy()) for one in self.all])

    def _call(self, calls: Sequence[Callable[[], object]]) -> None:
        if not calls:
            return
        with torch.random.fork_rng(self.devices):
            for call in calls:
                try:
                    call()
                except StopTraining:
                    self.stopping = True


def _as_callback(value: object) -> Callback:
    """A callback from what is given as one.

    Raises:
        ValueError: it is not a callback, or cannot be called with a step or an epoch's row alone.
    """
    if isinstance(value, Callback) and not isinstance(value, type):
        for name, taken in (("on_step", "a Step"), ("on_epoch", "an epoch's row")):
            _check_takes_one(getattr(value, name), f"{name} of {type(value).__name__}", taken)
        return value
    if callable(value) and not isinstance(value, type):
        _check_takes_one(value, "a callback", "an epoch's row")
        return _Function(value)
    raise ValueError(
        f"a callback is an object of a class derived from mixvae.training.Callback, or a function of an epoch's row; "
        f"got {shown(value)}"
    )


def _check_takes_one(function: object, what: str, taken: str) -> None:
    """Refuse now what would fail at the first step or epoch.

    Raises:
        ValueError: it is not a function of one argument.
    """
    if not _takes_one(function):
        raise ValueError(f"{what} must be a function of {taken}; got {shown(function)}")


def _takes_one(function: object) -> bool:
    """Whether something can be called with one argument, as far as can be determined."""
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it has no signature
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True
