"""One training over nodes that share no disk: torchrun and SLURM on loopback, each node with a folder of its own."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from conftest import refused
from mixvae._failures import Failed
from mixvae.cli import main
from mixvae.files import load_weights
from mixvae.runs import open_run
from mixvae.training import _meeting, launch
from mixvae.training._cluster import Cluster, cluster, requeue
from mixvae.training._processes import environments

SCRIPT = """
import os, signal, sys

number, steps = map(int, os.environ.get("SIGNAL", "0:0").split(":"))


def prepare():
    from mixvae.training._objective import Objective

    forward, count = Objective.forward, [0]

    def counted(*args, **kwargs):
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), number)
        return forward(*args, **kwargs)

    Objective.forward = counted


if __name__ == "__main__":
    from mixvae.cli import main

    if number:
        prepare()
    main(sys.argv[1:])
"""
SCONTROL = '#!/bin/sh\necho "$@" >> {log}\nexit {status}\n'
TRAIN = [
    "train", "digits", "--out=run", "--data.limit=60", "--training.epochs=4", "--training.batch=10",
    "--model.components=2", "--model.latent=3", "--training.accelerator=cpu", "--auto-resume",
]  # fmt: skip


def clean():
    """The environment without what a scheduler or another test has put there."""
    own = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK"}
    kept = {name: value for name, value in os.environ.items() if name not in own and not name.startswith("SLURM")}
    return kept | {"OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def step(rank, port="1", nodes=2):
    """What srun tells one process of a job over nodes, each with one task."""
    return {
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": str(nodes), "SLURM_NNODES": str(nodes), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank), "SLURM_STEP_NUM_TASKS": str(nodes),
        "SLURM_STEP_NUM_NODES": str(nodes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip


@pytest.fixture
def nodes(tmp_path):
    """The folders of two nodes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    return folders


def by_slurm(nodes, words, more=({}, {})):
    """Start a command as srun would, a task on each node."""
    port, script = free_port(), nodes[0].parent / "script.py"
    started = []
    for rank, folder in enumerate(nodes):
        environment = clean() | step(rank, port) | more[rank]
        command = [sys.executable, str(script), *words]
        started.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1))
    return started


def by_torchrun(nodes, words):
    """Start a command by torchrun on each node."""
    port, script = free_port(), nodes[0].parent / "script.py"
    started = []
    for rank, folder in enumerate(nodes):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1",
            "--master-addr=127.0.0.1", f"--master-port={port}", str(script), *words,
        ]  # fmt: skip
        started.append(subprocess.Popen(command, cwd=folder, env=clean(), text=True, stdout=-1, stderr=-1))
    return started


def ended(processes):
    """Status, output and errors of every process; none is left if one of them waits forever."""
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *one) for process, one in zip(processes, said, strict=True)]


def errors(said):
    return [line for line in said.splitlines() if line.startswith("mixvae: ")]


def assert_close(run, other):
    """Weights as close as those of one process and two are elsewhere."""
    one, two = (load_weights(folder / "model.safetensors") for folder in (run, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-3, msg=name)


def test_a_node_without_the_run_resumes_from_the_first_one(nodes, monkeypatch):
    """It began anew, and the two reported bounds of a model that nobody had."""
    monkeypatch.chdir(nodes[0])
    main([*TRAIN, "--training.epochs=2"])
    (zero, out, err), (one, *silent) = ended(by_slurm(nodes, TRAIN))
    assert (zero, one) == (0, 0), (err, silent)
    assert out.startswith("run: 4 epochs")
    assert silent == ["", ""]
    assert list(nodes[1].iterdir()) == []
    assert open_run(nodes[0] / "run").manifest["runtime"]["nodes"] == 2
    main([*TRAIN, "--out=alone"])
    assert_close(nodes[0] / "alone", nodes[0] / "run")
    assert open_run(nodes[0] / "alone").recipe.sha256 == open_run(nodes[0] / "run").recipe.sha256


@pytest.mark.slow
def test_the_first_node_says_what_is_resumed(nodes, monkeypatch):
    """A node without the run ended in an error, and the others waited for it; one with another run of that name too."""
    monkeypatch.chdir(nodes[1])
    main([*TRAIN, "--training.epochs=1", "--model.components=1"])
    theirs = (nodes[1] / "run" / "run.json").read_bytes()
    monkeypatch.chdir(nodes[0])
    main([*TRAIN, "--training.epochs=2"])
    words = ["train", "--resume=run", "--training.epochs=4"]
    (zero, out, err), (one, *silent) = ended(by_slurm(nodes, words))
    assert (zero, one) == (0, 0), (err, silent)
    assert out.startswith("run: 4 epochs")
    assert silent == ["", ""]
    assert (nodes[1] / "run" / "run.json").read_bytes() == theirs
    main([*TRAIN, "--out=alone"])
    assert_close(nodes[0] / "alone", nodes[0] / "run")


@pytest.mark.slow
def test_nodes_of_torchrun_resume_and_extend_what_the_first_has(nodes, monkeypatch):
    monkeypatch.chdir(nodes[0])
    main([*TRAIN, "--training.epochs=1"])
    for words, begins in (
        (["train", "--resume=run", "--training.epochs=2"], "run: 2 epochs"),
        (["extend", "run", "--epochs=1", "--out=more"], "more: 1 epoch"),
    ):
        (zero, out, err), (one, *silent) = ended(by_torchrun(nodes, words))
        assert (zero, one) == (0, 0), (err, silent)
        assert out.startswith(begins)
        assert silent[0] == ""
    assert list(nodes[1].iterdir()) == []
    assert open_run(nodes[0] / "more").load().posterior.components == 3


@pytest.mark.slow
@pytest.mark.parametrize("start", [by_slurm, by_torchrun])
def test_a_run_that_the_first_node_lacks_is_told_by_all(nodes, monkeypatch, start):
    monkeypatch.chdir(nodes[1])
    main([*TRAIN, "--training.epochs=1"])
    begun = time.monotonic()
    for words in (["train", "--resume=run"], ["extend", "run"]):
        for status, out, said in ended(start(nodes, words)):
            assert status == (2 if start is by_slurm else 1)  # torchrun has its own
            assert out == ""
            [line] = errors(said)
            assert line == (
                f"mixvae: error: run is not a run: it has no run.json; {platform.node()}, the first of 2 nodes, must "
                "have it: copy it there, or let a node that has it be the first"
            )
    assert time.monotonic() - begun < 240
    assert list(nodes[0].iterdir()) == []


def test_a_place_to_meet_that_is_missing_is_told(in_job, tmp_path, capsys):
    in_job(TORCHRUN)
    assert "the environment variables MASTER_ADDR and MASTER_PORT say where to connect, but are not set" in refused(
        capsys, "train", f"--resume={tmp_path / 'run'}"
    )


def test_a_first_process_that_says_nothing_is_told(in_job, monkeypatch, tmp_path, capsys):
    """The others waited for half an hour."""
    in_job(step(1, free_port()))
    monkeypatch.setattr(_meeting, "WAIT_SECONDS", 1.0)
    with pytest.raises(SystemExit) as end:
        main(["train", f"--resume={tmp_path / 'run'}"])
    assert end.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "the first of 2 processes does not answer at 127.0.0.1:" in line
    assert "see whether it has ended, and why" in line


@pytest.mark.slow
def test_nodes_without_a_shared_disk_are_requeued_and_resume(nodes, tmp_path, monkeypatch):
    """The second node has neither the run, nor the one that it starts from; only it receives the signal."""
    monkeypatch.chdir(nodes[0])
    start = [word for word in TRAIN if not word.startswith(("--out", "--model.components"))]
    main([*start, "--out=base", "--model.components=1", "--training.epochs=1"])
    words = [*TRAIN, "--start.run=base", "--training.save_every=1000"]
    tool, log = tmp_path / "bin", tmp_path / "requeued"
    tool.mkdir()
    (tool / "scontrol").write_text(SCONTROL.format(log=log, status=0))
    (tool / "scontrol").chmod(0o755)
    path = {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}"}
    cut = ended(by_slurm(nodes, words, (path, path | {"SIGNAL": f"{int(signal.SIGUSR1)}:9"})))
    assert [status for status, *_ in cut] == [128 + signal.SIGUSR1] * 2, cut
    assert log.read_text() == "requeue 4711\n"
    stopped = open_run(nodes[0] / "run").manifest["progress"]
    assert 0 < 6 * stopped["epoch"] + stopped["step"] < 24
    assert [status for status, *_ in ended(by_slurm(nodes, words))] == [0, 0]
    assert list(nodes[1].iterdir()) == []
    main([*words, "--out=alone"])
    assert_close(nodes[0] / "alone", nodes[0] / "run")


@pytest.mark.slow
def test_nodes_whose_data_differ_are_refused_in_one_line(nodes):
    """The path is the same on every node: the second one finds other data there, as this script pretends."""
    other = "import mixvae; mixvae.datasets.Dataset.sha256 = lambda self: 'other'\n"
    script = nodes[0].parent / "script.py"
    script.write_text(
        SCRIPT.replace("    if number:", f"    if os.environ['SLURM_PROCID'] == '1':\n        {other}    if number:")
    )
    words = TRAIN
    found = ended(by_slurm(nodes, words))
    assert [status for status, *_ in found] == [2, 2], found
    [line] = [line for _, _, said in found for line in errors(said)]
    assert line == "mixvae: error: 1 of 2 processes have different data: copy the same files to all"
    assert not (nodes[0] / "run").exists()


@pytest.mark.slow
def test_two_nodes_of_torchrun_are_killed_and_go_on(nodes, monkeypatch):
    words = [*TRAIN, "--training.save_every=0", "--training.epochs=12"]
    cut = by_torchrun(nodes, words)
    deadline = time.monotonic() + 200
    while not (nodes[0] / "run" / "model.safetensors").exists():
        assert time.monotonic() < deadline, [process.communicate() for process in cut]
        time.sleep(0.02)
    cut[1].kill()  # and its process notices that it is gone
    (_, _, said), _ = ended(cut)
    assert len(errors(said)) <= 1, said
    assert "in train" not in said  # a frame of ours in a traceback
    assert open_run(nodes[0] / "run").epoch < 12
    (zero, out, err), (one, *silent) = ended(by_torchrun(nodes, words))
    assert (zero, one) == (0, 0), (err, silent)
    assert out.startswith("run: 12 epochs")
    assert silent[0] == ""
    monkeypatch.chdir(nodes[0])
    main([*words, "--out=alone"])
    assert_close(nodes[0] / "alone", nodes[0] / "run")


@pytest.mark.slow
def test_a_dead_node_ends_the_others_in_one_line(nodes):
    found = ended(by_slurm(nodes, TRAIN, ({}, {"SIGNAL": f"{int(signal.SIGKILL)}:9"})))
    assert [status for status, *_ in found] == [1, -9]
    [line] = errors(found[0][2])
    assert line == "mixvae: error: another process of 2 ended; `mixvae train --resume run` resumes it"


def test_processes_are_counted_as_they_were_started():
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5"}
    assert cluster(torchrun | {"GROUP_WORLD_SIZE": "2"}) == Cluster("torchrun", 4, 2, 5)
    assert cluster(step(1)) == Cluster("srun", 1, 2, 1)
    assert cluster({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None, "the job script itself"
    assert cluster(step(0, nodes=1)) is None
    uneven = (torchrun | {"GROUP_WORLD_SIZE": "3"}, step(0) | {"SLURM_STEP_TASKS_PER_NODE": "3,1"})
    for environment in (*uneven, step(0, nodes=2) | {"SLURM_STEP_NUM_TASKS": "3"}):
        with pytest.raises(ValueError, match=r"processes on . nodes, not the same number on each: start as"):
            cluster(environment)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, "LOCAL_WORLD_SIZE must be a whole number at least 1; it is not set"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE must be a whole number at least 1; got '0'"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE must be a whole number at least 1; got 'two'"),
        (TORCHRUN | {"RANK": "7"}, "RANK must be a whole number from 0 to 1; got '7'"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID must be a whole number from 0 to 1; it is not set"),
        (step(0) | {"SLURM_PROCID": "-1"}, "SLURM_PROCID must be a whole number from 0 to 1; got '-1'"),
        (step(0) | {"MASTER_PORT": "port"}, "MASTER_PORT must be a whole number from 1 to 65535; got 'port'"),
        (TORCHRUN | {"MASTER_PORT": "65536"}, "MASTER_PORT must be a whole number from 1 to 65535; got '65536'"),
        (step(0) | {"SLURM_STEP_NUM_NODES": "0"}, "SLURM_STEP_NUM_NODES must be a whole number at least 1; got '0'"),
        ({"SLURM_STEP_NUM_TASKS": "abc"}, "SLURM_STEP_NUM_TASKS must be a whole number at least 1; got 'abc'"),
        ({"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS must be a whole number at least 1; got ''"),
        ({"SLURM_STEP_NUM_TASKS": "-3"}, "SLURM_STEP_NUM_TASKS must be a whole number at least 1; got '-3'"),
        ({"LOCAL_RANK": "zwei"}, "LOCAL_RANK must be a whole number from 0 to 0; got 'zwei'"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK must be a whole number from 0 to 0; got '1'"),
    ],
)
def test_senseless_variables_of_a_starter_are_named(in_job, tmp_path, capsys, environment, told):
    in_job(environment)
    with pytest.raises(SystemExit) as end:
        main(["train", "digits", "--data.limit=40", "--training.epochs=1", f"--out={tmp_path / 'run'}"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the environment variable {told}" in error
    assert not (tmp_path / "run").exists()


@pytest.fixture
def in_job(monkeypatch):
    """This process as one that SLURM started; returns what changes the environment."""

    def change(values):
        for name in set(os.environ) - set(clean()):
            monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("started", "asked", "told"),
    [
        (step(0), {"devices": 2}, "srun started 1 processes on each of 2 nodes, but devices is 2 and nodes is 2"),
        (step(0), {"nodes": 3}, "srun started 1 processes on each of 2 nodes, but devices is 1 and nodes is 3"),
        ({}, {"nodes": 2}, "nodes 2 needs processes on each of them: start the command with `torchrun --nnodes 2`"),
        ({}, {"nodes": 0}, "nodes must be at least 1; got 0"),
    ],
)
def test_numbers_that_contradict_the_starter_are_refused(in_job, started, asked, told):
    in_job(started)
    with pytest.raises(ValueError, match=told) as error:
        launch("cpu", **asked)
    assert "\n" not in str(error.value)


def test_a_job_script_without_srun_is_one_process(in_job):
    """Lightning took the tasks of the job for processes, and waited for them."""
    in_job({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert launch("cpu").world_size == 1
    assert [type(one).__name__ for one in environments()] == ["LightningEnvironment"]


def test_a_job_that_cannot_be_requeued_is_told_of(in_job, tmp_path):
    tool = tmp_path / "scontrol"
    tool.write_text("#!/bin/sh\necho Requeue is disabled >&2\nexit 1\n")
    tool.chmod(0o755)
    in_job({"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    with pytest.raises(Failed, match=r"job 7 could not be requeued \(Requeue is disabled\): submit it again"):
        requeue()
    in_job({"SLURM_JOB_ID": "7", "PATH": str(tmp_path / "nowhere")})
    with pytest.raises(Failed, match="a checkpoint is saved, but job 7 could not be requeued"):
        requeue()


def test_each_task_of_an_array_is_requeued_alone(in_job, tmp_path):
    tool, log = tmp_path / "scontrol", tmp_path / "log"
    tool.write_text(SCONTROL.format(log=log, status=0))
    tool.chmod(0o755)
    array = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}
    in_job(array | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    requeue()
    assert log.read_text() == "requeue 8_3\n"
