"""Devices and processes. Lightning Fabric takes seconds to import, so that is left to `launch`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mixvae._failures import at_least, plain_errors
from mixvae.training._cluster import cluster, settled

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TESTED_STRATEGIES = ("auto", "ddp")
HALVED = ("16-true", "bf16-true")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
ALIASES = ("32", "64", "bf16", "16", "transformer-engine", "transformer-engine-float16")
"""Other names of these precisions, and precisions that need a library of their own, which Fabric also accepts."""
DEVICES = re.compile(r"auto|-1|\d+(,\d+)*,?", re.ASCII)


def launch(
    accelerator: str = "auto",
    devices: int | str | None = None,
    strategy: str = "auto",
    precision: Any = "32-true",
    nodes: int | None = None,
) -> Fabric:
    """Start Lightning Fabric, with one process per device.

    Args:
        accelerator: `cpu`, `cuda`, `gpu`, `mps` or `tpu`, as in Fabric; `auto` is a CUDA GPU if there is one, else the
            CPU.
        devices: number of devices on each node; by default one per process that torchrun or srun started, else one.
        strategy: `auto` or `ddp`.
        precision: `32-true`, `64-true`, `bf16-mixed` or `16-mixed`, as in Fabric; densities are computed in full
            precision.
        nodes: number of nodes; by default the number on which torchrun or srun started processes, else one.

    Raises:
        ValueError: mixvae is not tested with the strategy, a value is unknown, this machine does not have the
            accelerator, Fabric refuses a value, or torchrun or srun started different numbers of processes.

    Example:
        >>> from mixvae.training import launch
        >>> launch("cpu").world_size
        1
    """
    if strategy not in TESTED_STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not tested with mixvae: use {' or '.join(TESTED_STRATEGIES)}")
    if precision in HALVED:
        raise ValueError(
            f"precision {precision} keeps weights and densities in 16 bits, which is too coarse for a likelihood: use "
            f"{str(precision).removesuffix('-true')}-mixed, which computes only products in them"
        )
    if str(precision) not in (*PRECISIONS, *ALIASES):
        raise ValueError(f"precision {precision!r} is unknown: choose {_either(PRECISIONS)}")
    if accelerator == "auto":
        accelerator = default_device()
    if accelerator == "cpu" and str(precision).startswith("16"):  # Fabric would compute in bf16-mixed instead
        raise ValueError(f"precision {precision} is not available on the CPU: use bf16-mixed")
    if strategy == "ddp":
        strategy = "ddp_find_unused_parameters_true"  # a step on some components does not touch the others' encoders
    at_least(1, nodes=nodes)
    if devices == 0:
        raise ValueError("devices must be at least 1, or -1 for all; got 0")
    if not DEVICES.fullmatch("auto" if devices is None else str(devices)):
        raise ValueError(
            f"devices must be a number from 1, auto, -1 for all GPUs, or numbers of GPUs such as 0,1; got {devices!r}"
        )
    devices, nodes = settled(devices, nodes)
    from lightning_fabric import Fabric

    _check_accelerator(accelerator)
    from mixvae.training._processes import environments, meet

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # every process says that it is one of several
    with plain_errors(
        f"devices {devices!r} with accelerator {accelerator!r} and precision {precision!r} cannot be used"
    ):
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, precision=precision,
            plugins=environments(),
        )  # fmt: skip
    _check_processes(fabric)
    meet(fabric)
    return fabric


def _check_accelerator(name: str) -> None:
    """Refuse an accelerator that Fabric does not know, or that this machine does not have.

    Raises:
        ValueError: it is unknown, or not on this machine.
    """
    from lightning_fabric.accelerators import ACCELERATOR_REGISTRY

    kinds = {kind: one["accelerator"].is_available() for kind, one in sorted(ACCELERATOR_REGISTRY.items())}
    kinds["gpu"] = kinds.get("cuda") or kinds.get("mps")
    if name not in kinds:
        raise ValueError(f"accelerator {name!r} is unknown: choose {_either(['auto', *sorted(kinds)])}")
    if not kinds[name]:
        there = _either(["auto", *(kind for kind, is_there in sorted(kinds.items()) if is_there)])
        raise ValueError(f"accelerator {name!r} is not available on this machine: choose {there}")


def _either(names: Sequence[str]) -> str:
    """Names to choose from."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _check_processes(fabric: Fabric) -> None:
    """Refuse to start more processes on the CPU than it can run.

    Raises:
        ValueError: there would be more than its cores, or more than two on a single core.
    """
    count, cores = fabric.world_size, os.cpu_count() or 1
    alone = cluster() is None and "LOCAL_RANK" not in os.environ
    if alone and fabric.device.type == "cpu" and count > max(cores, 2):
        raise ValueError(
            f"devices {count} would start {count} processes, and this machine has {cores} cores: give fewer"
        )


def default_device() -> str:
    """Device used by default: a CUDA GPU if there is one, else the CPU.

    Example:
        >>> from mixvae.training import default_device
        >>> default_device() in ("cuda", "cpu")
        True
    """
    return "cuda" if torch.cuda.is_available() else "cpu"
