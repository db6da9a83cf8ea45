"""One evaluation by several workers: merged shards are what one worker would have stored, or are refused."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import forge, refused
from mixvae import runs
from mixvae.cli import main
from mixvae.config import read
from mixvae.evaluation import paired_gain
from mixvae.files import commit
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


@pytest.fixture(scope="module")
def halved(trained, tmp_path_factory):
    """The run with two shards; not to be changed."""
    path = shutil.copytree(trained, tmp_path_factory.mktemp("halved") / "run")
    shards(path, 2)
    return path


@pytest.fixture
def halves(halved, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(halved, tmp_path / "halves"))


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
    with pytest.raises(ValueError, match=r"split into 2 \(…of2.json\) and into 3 \(…of3.json\)"):
        merge_shards(run, **merge)
    other.path.unlink()
    shutil.copy(first.path, second.path)
    with pytest.raises(ValueError, match="is shard 1/3 by another name"):
        merge_shards(run, **merge)
    second.path.unlink()
    with pytest.raises(
        ValueError, match="lacks shard 2/3 of test-20-draws12-seed0-refined; evaluate it with `mixvae .*--shard 2/3`"
    ):
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


def garbled(content):
    return content[: len(content) // 2] + b"\xff" + content[len(content) // 2 + 1 :]


def without(name):
    def change(path):
        arrays = dict(np.load(path.with_suffix(".npz")))
        del arrays[name]
        rewrite(path, arrays)

    return change


def with_arrays(**changed):
    def change(path):
        arrays = dict(np.load(path.with_suffix(".npz")))
        rewrite(path, arrays | {name: make(arrays[name]) for name, make in changed.items()})

    return change


def rewrite(path, arrays):
    """Store other arrays under right checksums, as another program might."""
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("files", "checksum")}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    commit(path, content, {"arrays": (path.with_suffix(".npz").name, buffer.getvalue())})


def record(**changed):
    return lambda path: forge(path, lambda content: content.update(changed))


def notes(**changed):
    return lambda path: forge(path, lambda content: content["notes"].update(changed))


def to_file(suffix, change):
    return lambda path: path.with_suffix(suffix).write_bytes(change(path.with_suffix(suffix).read_bytes()))


DAMAGED = {
    "empty": to_file(".json", lambda content: b""),
    "truncated": to_file(".json", lambda content: content[: len(content) // 2]),
    "garbled": to_file(".json", garbled),
    "a list": to_file(".json", lambda content: b"[1, 2]"),
    "a text": to_file(".json", lambda content: b'"shard"'),
    "no object": to_file(".json", lambda content: b"NaN"),
    "nested": to_file(".json", lambda content: b"[" * 100_000),
    "unchecked": to_file(".json", lambda content: content.replace(b'"number": 1', b'"number": 1.0')),
    "another version": record(version=1),
    "another form": record(format="mixvae evaluation"),
    "number a text": record(number="1"),
    "number a boolean": record(number=True),
    "number NaN": to_file(".json", lambda content: content.replace(b'"number": 1', b'"number": NaN')),
    "chunk a text": record(chunk="64"),
    "chunk zero": record(chunk=0),
    "chunk negative": record(chunk=-64),
    "chunk huge": record(chunk=10**400),
    "chunk large": record(chunk=2**40),
    "identity a list": record(identity=[1]),
    "identity empty": record(identity={}),
    "notes a list": record(notes=[]),
    "notes of text": notes(unconverged="none"),
    "notes missing": record(notes={}),
    "files missing": record(files={}),
    "files a list": record(files=[]),
    "arrays empty": to_file(".npz", lambda content: b""),
    "arrays truncated": to_file(".npz", lambda content: content[:100]),
    "arrays garbled": to_file(".npz", garbled),
    "arrays gone": lambda path: path.with_suffix(".npz").unlink(),
    "no elbo": without("elbo"),
    "another length": with_arrays(elbo=lambda values: values[1:]),
    "another shape": with_arrays(pooled=lambda values: values[:, None]),
    "a single number": with_arrays(ess=lambda values: np.float64(1.0)),
    "texts": with_arrays(log_px=lambda values: values.astype(str)),
    "whole numbers": with_arrays(log_px=lambda values: values.astype(int)),
    "NaN": with_arrays(log_px=lambda values: values * np.nan),
    "infinite": with_arrays(elbo=lambda values: values * np.inf),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_shard_is_named_with_its_remedy(halves, how, capsys):
    """Some were raw errors of JSON or NumPy; some were taken for done where they were to be evaluated again."""
    path = halves / "evaluations" / "shards" / "test-20-draws12-seed0-refined-1of2.json"
    DAMAGED[how](path)
    before = stored(halves)
    error = refused(capsys, "evaluate", halves, "--merge", *WORDS)
    assert path.stem in error
    assert f"evaluate this shard again: `mixvae evaluate {halves} --shard 1/2`" in error
    assert stored(halves) == before
    again = ["evaluate", str(halves), "--shard=1/2", f"--chunk={CHUNK}", *WORDS]
    if how == "a folder":
        assert f"{path} is a directory: " in refused(capsys, *again)
        path.rmdir()
    main(again)
    assert merge_shards(halves, DRAWS, examples=20)["examples"] == 20


@pytest.mark.parametrize("number", [0, 3])
def test_a_shard_out_of_range_is_refused(halves, number, capsys):
    first, _ = shards(halves, 2)
    content = json.loads(first.path.read_text())
    arrays = first.path.with_suffix(".npz").read_bytes()
    other = first.path.with_name(first.path.name.replace("-1of2", f"-{number}of2"))
    commit(other, content | {"number": number, "files": {}}, {"arrays": (f"{other.stem}.npz", arrays)})
    error = refused(capsys, "evaluate", halves, "--merge", *WORDS)
    assert f"{other} is not named as a shard, …-IofN.json: delete it, or rename it" in error


def test_a_shard_of_a_whole_evaluation_is_not_made_again(halves, capsys, monkeypatch):
    """It was computed once more, and stayed beside the evaluation that it is a part of."""
    _, second = shards(halves, 2)
    whole = merge_shards(halves, DRAWS, examples=20)
    before = stored(halves)
    monkeypatch.setattr(runs._requests.Request, "estimate", None)
    part = evaluate_shard(halves, 2, 2, DRAWS, examples=20, chunk=CHUNK)
    assert part.is_merged
    assert not second.is_merged
    assert (part.first, len(part)) == (second.first, len(second))
    np.testing.assert_array_equal(part.bounds["elbo"], second.bounds["elbo"])
    main(["evaluate", str(halves), "--shard=1/2", f"--chunk={CHUNK}", *WORDS])
    out = " ".join(capsys.readouterr().out.split())
    assert f"{halves}/evaluations/{whole.identity.key}.json is the whole evaluation already" in out
    assert "--merge in place of" not in out
    assert stored(halves) == before


def test_a_shard_that_is_late_for_the_merging_leaves_nothing(run, monkeypatch):
    """A worker whose shard another one made too, as after requeuing a job."""
    shards(run, 2, which=[1])
    kept = runs._requests.Request.estimate

    def meanwhile(*args):
        monkeypatch.setattr(runs._requests.Request, "estimate", kept)
        shards(run, 2, which=[2])
        merge_shards(run, DRAWS, examples=20)
        return kept(*args)

    monkeypatch.setattr(runs._requests.Request, "estimate", meanwhile)
    assert shards(run, 2, which=[2])[0].is_merged
    assert [Path(name).suffix for name in stored(run)] == [".json", ".npz"]


def test_a_bound_that_is_not_finite_is_named(run, monkeypatch):
    """JSON's own words came after the evaluation; a shard of it was stored."""
    kept = runs._requests.evaluation.evaluate

    def broken(*args, **kwargs):
        made = kept(*args, **kwargs)
        made.elbo[3] = -np.inf
        return made

    monkeypatch.setattr(runs._requests.evaluation, "evaluate", broken)
    with pytest.raises(ValueError, match="the elbo of digits's test example 3 is -inf, so that there is no result"):
        evaluate(run, DRAWS, examples=20, chunk=CHUNK)
    with pytest.raises(ValueError, match="the elbo of digits's test example 13 is -inf"):
        shards(run, 2, which=[2])
    assert stored(run) == []


@pytest.mark.parametrize("place", ["evaluations", "evaluations/shards"])
def test_a_file_in_the_place_of_a_folder_is_named(run, place, capsys, monkeypatch):
    """The system's own words came after everything had been computed."""
    (run / place).parent.mkdir(exist_ok=True)
    (run / place).write_text("mine")
    monkeypatch.setattr(runs._requests.Request, "estimate", None)
    commands = [["--shard=1/2", f"--chunk={CHUNK}"], *([[]] if place == "evaluations" else []), ["--merge"]]
    for words in commands:
        error = refused(capsys, "evaluate", run, *words, *WORDS)
        assert f"{run / place} is a file; remove it, or name another place" in error
    assert (run / place).read_text() == "mine"


def test_shards_of_other_weights_are_refused(run, tmp_path):
    """A run that was trained further keeps its folder, and its examples."""
    part = shards(run)[0]
    train(read("digits", [*FLAGS, "--training.epochs=2"]), run, resume=True)
    told = f"{part.path} was made from other weights than {run} has now; evaluate this shard again: `mixvae"
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
