"""Cells on a cluster: tried again where a machine is lost, waited for where they train, refused where they cannot."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Recorded, fork, refused
from mixvae import config, runs, sweeps
from mixvae.files._lease import Lease
from mixvae.runs import open_run
from mixvae.sweeps import _children as children
from mixvae.sweeps import _tasks
from mixvae.sweeps._attempts import ATTEMPTS, Ended, Started, run_all
from mixvae.sweeps._ray import resources
from mixvae.sweeps._tasks import Task

GRID = """
base: digits
out: {out}
set: {{training.epochs: {epochs}, training.save_every: 1, data.limit: 100, model.latent: 2, model.encoder.hidden: [6],
  model.decoder.hidden: [6]}}
total_draws: 4
examples: 20
axes: {{seed: {{a: {{seed: 0}}, b: {{seed: 1}}}}}}
"""
NODES = Path(__file__).with_name("cluster_nodes.py")


def task(name, folder="runs"):
    return Task(name, config.read("digits"), Path(folder), "new", {"total_draws": 4})


class Scripted:
    """A cluster on which every cell goes through a list of events; the cells take turns."""

    def __init__(self, **events):
        self.events = {name: deque(listed) for name, listed in events.items()}
        self.submitted, self.cancelled, self.most = [], [], 0

    def submit(self, task):
        self.submitted.append(task.name)
        return task.name

    def wait(self, attempts):
        self.most = max(self.most, len(attempts))
        return attempts[0], self.events[attempts[0]].popleft()

    def cancel(self, attempts):
        self.cancelled = list(attempts)


LOST = Ended("lost: the machine is gone")


def outcomes(cluster, *names, jobs=None, progress=None):
    return dict(run_all(cluster, [task(name) for name in names], jobs, progress or Recorded()))


def test_a_lost_cell_is_tried_again_before_others_begin():
    cluster, told = Scripted(a=[Started("n1"), LOST, Started("n2"), Ended()], b=[Ended()]), Recorded()
    assert outcomes(cluster, "a", "b", jobs=1, progress=told) == {"a": "", "b": ""}
    assert cluster.submitted == ["a", "a", "b"]
    assert told.lines == ["a: training on n1", f"a: {LOST.error}; trying again", "a: attempt 2 of 3 on n2"]


def test_a_cell_that_is_always_lost_fails_in_the_end():
    cluster = Scripted(a=[LOST] * ATTEMPTS, b=[Ended()])
    assert outcomes(cluster, "a", "b") == {
        "a": f"{LOST.error} (attempt 3 of 3); its log is runs/cells/a.log",
        "b": "",
    }
    assert cluster.submitted.count("a") == ATTEMPTS


def test_wrong_settings_are_not_tried_again():
    cluster = Scripted(a=[Ended("the bound is NaN", final=True)])
    assert outcomes(cluster, "a") == {"a": "the bound is NaN"}
    assert cluster.submitted == ["a"]


def test_no_more_cells_are_queued_than_jobs():
    cluster = Scripted(**{name: [Started("n"), Ended()] for name in "abcde"})
    assert list(outcomes(cluster, *"abcde", jobs=2)) == list("abcde")
    assert cluster.most == 2


def test_cells_are_stopped_when_their_driver_is():
    cluster = Scripted(a=[Ended()], b=[], c=[])
    ended = run_all(cluster, [task(name) for name in "abc"], None, Recorded())
    assert next(ended) == ("a", "")
    ended.close()
    assert cluster.cancelled == ["b", "c"]


@pytest.mark.parametrize(
    ("status", "last", "error"),
    [
        (0, ["evaluating"], ""),
        (2, ["epoch 3", "lower the learning rate"], "lower the learning rate"),
        (1, ["Traceback", "KeyError: 'x'"], "ended with status 1: Traceback | KeyError: 'x'"),
        (-9, [], "killed by SIGKILL"),
    ],
)
def test_a_failure_is_one_line(status, last, error):
    assert children.failure(status, last) == error


def test_the_end_of_a_cell_says_if_it_would_fail_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_tasks.lives, "stop_with_parent", lambda: None)
    (tmp_path / "bad.yaml").write_text("training: {optimizer: {class_path: os.system}}")
    with pytest.raises(SystemExit) as end:
        sweeps.run_cell(str(tmp_path / "bad.yaml"), str(tmp_path / "run"), "{}")
    assert end.value.code == children.FINAL
    assert "--trust os" in capsys.readouterr().err
    (tmp_path / "file").touch()
    (tmp_path / "good.yaml").write_text(config.to_yaml(config.read("digits", ["--data.limit=40"])))
    with pytest.raises(SystemExit) as end:
        sweeps.run_cell(str(tmp_path / "good.yaml"), str(tmp_path / "file" / "run"), "{}")
    assert end.value.code == children.TRANSIENT
    assert "cannot write to" in capsys.readouterr().err


def test_needs_follow_threads_devices_and_accelerator():
    cell = config.read("digits").training
    assert resources(cell, "a") == {"num_cpus": 1, "num_gpus": 0}
    assert resources(replace(cell, threads=4, devices=2), "a") == {"num_cpus": 8, "num_gpus": 0}
    assert resources(replace(cell, accelerator="cuda", devices="2"), "a") == {"num_cpus": 2, "num_gpus": 2}
    with pytest.raises(ValueError, match="a: on Ray training.devices must be a number; got 'auto'"):
        resources(replace(cell, devices="auto"), "a")
    with pytest.raises(ValueError, match="a: on Ray training.devices must be a number; got '²'"):
        resources(replace(cell, devices="²"), "a")


def test_a_machine_that_cannot_train_says_why(tmp_path):
    mark, here, own = tmp_path / ".driver", str(tmp_path), children.versions()
    assert "does not see" in children.unfit(str(mark), here, own)
    mark.touch()
    assert children.unfit(str(mark), here, own) == ""
    assert children.unfit(str(mark), here, own | {"torch": own["torch"].partition("+")[0] + "+other"}) == ""
    assert f"has mixvae {own['mixvae']} where the driver has 9" in children.unfit(
        str(mark), here, own | {"mixvae": "9"}
    )
    assert "working folder" in children.unfit(str(mark), str(tmp_path / "elsewhere"), own)


def test_a_worker_trusts_what_the_driver_says_alone(tmp_path, monkeypatch):
    """A run that this machine's user had trained was trusted by a worker whose driver did not trust it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    seen = tmp_path / "seen"
    script = f"import os; open({str(seen)!r}, 'w').write(os.environ['XDG_STATE_HOME'] + ' ' + os.environ['X'])"
    (tmp_path / "mark").touch()
    monkeypatch.chdir(tmp_path)
    given = {"mark": str(tmp_path / "mark"), "here": str(tmp_path), "wanted": children.versions()}
    started, ended = children.attempt(["-c", script], str(tmp_path / "log"), {"X": "set"}, **given)
    assert "started" in started
    assert ended == {"error": "", "final": False}
    folder, value = seen.read_text().split()
    assert value == "set"
    assert folder != str(tmp_path / "mine")
    assert not Path(folder).exists()


def test_a_cell_that_trains_elsewhere_is_waited_for(tmp_path, monkeypatch):
    """A second driver called such a cell failed."""
    monkeypatch.setattr(_tasks, "WAIT_SECONDS", 0.1)
    free = tmp_path / "free"

    def hold():
        lease = Lease.acquire(tmp_path / "run")
        (tmp_path / "held").touch()
        while not free.exists():
            time.sleep(0.02)
        lease.release()

    class Freeing(Recorded):
        def announce(self, text):
            super().announce(text)
            if "being trained" in text:
                free.touch()

    holder, told = fork(hold), Freeing()
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    _tasks._wait_for_lease(tmp_path / "run", told)
    assert free.exists()
    [line] = told.lines
    assert f"is being trained by process {holder} on" in line
    assert runs.standing(config.read("digits", ["--data.limit=40"]), tmp_path / "run") == "new"
    assert os.waitpid(holder, 0)[1] == 0


def grid_at(folder, epochs):
    (folder / "grid.yaml").write_text(GRID.format(out=folder / "cells", epochs=epochs))
    return folder / "grid.yaml"


def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    grid = grid_at(tmp_path, 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "unknown --on 'slurm': choose local or ray" in refused(capsys, "sweep", grid, "--on", "slurm")
    assert "unknown --on 'rya': did you mean ray?" in refused(capsys, "sweep", grid, "--on", "rya")
    assert "--on local takes no --address" in refused(capsys, "sweep", grid, "--address", "node:6379")
    assert "jobs must be at least 1" in refused(capsys, "sweep", grid, "--on", "ray", "--jobs", "0")
    for flags in (("--on", "ray"), ("--jobs", "2")):  # the second was ignored
        told = refused(capsys, "reproduce", "toys", "--scale", "smoke", *flags)
        assert "leave out --on and --jobs" in told
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'mixvae[cluster]'" in refused(capsys, "sweep", grid, "--on", "ray")
    assert not (tmp_path / "cells").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra cluster")
def test_an_unreachable_cluster_is_told_in_seconds(tmp_path, capsys, monkeypatch):
    grid = grid_at(tmp_path, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    assert f"no Ray cluster answers at {address}" in refused(capsys, "sweep", grid, "--on", "ray", "--address", address)
    assert "--address must be HOST:PORT" in refused(capsys, "sweep", grid, "--on", "ray", "--address=")
    assert time.monotonic() - start < 30
    assert not (tmp_path / "cells").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra cluster")
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:99999", "127.0.0.1:65536", "127.0.0.1:0", "127.0.0.1:-1", "127.0.0.1:", "127.0.0.1", ":6379", "auto",
     "head:six", "head:6379 ", "head:٦٣٧٩", "head:1e3", "ray://head:10001", "a head:6379", "a..b:6379",
     f"{'a' * 64}:6379"],
)  # fmt: skip
def test_senseless_addresses_are_refused_at_once(tmp_path, capsys, monkeypatch, address):
    """A port that is none was an OverflowError, "please report it"; a name that is none an error of a codec."""
    grid = grid_at(tmp_path, 1)
    told = f"must be HOST:PORT of the cluster's head, such as node-1:6379, with a port from 1 to 65535; got {address!r}"
    assert f"--address {told}" in refused(capsys, "sweep", grid, "--on", "ray", f"--address={address}")
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"RAY_ADDRESS {told}" in refused(capsys, "sweep", grid, "--on", "ray")
    assert not (tmp_path / "cells").exists()


def in_namespace(scenario, grid, folder):
    """What happened on nodes that share no network with anything."""
    done = subprocess.run(
        ["unshare", "-n", "-p", "-f", "--mount-proc", sys.executable, NODES, scenario, grid, folder],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_nodes = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip") or not importlib.util.find_spec("ray"),
    reason="needs root, unshare, ip and the extra cluster",
)


@needs_nodes
@pytest.mark.slow
def test_a_lost_node_and_a_lost_driver_change_no_weight(tmp_path):
    grid = grid_at(tmp_path, 300)
    told = in_namespace("lost", grid, tmp_path / "cells")
    killed_at, died_at = told["epochs"]
    assert 2 < killed_at < died_at < 300
    assert f"{told['lost']}: its worker failed: NodeDiedError" in told["first"]
    assert f"{told['lost']}: attempt 2 of 3 on " in told["first"]
    assert told["status"] == 0, told["second"]
    assert "WARNING" not in told["first"] + told["second"]
    assert "raylet" not in told["first"] + told["second"]
    [other] = {"a", "b"} - {told["lost"]}
    assert f"{other}: already done" in told["second"]
    assert f"{told['lost']}: resuming on " in told["second"]
    uninterrupted = config.read(tmp_path / "cells" / "cells" / f"{told['lost']}.yaml")
    expected = runs.train(uninterrupted, tmp_path / "uninterrupted").weights_sha256
    run = open_run(tmp_path / "cells" / told["lost"])
    assert run.epoch == 300
    assert run.weights_sha256 == expected
    assert [row["epoch"] for row in run.metrics] == list(range(1, 301))


@needs_nodes
@pytest.mark.slow
def test_nodes_that_cannot_train_are_refused(tmp_path):
    (tmp_path / "cells").mkdir()
    told = in_namespace("unfit", grid_at(tmp_path, 1), tmp_path / "cells")
    version, folder = told["said"]
    for said in (version, folder):
        assert said["status"] == 2
        assert said["out"] == ""
        assert said["err"].count("\n") == 1
    assert "has mixvae 9.9 where the driver has" in version["err"]
    assert f"does not see {tmp_path / 'cells'} of the driver" in folder["err"]
    assert told["left"] == []
