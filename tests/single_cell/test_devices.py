"""A training of cells by several processes: one run, with equal weights in all of them, that resumes bit for bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from scvi.dataloaders import BatchDistributedSampler

from mixvae.files import load_weights
from mixvae.progress import SILENT
from mixvae.runs import RunStore
from mixvae.single_cell import MixtureSCVI, runs
from mixvae.single_cell.recipes import Training
from mixvae.single_cell.training import _Epochs

WORDS = ["--components=2", "--latent=2", "--epochs=30", "--accelerator=cpu", "--devices=2"]


def start(folder, out):
    """Start a training by two processes."""
    command = [sys.executable, "-W", "ignore", "-m", "mixvae", "sc", "train", "cells.h5ad", *WORDS, "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1)


def epoch(run):
    try:
        return json.loads((run / "run.json").read_text())["progress"]["epoch"]
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_bit_for_bit(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    first = start(tmp_path, "cut")
    while epoch(tmp_path / "cut") < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert 3 <= epoch(tmp_path / "cut") < 30
    for out in ("cut", "whole"):
        process = start(tmp_path, out)
        said, err = process.communicate()
        assert process.returncode == 0, err
        assert said.startswith(f"{out}: 30 epochs; validation ELBO")
        assert said.count("\n") == 2, "each of them told the result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "cut", "whole"]
    cut, whole = (load_weights(tmp_path / out / "model.safetensors") for out in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    with pytest.raises(ValueError, match="training.processes is 2"):
        runs.train(tmp_path / "cells.h5ad", tmp_path / "cut", runs.Settings(2, latent=2, epochs=30))


@pytest.mark.slow
def test_two_nodes_are_requeued_and_equal_one_with_two_devices(cells, tmp_path):
    """They share no disk; Lightning would have saved and resumed a checkpoint of its own."""
    nodes = [tmp_path / name for name in ("a", "b")]
    for node in nodes:
        node.mkdir()
        cells.write_h5ad(node / "cells.h5ad")
    words = [word for word in WORDS if not word.startswith("--devices")]
    command = [sys.executable, "-W", "ignore", "-m", "mixvae", "sc", "train", "cells.h5ad", *words, "--out", "run"]

    def srun():
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0"}
        step |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        each = [os.environ | step | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)} for rank in (0, 1)]
        started = zip(nodes, each, strict=True)
        return [subprocess.Popen(command, cwd=node, env=own, text=True, stdout=-1, stderr=-1) for node, own in started]

    first = srun()
    while epoch(nodes[0] / "run") < 3:
        assert first[0].poll() is None, first[0].communicate()
        time.sleep(0.02)
    for process in first:
        process.send_signal(signal.SIGUSR1)
    said = [process.communicate() for process in first]
    assert [process.returncode for process in first] == [128 + signal.SIGUSR1] * 2, said
    assert 3 <= epoch(nodes[0] / "run") < 30
    (out, err), (silent, _) = [process.communicate() for process in srun()]
    assert out.startswith("run: 30 epochs; validation ELBO"), err
    assert silent == ""
    assert not (nodes[1] / "run").exists()
    start(nodes[0], "whole").communicate()
    cut, whole = (load_weights(nodes[0] / out / "model.safetensors") for out in ("run", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_processes_are_part_of_a_recipe_if_several():
    """Each normalises over its own share of a batch, so that weights differ; a recipe of one stays what it was."""
    assert "processes" not in Training(1, None, 1).identity()
    assert Training(1, None, 1, processes=2).identity()["processes"] == 2
    with pytest.raises(ValueError, match="a batch of 128 cells cannot be divided evenly among 3 processes"):
        Training(1, None, 1, processes=3)


def test_a_last_batch_of_one_cell_for_each_process_is_seen(cells):
    MixtureSCVI.setup_anndata(cells)
    model = MixtureSCVI(cells, n_components=2)
    options = {"train_size": 1.0, "batch_size": 59, "strategy": "ddp_find_unused_parameters_true"}
    assert model._leaves_one_cell({**options, "devices": 2}), "60 cells each"
    assert not model._leaves_one_cell({**options, "devices": 1})


def test_processes_share_the_order_of_cells_but_not_noise():
    """Each takes every second cell of one order, which depends on seed and epoch."""
    orders, noise = [], []
    for seed, rank in ((1, 0), (1, 1), (2, 0)):
        sampler = BatchDistributedSampler(range(120), 60, num_replicas=2, rank=rank, shuffle=True)
        sampler.set_epoch(2)  # as Lightning does
        loader = SimpleNamespace(sampler=sampler)
        trainer = SimpleNamespace(current_epoch=2, world_size=2, global_rank=rank, train_dataloader=loader)
        epochs = _Epochs(Mock(spec=RunStore), Training(3, None, 1, seed=seed, processes=2), [], SILENT)
        epochs.on_train_epoch_start(trainer, None)
        epochs.on_train_batch_start(trainer, None, None, 0)
        orders.append(sum(sampler, []))
        noise.append(torch.randn(3).tolist())
    assert sorted(orders[0] + orders[1]) == list(range(120))
    assert orders[0] != orders[2]
    assert len({tuple(values) for values in noise}) == 3
