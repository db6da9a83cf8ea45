"""Trains on disks that are full, read-only or without inodes, under a clock that was set back, and as a poor user.

    python tests/endurance/disks.py --out disks.json

Needs root, for mounts: all of them are in a mount namespace of this process's own. A command must end with status 0, 1
or 2 and at most one line of error, leave the run as it was, and go on to the same weights once the disk is mended.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # so that no thread runs where this process forks

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forks import Child
from scenarios import warm

NOBODY = 65534
SMALL = [
    "--data.limit=60", "--data.limit_validation=20", "--model.latent=4", "--model.components=2", "--training.batch=10",
    "--training.save_every=0", "--training.epochs=3",
]  # fmt: skip
"""A run of about 1.5 MB, written after every step."""


@dataclass
class Ended:
    """How a command ended."""

    status: int
    said: str

    @property
    def lines(self) -> list[str]:
        """Lines of standard error, progress aside."""
        return [line for line in self.said.splitlines() if line.strip() and not line.startswith("epoch ")]

    @property
    def last(self) -> str:
        """Last line of standard error."""
        return (self.said.strip().splitlines() or [""])[-1]


@dataclass
class Report:
    """What was found, case by case."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, faults: Sequence[str], told: str = "") -> None:
        """Note how a case went."""
        self.rows.append({"case": case, "faults": list(faults), "told": told})
        print(f"{time.strftime('%H:%M:%S')} {'FAULT' if faults else 'good'}: {case}", flush=True)
        for fault in faults:
            print(f"         {fault}", flush=True)
        if told:
            print(f"         says: {told}", flush=True)


class Bench:
    """Folders to work in, and commands."""

    def __init__(self, work: Path):
        self.work = work
        self.home = work / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = work / "log"

    def start(
        self, words: Sequence[str | Path], *, script: str = "", prefix: Sequence[str] = (), cwd: Path | None = None,
        **more: str | None,
    ) -> Child | subprocess.Popen[str]:  # fmt: skip
        """Start a command, forked from this process, or fresh where another program has to start it."""
        home = {"XDG_STATE_HOME": str(self.home / "state"), "XDG_CACHE_HOME": str(self.home / "cache")}
        environment: dict[str, str | None] = {**home, **more}
        said = [str(word) for word in words]
        if not prefix:
            return Child(["python", script, *said] if script else said, cwd or self.work, self.log, environment)
        command = [*prefix, sys.executable, "-P", "-m", "mixvae", *said]
        plain = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=cwd or self.work, env=plain)

    def run(self, words: Sequence[str | Path], **options: Any) -> Ended:
        """Run a command."""
        child = self.start(words, **options)
        _, said = child.communicate(timeout=900)
        assert child.returncode is not None
        return Ended(child.returncode, said)


def mount(folder: Path, size: int, *, inodes: int = 10_000, again: bool = False) -> None:
    """Mount a disk in memory, or change the size of one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"{'remount,' if again else ''}size={size},nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)


def unmount(folder: Path) -> None:
    """Take a disk away."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def disk(folder: Path, size: int, inodes: int = 10_000):
    """A disk for a while."""
    mount(folder, size, inodes=inodes)
    try:
        yield folder
    finally:
        unmount(folder)


@contextmanager
def read_only(folder: Path):
    """A folder that nobody can write to for a while, root included."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield folder
    finally:
        unmount(folder)


def in_one_line(ended: Ended, *statuses: int) -> list[str]:
    """What is wrong with how a command ended, where it must end with a line and one of these statuses."""
    faults = []
    if ended.status not in statuses:
        faults.append(f"status {ended.status}, not {' or '.join(map(str, statuses))}: {ended.said[-300:]}")
    if "Traceback" in ended.said:
        faults.append(f"a traceback: {ended.said[-1500:]}")
    elif ended.status in (1, 2) and len(ended.lines) != 1:
        faults.append(f"{len(ended.lines)} lines instead of one: {ended.lines}")
    elif ended.status == 0 and ended.lines:
        faults.append(f"noise: {ended.lines}")
    return faults


def weights_of(run: Path) -> str | None:
    """Checksum of the weights that a run holds, if it is whole and done."""
    from mixvae.runs import open_run

    opened = open_run(run)
    opened.load()
    return opened.weights_sha256 if opened.state == "done" else None


def same(run: Path, wanted: str | None) -> list[str]:
    """Whether a run ended as the uninterrupted one did, and left nothing behind."""
    from mixvae.runs import open_run

    faults = []
    try:
        if weights_of(run) != wanted:
            faults.append(f"its weights are not those of the uninterrupted run; it is {open_run(run).state}")
    except (OSError, ValueError) as error:
        faults.append(f"the run cannot be read: {error}")
    return faults + [f"{path.name} is left" for path in run.rglob(".*") if path.is_file()]


def readable(run: Path) -> list[str]:
    """Whether a run that was cut off can be read and is not damaged."""
    from mixvae.runs import listing, open_run

    if not (run / "run.json").exists():
        return []
    try:
        opened = open_run(run)
        if opened.has_weights:
            opened.load()
        states = [row["state"] for row in listing(run.parent).table]
    except (OSError, ValueError) as error:
        return [f"the run cannot be read: {error}"]
    return [f"mixvae list says {state}" for state in states if state not in ("stopped", "done")]


def go_on(bench: Bench, run: Path, flags: Sequence[str] = SMALL) -> Ended:
    """Go on with a run as documented."""
    words = ["train", "--resume", run] if (run / "run.json").exists() else ["train", "digits", *flags, "--out", run]
    return bench.run(words)


def full(bench: Bench, wanted: str | None, report: Report, size: int) -> None:
    """Disks that are too small from the beginning, by bytes or by inodes."""
    for share in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2):
        folder, small = bench.work / "full", max(4096, round(share * size / 4096) * 4096)
        with disk(folder, small):
            run = folder / "run"
            ended = bench.run(["train", "digits", *SMALL, "--out", run])
            faults = in_one_line(ended, 0, 1, 2) + readable(run)
            mount(folder, 64 * 2**20, again=True)
            again = go_on(bench, run)
            report.add(
                f"a disk of {small / 1024:.0f} kB, a run of {size / 1024:.0f} kB",
                faults + in_one_line(again, 0) + same(run, wanted), ended.last if ended.status else "",
            )  # fmt: skip
    for inodes in (1, 2, 3, 4, 6, 8, 10, 12):
        folder = bench.work / "inodes"
        with disk(folder, 64 * 2**20, inodes):
            run = folder / "run"
            ended = bench.run(["train", "digits", *SMALL, "--out", run])
            faults = in_one_line(ended, 0, 1, 2) + readable(run)
            mount(folder, 64 * 2**20, inodes=1000, again=True)
            again = go_on(bench, run)
            report.add(
                f"a disk of {inodes} inodes", faults + in_one_line(again, 0) + same(run, wanted),
                ended.last if ended.status else "",
            )  # fmt: skip


def filled(bench: Bench, wanted: str | None, report: Report) -> None:
    """A disk that another program fills while a training runs."""
    for i, epoch in enumerate((0, 1, 2, 2)):
        folder = bench.work / "filled"
        with disk(folder, 32 * 2**20):
            run, filler = folder / "run", folder / "filler"
            child = bench.start(["train", "digits", *SMALL, "--out", run])
            until = time.monotonic() + 600
            while not _epochs(run) >= epoch and child.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            _fill(filler, keep=i * 20_000)
            _, said = child.communicate(timeout=600)
            ended = Ended(child.returncode or 0, said)
            faults = in_one_line(ended, 0, 1, 2) + readable(run)
            blocked = go_on(bench, run)
            if ended.status:
                faults += in_one_line(blocked, 0, 1, 2) + readable(run)
            filler.unlink()
            again = go_on(bench, run)
            report.add(
                f"a disk filled in epoch {epoch + 1}, all but {i * 20} kB",
                faults + in_one_line(again, 0) + same(run, wanted), ended.last if ended.status else "",
            )  # fmt: skip


def _epochs(run: Path) -> int:
    try:
        return json.loads((run / "run.json").read_text())["progress"]["epoch"]
    except (OSError, ValueError):
        return -1


def _fill(path: Path, keep: int) -> None:
    """Fill a disk but for some bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 2**16)
        except OSError:
            pass
        try:
            while True:
                file.write(b"\0" * 512)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - keep))


def commands(bench: Bench, source: Path, report: Report) -> None:
    """Evaluations, reports and other commands where nothing can be written."""
    for words, statuses in (
        (["evaluate", "{run}", "--total-draws=40"], (1, 2)),
        (["report", "{run}"], (1, 2)),
        (["encode", "{run}"], (1, 2)),
        (["sample", "{run}"], (1, 2)),
        (["components", "{run}", "--draws-per-component=2", "--examples=20"], (1, 2)),
        (["train", "--resume", "{run}", "--training.epochs=4"], (1, 2)),
        (["extend", "{run}", "--epochs=1"], (1, 2)),
        (["grow", "{run}", "--epochs=1", "--total-draws=10", "--examples=10"], (1, 2)),
        (["list", "{folder}"], (0,)),
    ):
        folder = bench.work / "readonly"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder / "run")
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        filled_words = [word.format(run=folder / "run", folder=folder) for word in words]
        with read_only(folder):
            ended = bench.run(filled_words)
        faults = in_one_line(ended, *statuses)
        if {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} != before:
            faults.append("files changed")
        report.add(f"read-only: mixvae {words[0]}", faults, ended.last)
        if words[0] in ("evaluate", "report", "components"):
            with disk(bench.work / "crammed", 8 * 2**20) as crammed:
                shutil.copytree(source, crammed / "run")
                _fill(crammed / "filler", keep=0)
                ended = bench.run([word.format(run=crammed / "run") for word in words])
                faults = in_one_line(ended, *statuses) + readable(crammed / "run")
                (crammed / "filler").unlink()
                again = bench.run([word.format(run=crammed / "run") for word in words])
                report.add(
                    f"a full disk: mixvae {words[0]}", faults + in_one_line(again, 0),
                    ended.last,
                )  # fmt: skip


SET_BACK = """
import sys, time
real, began = time.time, time.monotonic()
def late(): return real() - (0 if time.monotonic() - began < 6 else 400 * 86400)
time.time = late
from mixvae.cli import main
main(sys.argv[1:])
"""
"""A clock that jumps back by more than a year, six seconds after the start."""
BEHIND = SET_BACK.replace("0 if time.monotonic() - began < 6 else ", "")
"""A clock that is more than a year behind from the beginning."""


def clocks(bench: Bench, wanted: str | None, report: Report) -> None:
    """Clocks that are set back, in the middle of a training or between two, and files from the future."""
    folder = bench.work / "clock"
    run = folder / "run"
    for case, first, then in (
        ("set back while it trains", SET_BACK, ""),
        ("set back between two sessions", "", BEHIND),
        ("right again after a session in the past", BEHIND, ""),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        child = bench.start(["train", "digits", *SMALL, "--out", run], script=first)
        until = time.monotonic() + 600
        while _epochs(run) < 1 and child.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        if "while" not in case:
            child.kill()
        _, said = child.communicate(timeout=600)
        faults = [] if child.returncode in (0, -9) else [f"status {child.returncode}: {said[-300:]}"]
        for path in [*run.rglob("*"), run] if "between" in case else []:
            os.utime(path, (time.time() + 86400, time.time() + 86400))
        words: list[str | Path] = ["train", "--resume", run]
        faults += in_one_line(bench.run(words, script=then), 0) + same(run, wanted)
        evaluated = bench.run(["evaluate", run, "--total-draws=40"], script=BEHIND)
        reported = bench.run(["report", run], script=BEHIND)
        listed = bench.run(["list", folder], script=BEHIND)
        for ended in (evaluated, reported, listed):
            faults += in_one_line(ended, 0)
        seconds = json.loads((run / "run.json").read_text())["progress"]["seconds"]
        if not 0 <= seconds < 3600:
            faults.append(f"the training took {seconds} seconds, it says")
        report.add(f"a clock {case}", faults)


def poor(bench: Bench, wanted: str | None, report: Report) -> None:
    """A user who is not root, without a home to write to."""
    folder = bench.work / "poor"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True).returncode:
        reading = [
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
        ]  # to reach an interpreter of root's
        prefix += reading
    run = folder / "run"
    homes = {"no HOME": None, "HOME that does not exist": "/nonexistent", "HOME of root": "/root"}
    for home, place in homes.items():
        shutil.rmtree(run, ignore_errors=True)
        nowhere: dict[str, Any] = {"XDG_STATE_HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None, "HOME": place}
        options = {"prefix": prefix, "cwd": folder, **nowhere}
        for words, check in (
            (["train", "digits", *SMALL, "--out", "run"], lambda: same(run, wanted)),
            (["evaluate", "run", "--total-draws=40"], list),
            (["report", "run"], list),
            (["list", "."], list),
        ):
            ended = bench.run(words, **options)
            report.add(f"not root, {home}: mixvae {words[0]}", in_one_line(ended, 0) + check())
        missing = bench.run(["train", "vanilla", "--data.name=cifar10", "--out", "never"], **options)
        report.add(f"not root, {home}: data to be downloaded", in_one_line(missing, 2), missing.said.strip())
    shutil.rmtree(run, ignore_errors=True)
    os.chmod(folder, 0o555)
    ended = bench.run(["train", "digits", *SMALL, "--out", "run"], prefix=prefix, cwd=folder)
    report.add("not root, a folder of somebody else's", in_one_line(ended, 1, 2), ended.said.strip())


OWN = """
import torch
from mixvae.networks import GatedEncoder
class Mine(GatedEncoder):
    pass
"""


def memory(bench: Bench, report: Report) -> None:
    """A state folder that cannot be written: training goes on, and what is not remembered needs --trust."""
    folder, state = bench.work / "memory", bench.work / "state"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(OWN)
    own = ["--model.encoder={class_path: mine.Mine, hidden: [8]}", *SMALL]
    cases: dict[str, Callable[[], Any]] = {
        "read-only": lambda: read_only(state),
        "full": lambda: disk(state, 4096, 1),
    }
    for case, condition in cases.items():
        run = folder / f"run-{case}"
        with condition():
            ended = bench.run(["train", "digits", *own, "--out", run], cwd=folder, XDG_STATE_HOME=str(state))
            unknown = bench.run(["evaluate", run, "--total-draws=10"], cwd=folder, XDG_STATE_HOME=str(state))
            trusted = bench.run(
                ["evaluate", run, "--total-draws=10", "--trust", "mine"], cwd=folder, XDG_STATE_HOME=str(state)
            )
        faults = in_one_line(ended, 0) + in_one_line(unknown, 2) + in_one_line(trusted, 0)
        report.add(f"a state folder that is {case}", faults, unknown.said.strip())


def elsewhere(report: Report) -> int | None:
    """Start this again in a mount namespace of its own, where nothing that is mounted is seen by others."""
    if os.environ.get("MIXVAE_ENDURANCE_NAMESPACE"):
        return None
    if os.geteuid() != 0:
        print("skipped: mounting disks needs root")
        return 0
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
    try:
        return subprocess.run(command, env=os.environ | {"MIXVAE_ENDURANCE_NAMESPACE": "1"}).returncode
    except OSError as error:
        print(f"skipped: no mount namespace here: {error}")
        return 0


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("disks.json"))
    parser.add_argument("--only", default="", help="of full, filled, commands, clocks, poor, memory")
    options = parser.parse_args()
    report = Report()
    if (status := elsewhere(report)) is not None:
        sys.exit(status)
    out: Path = options.out.absolute()
    warm()
    bench = Bench(out.with_suffix(".work"))
    os.chmod(bench.work, 0o755)
    reference = bench.work / "reference"
    if not (reference / "run.json").exists():
        ended = bench.run(["train", "digits", *SMALL, "--out", reference])
        assert ended.status == 0, ended.said
        assert (
            bench.run(["evaluate", reference, "--total-draws=20"]).status == 0
        )  # so that there is something to report
    wanted = weights_of(reference)
    size = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    groups: Mapping[str, Callable[[], None]] = {
        "full": lambda: full(bench, wanted, report, size),
        "filled": lambda: filled(bench, wanted, report),
        "commands": lambda: commands(bench, reference, report),
        "clocks": lambda: clocks(bench, wanted, report),
        "poor": lambda: poor(bench, wanted, report),
        "memory": lambda: memory(bench, report),
    }
    for name in [name for name in options.only.split(",") if name] or groups:
        groups[name]()
    good = sum(not row["faults"] for row in report.rows)
    out.write_text(json.dumps({"good": good, "cases": len(report.rows), "rows": report.rows}, indent=1) + "\n")
    print(f"disks: {good} of {len(report.rows)} cases as they should be")
    sys.exit(good < len(report.rows))


if __name__ == "__main__":
    main()
