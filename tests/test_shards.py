"""One evaluation by several workers: merged shards are what one worker would have stored, or are refused."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mixvae import runs
from mixvae.cli import main
from mixvae.config import read
from mixvae.evaluation import paired_gain
from mixvae.runs import evaluate, evaluate_shard, find_evaluation, merge_shards, open_run, train

DRAWS = 12
CHUNK = 64
"""So small that groups are of five examples."""
FLAGS = ["--data.limit=60", "--training.epochs=1", "--model.components=3", "--model.latent=2"]
WORDS = [f"--total-draws={DRAWS}", "--examples=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(read("digits", FLAGS), tmp_path_factory.mktemp("shards") / "run").path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run without evaluations."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def shards(run, of=3, which=None, **settings):
    settings = {"total_draws": DRAWS, "examples": 20, "chunk": CHUNK} | settings
    return [evaluate_shard(run, number, of, **settings) for number in which or range(1, of + 1)]


def stored(run):
    return sorted(path.name for path in (run / "evaluations").rglob("*") if path.is_file())


@pytest.mark.parametrize("proposal", ["refined", "posterior"])
def test_merged_shards_are_the_whole_bit_for_bit(run, tmp_path, proposal):
    """In another grouping of the examples, rounding in the search for modes changed estimates by up to 1e-3."""
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(run, one)
    shutil.copytree(run, other)
    whole = evaluate(one, DRAWS, examples=20, chunk=CHUNK, proposal=proposal)
    parts = shards(other, which=(3, 1, 2), proposal=proposal)
    assert sum(map(len, parts)) == 20
    merged = merge_shards(other, DRAWS, examples=20, proposal=proposal)
    assert merged.identity == whole.identity
    assert merged.results == whole.results
    assert merged.bounds.keys() == whole.bounds.keys()
    for name, values in whole.bounds.items():
        np.testing.assert_array_equal(merged.bounds[name], values, err_msg=name)
    assert stored(other) == stored(one)
    found = find_evaluation(other, DRAWS, examples=20, proposal=proposal)
    assert found is not None
    assert found.results == whole.results


def test_the_merged_test_split_is_the_result_of_the_run(run):
    shards(run, 2, examples=None, total_draws=3, proposal="posterior")
    assert not (run / "results.json").exists()
    merged = merge_shards(run, 3, proposal="posterior")
    assert json.loads((run / "results.json").read_text())["nll"] == merged["nll"]


def test_a_shard_is_never_taken_for_an_evaluation(run):
    part = shards(run, which=[1])[0]
    assert find_evaluation(run, DRAWS, examples=20) is None
    assert find_evaluation(run, DRAWS, examples=len(part)) is None
    with pytest.raises(FileNotFoundError, match="has no evaluation of its weights"):
        runs.evaluation_of(run)
    [row] = runs.listing(run.parent).table
    assert row.get("nll") is None
    whole = evaluate(run, DRAWS, examples=20, chunk=CHUNK)
    with pytest.raises(TypeError, match="Shard"):
        paired_gain(part, whole)
    with pytest.raises(ValueError, match="was not written by this version"):
        runs._stored.read_evaluation(part.path)


def test_a_stored_shard_is_read_and_a_killed_one_redone(run, monkeypatch):
    first, second = shards(run, 2)
    second.path.with_suffix(".npz").unlink()
    calls = []
    kept = runs._requests.Request.estimate
    monkeypatch.setattr(runs._requests.Request, "estimate", lambda *args: calls.append(args[2:]) or kept(*args))
    again = shards(run, 2)
    assert calls == [(first.first + len(first), 20)]
    assert [len(part) for part in again] == [len(first), len(second)]


def test_shards_that_do_not_fit_together_are_refused(run, tmp_path):
    merge = {"total_draws": DRAWS, "examples": 20}
    with pytest.raises(ValueError, match="has no shards of test-20-draws12-seed0-refined; evaluate them first"):
        merge_shards(run, **merge)
    first, second, third = shards(run)
    with pytest.raises(ValueError, match="there are some of test-20-draws12-seed0-refined: give the same settings"):
        merge_shards(run, 60, examples=20)
    with pytest.raises(ValueError, match="no shards of test-20-draws12-seed1-refined"):
        merge_shards(run, **merge, seed=1)
    with pytest.raises(ValueError, match="no shards of test-20-draws12-seed0-posterior"):
        merge_shards(run, **merge, proposal="posterior")
    other = shards(run, 2, which=[1])[0]
    with pytest.raises(ValueError, match=r"of 2 \(…of2.json\) and of 3 \(…of3.json\) of one evaluation"):
        merge_shards(run, **merge)
    other.path.unlink()
    shutil.copy(first.path, second.path)
    with pytest.raises(ValueError, match="is shard 1/3 by another name"):
        merge_shards(run, **merge)
    second.path.unlink()
    with pytest.raises(ValueError, match="lacks shard 2/3 of test-20-draws12-seed0-refined: evaluate with --shard 2/3"):
        merge_shards(run, **merge)
    shards(run, which=[2], chunk=48)
    with pytest.raises(ValueError, match="have chunk 48 and 64: give all the same chunk"):
        merge_shards(run, **merge)
    shards(run, which=[2])
    with pytest.raises(ValueError, match="have chunk 64, not 32: give theirs, or leave it out"):
        merge_shards(run, **merge, chunk=32)
    other = second.path.with_name(second.path.stem + " (1).json")
    shutil.copy(second.path, other)
    with pytest.raises(ValueError, match=r"2of3 \(1\).json is not named as a shard, …-IofN.json: delete it"):
        merge_shards(run, **merge)
    other.unlink()
    arrays = third.path.with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"3of3.json are damaged.*evaluate this shard again"):
        merge_shards(run, **merge)
    shards(run, which=[3])
    assert merge_shards(run, **merge)["examples"] == 20


def test_shards_of_other_weights_are_refused(run, tmp_path):
    """A run that was trained further keeps its folder, and its examples."""
    part = shards(run)[0]
    train(read("digits", [*FLAGS, "--training.epochs=2"]), run, resume=True)
    told = f"{part.path} was made from other weights than {run} has now: evaluate shard 1/3 again"
    with pytest.raises(ValueError, match=re.escape(told)):
        merge_shards(run, DRAWS, examples=20)


def test_new_data_are_evaluated_by_shards_too(run, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.random((40, 1, 8, 8)) > 0.5).astype(np.float32))
    shards(run, 2, data=tmp_path / "x.npy")
    merged = merge_shards(run, DRAWS, examples=20, data=tmp_path / "x.npy")
    assert merged.identity.split == "new"
    assert merged["examples"] == 20
    np.save(tmp_path / "y.npy", (rng.random((40, 1, 8, 8)) > 0.5).astype(np.float32))
    with pytest.raises(ValueError, match="has no shards of"):
        merge_shards(run, DRAWS, examples=20, data=tmp_path / "y.npy")


def test_the_command_evaluates_shards_and_merges_them(run, capsys):
    for part in ("1/2", "2/2"):
        main(["evaluate", str(run), f"--shard={part}", f"--chunk={CHUNK}", *WORDS])
    out = capsys.readouterr().out
    assert len(re.findall(r"shard ./2, \d+ examples from number \d+ on", out.replace("\n", " "))) == 2
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--merge", "--chunk=32", *WORDS])
    assert "have chunk 64, not 32: give theirs, or leave it out" in capsys.readouterr().err
    main(["evaluate", str(run), "--merge", *WORDS])
    assert "20" in capsys.readouterr().out
    assert [path.suffix for path in (run / "evaluations").iterdir() if path.is_file()].count(".json") == 1
    assert open_run(run).evaluate(DRAWS, examples=20)["examples"] == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard=0/4"], "--shard takes I/N, part I of N from 1/N to N/N, such as 2/4; got 0/4"),
        (["--shard=5/4"], "such as 2/4; got 5/4"),
        (["--shard=a/b"], "such as 2/4; got a/b"),
        (["--shard=1/400"], "20 examples can be divided into 4 shards of 5 or more at chunk 64; got 400: give fewer"),
        (["--shard=1/2", "--merge"], "--shard stores a part of an evaluation: leave out --merge until the shards are"),
        (["--shard=1/2", "--check=3"], "leave out --check"),
        (["--merge"], "has no shards of test-20-draws12-seed0-refined; evaluate them first"),
    ],
)
def test_bad_shards_are_refused_in_one_line(run, capsys, words, told):
    chunk = [] if "--merge" in words[-1:] else [f"--chunk={CHUNK}"]
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(run), *words, *WORDS, *chunk])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (run / "evaluations").exists() or not stored(run)


@pytest.mark.slow
def test_two_workers_at_once_store_both_shards(run):
    command = [sys.executable, "-m", "mixvae", "evaluate", str(run), f"--chunk={CHUNK}", *WORDS]
    workers = [subprocess.Popen([*command, f"--shard={i}/2"], stdout=subprocess.DEVNULL) for i in (1, 2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert merge_shards(run, DRAWS, examples=20)["examples"] == 20
