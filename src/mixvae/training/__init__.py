"""Training on Lightning Fabric: KL warm-up, early stopping, checkpoints, and resuming bit for bit.

The trainer is imported when it is first used: Lightning Fabric takes seconds, which who reads a run need not wait.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mixvae.training.devices import default_device, launch
from mixvae.training.memory import keep_freed_memory
from mixvae.training.options import MakeOptimizer, MakeSchedule, TrainingOptions
from mixvae.training.state import State, Store, is_over

if TYPE_CHECKING:
    from mixvae.training.trainer import Trainer

__all__ = [
    "MakeOptimizer",
    "MakeSchedule",
    "State",
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
    return getattr(importlib.import_module("mixvae.training.trainer"), name)
