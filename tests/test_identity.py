"""A number knows what it was made from: settings, data, weights and evaluations that changed are applied or refused."""

import importlib
import linecache
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mixvae
from conftest import refused
from mixvae import config, reports, runs, sweeps
from mixvae.cli import main
from mixvae.config._trust import granting
from mixvae.files import read_manifest
from mixvae.runs import _requests, open_run
from mixvae.runs._recipe import path_of, recipe_of
from mixvae.runs._sources import sources_sha256
from mixvae.sweeps._running import _stored

SMALL = [
    "--data.limit=130", "--model.latent=2", "--training.epochs=2", "--model.encoder.hidden=[6]",
    "--model.decoder.hidden=[6]",
]  # fmt: skip


def settings(*flags):
    return config.read("digits", [*SMALL, *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, evaluated."""
    path = tmp_path_factory.mktemp("identity") / "run"
    runs.train(settings(), path)
    runs.evaluate(path, 4)
    return path


@pytest.fixture
def copy(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("training.batch=50", "training.batch is 100, not 50"),
        ("training.optimizer={class_path: SGD, lr: 0.1}", "optimizer.class is torch.optim.Adam, not torch.optim.SGD"),
        ("training.optimizer.betas=[0.5, 0.9]", "training.optimizer.groups"),
        ("training.schedule={class_path: CosineAnnealingLR, T_max: 9}", "training.schedule is None"),
        ("training.freeze=[decoder]", "training.freeze is []"),
        ("training.warmup=1", "training.warmup is 0, not 1"),
        ("training.bound=pooled", "training.bound is mixvae.bounds.elbo, not mixvae.bounds.pooled"),
        ("training.precision=64-true", "training.precision is 32-true"),
        ("training.ema=0.9", "training.ema is None"),
        ("training.epochs=1", "it has trained for 2 epochs, not 1"),
        ("seed=1", "seed is 0, not 1"),
        ("model.encoder.hidden=[7]", "model.encoder.hidden is 6, not 7"),
        ("data.limit=131", "data.sha256 is"),
        ("data.binarize=fixed", "data."),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_change_is_refused_on_resuming(copy, capsys, flag, told):
    """It was ignored, or crashed, while config.yaml recorded it; a new batch left 250 of 1000 examples untrained."""
    before = contents(copy)
    more = [] if "epochs" in flag else ["--training.epochs=3"]
    assert told in refused(capsys, "train", "--resume", copy, f"--{flag}", *more)
    assert contents(copy) == before


def test_resumed_run_uses_and_records_new_rate_decay_and_clip(copy):
    changed = ["--training.optimizer.lr=1e-4", "--training.optimizer.weight_decay=0.1", "--training.clip=0.5"]
    main(["train", "--resume", str(copy), "--training.epochs=3", *changed])
    run = open_run(copy)
    assert [row["learning_rate"] for row in run.metrics] == [1e-3, 1e-3, 1e-4]
    state = torch.load(run.layout.state, weights_only=True)["optimizer"]["param_groups"][0]
    assert (state["lr"], state["weight_decay"]) == (1e-4, 0.1)
    first, second = run.recipe.journal
    assert (first["learning_rate"], first["weight_decay"], first["clip"]) == ([1e-3], [0.0], None)
    assert (second["epoch"], second["learning_rate"], second["weight_decay"], second["clip"]) == (2, [1e-4], [0.1], 0.5)
    assert config.read(copy / "config.yaml").training.clip == 0.5
    for amended in ([], ["--training.optimizer.lr=1e-4"]):
        assert not run.matches(settings("--training.epochs=3", *amended)), "two stretches are not one of either"


def test_changing_goal_or_runtime_keeps_the_recipe(copy):
    before = open_run(copy).recipe.sha256
    threads = torch.get_num_threads()
    try:
        words = ["--training.epochs=4", "--training.patience=9", "--training.save_every=5", "--training.threads=2"]
        main(["train", "--resume", str(copy), *words])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    run = open_run(copy)
    assert (run.epoch, run.recipe.sha256) == (4, before)
    assert run.manifest["goal"] == {"epochs": 4, "patience": 9}


def test_the_advice_of_a_divergence_works(tmp_path, capsys):
    path = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["train", "digits", *SMALL, "--training.optimizer.lr=1e20", "--out", str(path)])
    assert end.value.code == 1
    assert "lower the learning rate" in capsys.readouterr().err
    assert open_run(path).state == "stopped"
    main(["train", "--resume", str(path), "--training.optimizer.lr=1e-3"])
    assert open_run(path).state == "done"


def test_leftovers_of_a_killed_process_do_not_block_training(tmp_path, capsys):
    """`.config.partial.yaml` alone: training said "exists, use --resume", resuming said "not a run"."""
    path = tmp_path / "run"
    path.mkdir()
    (path / ".config.partial.yaml").write_text("half")
    assert "is not a run" in refused(capsys, "train", "--resume", path)
    main(["train", "digits", *SMALL, "--out", str(path)])
    assert open_run(path).state == "done"


@pytest.fixture
def own(tmp_path):
    """A run on the user's own file."""
    folder = tmp_path / "own"
    folder.mkdir()
    values = np.random.default_rng(0).random((60, 6)).astype("f4")
    np.save(folder / "mine.npy", values)
    flags = [f"--data.name={folder / 'mine.npy'}", "--training.epochs=1", "--training.warmup=0", "--model.latent=2"]
    runs.train(config.read("vanilla", [*flags, "--model.components=1", "--model.encoder.hidden=[5]"]), folder / "run")
    runs.evaluate(folder / "run", 4)
    return folder, values


COMMANDS = [
    ["evaluate", "{run}", "--total-draws=4"], ["report", "{run}"],
    ["train", "--resume", "{run}", "--training.epochs=2"],
    ["encode", "{run}"], ["components", "{run}"], ["reconstruct", "{run}", "--out={run}/x.npy"],
    ["extend", "{run}", "--components=2", "--out={run}-2"], ["grow", "{run}", "--most=2", "--out={run}-grown"],
]  # fmt: skip


@pytest.mark.parametrize("change", ["sorted", "one value"])
def test_data_changed_after_training_are_refused_everywhere(own, capsys, change):
    """The file was sorted anew, and 16 of 20 test rows had been trained on: every command went on."""
    folder, values = own
    changed = values[np.argsort(values[:, 0])]
    if change == "one value":
        changed = values.copy()
        changed[3, 3] += 1e-6
    np.save(folder / "mine.npy", changed)
    for command in COMMANDS:
        words = [word.format(run=folder / "run") for word in command]
        assert "are not those" in (error := refused(capsys, *words)) or "data.sha256 is" in error, words
    assert not list(folder.glob("run-*/run.json"))
    np.save(folder / "mine.npy", values)
    main(["evaluate", str(folder / "run"), "--total-draws=4"])


def test_run_finds_its_data_from_anywhere_and_after_both_moved(own, tmp_path, monkeypatch, capsys):
    folder, values = own
    expected = runs.evaluation_of(folder / "run").results
    moved = folder.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = runs.evaluate("../moved/run", 4)
    assert found.results == expected
    main(["train", "--resume", "../moved/run", "--training.epochs=2"])
    (moved / "mine.npy").rename(tmp_path / "other name.npy")
    assert "are no longer at" in (error := refused(capsys, "evaluate", "../moved/run"))
    assert "--data.name" in error
    main(["evaluate", "../moved/run", "--total-draws=4", "--data.name", "../other name.npy"])
    main(["encode", "../moved/run", "--data.name=../other name.npy"])
    main(["components", "../moved/run", "--examples=6", "--data.name=../other name.npy"])
    main(["reconstruct", "../moved/run", "--out=x.npy", "--data.name=../other name.npy"])
    main(["train", "--resume", "../moved/run", "--training.epochs=3", "--data.name=../other name.npy"])
    main(["extend", "../moved/run", "--out=more", "--data.name=../other name.npy"])
    main(["grow", "../moved/run", "--out=grown", "--most=2", "--total-draws=4", "--data.name=../other name.npy"])
    np.save(tmp_path / "third.npy", values + 1e-3)
    assert "are not those" in refused(capsys, "evaluate", "../moved/run", "--data.name=../third.npy")


def test_every_evaluation_keeps_its_own_place(copy):
    """One results.json for every split and number of draws: validation images were paired with test images."""
    made = [
        runs.evaluate(copy, draws, split=split, examples=examples, seed=seed)
        for draws, split, examples, seed in (
            (4, "validation", None, 0), (4, "test", 20, 0), (9, "test", 20, 0), (9, "test", 20, 1), (4, "train", 20, 0),
        )
    ]  # fmt: skip
    assert len({evaluation.identity.key for evaluation in made}) == 5
    assert runs.find_evaluation(copy, 9, examples=20, seed=1).results == made[3].results
    assert runs.evaluation_of(copy).identity.examples == 400, "the whole test split is what a table shows"
    with pytest.raises(ValueError, match=r"different splits \(validation and test\)"):
        mixvae.paired_gain(made[0], made[1])
    with pytest.raises(ValueError, match="different numbers of examples"):
        mixvae.paired_gain(runs.evaluation_of(copy), made[1])
    with pytest.warns(UserWarning, match="differ in total_draws"):
        mixvae.paired_gain(made[2], made[1])


def test_stored_evaluation_serves_only_what_it_was_made_from(copy, monkeypatch):
    stored = runs.evaluate(copy, 4)
    monkeypatch.setattr(runs._evaluating.evaluation, "evaluate", None)
    assert runs.evaluate(copy, 4).results == stored.results
    for other in ({"total_draws": 5}, {"seed": 1}, {"split": "validation"}, {"examples": 3}):
        with pytest.raises(TypeError):
            runs.evaluate(copy, **{"total_draws": 4} | other)
    monkeypatch.undo()
    main(["train", "--resume", str(copy), "--training.epochs=4"])
    assert runs.find_evaluation(copy, 4) is None
    with pytest.raises(FileNotFoundError, match="no evaluation of its weights"):
        runs.evaluation_of(copy)
    assert not (copy / "results.json").exists(), "a copy for people must not outlive the weights"
    assert runs.evaluate(copy, 4).results["nll_pooled"] != stored.results["nll_pooled"]


def test_values_changed_in_a_stored_evaluation_are_refused(copy, capsys):
    """+100 in one run's file of examples was a gain of +100.000 ± 0.000."""
    [file] = (copy / "evaluations").glob("*.npz")
    with np.load(file) as arrays:
        values = dict(arrays)
    np.savez(file, **values | {"pooled": values["pooled"] + 100})
    assert "truncated, damaged or replaced" in refused(capsys, "report", copy)
    main(["evaluate", str(copy), "--total-draws=4"])  # makes it again
    np.testing.assert_array_equal(runs.evaluation_of(copy).bounds["pooled"], values["pooled"])
    text = (json := file.with_suffix(".json")).read_text()
    json.write_text(text.replace('"nll_pooled": ', '"nll_pooled": 1'))
    assert "its checksum is wrong" in refused(capsys, "report", copy)


@pytest.mark.parametrize("name", ["model.safetensors", "last/state.pt", "run.json"])
def test_a_flipped_bit_is_refused_or_changes_nothing(copy, name):
    """25 of 38 random damages of the weights were silently another model, some with a better likelihood."""
    file, chance = copy / name, random.Random(0)
    whole = file.read_bytes()
    expected = open_run(copy).load().state_dict()
    for _ in range(40):
        place = chance.randrange(len(whole))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        assert runs.Run(copy).state == "damaged"
        if name == "model.safetensors":
            with pytest.raises(ValueError, match="damaged"):
                open_run(copy).load()
        elif name == "last/state.pt":
            with pytest.raises(ValueError, match="damaged"):
                runs.train(settings("--training.epochs=3"), copy, resume=True)
        else:
            with pytest.raises(ValueError, match=r"damaged|not a JSON file"):
                open_run(copy)
    file.write_bytes(whole)
    assert all(torch.equal(t, expected[name]) for name, t in open_run(copy).load().state_dict().items())


def test_demo_and_training_into_something_else_are_refused(tmp_path, capsys):
    sweeps.demo(tmp_path / "demo", components=(1,), total_draws=4, epochs=1)
    before = contents(tmp_path / "demo")
    with pytest.raises(ValueError, match="seed is 0, not 1"):
        sweeps.demo(tmp_path / "demo", components=(1,), total_draws=4, epochs=1, seed=1)
    assert contents(tmp_path / "demo") == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for words in (["train", "digits", *SMALL, "--out", other], ["train", "--resume", other]):
        assert "not a run" in refused(capsys, *words)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_recipe_is_the_same_however_it_is_written(trained):
    recipe = open_run(trained).recipe.sha256
    data = open_run(trained).data
    for flags in (
        ["--training.optimizer={class_path: torch.optim.Adam, lr: 0.001, fused: true}"],
        ["--training.optimizer={class_path: Adam, lr: 1.0e-3, fused: true, betas: [0.9, 0.999], weight_decay: 0}"],
        ["--model.encoder={class_path: mixvae.networks.GatedEncoder, hidden: [6]}"],
        ["--model.prior={class_path: StandardNormal}"],
        ["--model.likelihood=mixvae.Bernoulli"], ["--training.bound=mixvae.bounds.elbo"], ["--training.save_every=1"],
        ["--training.epochs=77", "--training.patience=5", "--training.threads=2"], ["--model.shape=[1, 8, 8]"],
    ):  # fmt: skip
        assert recipe_of(settings(*flags), data).sha256 == recipe, flags
    other = {recipe}
    for flags in (
        ["--training.optimizer.lr=0.0010000001"], ["--training.optimizer.betas=[0.9, 0.998]"], ["--model.components=3"],
        ["--model.weights=[1.0]"], ["--model.learn_weights=true"], ["--training.clip=1"], ["--training.warmup=1"],
        ["--training.active=1"], ["--seed=2"], ["--model.decoder.hidden=[7]"],
        ["--training.gradient=sticking_the_landing"],
    ):  # fmt: skip
        other.add(recipe_of(settings(*flags), data).sha256)
    assert len(other) == 12, "settings that decide the weights must change the recipe"


REFERRING = """
import torch
from torch import nn
import {other}

SCALE = 2.0


def helper(z):
    return z * 3


class Block(nn.Module):
    def forward(self, z):
        return 5 * z


class Dec(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, z):
        return helper(self.block(z)) * SCALE + {other}.shift(z)
"""


def test_what_a_users_class_refers_to_is_part_of_its_code(tmp_path, monkeypatch):
    """A change of a block, a helper, a constant or another module of the user's went unnoticed."""
    monkeypatch.syspath_prepend(tmp_path)
    name, other = (f"{each}_{tmp_path.name.replace('-', '_')}" for each in ("users_referring", "users_other"))

    def code(old="", new="", shift="z + 1"):
        (tmp_path / f"{name}.py").write_text(REFERRING.format(other=other).replace(old, new))
        (tmp_path / f"{other}.py").write_text(f"def shift(z):\n    return {shift}\n")
        for module in (name, other):
            sys.modules.pop(module, None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        linecache.clearcache()
        return sources_sha256(importlib.import_module(name).Dec)

    whole = code("@", "@")
    assert code("class Block", "# a comment\nclass Block") == whole
    changes = [("z * 3", "z * 4"), ("5 * z", "6 * z"), ("SCALE = 2.0", "SCALE = 2.5")]
    others = [code(old, new) for old, new in changes] + [code("@", "@", "z + 2")]
    assert len({whole, *others}) == 5


def test_lambdas_and_installed_packages_are_not_users_code():
    """A lambda was its whole line, so that a changed number of epochs on it refused the run."""
    assert sources_sha256(lambda: None, torch.optim.Adam, np.ndarray, mixvae.MLPDecoder, partial(print, 1)) is None


def test_the_commit_of_a_project_is_not_that_of_mixvae(tmp_path, monkeypatch):
    """An environment inside a user's repository gave that repository's commit."""
    inside = tmp_path / ".venv" / "mixvae" / "runs" / "_requests.py"
    inside.parent.mkdir(parents=True)
    inside.touch()
    (tmp_path / ".gitignore").write_text(".venv")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", ".gitignore"], [*who, "commit", "-qm", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(_requests, "__file__", str(inside))
    assert _requests.git_commit() is None
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", str(inside)], check=True)
    assert len(_requests.git_commit()) == 40


def test_functions_of_one_name_are_told_apart_by_what_they_do():
    def make(power):
        def bound(log_w, weight):
            return (log_w * power).sum()

        return bound

    assert path_of(make(1)) == path_of(make(1))
    assert path_of(make(1)) != path_of(make(2))
    assert path_of(torch.optim.Adam) == "torch.optim.Adam"
    assert path_of(mixvae.bounds.elbo) == "mixvae.bounds.elbo"


def test_the_list_shows_every_run_and_its_state(trained, copy, tmp_path, capsys):
    folder = tmp_path
    shutil.copytree(copy, folder / "stopped")
    manifest = open_run(folder / "stopped")
    assert manifest.state == "done"
    runs.train(settings("--training.epochs=1"), folder / "short")
    weights = folder / "stopped" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    main(["list", str(folder)])
    shown = capsys.readouterr().out
    rows = {row["run"]: row for row in runs.listing(folder).table}
    assert {name: row["state"] for name, row in rows.items()} == {"copy": "done", "stopped": "damaged", "short": "done"}
    assert rows["copy"]["recipe"] == rows["short"]["recipe"] == open_run(trained).recipe.sha256[:8]
    assert rows["copy"]["nll"] == runs.evaluation_of(copy)["nll"]
    assert rows["short"].get("nll") is None
    for text in ("damaged", "2/2", "1/1", f"{rows['copy']['nll']:.2f}", rows["copy"]["recipe"]):
        assert text in shown


def test_what_an_evaluation_was_made_from_is_written_beside_it(trained):
    [file] = (trained / "evaluations").glob("*.json")
    content, run = read_manifest(file), open_run(trained)
    identity = content["identity"]
    assert identity["weights"] == run.weights_sha256 == read_manifest(run.layout.manifest)["files"]["weights"]["sha256"]
    assert identity["data"] == run.data.sha256()
    assert identity["recipe"] == run.recipe.sha256
    assert content["files"]["arrays"]["sha256"]
    assert reports.compare([trained]).table[0]["weights_sha256"] == identity["weights"]


def test_an_evaluation_pairs_across_precisions(trained, tmp_path):
    """The same images as float64 are the same images."""
    runs.train(settings("--training.precision=64-true"), tmp_path / "double")
    gain = mixvae.paired_gain(runs.evaluate(tmp_path / "double", 4), runs.evaluation_of(trained))
    assert abs(gain.mean) < 5


def test_a_changed_run_does_not_change_under_a_handle(copy):
    """A handle answers for the weights that it has read, not for those of a later epoch."""
    run = open_run(copy)
    before = run.model
    main(["train", "--resume", str(copy), "--training.epochs=4"])
    assert run.model is before
    assert (run.epoch, open_run(copy).epoch) == (2, 4)
    assert replace(settings()) == settings()


def test_a_run_that_lost_its_record_is_not_a_legacy_one(copy, capsys):
    """Without run.json nothing vouched for the weights, and "legacy" was believed."""
    (copy / "run.json").unlink()
    for words in (["evaluate", copy], ["report", copy], ["sample", copy], ["train", "--resume", copy]):
        assert "is not a run: it has no run.json" in refused(capsys, *words)
    assert runs.listing(copy.parent).table == []


def test_a_resume_of_nothing_is_refused(tmp_path, monkeypatch, capsys):
    """`--resume "$RUN"` with RUN unset trained the default preset instead."""
    monkeypatch.chdir(tmp_path)
    for words in (["--resume="], ["--resume", ""], ["digits", "--out="]):
        assert "takes a run directory; it is empty" in refused(capsys, "train", *words)
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_run_is_listed(trained, tmp_path):
    (tmp_path / "link").symlink_to(trained)
    (tmp_path / "round").symlink_to(tmp_path)
    assert [row["run"] for row in runs.listing(tmp_path).table] == ["link"]


def test_what_a_finished_run_is_asked_for_again_is_said(copy, capsys):
    capsys.readouterr()
    main(["train", "--resume", str(copy)])
    assert "already done after 2 epochs" in capsys.readouterr().out
    assert "start.run too" in refused(
        capsys, "train", "digits", *SMALL, "--start.noise=0.5", "--out", copy.parent / "x"
    )
    assert open_run(copy).evaluate(4).results == runs.evaluation_of(copy).results


def test_incomplete_record_is_damaged_and_hides_no_other_run(copy, trained, capsys):
    from mixvae.files import canonical, checksum, read_json, write_json

    whole = read_json(copy / "run.json")
    for name in ("recipe", "goal", "rows", "model"):
        content = {key: value for key, value in whole.items() if key not in (name, "checksum")}
        write_json(copy / "run.json", content | {"checksum": checksum(canonical(content))})
        assert f"is damaged: it has no {name}" in refused(capsys, "evaluate", copy)
    (copy.parent / "good").symlink_to(trained)
    assert {row["run"]: row["state"] for row in runs.listing(copy.parent).table} == {"copy": "damaged", "good": "done"}


@pytest.fixture
def old(copy):
    """The run as a directory from before runs had an identity."""
    text = (copy / "config.yaml").read_text().partition("\n")[2]
    (copy / "config.yaml").write_text(text)
    shutil.copy(next((copy / "evaluations").glob("*.npz")), copy / "examples.npz")
    shutil.rmtree(copy / "evaluations")
    (copy / "run.json").unlink()
    results = (copy / "results.json").read_text().replace('"total_draws"', '"draws"')
    (copy / "results.json").write_text(results)
    return copy


def test_legacy_results_show_the_pooled_bound_and_say_so(old):
    comparison = reports.compare([old])
    [row] = comparison.table
    assert (row["nll"], row["proposal"]) == (row["nll_pooled"], "posterior")
    assert row["nll_tight"] is not True
    told = [note for note in comparison.warnings if "proposal posterior: the NLL is the pooled one" in note]
    assert len(told) == 1
    assert _stored(old, sweeps.Grid(old.parent, {}, total_draws=4)) is not None, "they count as done"


def test_a_legacy_run_with_odd_files_is_told_and_hides_no_other(old, trained, capsys):
    """`list` ended with a traceback, of which the other runs of the folder had no share."""
    (old.parent / "good").symlink_to(trained)
    assert runs.evaluation_of(old)["nll_pooled"] == runs.evaluation_of(trained)["nll_pooled"]
    before = contents(old)
    results, arrays, rows = (before[old / name] for name in ("results.json", "examples.npz", "metrics.jsonl"))
    odd = {
        "results.json": [
            b"", b"5", b"[]", b"null", b"{}", results[:99], b"\xff" + results,
            results.replace(b'"draws": 4', b'"draws": "4"'), results.replace(b'"draws": 4', b'"draws": null'), 
            results.replace(b'"nll_pooled":', b'"nll_pooled": [], "x":'),
            results.replace(b'"examples":', b'"examples": -1, "x":'), b"[" * 100_000,
        ],
        "examples.npz": [b"", arrays[:99], b"PK" + arrays[9:], arrays[:300] + b"?" + arrays[301:], b"text"],
        "metrics.jsonl": [b"5\n", b"{}\n", b'{"epoch": "1"}\n' + rows],
    }  # fmt: skip
    for name, contents_ in odd.items():
        for content in contents_:
            (old / name).write_bytes(content)
            assert name in refused(capsys, "report", old), content
            states = {row["run"]: row["state"] for row in runs.listing(old.parent).table}
            assert states == {"copy": "damaged", "good": "done"}, content
        (old / name).write_bytes(before[old / name])
    (old / "metrics.jsonl").write_bytes(rows + b'{"epoch": 3, "va')  # cut off by a crash
    assert runs.open_run(old).epoch == 2
    for text in ("[]", "{}", '{"scores": 5}', '{"scores": {"means": {"knn": []}}}'):
        (old / "representation.json").write_text(text)
        assert "representation.json" in refused(capsys, "report", old)


def test_damaged_evaluation_error_suggests_fix_before_writing(copy, trained, capsys):
    runs.evaluate(copy, 8)
    file = next((copy / "evaluations").glob("*draws8*.json"))
    whole = file.read_bytes()
    for content in (b"", b"{}", whole[:200], whole.replace(b'"created"', b'"made"')):
        file.write_bytes(content)
        told = refused(capsys, "report", trained, copy, "--out", copy / "page.html")
        assert file.name in told
        assert "to go on without it, delete it" in told
        assert not (copy / "page.html").exists()
        assert not (copy / "figures").exists()
    file.unlink()
    scores = file.with_name("representation-test-0.json")
    scores.write_text("{")
    assert scores.name in refused(capsys, "report", copy)
    assert not (copy / "figures").exists()
    scores.unlink()
    assert reports.write([copy], copy / "page.html").exists()


def test_a_report_needs_no_room_beside_its_runs(copy, capsys):
    (copy / "figures").write_text("no folder, so that nothing can be written into it")
    assert reports.write([copy], copy / "page.html").read_text().count("data:image/png;base64") >= 3
    assert f"{copy / 'figures'}" in refused(capsys, "report", copy, "--out", copy / "figures" / "page.html")


def test_unreadable_configuration_copy_is_reported_on_resuming(copy, capsys):
    for content in (b"", b"# A comment", b"{", b"\0", b"5"):
        (copy / "config.yaml").write_bytes(content)
        assert "or delete it: it is a copy" in refused(capsys, "train", "--resume", copy, "--training.epochs=3")


def test_a_gain_of_something_else_is_told_in_one_line(trained, as_users_run):
    evaluation = runs.evaluation_of(trained)
    for other in (open_run(trained), str(trained), evaluation.results, 5):
        with pytest.raises(TypeError, match=r"a paired gain needs what .* returns; got \w+"):
            mixvae.paired_gain(evaluation, other)


OWN = '''
"""Parts of a user's own."""
from mixvae.decoders import MLPDecoder


class Base(MLPDecoder):
    """A base."""

    scale = 1.0


class Mine(Base):
    """A decoder."""

    def forward(self, z):
        """Decode."""
        return super().forward(self.scale * z)  # as it is
'''


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("self.scale * z", "2 * z", True),
        ("scale = 1.0", "scale = 1.5", True),
        ("# as it is", "# and so on", False),
        ("Decode.", "Decode z.", False),
    ],
)
def test_code_of_a_users_class_that_changed_is_another_class(tmp_path, monkeypatch, capsys, old, new, differs):
    """Its stored evaluation was believed, and the run called done."""
    name = f"users_own_{abs(hash((old, tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    asked = [*SMALL, f"--model.decoder={{class_path: {name}.Mine, hidden: [6]}}"]
    asked.remove("--model.decoder.hidden=[6]")
    own = config.read("digits", asked, trust=[name])
    run = runs.train(own, tmp_path / "run")
    before = runs.evaluate(run, 4)
    [file] = (tmp_path / "run" / "evaluations").glob("*.json")
    created = read_manifest(file)["created"]

    (tmp_path / f"{name}.py").write_text(OWN.replace(old, new))
    monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    linecache.clearcache()
    with granting(name):
        again = open_run(tmp_path / "run")
        assert again.matches(own) != differs
        after = runs.evaluate(again, 4)
        assert (read_manifest(file)["created"] != created) == differs
        assert (after["nll"] != before["nll"]) == differs
        if differs:
            told = "model.decoder has other code than it was trained with"
            with pytest.raises(ValueError, match=told):
                runs.train(replace(own, training=replace(own.training, epochs=3)), tmp_path / "run", resume=True)
