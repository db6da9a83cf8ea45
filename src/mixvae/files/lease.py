"""The right to write to a run: one process at a time has it.

On a local disk it is a `flock` that the kernel gives back whatever ends the process. Where the file system is shared,
a lock may not reach other hosts: the holder then also lets a counter beat, and who comes later watches it. An unmoved
counter is a dead holder; clocks are never compared. On NFS this is best effort: a host that is cut off for longer than
`STALE_SECONDS` is taken for dead, and its trainer notices at its next save.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixvae.files.atomic import write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 35.0
PATIENCE_SECONDS = 1.0
"""How long to try for a lock that somebody may only be probing."""
LOCAL = {
    "ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "tmpfs", "ramfs", "zfs", "f2fs", "rootfs", "apfs", "squashfs",
}  # fmt: skip
"""File systems on which a lock reaches everybody who can see the file."""


class LeaseLost(RuntimeError):
    """Another process has taken over what this one was writing to."""


class Lease:
    """The right to write to a directory. Make it by `Lease.acquire`."""

    def __init__(self, directory: Path, descriptor: int, record: dict[str, Any]):
        self.directory, self._descriptor, self._record = directory, descriptor, record
        self._pid = os.getpid()
        self._stop = threading.Event()
        if not _is_local(directory):
            threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @classmethod
    def acquire(cls, directory: Path) -> Lease:
        """Take the lease of a directory, which is made if it is missing.

        Raises:
            ValueError: another process holds it.
            OSError: the directory cannot be written to.
        """
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(directory)
        try:
            before = _read(directory)
            if before and before["boot"] != _boot() and _moves(directory, before):
                raise ValueError(_taken(directory, before))
            generation = (before or {"generation": 0})["generation"] + 1
            record = {
                "generation": generation, "owner": secrets.token_hex(8), "host": platform.node(), "boot": _boot(),
                "pid": os.getpid(), "beat": 0,
            }  # fmt: skip
            write_json(_record(directory), record)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(directory, descriptor, record)

    def check(self) -> None:
        """Make sure, before a save, that the lease is still ours.

        Raises:
            LeaseLost: it is not, or the directory is gone.
        """
        now = _read(self.directory)
        if now is None or now["owner"] != self._record["owner"]:
            who = f"process {now['pid']} on {now['host']} has taken it over" if now else "it was removed or replaced"
            raise LeaseLost(f"{self.directory}: {who}; this process stops without saving")

    def release(self) -> None:
        """Give the lease back, and leave no file behind."""
        self._stop.set()
        if self._descriptor < 0 or os.getpid() != self._pid:
            return
        with suppress(OSError):
            now = _read(self.directory)
            if now is not None and now["owner"] == self._record["owner"]:
                _record(self.directory).unlink(missing_ok=True)
                (self.directory / ".lease").unlink(missing_ok=True)  # while locked: who waits for it locks a new one
        os.close(self._descriptor)
        self._descriptor = -1

    def _beat(self) -> None:
        """Show others on other hosts that this process is alive."""
        while not self._stop.wait(BEAT_SECONDS):
            now = _read(self.directory)
            if now is None or now["owner"] != self._record["owner"]:
                return
            self._record["beat"] += 1
            with suppress(OSError):
                write_json(_record(self.directory), self._record)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def holder(directory: Path) -> str | None:
    """Who holds the lease of a directory now, in words; None if nobody does. Creates nothing."""
    record = _read(directory)
    if record is None:
        return None
    who = f"process {record['pid']} on {record['host']}"
    if record["boot"] != _boot():
        return who
    try:
        descriptor = os.open(directory / ".lease", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return who
    except OSError:
        return who
    finally:
        os.close(descriptor)
    return None


def _lock(directory: Path) -> int:
    """Descriptor of the locked file."""
    path, deadline = directory / ".lease", time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
            os.close(descriptor)  # the holder gave it back and removed the file in between
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise ValueError(_taken(directory, _read(directory))) from None
            time.sleep(0.05)
        except OSError:  # the file system knows no locks: the heartbeat alone has to do
            return descriptor


def _moves(directory: Path, before: dict[str, Any]) -> bool:
    """Whether the holder of another host gives a sign of life while one watches."""
    until = time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        if _read(directory) != before:
            return True
    return False


def _taken(directory: Path, record: dict[str, Any] | None) -> str:
    who = f"process {record['pid']} on {record['host']}" if record else "another process"
    return f"{directory} is being trained by {who}: wait until it ends, or stop it, and give the command again"


def _record(directory: Path) -> Path:
    return directory / ".lease.json"


def _read(directory: Path) -> dict[str, Any] | None:
    """What the holder wrote, if it is whole."""
    try:
        record = json.loads(_record(directory).read_text(encoding="utf-8"))
        return record if {"generation", "owner", "host", "boot", "pid", "beat"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _boot() -> str:
    """The running system: locks of one system reach all its processes."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return platform.node()


def _is_local(directory: Path) -> bool:
    """Whether a directory lies on a disk of this machine, as far as the system tells."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    whole, best, kind = str(directory.resolve()), "", "overlay"
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = mount.split()[4]
        if len(point) >= len(best) and (whole == point or whole.startswith(point.rstrip("/") + "/")):
            best, kind = point, rest.split()[0]
    return kind in LOCAL
