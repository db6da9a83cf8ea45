"""Training cells on the machines of a Ray cluster (extra `cluster`)."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixvae._failures import at_least, is_whole, said
from mixvae._tables import counted
from mixvae.config import TrainingConfig
from mixvae.progress import Progress
from mixvae.sweeps import _children as children
from mixvae.sweeps._attempts import Ended, Started, run_all
from mixvae.sweeps._tasks import Task
from mixvae.training._cluster import LAST_PORT

_ADDRESS = re.compile(r"(\[[\da-f:.]+\]|[\w-]{1,63}(?:\.[\w-]{1,63})*\.?):(\d{1,5})", re.ASCII | re.IGNORECASE)
"""Host, which may be an IPv6 address in brackets, and port."""
CONNECT_SECONDS = 5.0
"""How long to try to reach the head of a cluster."""
ANSWER_SECONDS = 30.0
"""How long a listener may take to prove to be Ray, which itself would try for minutes."""
EXAMINE_SECONDS = 120.0
"""How long to wait for every machine to report whether it can train."""
STOP_SECONDS = 15.0
"""How long stopped cells may take to save."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_LOG_TO_DRIVER": "0"}
"""Ray's own switches, unless the user has set them: it sends no usage statistics and prints nothing on the terminal."""
ALONE = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""For a Ray that is started here: it obeys only this process, and uses no address but 127.0.0.1."""
OWN = {"_node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 * 2**20}
"""How Ray is started on this machine: nothing listens beyond it, and nothing large passes through the object store."""


@dataclass(frozen=True)
class RayRunner:
    """Trains cells on the machines of a Ray cluster, which share the folder of the runs.

    A cell that is killed, or lost with its machine, is resumed elsewhere from its last checkpoint. A cell takes
    as many CPUs as `training.threads` says, one by default, and `training.devices` GPUs if `training.accelerator` is
    cuda.

    Args:
        jobs: maximum number of cells trained in parallel; as many as there is room for by default.
        address: HOST:PORT of the cluster's head; $RAY_ADDRESS by default, or else Ray is started on this machine.

    Example:
        >>> from mixvae.sweeps import RayRunner
        >>> RayRunner(address="node-1:6379")
        RayRunner(jobs=None, address='node-1:6379')
    """

    jobs: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        at_least(1, jobs=self.jobs)

    def run(self, tasks: Sequence[Task], progress: Progress) -> Generator[tuple[str, str], None, None]:
        """Train and evaluate cells.

        Raises:
            ValueError: Ray is not installed, the cluster cannot be reached, has no room for a cell, or one of its
                machines does not see the folder or has other versions.
        """
        needs = {task.name: resources(task.config.training, task.name) for task in tasks}
        with _connected(_head(self.address)) as ray, _marked(tasks[0].folder) as mark:
            cluster = _RayCluster(ray, needs, str(mark))
            cluster.check()
            yield from run_all(cluster, tasks, self.jobs, progress)


def resources(training: TrainingConfig, name: str) -> dict[str, int]:
    """What Ray sets aside for a cell: CPUs and GPUs.

    Raises:
        ValueError: the number of its devices is not a number.
    """
    devices, threads = 1 if training.devices is None else training.devices, training.threads or 1
    if not is_whole(str(devices)) or not int(devices):
        raise ValueError(f"{name}: on Ray training.devices must be a number; got {devices!r}")
    on_gpu = training.accelerator in ("cuda", "gpu")
    return {"num_cpus": threads * int(devices), "num_gpus": int(devices) if on_gpu else 0}


class _RayCluster:
    """A `Cluster` on the Ray that this process is connected to. An attempt is a stream of its events."""

    def __init__(self, ray: Any, needs: Mapping[str, dict[str, int]], mark: str):
        self._ray, self._needs = ray, needs
        self._fit = {"mark": mark, "here": os.getcwd(), "wanted": children.versions()}
        ray.cloudpickle.register_pickle_by_value(children)
        self._attempt = ray.remote(max_retries=0, num_returns="streaming")(children.attempt)
        self._unfit = ray.remote(max_retries=0, num_cpus=0)(children.unfit)

    def check(self) -> None:
        """Make sure that every machine can train, and that there is room for every cell.

        Raises:
            ValueError: a machine cannot, or there is no room.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        for name, need in self._needs.items():
            if not any(_has_room(node["Resources"], need) for node in nodes):
                wants = " and ".join(counted(need[f"num_{kind.lower()}s"], kind) for kind in ("CPU", "GPU"))
                raise ValueError(f"{name} needs {wants} of one machine, and no machine of the Ray cluster has them")
        asked = [
            self._unfit.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                **self._fit
            )
            for node in nodes
        ]
        try:
            problems = self._ray.get(asked, timeout=EXAMINE_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise ValueError(f"a machine of the Ray cluster cannot train: {_reason(error)}") from error
        for problem in filter(None, problems):
            raise ValueError(problem)

    def submit(self, task: Task) -> Any:
        """Queue a cell."""
        need = self._needs[task.name]
        settings = {"OMP_NUM_THREADS": str(task.config.training.threads or 1)}
        if not need["num_gpus"]:
            settings["CUDA_VISIBLE_DEVICES"] = ""  # so that auto means the CPU, which is what was set aside
        attempt = self._attempt.options(name=f"mixvae {task.name}", **need)
        return attempt.remote(task.words(), str(task.log), settings, **self._fit)

    def wait(self, attempts: Sequence[Any]) -> tuple[Any, Started | Ended]:
        """The next event of one of the given attempts."""
        [attempt], _ = self._ray.wait(list(attempts), num_returns=1)
        try:
            event = self._ray.get(next(attempt))
        except self._ray.exceptions.RayError as error:
            return attempt, Ended(f"its worker failed: {_reason(error)}")
        return attempt, Started(event["started"]) if "started" in event else Ended(event["error"], event["final"])

    def cancel(self, attempts: Sequence[Any]) -> None:
        """Stop attempts, and wait while they save."""
        for attempt in attempts:
            self._ray.cancel(attempt)
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait([a.completed() for a in attempts], num_returns=len(attempts), timeout=STOP_SECONDS)


def _reason(error: Exception) -> str:
    """What went wrong according to Ray, or to what it ran, in a sentence."""
    return said(getattr(error, "cause", None) or error).partition(". ")[0]


def _has_room(there: Mapping[str, float], need: Mapping[str, int]) -> bool:
    """Whether a machine could hold a cell if it were empty."""
    return there.get("CPU", 0) >= need["num_cpus"] and there.get("GPU", 0) >= need["num_gpus"]


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster, or to one that is started on this machine for the duration of the block."""
    switches = QUIET if address else QUIET | ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update({name: value for name, value in switches.items() if name not in os.environ})
    try:
        import ray  # reads the switches
    except ImportError:
        raise ValueError("--on ray needs Ray, which is not installed: pip install 'mixvae[cluster]'") from None
    if address:
        _check_reachable(address)
    try:
        ray.init(address or "local", logging_level=logging.ERROR, **({} if address else OWN))
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ValueError(f"Ray at {address or 'this machine'} cannot be used: {said(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _head(given: str | None) -> str | None:
    """Address of a cluster's head: the given one, or $RAY_ADDRESS; None if there is neither.

    Raises:
        ValueError: it is not HOST:PORT.
    """
    source, address = ("--address", given) if given is not None else ("RAY_ADDRESS", os.environ.get("RAY_ADDRESS"))
    if given is None and not address:
        return None
    found = _ADDRESS.fullmatch(address or "")
    if found is None or not 1 <= int(found[2]) <= LAST_PORT:
        raise ValueError(
            f"{source} must be HOST:PORT of the cluster's head, such as node-1:6379, with a port from 1 to {LAST_PORT}"
            f"; got {address!r}"
        )
    return address


def _check_reachable(address: str) -> None:
    """Refuse an address unless a cluster that this machine belongs to answers there.

    Raises:
        ValueError: nothing listens there, or what listens is no such cluster.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
    command = [sys.executable, "-P", "-c", "import sys, ray; ray.init(sys.argv[1], logging_level='ERROR')", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"what listens at {address} does not answer as a Ray cluster that this machine belongs to: give HOST:PORT "
            "of its head, as `ray start --head --port=PORT` was given, on a machine of the cluster"
        ) from None
    if done.returncode:  # Ray aborts without explanation if it knows of no node on this machine
        reason = re.search(r"^[\w.]*Error: [^.\n]*", done.stderr, re.MULTILINE)
        raise ValueError(
            f"Ray at {address} cannot be used from here{': ' + reason[0] if reason else ''}; start the command on a "
            "machine of the cluster, with its RAY_AUTH_TOKEN if it has one"
        )


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """Keep a file in a folder, by which other machines recognise that they see the same folder."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".driver-{secrets.token_hex(8)}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
        with suppress(OSError):  # it holds runs
            folder.rmdir()
