"""Processes that torchrun, or SLURM's srun, starts on one node or several."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from mixvae._failures import Failed, is_whole

LAST_PORT = 65535


@dataclass(frozen=True)
class Cluster:
    """What started the processes of a training, the same number on every node.

    Args:
        starter: torchrun or srun.
        devices: processes on each node, each with one device.
        nodes: number of nodes.
        rank: number of this process over all nodes.
    """

    starter: str
    devices: int
    nodes: int
    rank: int

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.devices * self.nodes


def cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """What started this process together with others; None if it was started alone, or by mixvae itself.

    A command in a SLURM job script is alone, whatever was allocated to the job, and so is the only task of an srun.

    Raises:
        ValueError: the nodes have different numbers of processes, or a variable that describes them is missing, not a
            number, or out of range.

    Example:
        >>> from mixvae.training._cluster import cluster
        >>> started = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5"}
        >>> cluster(started)
        Cluster(starter='torchrun', devices=4, nodes=2, rank=5)
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        each, world = (_number(environment, name, 1) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        nodes = _number(environment, "GROUP_WORLD_SIZE", 1, default=world // each)
        found = Cluster("torchrun", each, nodes, _number(environment, "RANK", 0, world))
        even = each * nodes == world
    elif (world := _number(environment, "SLURM_STEP_NUM_TASKS", 1, default=1)) > 1:
        nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1, default=1)
        found = Cluster("srun", world // nodes, nodes, _number(environment, "SLURM_PROCID", 0, world))
        even = world % nodes == 0 and "," not in environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    else:
        return None
    if "MASTER_PORT" in environment:
        _number(environment, "MASTER_PORT", 1, LAST_PORT + 1)
    if not even:
        raise ValueError(
            f"{found.starter} started {world} processes on {nodes} nodes, not the same number on each: start as "
            "many on each as it has devices"
        )
    return found


def _number(
    environment: Mapping[str, str], name: str, least: int, end: int | None = None, *, default: int | None = None
) -> int:
    """A variable that describes the processes that were started together.

    Raises:
        ValueError: it is not set and has no default, or is not a whole number from `least` to below `end`.
    """
    text = environment.get(name)
    if text is None and default is not None:
        return default
    number = int(text) if text is not None and is_whole(text) else None
    if number is None or number < least or (end is not None and number >= end):
        wanted = f"at least {least}" if end is None else f"from {least} to {end - 1}"
        raise ValueError(
            f"the environment variable {name} must be a whole number {wanted}; "
            f"{'it is not set' if text is None else f'got {text!r}'}: start the command with torchrun or srun, which "
            "set it, or unset their variables"
        )
    return number


def is_first() -> bool:
    """Whether this process is the first of its training, which speaks for all of them.

    Example:
        >>> from mixvae.training._cluster import is_first
        >>> is_first()
        True
    """
    started = cluster()
    return (_own_rank() if started is None else started.rank) == 0


def _own_rank() -> int:
    """Number of a process that mixvae started; 0 if this one is alone.

    Raises:
        ValueError: it is not a number below the number of processes.
    """
    processes = _number(os.environ, "WORLD_SIZE", 1, default=1)
    return _number(os.environ, "LOCAL_RANK", 0, processes, default=0)


def settled(devices: int | str | None, nodes: int | None) -> tuple[int | str, int]:
    """Devices on each node, and number of nodes: as given, or otherwise as the processes were started.

    Raises:
        ValueError: the processes were started differently.
    """
    started = cluster()
    if started is None:
        _own_rank()
        if nodes is not None and nodes > 1:
            raise ValueError(
                f"nodes {nodes} needs processes on each of them: start the command with `torchrun --nnodes {nodes}` or "
                "srun"
            )
        return 1 if devices is None else devices, 1
    own = started.devices, started.nodes
    asked = own[0] if devices is None else devices, own[1] if nodes is None else nodes
    if tuple(map(str, asked)) != tuple(map(str, own)) and str(devices) not in ("auto", "-1"):
        raise ValueError(
            f"{started.starter} started {own[0]} processes on each of {own[1]} nodes, but devices is {asked[0]} and "
            f"nodes is {asked[1]}: leave both out, or give those numbers"
        )
    return asked


def requeue() -> None:
    """Put the job of SLURM that this process belongs to back into the queue, if there is one.

    Raises:
        Failed: SLURM refuses.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        refusal = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        reason = refusal.splitlines()[0]
        raise Failed(f"a checkpoint is saved, but job {job} could not be requeued ({reason}): submit it again")
