"""How the processes that torchrun or srun started exchange a value before they are connected for a training.

How they are to be connected is a setting of the run, and only the first process is sure to have the run. So it sends
what the others need through the server at MASTER_ADDR and MASTER_PORT that will connect them: torchrun's, or its own.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch import distributed

from mixvae._failures import Failed, said
from mixvae.training._cluster import Cluster, cluster
from mixvae.training._processes import environments

WAIT_SECONDS = 600.0
"""How long to wait for the first process, which may be reading a run on a slow disk."""
READ_SECONDS = 30.0
"""How long the first process, if it fails, waits for all others to learn why."""
POLL_SECONDS = 0.05
_STORES: list[Any] = []
"""The server or its client, kept because the processes will be connected by the same one."""
_NUMBERS = itertools.count()


def told_by_first(act: Callable[[], Any]) -> Any:
    """The JSON value that a function returns in the first process, which all others receive.

    A process that was started alone, or by mixvae itself, calls the function.

    Raises:
        ValueError: the function raised one, or an `OSError`, in the first process: with the same message in all; or the
            first process cannot be reached.
        Failed: the first process does not answer.
    """
    started = cluster()
    if started is None:
        return act()
    store = _store(started)
    key = f"mixvae/answers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_NUMBERS)}"
    if started.rank > 0:
        return _listen(store, key, started)
    try:
        value = act()
    except (ValueError, OSError) as error:
        store.set(key, json.dumps({"error": str(error)}))
        _wait(lambda: store.add(f"{key}/read", 0) >= started.world - 1, READ_SECONDS)
        raise
    store.set(key, json.dumps({"value": value}))
    return value


def _listen(store: Any, key: str, started: Cluster) -> Any:
    """What the first process sends.

    Raises:
        ValueError: the first process failed.
        Failed: it does not answer.
    """
    try:
        if not _wait(lambda: store.check([key]), WAIT_SECONDS):
            raise _silent(started)
        answer = json.loads(store.get(key))
        store.add(f"{key}/read", 1)
    except distributed.DistError:  # the server ended with the process or torchrun that it is part of
        raise _silent(started) from None
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


def _silent(started: Cluster) -> Failed:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return Failed(
        f"the first of {started.world} processes does not answer at {where}: see whether it has ended, and why, or "
        "whether it can be reached there"
    )


def _wait(happened: Callable[[], bool], seconds: float) -> bool:
    """Wait until something happens, so that signals are handled meanwhile; returns whether it does."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _store(started: Cluster) -> Any:
    """The server that connects the processes; the first process starts it unless torchrun has.

    Raises:
        ValueError: it cannot be started there.
        Failed: it cannot be reached.
    """
    if not _STORES:
        for environment in environments():  # SLURM's says where the processes meet
            os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        if not address or not port:
            raise ValueError(
                "the environment variables MASTER_ADDR and MASTER_PORT say where to connect, but are not set: "
                f"start the command with {started.starter}, which sets them, or unset its variables"
            )
        begins = started.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not begins and not _wait(lambda: _answers(address, int(port)), WAIT_SECONDS):
            raise _silent(started)
        try:
            store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                address, int(port), is_master=begins, timeout=timedelta(seconds=WAIT_SECONDS), wait_for_workers=False,
                multi_tenant=True,
            )  # fmt: skip
        except distributed.DistError as error:
            if not begins:
                raise _silent(started) from None
            raise ValueError(
                f"the {started.world} processes cannot connect at {address}:{port} ({said(error)}): give another "
                "MASTER_PORT"
            ) from None
        _STORES.append(store)
    return _STORES[0]


def _answers(address: str, port: int) -> bool:
    """Whether something is listening there; torch itself would report at length that nothing is yet."""
    try:
        socket.create_connection((address, port), 1.0).close()
    except OSError:
        return False
    return True
