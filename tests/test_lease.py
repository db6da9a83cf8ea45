"""One process at a time may write to a run, whatever ends it and wherever the folder lies."""

import errno
import fcntl
import json
import os
import platform
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import fork
from mixvae.files import _lease as module
from mixvae.files._lease import Lease, LeaseLost, holder

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
DEADLINE = 10.0


def status(pid):
    """Exit status of a process, which must not hang."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the process hangs")


@contextmanager
def holding(folder, afterwards=lambda lease: time.sleep(60)):
    """Another process that holds the lease of a folder: its number."""
    read, write = os.pipe()

    def hold():
        lease = Lease.acquire(folder)
        os.write(write, b"1")
        afterwards(lease)

    pid = fork(hold)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ChildProcessError, ProcessLookupError):
            pass


def traces(folder):
    return sorted(path.name for path in folder.iterdir())


def test_second_process_is_refused_and_a_kill_frees_the_lease(tmp_path):
    with holding(tmp_path) as pid:
        expected = f"is being trained by process {pid} on {platform.node()}: wait until it ends"
        with pytest.raises(ValueError, match=expected) as refusal:
            Lease.acquire(tmp_path)
        assert "\n" not in str(refusal.value)
        assert holder(tmp_path) == f"process {pid} on {platform.node()}"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        began = time.monotonic()
        assert holder(tmp_path) is None
        with Lease.acquire(tmp_path) as lease:
            assert time.monotonic() - began < 0.5
            assert lease.generation == 2
            lease.check()


def test_a_stopped_process_on_a_local_disk_keeps_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    with holding(tmp_path) as pid:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ValueError, match=str(pid)):
            Lease.acquire(tmp_path)


def test_releasing_twice_leaves_no_file_and_spares_a_successor(tmp_path):
    first = Lease.acquire(tmp_path / "run")
    first.release()
    assert traces(tmp_path / "run") == []
    with Lease.acquire(tmp_path / "run") as second:
        first.release()
        second.check()
        with pytest.raises(LeaseLost):
            first.check()


def test_the_same_process_cannot_hold_a_lease_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    with Lease.acquire(tmp_path), pytest.raises(ValueError, match=str(os.getpid())):
        Lease.acquire(tmp_path)


def test_acquiring_during_a_release_never_makes_two_holders(tmp_path):
    run, busy = tmp_path / "run", tmp_path / "busy"

    def work():
        held = 0
        while held < 25:
            try:
                lease = Lease.acquire(run)
            except ValueError:
                continue
            os.close(os.open(busy, os.O_CREAT | os.O_EXCL))  # fails if another holder is inside
            lease.check()
            busy.unlink()
            lease.release()
            held += 1

    workers = [fork(work) for _ in range(4)]
    assert [status(pid) for pid in workers] == [0, 0, 0, 0]
    assert traces(run) == []


def test_lock_on_a_file_removed_meanwhile_is_not_a_lease(tmp_path, monkeypatch):
    first, flock, calls = Lease.acquire(tmp_path), module.fcntl.flock, []

    def late(descriptor, operation):
        calls.append(operation)
        if len(calls) == 1:
            first.release()  # between the opening and the locking of the file
        flock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", late)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    with Lease.acquire(tmp_path) as second:
        second.check()
        with pytest.raises(ValueError, match="is being trained"):
            Lease.acquire(tmp_path)


def test_who_probes_a_free_lease_does_not_keep_others_out(tmp_path):
    (tmp_path / ".lease").write_text("")
    descriptor = os.open(tmp_path / ".lease", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # as `holder` does for an instant
    threading.Timer(0.15, os.close, [descriptor]).start()
    Lease.acquire(tmp_path).release()


def test_a_forked_child_does_not_give_the_lease_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    with Lease.acquire(tmp_path) as lease:

        def child():
            lease.release()
            with pytest.raises(LeaseLost):
                lease.check()
            with pytest.raises(ValueError, match="is being trained"):
                Lease.acquire(tmp_path)

        assert status(fork(child)) == 0
        lease.check()
        assert holder(tmp_path) is not None


def test_forked_child_does_not_keep_its_killed_parents_lock(tmp_path):
    """Data loaders and DDP fork: their copies of the descriptor would hold the lock on."""
    read, write = os.pipe()

    def leave_a_child(lease):
        os.write(write, str(fork(lambda: time.sleep(60))).encode())
        time.sleep(60)

    with holding(tmp_path, leave_a_child) as pid:
        child = int(os.read(read, 20))
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            Lease.acquire(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)
    os.close(read)
    os.close(write)


def test_child_forked_while_beat_thread_is_locked_does_not_hang(tmp_path):
    lease = Lease.acquire(tmp_path)
    with lease._stop._cond:  # as the thread has it for an instant at every beat
        pid = fork(lease.release)
    assert status(pid) == 0
    lease.check()
    lease.release()


@pytest.mark.parametrize("name", [".lease", ".lease.json", ""])
def test_lease_with_removed_files_is_lost_before_the_next_save(tmp_path, name):
    run = tmp_path / "run"
    lease = Lease.acquire(run)
    lease.check()
    if name:
        (run / name).unlink()
    else:
        run.rename(tmp_path / "moved")
    with pytest.raises(LeaseLost, match="removed or replaced; this process stops without saving"):
        lease.check()
    lease.release()


def test_losing_a_lease_does_not_remove_the_next_holders_files(tmp_path):
    lease = Lease.acquire(tmp_path)
    (tmp_path / ".lease").unlink()
    with Lease.acquire(tmp_path) as after:
        with pytest.raises(LeaseLost, match=f"process {os.getpid()} on"):
            lease.check()
        lease.release()
        after.check()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to .*: Not a directory") as error:
        Lease.acquire(tmp_path / "file" / "run")
    assert "\n" not in str(error.value)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)

        def child():
            if os.getuid() == 0:  # nothing is read-only to the administrator
                os.seteuid(65534)
            with pytest.raises(OSError, match="cannot write to .*: Permission denied"):
                Lease.acquire(Path(folder))

        assert status(fork(child)) == 0
        assert traces(Path(folder)) == []
        Path(folder).chmod(0o755)


def test_a_full_disk_at_the_start_gives_the_lock_back(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            Lease.acquire(tmp_path)
    Lease.acquire(tmp_path).release()


def test_asking_for_the_holder_creates_nothing(tmp_path):
    assert holder(tmp_path) is None
    assert holder(tmp_path / "missing") is None
    (tmp_path / "file").write_text("")
    assert holder(tmp_path / "file") is None
    assert traces(tmp_path) == ["file"]


def test_local_lease_from_before_a_reboot_is_free_at_once(tmp_path):
    """A copied folder and a restarted machine leave a record of another boot, whose lock is gone."""
    lease = Lease.acquire(tmp_path)
    record = json.loads((tmp_path / ".lease.json").read_bytes()) | {"boot": "earlier"}
    lease.release()
    (tmp_path / ".lease.json").write_text(json.dumps(record))
    (tmp_path / ".lease").write_text("")
    assert holder(tmp_path) is None
    began = time.monotonic()
    with Lease.acquire(tmp_path) as after:
        assert after.generation == 2
        assert time.monotonic() - began < 0.5


CORRUPT = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"generation": 1}', b"[" * 100_000]


@pytest.mark.parametrize("content", CORRUPT, ids=range(len(CORRUPT)))
def test_a_corrupt_record_is_neither_believed_nor_a_traceback(tmp_path, content):
    (tmp_path / ".lease").write_text("")
    (tmp_path / ".lease.json").write_bytes(content)
    assert holder(tmp_path) is None
    with Lease.acquire(tmp_path) as lease:
        lease.check()
        (tmp_path / ".lease.json").write_bytes(content)
        with pytest.raises(LeaseLost):
            lease.check()


@pytest.mark.parametrize(("key", "value"), [("generation", "7"), ("owner", "../../x"), ("pid", None), ("boot", 3)])
def test_a_record_of_wrong_types_is_corrupt(tmp_path, key, value):
    with Lease.acquire(tmp_path):
        record = json.loads((tmp_path / ".lease.json").read_bytes())
        assert module._parse(json.dumps(record).encode()) == record
        assert module._parse(json.dumps(record | {key: value}).encode()) is None


def test_a_mount_point_with_a_space_is_recognised(monkeypatch):
    table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /mnt/my\\040share rw,x shared:1 - nfs4 host:/ rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: table)
    assert not module._is_local(Path("/mnt/my share/run"))
    assert module._is_local(Path("/mnt/my shares/run"))


# Storage that several hosts share, whose locks do not reach the others.


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr(module, "_is_local", lambda _: False)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.03)
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: None)
    return monkeypatch


def acquire_elsewhere(folder, monkeypatch):
    """Lease that another host holds."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_boot", lambda: "another system")
        patch.setattr(platform, "node", lambda: "elsewhere")
        return Lease.acquire(folder)


def pause(lease):
    lease._stop.set()
    lease._thread.join()


def resume(lease):
    lease._stop.clear()
    lease._thread = threading.Thread(target=lease._beat, daemon=True)
    lease._thread.start()


def test_a_live_holder_on_another_host_is_refused(tmp_path, shared):
    with acquire_elsewhere(tmp_path, shared) as lease:
        assert holder(tmp_path) == f"process {os.getpid()} on elsewhere"
        with pytest.raises(ValueError, match="on elsewhere"):
            Lease.acquire(tmp_path)
        lease.check()
    assert traces(tmp_path) == []


def test_stalled_holder_is_taken_over_and_stops_when_it_wakes(tmp_path, shared):
    old = acquire_elsewhere(tmp_path, shared)
    pause(old)
    new = Lease.acquire(tmp_path)
    assert new.generation == old.generation + 1
    record = (tmp_path / ".lease.json").read_bytes()
    resume(old)
    old._thread.join(DEADLINE)
    assert not old._thread.is_alive()
    with pytest.raises(LeaseLost, match=f"process {os.getpid()} on {platform.node()} has taken it over"):
        old.check()
    old.release()
    assert (tmp_path / ".lease.json").read_bytes() == record
    new.check()
    assert len(list(tmp_path.glob(".lease.*.beat"))) == 1
    new.release()
    assert traces(tmp_path) == []


def test_holder_paused_mid_beat_does_not_overwrite_successor(tmp_path, shared):
    """It has read its own name, sleeps through the take-over, and goes on as if nothing had happened."""
    old = acquire_elsewhere(tmp_path, shared)
    pause(old)
    stale, content = (tmp_path / ".lease.json").read_bytes(), module._content
    with Lease.acquire(tmp_path) as new:
        reads = []

        def read(path):
            if threading.current_thread() is not old._thread or path.name != ".lease.json":
                return content(path)
            reads.append(path)
            return stale if len(reads) == 1 else content(path)

        shared.setattr(module, "_content", read)
        resume(old)
        old._thread.join(DEADLINE)
        assert len(reads) == 2
        assert json.loads((tmp_path / ".lease.json").read_bytes()) == new._record
        new.check()
    assert traces(tmp_path) == [], "the late beat was cleaned up by its own process"


def test_beat_in_progress_leaves_no_file_after_release(tmp_path, shared):
    lease, write, under_way = acquire_elsewhere(tmp_path, shared), Path.write_text, threading.Event()

    def slow(path, *rest, **named):
        under_way.set()
        time.sleep(0.1)
        write(path, *rest, **named)

    shared.setattr(Path, "write_text", slow)
    shared.setattr(module, "BEAT_SECONDS", 5.0)  # the present wait is still short
    assert under_way.wait(DEADLINE)
    lease.release()
    time.sleep(0.2)
    assert traces(tmp_path) == []


@pytest.mark.parametrize("shift", [-1e9, 1e9])
def test_clocks_that_differ_change_nothing(tmp_path, shared, shift):
    lease = acquire_elsewhere(tmp_path, shared)
    stamp = (time.time() + shift,) * 2
    write = Path.write_text

    def stamped(path, *rest, **named):
        write(path, *rest, **named)
        os.utime(path, stamp)

    shared.setattr(Path, "write_text", stamped)
    os.utime(tmp_path / ".lease.json", stamp)
    with pytest.raises(ValueError, match="on elsewhere"):
        Lease.acquire(tmp_path)
    pause(lease)
    Lease.acquire(tmp_path).release()


def test_release_while_another_watches_leaves_the_lease_free(tmp_path, shared):
    shared.setattr(module, "BEAT_SECONDS", 100.0)
    lease = acquire_elsewhere(tmp_path, shared)
    threading.Timer(0.15, lease.release).start()
    began = time.monotonic()
    Lease.acquire(tmp_path).release()
    assert time.monotonic() - began < module.STALE_SECONDS


def test_beats_tell_processes_of_a_host_apart_without_locks(tmp_path, shared):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    shared.setattr(module.fcntl, "flock", flock)
    shared.setattr(module, "_is_local", lambda _: True)  # a local disk without locks
    lease = Lease.acquire(tmp_path)
    assert holder(tmp_path) == f"process {os.getpid()} on {platform.node()}"
    with pytest.raises(ValueError, match="is being trained by"):
        Lease.acquire(tmp_path)
    pause(lease)
    with Lease.acquire(tmp_path) as after:
        after.check()
        with pytest.raises(LeaseLost):
            lease.check()


def test_corrupt_shared_record_does_not_hide_a_live_holder(tmp_path, shared):
    lease = acquire_elsewhere(tmp_path, shared)
    (tmp_path / ".lease.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="being trained by another process"):
        Lease.acquire(tmp_path)
    pause(lease)
    Lease.acquire(tmp_path).release()


def test_only_one_of_several_takes_over_from_a_dead_holder(tmp_path, shared):
    shared.setattr(module, "STALE_SECONDS", 0.3)
    pause(acquire_elsewhere(tmp_path, shared))
    taken, refused = [], []

    def take():
        try:
            taken.append(Lease.acquire(tmp_path))
        except ValueError as error:
            refused.append(str(error))

    takers = [threading.Thread(target=take) for _ in range(6)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(DEADLINE)
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].check()
    taken[0].release()


def test_transient_storage_error_does_not_cost_the_lease(tmp_path, shared):
    lease, read, failures = acquire_elsewhere(tmp_path, shared), Path.read_bytes, iter(range(2))

    def failing(path):
        if threading.current_thread() is threading.main_thread() and next(failures, None) is not None:
            raise OSError(errno.ESTALE, "stale file handle")
        return read(path)

    shared.setattr(Path, "read_bytes", failing)
    lease.check()
    lease.release()
