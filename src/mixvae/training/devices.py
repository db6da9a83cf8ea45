"""Devices and processes. Imports Lightning Fabric, which takes seconds, only when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

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

    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    except TypeError as error:
        raise ValueError(f"devices {devices!r} is not a number of devices: {' '.join(str(error).split())}") from None
    fabric.launch()
    return fabric


def default_device() -> str:
    """Device that work goes to unless told otherwise: a CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
