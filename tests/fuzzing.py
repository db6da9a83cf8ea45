"""What the fuzz tests stand on: a process that forks one child per command, and a folder that commands are tried in.

Run as a script it is that process: mixvae and torch are imported once, without the checks of shapes that other tests
install, so that a command answers as it does to a user, in a fraction of a second.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

SECONDS = 20.0
"""After so long a command counts as hanging, by the processor's clock; by the wall's, if it is idle."""
IDLE = 0.05
"""Share of the processor below which a command is idle, other programs and all."""
MEMORY = 4 * 2**30
"""Bytes that a command may ask for beyond what the imports took."""
LARGEST_FILE = 2**28
"""Bytes of the largest file that a command may write."""
READ_ONLY = "readonly"
"""Name of a folder that nothing can be written to."""
WRITES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}
"""Calls that change files, by the place of the path in their arguments."""

LITTER = re.compile(r"(^|/)\.(.*\.partial|.*\.staged|lease)|home/tmp/")
"""Names of files that no command leaves behind."""


@dataclass
class Outcome:
    """How a command ended."""

    status: int | None
    """None where it was killed because it hung."""
    out: str
    err: str
    seconds: float
    origin: str = ""
    """Kind and place in mixvae of the exception that ended it, if one did."""
    busy: bool = False
    """Whether it was killed at work: where it waited, it would have been for ever."""


class Forks:
    """The process that forks, as the tests see it."""

    def __init__(self, folder: Path, *, cells: bool = False):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        environment |= {"MPLCONFIGDIR": str(folder / "matplotlib"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, __file__, *(["cells"] if cells else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def run(self, words: list[str], root: Path, seconds: float = SECONDS) -> Outcome:
        """Run a command in `root/work`, with a home in `root/home`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        files = {name: str(self.folder / name) for name in ("out", "err", "note")}
        request = {"words": words, "root": str(root), "seconds": seconds, **files}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks has ended with status {self.process.wait(10)}")
        answer = json.loads(line)
        out, err, note = (Path(file).read_text(encoding="utf-8", errors="backslashreplace") for file in files.values())
        return Outcome(answer["status"], out, err, answer["seconds"], note, busy=answer["busy"])


def tree(root: Path) -> dict[str, str]:
    """Everything in a folder: checksums of files, targets of links."""
    found = {}
    for path in sorted(root.rglob("*")):
        kind = "folder" if path.is_dir() else "other"
        if path.is_symlink():
            kind = f"link to {os.readlink(path)}"
        elif path.is_file():
            kind = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = kind
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of what was made, changed or removed."""
    return [name for name in sorted({**before, **after}) if before.get(name) != after.get(name)]


def sandbox(template: Path, root: Path) -> Path:
    """A fresh copy of a folder to try a command in."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root, symlinks=True)
    return root


def faults(outcome: Outcome, command: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is wrong with how a command ended, each by its kind."""
    found = []
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("mixvae: error:")]
    if outcome.status is None:  # unless it works for as long as it was asked to, and says so
        return [] if outcome.busy and lines else [f"hang of {command}"]
    if outcome.status not in (0, 1, 2):
        found.append(f"status {outcome.status} of {command}")
    if "Traceback" in outcome.err or "error: unexpected " in outcome.err:
        return [*found, f"unexpected {outcome.origin or lines[-1][:60]}"]
    if outcome.status == 0 and errors:
        found.append(f"an error and status 0 of {command}")
    if outcome.status == 0 and any("Warning" in line for line in lines):
        found.append(f"a warning: {next(line for line in lines if 'Warning' in line)[-100:]}")
    if outcome.status and (len(errors) != 1 or len(lines) != 1):
        found.append(f"{len(lines)} lines instead of one, of {command}, {outcome.origin}")
    if outcome.status and len(outcome.err) > 3000:
        found.append(f"a line of {len(outcome.err)} characters, {outcome.origin}")
    changed = changes(before, after)
    if outcome.status == 2 and changed:
        found.append(f"refused, but {changed[0].replace('work/', '')} is left by {command}, {outcome.origin}")
    litter = [name for name in changed if LITTER.search(name) and name in after]
    if litter:
        found.append(f"{litter[0]} is left by {command}")
    return found


def serve(*, cells: bool) -> None:
    """Fork a child for every line on standard input."""
    import matplotlib
    import torch

    torch.set_num_threads(1)
    matplotlib.use("agg")
    import matplotlib.pyplot

    import mixvae
    import mixvae.cli
    import mixvae.reproduce
    import mixvae.reproduce.toys
    import mixvae.runs._training
    import mixvae.sweeps

    if cells:
        import mixvae.reproduce.cells.study  # noqa: F401
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request, start = json.loads(line), time.perf_counter()
        pid = os.fork()
        if pid == 0:
            try:
                _child(request)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)
        status, busy = _wait(pid, request["seconds"])
        with contextlib.suppress(ProcessLookupError):  # what the child started and left
            os.killpg(pid, signal.SIGKILL)
        answer = {"status": status, "busy": busy, "seconds": round(time.perf_counter() - start, 2)}
        print(json.dumps(answer), file=answers, flush=True)


def _wait(pid: int, seconds: float) -> tuple[int | None, bool]:
    """Status of a child, None if it was killed because it took too long, and whether it was at work then."""
    watched, start, ended = os.pidfd_open(pid), time.monotonic(), []
    while not ended:
        ended = select.select([watched], [], [], 1.0)[0]
        passed, worked = time.monotonic() - start, _worked(pid)
        if worked >= seconds or passed > 10 * seconds or (passed > seconds and worked < IDLE * passed):
            break
    os.close(watched)
    busy = not ended and _worked(pid) >= seconds / 2
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (status if ended else None), busy


def _worked(leader: int) -> float:
    """Seconds that the processes of a session have taken of the processor, with those that they waited for."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text(errors="replace").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[3]) == leader else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _child(request) -> None:
    """Run one command as a process of its own, and end."""
    import resource

    os.setsid()
    root = os.path.realpath(request["root"])
    os.chdir(f"{root}/work")
    os.environ |= {
        "HOME": f"{root}/home",
        "XDG_STATE_HOME": f"{root}/home/state",
        "XDG_CACHE_HOME": f"{root}/home/cache",
    }
    os.environ["TMPDIR"] = f"{root}/home/tmp"
    tempfile.tempdir = None
    os.environ.pop("MIXVAE_DATA", None)
    note = open(request["note"], "w")
    for number, file, mode in ((0, os.devnull, os.O_RDONLY), (1, request["out"], None), (2, request["err"], None)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if mode is None else mode)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
    _without_network()
    _shorten()
    _guard(root)
    status = _status(request["words"], note)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    note.close()
    os._exit(status)


def _status(words: list[str], note) -> int:
    """Status that a command ends with."""
    from mixvae.cli import main

    try:
        main(words)
    except SystemExit as end:
        if end.__context__ is not None:
            note.write(_origin(end.__context__))
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        note.write(_origin(error))
        traceback.print_exc()
        return 1
    return 0


def _origin(error: BaseException) -> str:
    """Kind of an exception and the last line of mixvae that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/mixvae/" in f.filename]
    lines = [f for f in frames if "/mixvae/cli/" not in f.filename] or frames
    where = f"{lines[-1].filename.rpartition('/mixvae/')[2]}:{lines[-1].lineno} {lines[-1].name}" if lines else "?"
    return f"{type(error).__name__} at {where}"


def _without_network() -> None:
    """No command reaches a server."""
    import socket

    def unreachable(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = unreachable  # pyright: ignore


def _shorten() -> None:
    """Cells of a sweep run in forks instead of new processes, and the demo trains for one epoch."""
    from mixvae import sweeps

    with contextlib.suppress(Exception):
        sweeps.demo.__kwdefaults__["epochs"] = 1
        sweeps.demo.__kwdefaults__["components"] = (1,)
    sweeps._runners.run_child = _run_child  # pyright: ignore


def _run_child(words, log, environment, children):
    """Do in a fork what a sweep does in a new process."""
    del log, environment, children
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(write, 2)
            os.dup2(os.pipe()[0], 0)  # which never ends, as if the parent did not
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            from mixvae import sweeps

            sweeps.run_cell(*words[2:])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            print("" if status == end.code else end.code, file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            os._exit(status)
    os.close(write)
    with open(read, encoding="utf-8", errors="backslashreplace") as said:
        lines = said.read().strip().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lines[-1:]


def _guard(root: str) -> None:
    """Nothing outside the sandbox can be changed, nor anything in its folder that is read-only, not even by root."""

    def refuse(event, args):
        if event == "open":
            path, mode, flags = args
            if not isinstance(path, str | bytes) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in WRITES:
            path = args[WRITES[event]]
        else:
            return
        path = os.fsdecode(path)
        if path == os.devnull:
            return
        folder, name = os.path.split(os.path.abspath(path))
        whole = os.path.join(os.path.realpath(folder), name)
        inside = whole.startswith(root + os.sep) and f"/{READ_ONLY}/" not in whole
        if event == "os.mkdir" and os.path.isdir(path):
            return  # which is an error of its own
        if not inside:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    sys.addaudithook(refuse)


if __name__ == "__main__":
    serve(cells="cells" in sys.argv[1:])
