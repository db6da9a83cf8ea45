"""Trainings of cells that are ended before they are done: how, and that the same command goes on."""

import os
import signal

import numpy as np
import pytest
from anndata import AnnData

from mixvae.runs import open_run
from mixvae.single_cell import runs
from mixvae.single_cell import training as trainings
from mixvae.single_cell.runs import Settings

SETTINGS = Settings(components=2, epochs=2)


@pytest.fixture
def cells(tmp_path):
    path = tmp_path / "cells.h5ad"
    AnnData(np.random.default_rng(0).poisson(2.0, (40, 12)).astype(np.float32)).write_h5ad(path)
    return path


def test_what_fails_in_its_first_commit_can_be_repeated(cells, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mixvae.runs._store.commit", full)
        with pytest.raises(OSError, match="No space"):
            runs.train(cells, tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists(), "half a run was left behind"
    runs.train(cells, tmp_path / "run", SETTINGS)


def test_what_is_killed_in_its_first_commit_begins_anew(cells, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.jsonl", ".lease", ".lease.json"):  # what is there before run.json
        (run / name).write_bytes(b"")
    runs.train(cells, run, SETTINGS)
    assert [row["epoch"] for row in open_run(run).metrics] == [1, 2]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_rows_of_something_else_are_left_alone(cells, tmp_path):
    mine = tmp_path / "run" / "metrics.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises((ValueError, FileNotFoundError), match="is not a run"):
        runs.train(cells, tmp_path / "run", SETTINGS)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_any_other_training(cells, tmp_path, monkeypatch, number):
    before = signal.getsignal(signal.SIGINT)
    commit = trainings._Epochs._commit

    def once(self, *args):
        commit(self, *args)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(trainings._Epochs, "_commit", once)
        with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as ended:
            runs.train(cells, tmp_path / "run", SETTINGS)
    if number == signal.SIGTERM:
        assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before
    runs.train(cells, tmp_path / "run", SETTINGS)
    assert open_run(tmp_path / "run").is_done
