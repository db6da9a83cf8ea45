"""The right to write to a run: one process at a time has it.

On a local disk the lease is a `flock` on `.lease` that the kernel releases however the process ends. If the file system
is shared, or has no locks, the holder also increments a counter in its own file, its heartbeat, and newcomers watch it:
a counter that stands still is a dead holder. Clocks are never compared. `.lease.json` names the holder and its
generation; only a process that takes the lease writes it, so a holder that was paused and wakes up cannot overwrite its
successor's name, and finds that name when it checks before its next save.

What is best effort, on shared storage without locks that reach every host:

- A holder that is cut off, or whose interpreter hangs, for longer than `STALE_SECONDS` is considered dead. It learns
  this at its next check; what it writes between that check and the end of the same save still lands.
- Two processes that take over from one dead holder in the same instant both read their names back after a pause; one of
  them is refused. If the storage shows them different names for longer than that, the first check of one of them fails.
- A process on the file server itself holds a local lock and shows no heartbeat: a client of that server considers it
  dead.
- `holder` cannot distinguish a dead host from a live one without watching, and names it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mixvae._failures import Failed
from mixvae.files._atomic import write_json
from mixvae.files._ordinary import check_ordinary

BEAT_SECONDS = 10.0
STALE_SECONDS = 35.0
PATIENCE_SECONDS = 1.0
"""How long to try for a lock that another process may only be probing."""
LOCAL = {
    "ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "overlay", "tmpfs", "ramfs", "zfs", "f2fs", "rootfs", "apfs",
}  # fmt: skip
"""File systems on which a lock reaches every process that can see the file."""
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
"""Errors of a file system without locks."""
KINDS = {"generation": int, "owner": str, "host": str, "boot": str, "pid": int, "beats": bool}
"""What a holder records about itself."""


class LeaseLost(Failed):
    """Another process has taken over the directory that this one was writing to."""


class LeaseTaken(ValueError):
    """Another process has the right to write to a directory."""


class Lease:
    """The right to write to a directory. Get it from `Lease.acquire`; it lasts until `release` or the process's end.

    A forked child does not hold it, and nothing that the child does releases it.
    """

    def __init__(self, directory: Path, descriptor: int, record: dict[str, Any], *, locked: bool):
        self.directory, self._descriptor, self._record, self._locked = directory, descriptor, record, locked
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        _HELD.add(self)
        if record["beats"]:
            self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
            self._thread.start()

    @classmethod
    def acquire(cls, directory: Path) -> Lease:
        """Take the lease of a directory, which is created if it is missing.

        Raises:
            LeaseTaken: another process holds it.
            OSError: the directory cannot be written to.
        """
        directory = directory.absolute()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            check_ordinary(directory)
            descriptor, locked = _lock(directory)
        except OSError as error:
            raise OSError(
                f"cannot write to {directory}: {error.strerror or error}; name another folder, or make it writable"
            ) from error
        try:
            record = _take(directory, locked=locked)
        except BaseException:
            _unlock(descriptor)
            raise
        return cls(directory, descriptor, record, locked=locked)

    @property
    def generation(self) -> int:
        """One more than the generation of the holder that the lease was taken over from, if there was one."""
        return self._record["generation"]

    def check(self) -> None:
        """Make sure, before a save, that the lease is still ours.

        Raises:
            LeaseLost: it is not, or the directory is gone.
            OSError: the directory cannot be read.
        """
        if self._descriptor < 0 or os.getpid() != self._pid:
            raise LeaseLost(f"{self.directory}: this process does not hold its lease; it stops without saving")
        raw = _content(_record(self.directory))
        now = _parse(raw)
        if now is not None and _name(now) != _name(self._record):
            raise LeaseLost(f"{self.directory}: {_who(now)} has taken it over; this process stops without saving")
        if now is None or (self._locked and not _is_open_at(self._descriptor, self.directory / ".lease")):
            raise LeaseLost(f"{self.directory}: its lease was removed or replaced; this process stops without saving")

    def release(self) -> None:
        """Release the lease, and leave no file behind. Does nothing in a forked child, or a second time."""
        if self._descriptor < 0 or os.getpid() != self._pid:  # first: a child may have forked amid `_stop`'s own lock
            return
        descriptor, self._descriptor = self._descriptor, -1
        _HELD.discard(self)
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=BEAT_SECONDS)  # a beat under way must not come after its file is removed
        with suppress(OSError):
            _beats(self.directory, self._record["owner"]).unlink(missing_ok=True)
        with suppress(OSError):
            now = _parse(_content(_record(self.directory)))
            if now is not None and _name(now) == _name(self._record):
                _record(self.directory).unlink(missing_ok=True)
                if _is_open_at(descriptor, self.directory / ".lease"):
                    (self.directory / ".lease").unlink()  # while locked: a process that waits for it locks a new one
        _unlock(descriptor)

    def _beat(self) -> None:
        """Show processes on other hosts that this one is alive, until another one has taken over."""
        count, own = 0, _beats(self.directory, self._record["owner"])
        while not self._stop.wait(BEAT_SECONDS):
            now = None
            with suppress(OSError):
                now = _parse(_content(_record(self.directory)))
            count += 1
            with suppress(OSError):
                if now is not None and _name(now) != _name(self._record):
                    own.unlink(missing_ok=True)
                    return
                own.write_text(str(count), encoding="utf-8")

    def _forget(self) -> None:
        """In a forked child: close the copy of the lock, which would outlive the parent, without releasing the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        with suppress(OSError):
            os.close(descriptor)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


_HELD: set[Lease] = set()


def _forget_all() -> None:
    while _HELD:
        _HELD.pop()._forget()


os.register_at_fork(after_in_child=_forget_all)


def holder(directory: Path) -> str | None:
    """Who holds the lease of a directory now, in words; None if nobody does. Creates nothing.

    A holder on a host that locks do not reach is named until another process takes over: only watching could tell more.
    """
    try:
        raw = _content(_record(directory))
        descriptor = os.open(directory / ".lease", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return "another process, perhaps: its lease cannot be read"
    if raw is None:
        os.close(descriptor)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        free = not _may_live(raw, locked=True, local=_is_local(directory))
    except OSError as error:
        free = error.errno in NO_LOCKS and not _may_live(raw, locked=False, local=False)
    finally:
        _unlock(descriptor)
    return None if free else _who(_parse(raw))


def _lock(directory: Path) -> tuple[int, bool]:
    """Descriptor of the locked file, and whether the file system has locks at all."""
    path, deadline = directory / ".lease", time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise LeaseTaken(_taken(directory)) from None
            time.sleep(0.02)
            continue
        except OSError as error:
            if error.errno in NO_LOCKS:  # only the heartbeat is left
                return descriptor, False
            os.close(descriptor)
            raise
        if _is_open_at(descriptor, path):
            return descriptor, True
        _unlock(descriptor)  # the holder released it and removed the file in between


def _unlock(descriptor: int) -> None:
    """Release a lock, even if a forked child has a copy of the descriptor, and close it."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    with suppress(OSError):
        os.close(descriptor)


def _take(directory: Path, *, locked: bool) -> dict[str, Any]:
    """Write our name as the holder's, unless a holder on another host is alive."""
    local = locked and _is_local(directory)
    raw = _content(_record(directory))
    if raw is not None and _may_live(raw, locked=locked, local=local) and _moves(directory, raw):
        raise LeaseTaken(_taken(directory))
    before = _parse(raw)
    record = {
        "generation": (before["generation"] if before else 0) + 1, "owner": secrets.token_hex(8),
        "host": platform.node(), "boot": _boot(), "pid": os.getpid(), "beats": not local,
    }  # fmt: skip
    own = _beats(directory, record["owner"])
    if record["beats"]:
        own.write_text("0", encoding="utf-8")
    write_json(_record(directory), record)
    for path in directory.glob(".lease.*.beat"):
        if path != own:
            with suppress(OSError):
                path.unlink()
    if record["beats"]:
        time.sleep(_pause())
        now = _parse(_content(_record(directory)))
        if now is None or _name(now) != _name(record):  # another process took over in the same instant
            own.unlink(missing_ok=True)
            raise LeaseTaken(_taken(directory))
    return record


def _may_live(raw: bytes, *, locked: bool, local: bool) -> bool:
    """Whether the holder of a record may be alive although its lock does not keep us out."""
    record = _parse(raw)
    if record is None:
        return not local
    if record["boot"] == _boot():
        return not locked
    return record["beats"] or not local


def _moves(directory: Path, raw: bytes) -> bool:
    """Whether the holder of a record shows a sign of life while we watch; False if it releases the lease."""
    record, until = _parse(raw), time.monotonic() + STALE_SECONDS
    pattern = ".lease.*.beat" if record is None else _beats(directory, record["owner"]).name
    first = _signs(directory, pattern)
    while time.monotonic() < until:
        time.sleep(_pause())
        now = _content(_record(directory))
        if now is None:
            return False
        if now != raw or any(beat != first.get(name) for name, beat in _signs(directory, pattern).items()):
            return True
    return False


def _signs(directory: Path, pattern: str) -> dict[str, bytes]:
    """Heartbeats of holders, by file."""
    beats = {path.name: _content(path) for path in directory.glob(pattern)}
    return {name: beat for name, beat in beats.items() if beat}  # empty: it is being written


def _pause() -> float:
    return min(1.0, STALE_SECONDS / 10)


def _taken(directory: Path) -> str:
    try:
        record = _parse(_content(_record(directory)))
    except OSError:
        record = None
    return f"{directory} is being trained by {_who(record)}: wait until it ends, or stop it, and run the command again"


def _who(record: dict[str, Any] | None) -> str:
    return f"process {record['pid']} on {record['host']}" if record else "another process"


def _name(record: dict[str, Any]) -> tuple[int, str]:
    """What identifies a holder uniquely."""
    return record["generation"], record["owner"]


def _record(directory: Path) -> Path:
    return directory / ".lease.json"


def _beats(directory: Path, owner: str) -> Path:
    """File where one holder alone writes its heartbeat, in place, so that other hosts see it immediately."""
    return directory / f".lease.{owner}.beat"


def _content(path: Path) -> bytes | None:
    """Content of a small file; None if there is none.

    Raises:
        OSError: it cannot be read, after several attempts.
    """
    for attempt in (1, 2, 3):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # such as a file on NFS that was replaced while it was read
            if attempt == 3:
                raise
            time.sleep(0.05)
    return None


def _parse(raw: bytes | None) -> dict[str, Any] | None:
    """What the holder wrote, if it is complete."""
    try:
        record = json.loads(raw or b"")
        whole = isinstance(record, dict) and all(type(record.get(key)) is kind for key, kind in KINDS.items())
    except (ValueError, RecursionError):
        return None
    return record if whole and re.fullmatch("[0-9a-f]{16}", record["owner"]) else None


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def _boot() -> str:
    """Identifier of the running system, whose locks reach all its processes."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return platform.node()


def _is_local(directory: Path) -> bool:
    """Whether a directory is on a disk of this machine, as far as the system shows."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    whole, best, kind = str(directory.resolve()), "", "overlay"
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount.split()[4])  # a space is \040
        if len(point) >= len(best) and (whole == point or whole.startswith(point.rstrip("/") + "/")):
            best, kind = point, rest.split()[0]
    return kind in LOCAL
