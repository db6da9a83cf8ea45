"""A cell's own process, and what keeps a machine from starting one.

Imports the standard library only: it is sent to Ray's workers by value, and they need neither mixvae nor torch for it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FINAL = 2
"""Exit status of a cell that would fail in the same way again: its settings or data are wrong, or it diverges."""
TRANSIENT = os.EX_TEMPFAIL
"""Exit status of a cell that may succeed next time: a file cannot be read or written, or another process trains it."""
TAIL = 3
"""Last lines of a log that an error quotes."""
STARTERS = ("SLURM_", "TORCHELASTIC_")
"""Prefixes of the variables by which srun and torchrun tell processes that they train one model together."""
VERSIONS = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("mixvae", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""
"""Prints the installed versions, which determine a cell's weights."""


def run_child(
    words: Sequence[str],
    log: str | Path = os.devnull,
    environment: Mapping[str, str] | None = None,
    children: set[subprocess.Popen[str]] | None = None,
) -> tuple[int, list[str]]:
    """Run Python in a process that ends when this one does; return its status and its last lines of output.

    The child notices the end of its parent, whatever the cause, by its standard input (`training._lives`). It trains on
    its own, even if srun started its parent on several machines.

    Args:
        words: arguments of Python.
        log: file to which its standard error is appended.
        environment: its environment; that of this process by default.
        children: holds the process while it runs.
    """
    running = set() if children is None else children
    given = os.environ if environment is None else environment
    alone = {name: value for name, value in given.items() if not name.startswith(STARTERS)}
    last: deque[str] = deque(maxlen=TAIL)
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, "-P", *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="backslashreplace", env=alone,
        ) as child,
    ):  # fmt: skip
        assert child.stderr is not None
        running.add(child)
        for line in child.stderr:
            file.write(line)
            file.flush()
            if line.strip():
                last.append(line.strip())
        status = child.wait()
        running.discard(child)
    return status, list(last)


def failure(status: int, last: Sequence[str]) -> str:
    """What an exit status and the last lines say went wrong, in one line; empty for success."""
    if status == 0:
        return ""
    if status in (FINAL, TRANSIENT) and last:
        return last[-1]
    said = " | ".join(last)
    ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"{ended}{said and ': ' + said}"


def versions() -> dict[str, str | None]:
    """Versions of mixvae and torch that a child of this process would import."""
    done = subprocess.run([sys.executable, "-P", "-c", VERSIONS], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def unfit(mark: str, here: str, wanted: Mapping[str, str | None]) -> str:
    """Why this machine cannot train cells for a driver, in one line; empty if it can.

    Args:
        mark: file that the driver keeps in the folder of the runs.
        here: the driver's working folder.
        wanted: the driver's `versions`.
    """
    node = platform.node()
    if not os.path.exists(mark):
        return (
            f"{node} does not see {os.path.dirname(mark)} of the driver: choose an out folder that all machines share"
            if os.path.isdir(here)
            else f"{node} does not see the driver's working folder {here}: start from one that all machines share"
        )
    if not os.path.isdir(here):
        return f"{node} does not see the driver's working folder {here}: start from one that all machines share"
    if not os.access(os.path.dirname(mark), os.W_OK):
        return f"{node} cannot write to {os.path.dirname(mark)}"
    for name, found in versions().items():
        if (found or "").partition("+")[0] != (wanted[name] or "").partition("+")[0]:
            has = f"{name} {found}" if found else f"no {name}"
            return f"{node} has {has} where the driver has {wanted[name]}: install the same version on all machines"
    return ""


def attempt(
    words: Sequence[str], log: str, settings: Mapping[str, str], mark: str, here: str, wanted: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Train a cell in a worker of another machine; yield that it started, and how it ended.

    The child does not see which runs this machine's user has trained: it trusts what the driver tells it to trust.

    Args:
        words: arguments of Python.
        log: file to which the child's standard error is appended.
        settings: environment variables to set.
        mark: as in `unfit`, as are the arguments that follow.
        here: the child's working folder.
        wanted: versions.
    """
    if problem := unfit(mark, here, wanted):
        yield {"error": problem, "final": False}
        return
    yield {"started": platform.node()}
    os.chdir(here)
    with tempfile.TemporaryDirectory(prefix="mixvae-") as empty:
        status, last = run_child(words, log, os.environ | settings | {"XDG_STATE_HOME": empty})
    yield {"error": failure(status, last), "final": status == FINAL}
