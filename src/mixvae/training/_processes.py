"""What the processes of one training do together."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.launchers import _SubprocessScriptLauncher

from mixvae.training._cluster import cluster
from mixvae.training._lives import NOTES, Ranks, StartedRanks

Result = TypeVar("Result")
_OWN: list[Ranks] = []
"""The processes of the training that this process belongs to, if any."""


def environments(package: str = "lightning_fabric") -> list[Any]:
    """Tells Lightning how its processes were started, where it would misjudge a SLURM job.

    Args:
        package: where Lightning's classes are from; `lightning` has its own, in `lightning.fabric`.
    """
    started, known = cluster(), importlib.import_module(f"{package}.plugins.environments")
    if started is None:  # Lightning would take the tasks of the whole job for processes of this training
        return [known.LightningEnvironment()] if "SLURM_JOB_ID" in os.environ else []
    if started.starter == "torchrun":
        return []
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(started.devices))  # Lightning insists on it
    return [known.SLURMEnvironment(auto_requeue=False)]  # mixvae requeues


def nodes_of(fabric: Fabric) -> int:
    """Number of nodes."""
    return getattr(fabric.strategy, "num_nodes", 1)


def meet(fabric: Fabric) -> None:
    """Start the other processes of a training, unless something else does, and wait until all are connected."""
    strategy: Any = fabric.strategy
    environment: Any = getattr(strategy, "cluster_environment", None)
    if notes := os.environ.pop(NOTES, None):
        _OWN.append(StartedRanks.join(os.environ, notes))
    elif (
        isinstance(strategy.launcher, _SubprocessScriptLauncher)
        and strategy.num_processes > 1
        and not environment.creates_processes_externally
    ):
        os.environ |= {  # so that Fabric leaves starting the others to us
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(strategy.num_processes),
        }
        _OWN.append(StartedRanks.begin(strategy.num_processes, os.environ))
    ranks = _OWN[0] if _OWN else None
    if not isinstance(ranks, StartedRanks) or not ranks.meeting:
        fabric.launch()
        return
    with _ending_together(ranks, quiet=True):
        fabric.launch()
    ranks.meeting = False


@contextmanager
def as_one(fabric: Fabric, again: Callable[[], str], *, quiet: bool) -> Iterator[None]:
    """Run a block in all processes; if it fails in one, it ends in all of them, and the failure is reported once.

    Args:
        fabric: the processes.
        again: what the user can do when a process is lost, in words.
        quiet: if it fails in several processes, only the first to fail raises the error, and the others just end.
    """
    if fabric.world_size == 1:
        yield
        return
    if not _OWN:
        _OWN.append(Ranks(fabric.global_rank, fabric.world_size))
    _OWN[0].again = again
    with _ending_together(_OWN[0], quiet=quiet):
        yield


@contextmanager
def _ending_together(ranks: Ranks, *, quiet: bool) -> Iterator[None]:
    ranks.inside = True
    try:
        if ranks.lost:
            raise SystemExit(ranks.lose())
        yield
    except SystemExit:  # requested by a signal or another process: nothing to report
        ranks.failing = True
        raise
    except BaseException as error:
        if ranks.has_lost(error):
            raise SystemExit(ranks.lose()) from None
        first = ranks.note(_status(error))
        ranks.inside = quiet
        if first is not None and quiet:
            raise SystemExit(first) from None
        raise
    ranks.inside = False


def _status(error: BaseException) -> int:
    """Exit status of the command line after an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, ValueError | OSError) else 1


def first_alone(fabric: Fabric, act: Callable[[], Result]) -> Result:
    """Do something in the first process only; the others get its result, or end silently if it fails."""
    outcome: tuple[bool, Any] = (False, None)
    if fabric.is_global_zero:
        try:
            outcome = (True, act())
        except (ValueError, OSError) as error:
            for ranks in _OWN:
                ranks.note(_status(error))  # before another one can
            fabric.broadcast((False, None))
            raise error from None
    done, result = fabric.broadcast(outcome)
    if not done:
        raise SystemExit(2)
    return cast(Result, result)


def check_same(fabric: Fabric, checksum: Callable[[], str], what: str) -> None:
    """Refuse, in every process, something that is not the same in all of them.

    Args:
        fabric: the processes.
        checksum: computes its checksum; a single process has nothing to compare.
        what: what it is.

    Raises:
        ValueError: it differs.
    """
    if fabric.world_size == 1:
        return
    value = checksum()
    first = fabric.broadcast(value)
    same = fabric.all_reduce(torch.tensor(float(first == value), device=fabric.device), reduce_op="sum")
    differing = fabric.world_size - round(float(cast(torch.Tensor, same)))
    if differing:
        raise ValueError(
            f"{differing} of {fabric.world_size} processes have different {what}: copy the same files to all"
        )
