"""The processes of one training end together, whatever ends one of them, and the reason is told once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixvae.files import load_weights

SCRIPT = """
import os, signal, sys

RANK, WHERE = (os.environ.get("AT") or "-:").split(":")
OWN = os.environ.get("LOCAL_RANK", "0")


def end(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner, name, calls, act):
    old, count = getattr(owner, name), [0]

    def new(*args, **kwargs):
        count[0] += 1
        return (act if count[0] > calls else old)(*args, **kwargs)

    setattr(owner, name, new)


def fail(error):
    def act(*args, **kwargs):
        raise error

    return act


def prepare():
    from torch import distributed

    from mixvae.files._lease import LeaseLost
    from mixvae.training import _lives as lives
    from mixvae.training._objective import Objective
    from mixvae.training._trainer import Trainer

    match WHERE:
        case "start" if OWN == "0":
            start = lives.start
            lives.start = lambda *args, **kwargs: (start(*args, **kwargs), end())
        case "start":
            end()
        case "join":
            distributed.init_process_group = end
        case "step":
            after(Objective, "forward", 9, end)
        case "validation":
            after(Trainer, "_validate", 1, end)
        case "save":
            after(os, "replace", 9, end)
        case "full":
            after(os, "replace", 9, fail(OSError(28, "No space left on device")))
        case "lost":
            after(os, "replace", 9, fail(LeaseLost("RUN: another process has taken it over")))
        case "diverged":
            after(Trainer, "_validate", 1, fail(FloatingPointError("the bound became NaN")))
        case "bug":
            after(Trainer, "_validate", 1, fail(RuntimeError("shapes differ")))


if __name__ == "__main__":
    from mixvae.cli import main

    if RANK in (OWN, "all"):
        prepare()
    main(sys.argv[1:])
"""
BANNER = (
    "Initializing distributed",
    "-----",
    "distributed_backend",
    "All distributed processes",
    "epoch ",
    "binarising",
)


def command(tmp_path, *more):
    (tmp_path / "script.py").write_text(SCRIPT)
    return [
        str(tmp_path / "script.py"), "train", "digits", "--out", str(tmp_path / "run"), "--data.limit=60",
        "--training.epochs=4", "--training.batch=10", "--model.components=1", "--training.save_every=0",
        "--training.devices=2", "--training.accelerator=cpu", *more,
    ]  # fmt: skip


def begin(tmp_path, at, *program):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "AT": at}
    words = [sys.executable, *program, *command(tmp_path)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def lines_of(said):
    return [line for line in said.splitlines() if line.strip() and not line.startswith(BANNER)]


def living(tmp_path):
    """Processes of the training in this folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp_path).encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


GOES_ON = "; `mixvae train --resume {run}` resumes it"
ANEW = "; run the command again"
CASES = {
    "1:step": (1, "process 1 of 2 ended (Killed)" + GOES_ON),
}
MORE = {
    "0:join": (-9, "process 0 of 2 ended" + ANEW),
    "0:full": (2, "No space left on device"),
    "0:start": (-9, "process 0 of 2 ended" + ANEW),
    "1:start": (1, "process 1 of 2 ended (Killed)" + ANEW),
    "1:join": (1, "process 1 of 2 ended (Killed)" + ANEW),
    "0:step": (-9, "process 0 of 2 ended" + GOES_ON),
    "0:validation": (-9, "process 0 of 2 ended" + GOES_ON),
    "1:validation": (1, "process 1 of 2 ended (Killed)" + GOES_ON),
    "0:save": (-9, "process 0 of 2 ended" + GOES_ON),
    "0:lost": (1, "another process has taken it over"),
    "1:diverged": (1, "the bound became NaN"),
    "all:diverged": (1, "the bound became NaN"),
    "1:bug": (1, "shapes differ"),
    "all:bug": (1, "shapes differ"),
}


@pytest.mark.parametrize(
    ("at", "status", "told"),
    [(at, *case) for at, case in CASES.items()]
    + [pytest.param(at, *case, marks=pytest.mark.slow) for at, case in MORE.items()],
)
def test_what_ends_one_process_ends_all_and_is_told_once(tmp_path, at, status, told):
    """Gloo's traceback came from the one that was left, or it waited for minutes."""
    process = begin(tmp_path, at)
    _, said = process.communicate(timeout=300)  # until the last process has closed its standard error
    assert process.returncode == status
    [line] = lines_of(said)
    assert line.startswith("mixvae: error: ")
    assert line.endswith(told.format(run=tmp_path / "run"))
    wait_until(lambda: not living(tmp_path), 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "told"),
    [
        (signal.SIGINT, 130, ["mixvae: interrupted"]),
        (signal.SIGTERM, 143, []),
        (signal.SIGKILL, -9, ["mixvae: error: process 0 of 2 ended"]),
    ],
)
def test_signals_to_rank_zero_stop_all_and_resume_bit_for_bit(tmp_path, number, status, told):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    process = begin(whole, "")
    process.communicate(timeout=300)
    assert process.returncode == 0
    process = begin(cut, "")
    wait_until(lambda: (cut / "run" / "run.json").exists())
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == status
    assert [line.startswith(start) for line, start in zip(lines_of(said), told, strict=True)] == [True] * len(told)
    wait_until(lambda: not living(cut), 20)
    words = [sys.executable, "-m", "mixvae", "train", "--resume", str(cut / "run")]
    subprocess.run(words, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, other = (load_weights(folder / "run" / "model.safetensors") for folder in (whole, cut))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "told"), [("0:full", "No space left on device"), ("all:diverged", "the bound became NaN")]
)  # fmt: skip
def test_under_torchrun_the_reason_is_told_once_too(tmp_path, at, told):
    process = begin(tmp_path, at, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    [line] = [line for line in lines_of(said) if line.startswith("mixvae: ")]
    assert told in line
    assert "Connection" not in said
    wait_until(lambda: not living(tmp_path), 20)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_under_torchrun_is_named_by_it(tmp_path, rank):
    """torchrun ends the others at once, most often before they find out by themselves; there is never a traceback."""
    process = begin(tmp_path, f"{rank}:step", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in said
    own = [line for line in lines_of(said) if line.startswith("mixvae: ")]
    assert all("another process of 2 ended" in line for line in own)
    assert len(own) <= 1
    assert "in train" not in said  # a frame of ours in a traceback
    wait_until(lambda: not living(tmp_path), 20)


@pytest.mark.slow
def test_processes_end_with_torchrun(tmp_path):
    process = begin(tmp_path, "", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    wait_until(lambda: (tmp_path / "run" / "run.json").exists())
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not living(tmp_path), 20)


GRID = """
base: digits
out: {out}
set:
  training: {{devices: 2, accelerator: cpu, epochs: 300, batch: 10}}
  data.limit: 60
total_draws: 4
axes: {{size: {{S1: {{model.components: 1}}}}}}
"""


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_of_a_cell(tmp_path):
    """A cell on two devices did not even start: its other process was called by the wrong words."""
    (tmp_path / "grid.yaml").write_text(GRID.format(out=tmp_path / "cells"))
    words = [sys.executable, "-m", "mixvae", "sweep", str(tmp_path / "grid.yaml")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: (tmp_path / "cells" / "S1" / "run.json").exists())
    assert len(living(tmp_path)) == 3
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not living(tmp_path), 20)
