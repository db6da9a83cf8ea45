"""Devices and processes. Imports Lightning Fabric, which takes seconds, only when it starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from mixvae.failures import plain_errors

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TESTED_STRATEGIES = ("auto", "ddp")


def launch(
    accelerator: str = "auto", devices: int | str = 1, strategy: str = "auto", precision: Any = "32-true"
) -> Fabric:
    """Start Lightning Fabric, with one process per device.

    Args:
        accelerator: `cpu`, `cuda`, … as Fabric knows them; `auto` is a CUDA GPU if there is one, else the CPU.
        devices: how many devices.
        strategy: `auto` or `ddp`.
        precision: `32-true`, `bf16-mixed`, … as Fabric knows them; densities are computed in full precision.

    Raises:
        ValueError: the strategy is not one that mixvae is tested with, or Fabric refuses a value.
    """
    if strategy not in TESTED_STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not tested with mixvae: use {' or '.join(TESTED_STRATEGIES)}")
    if accelerator == "auto":
        accelerator = default_device()
    if strategy == "ddp":
        strategy = "ddp_find_unused_parameters_true"  # a step on some components leaves the others' encoders alone
    from lightning_fabric import Fabric

    from mixvae.training.processes import meet

    with plain_errors(
        f"devices {devices!r} with accelerator {accelerator!r} and precision {precision!r} cannot be used"
    ):
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    _check_processes(fabric)
    meet(fabric)
    return fabric


def _check_processes(fabric: Fabric) -> None:
    """Refuse to start more processes on the CPU than it could run.

    Raises:
        ValueError: there would be more than its cores, or than two where it has one.
    """
    count, cores = fabric.world_size, os.cpu_count() or 1
    if fabric.device.type == "cpu" and count > max(cores, 2) and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"devices {count} would start {count} processes, and this machine has {cores} cores: give fewer"
        )


def default_device() -> str:
    """Device that work goes to unless told otherwise: a CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
