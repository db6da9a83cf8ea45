"""Training on Lightning Fabric: KL warm-up, early stopping, checkpoints, and resuming bit for bit.

The trainer is imported when it is first used: Lightning Fabric takes seconds to import, and reading a run does not
need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mixvae.training._callbacks import Callback, Step, StopTraining
from mixvae.training._devices import default_device, launch
from mixvae.training._history import Epoch, History
from mixvae.training._loggers import Logger
from mixvae.training._memory import keep_freed_memory
from mixvae.training._options import MakeOptimizer, MakeSchedule, TrainingOptions
from mixvae.training._state import State, Store, is_over

if TYPE_CHECKING:
    from mixvae.training._trainer import Trainer

__all__ = [
    "Callback",
    "Epoch",
    "History",
    "Logger",
    "MakeOptimizer",
    "MakeSchedule",
    "State",
    "Step",
    "StopTraining",
    "Store",
    "Trainer",
    "TrainingOptions",
    "default_device",
    "is_over",
    "keep_freed_memory",
    "launch",
]


def __getattr__(name: str) -> object:
    if name != "Trainer":
        raise AttributeError(f"module 'mixvae.training' has no attribute {name!r}")
    return getattr(importlib.import_module("mixvae.training._trainer"), name)
