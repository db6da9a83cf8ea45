"""Commands in children that are forked from a process that has imported mixvae: they start at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def call(words: Sequence[str]) -> int:
    """Run a command in this process, or a script where its first word is `python`; returns its status."""
    import traceback

    from mixvae.cli import main

    try:
        if words[0] == "python":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        else:
            main(list(words))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(words: Sequence[str], cwd: Path, log: Path, environment: Mapping[str, str | None]) -> int:
    """Start a command in a process group of its own; its standard error goes to a file.

    Args:
        words: its words, or `python`, a script and its arguments.
        cwd: the folder to run in.
        log: the file.
        environment: what it adds to this process's; None takes a variable away.
    """
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with suppress(OSError):  # the child may have done it
            os.setpgid(pid, pid)
        return pid
    status = 70
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        null, file = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for old, new in ((null, 0), (null, 1), (file, 2)):
            os.dup2(old, new)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.chdir(cwd)
        status = call(words)
        sys.stderr.flush()
    finally:
        os._exit(status)


class Child:
    """A forked command, as far as it looks like `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], cwd: Path, log: Path, environment: Mapping[str, str | None]):
        self.log, self.returncode = log, None
        self.pid = fork(words, cwd, log, environment)

    def poll(self) -> int | None:
        """Its status, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; returns nothing, and what it wrote to standard error."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a command did not end in {timeout:.0f} s")
            time.sleep(0.01)
        return "", self.log.read_text(errors="replace")
