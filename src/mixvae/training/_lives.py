"""Processes that end together: those of one training, and the cells of a sweep with the sweep.

A process that is started here has a pipe as its standard input, and its parent holds the other end open. The pipe
closes when the parent ends for whatever reason, `kill -9` included; the parent waits for its children. So each
immediately notices when the other ends, on every Unix.

The processes of one training also share a place where each notes that it fails. The first to do so tells the user why;
the others end silently with the same status.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed

NOTES = "MIXVAE_NOTES"
"""Environment variable with the descriptor of the notes file, for the processes of a training."""
GRACE_SECONDS = 10.0
"""How long a process may take to end by itself once it has to: it may be saving."""
NOTICE_SECONDS = 2.0
"""How long it takes after a broken connection to learn whether the process at its other end has ended."""
GOODBYE = b"."
"""What a process that ends successfully sends to those it started, which may then continue."""
NOTE = "{:7} {:7}\n"


def start(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process that can notice when this one ends, by calling `when_parent_ends`."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **options)


def when_parent_ends(act: Callable[[bool], object]) -> None:
    """Call a function when the process that started this one by `start` ends, with whether it ended successfully."""
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # so that no process started from here holds the pipe
    os.close(nothing)
    threading.Thread(target=lambda: act(os.read(pipe, 1) == GOODBYE), name="parent", daemon=True).start()


def stop_with_parent() -> None:
    """Stop this process when its parent has ended, and with it all of its training if it is the first one."""
    if NOTES not in os.environ:  # the others end with the first
        when_parent_ends(lambda well: _stop())


def _stop() -> None:
    """Stop as SIGTERM does, which saves a training; immediately if that takes too long."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


class Ranks:
    """The processes of one training, seen from one of them; they were started by something else, such as torchrun.

    Args:
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, rank: int, world: int):
        self.rank, self.world = rank, world
        self.inside = False
        """Whether this process is training, and so needs the others."""
        self.again: Callable[[], str] = lambda: "run the command again"
        """What the user can do when a process is lost, in words."""
        self._who, self._how, self._status = "another process", "", 1
        self._told = False
        self.failing = False
        """Whether this process is ending for its own reason, or because it was told to."""
        self._gone = threading.Event()
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=self._watch_agent, name="agent", daemon=True).start()

    def note(self, status: int) -> int | None:
        """Note that this process fails: None if it is the first, which reports why, else the status of the first."""
        self.failing = True
        try:
            first = self._note(NOTE.format(self.rank, status))
        except (RuntimeError, OSError):  # the notes are gone with the process that held them
            return None
        rank, status = map(int, first.split())
        return None if rank == self.rank else status

    def has_lost(self, error: BaseException) -> bool:
        """Whether an error means that another process has ended."""
        if type(error) is not RuntimeError and not isinstance(error, distributed.DistError):
            return False
        return "gloo" in str(error) or "NCCL" in str(error) or self._gone.wait(NOTICE_SECONDS)

    def lose(self) -> int:
        """Report that another process has ended, unless one reported why; returns the status to end with."""
        failing = self.failing
        first = self.note(self._status)
        if first is None and not failing:
            self._gone.wait(NOTICE_SECONDS)  # to learn which one
        if first is None and not failing and not self._told:
            line = f"mixvae: error: {self._who} of {self.world} ended{self._how}; {self.again()}\n"
            with suppress(OSError):
                os.write(2, line.encode())
        return self._status if first is None else first

    @property
    def lost(self) -> bool:
        """Whether another process is known to have ended."""
        return self._gone.is_set()

    def _note(self, note: str) -> str:
        """Write a note that all processes can read; returns the first that was written."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=NOTICE_SECONDS)
        store = distributed.TCPStore(address, port, is_master=False, timeout=wait)  # pyright: ignore[reportPrivateImportUsage]
        key = f"mixvae/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        return store.compare_set(key, "", note).decode()

    def _watch_agent(self) -> None:
        """Stop this process when torchrun, which started it and would have ended it, has ended."""
        agent = os.getppid()
        while os.getppid() == agent:
            time.sleep(0.5)
        _stop()


class StartedRanks(Ranks):
    """The processes of one training, the first of which starts the others.

    Args:
        rank: number of this process.
        world: number of processes.
        notes: descriptor of a file that all of them have open for appending.
    """

    def __init__(self, rank: int, world: int, notes: int):
        super().__init__(rank, world)
        self._notes, self._children = notes, list[subprocess.Popen[Any]]()
        self.meeting = True
        """Whether the processes have yet to connect, for which they wait indefinitely."""
        if rank == 0:
            atexit.register(self._end)
        else:
            when_parent_ends(lambda well: self._miss(0, None if not well else 0))

    @classmethod
    def begin(cls, world: int, environment: Mapping[str, str]) -> StartedRanks:
        """Start the other processes by the command that started this one."""
        with tempfile.TemporaryFile() as file:
            notes = os.dup(file.fileno())
        fcntl.fcntl(notes, fcntl.F_SETFL, os.O_APPEND)
        ranks = cls(0, world, notes)
        for rank in range(1, world):
            child = start(
                [sys.executable, *sys.orig_argv[1:]],
                {**environment, "LOCAL_RANK": str(rank), NOTES: str(notes)},
                pass_fds=[notes],
                process_group=0,  # Ctrl-C goes to the first process, which stops all of them after the same step
            )
            ranks._children.append(child)
            watch = threading.Thread(target=ranks._watch, args=(rank, child), name=f"process {rank}", daemon=True)
            watch.start()
        return ranks

    @classmethod
    def join(cls, environment: Mapping[str, str], notes: str) -> StartedRanks:
        """Become one of the processes that `begin` started."""
        return cls(int(environment["LOCAL_RANK"]), int(environment["WORLD_SIZE"]), int(notes))

    def _note(self, note: str) -> str:
        os.write(self._notes, note.encode())
        return os.pread(self._notes, len(note), 0).decode()

    def _watch(self, rank: int, child: subprocess.Popen[Any]) -> None:
        self._miss(rank, child.wait())

    def _miss(self, rank: int, status: int | None) -> None:
        """End this process because another one has ended, unless it ends by itself or no longer needs it."""
        self._who = f"process {rank}"
        if status is not None and status < 0:
            self._how = f" ({signal.strsignal(-status)})"
        elif status is not None and status > 0:
            self._status, self._told = status, True  # it has reported why
        self._gone.set()
        if self.failing or (self.inside and not self.meeting and status is not None):
            time.sleep(GRACE_SECONDS)
        if not (self.meeting or self.inside or status is None):
            return
        status = self.lose()
        for child in self._children:
            child.kill()
        os._exit(status)

    def _end(self) -> None:
        """Let the others continue if this process ends successfully, and otherwise make sure that they end."""
        failed = self.meeting or self.inside or bool(os.pread(self._notes, 1, 0))
        for child in self._children:
            assert child.stdin is not None
            with suppress(OSError):
                os.write(child.stdin.fileno(), b"" if failed else GOODBYE)
                child.stdin.close()
        for child in self._children if failed else ():
            try:
                child.wait(GRACE_SECONDS / 2)
            except subprocess.TimeoutExpired:
                child.kill()
