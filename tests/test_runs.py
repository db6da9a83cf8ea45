"""A run on disk, through the command line as its user meets it."""

import inspect
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import mixvae
from conftest import USER_MODULE, refused
from mixvae import config, datasets, reports, runs
from mixvae.cli import main
from mixvae.config import DataConfig
from mixvae.evaluation import evaluate
from mixvae.files import read_json
from mixvae.reports._comparison import label
from mixvae.runs import Layout, open_run
from mixvae.runs import _queries as queries

SMALL = [
    "--data.limit=200", "--training.epochs=3", "--model.latent=3",
    "--model.encoder.hidden=[12]", "--model.decoder.hidden=[12]",
]  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two evaluated runs, S = 1 and S = 2."""
    folder = tmp_path_factory.mktemp("runs")
    for s in (1, 2):
        main(["train", "digits", "--out", str(folder / f"S{s}"), f"--model.components={s}", *SMALL])
        main(["evaluate", str(folder / f"S{s}"), "--total-draws", "20"])
    return folder


@pytest.fixture
def copied(two, tmp_path):
    """A copy of the two runs, to change."""
    return shutil.copytree(two, tmp_path / "runs")


def test_a_run_holds_what_it_takes_to_run_again(two):
    run = Layout(two / "S2")
    assert {p.name for p in run.path.iterdir()} >= {
        "run.json", "config.yaml", "metrics.jsonl", "model.safetensors", "last", "results.json", "evaluations",
    }  # fmt: skip
    assert config.read(run.config).model.shape == [1, 8, 8]
    assert config.read(run.config).model.components == 2


def test_results_have_each_number_with_error_draws_and_seed(two):
    results = read_json(two / "S2" / "results.json")
    needed = (
        "elbo elbo_se elbo_mc_se nll_miselbo nll_miselbo_se nll_pooled nll_pooled_se nll_pooled_mc_se jsd jsd_se "
        "effective_components active_units total_draws seed components parameters data_sha256 versions split examples "
        "ess pareto_k train_seconds best_epoch git_commit"
    )
    assert set(needed.split()) <= set(results)
    assert results["total_draws"] == 20
    assert results["components"] == 2
    assert results["nll_pooled"] <= results["nll_miselbo"] <= -results["elbo"]


def test_load_gives_the_model_back_in_one_line(two):
    model = mixvae.load(two / "S2")
    assert not model.training
    data = datasets.load_dataset("digits", limit=200)
    found = evaluate(model, data.test.batch(slice(None)), 20)
    stored = runs.evaluation_of(two / "S2")
    np.testing.assert_allclose(stored.bounds["pooled"], found.pooled, atol=1e-3)


def test_evaluate_takes_draws_per_component_splits_and_a_file(copied, tmp_path, capsys):
    file = tmp_path / "each.npz"
    main(
        ["evaluate", str(copied / "S2"), "--draws-per-component", "3", "--split", "validation", "--examples", "7"]
        + ["--per-example", str(file), "--seed", "5"]
    )
    shown = capsys.readouterr().out
    settings = {"draws_per_component": 3, "split": "validation", "examples": 7, "seed": 5}
    results = runs.find_evaluation(copied / "S2", **settings)
    assert (results["total_draws"], results["split"], results["examples"], results["seed"]) == (6, "validation", 7, 5)
    with np.load(file) as arrays:
        assert arrays["pooled"].shape == (7,)
        assert arrays["pooled"].mean() == pytest.approx(-results["nll_pooled"])
        assert arrays["log_px"].mean() == pytest.approx(-results["nll"])
    assert f"{results['nll']:.2f}" in shown
    assert read_json(copied / "S2" / "results.json")["split"] == "test"


def test_sample_writes_a_picture_or_an_array(copied, tmp_path):
    main(["sample", str(copied / "S2"), "--n", "5", "--out", str(tmp_path / "s.npy"), "--seed", "1"])
    array = np.load(tmp_path / "s.npy")
    assert array.shape == (5, 1, 8, 8)
    assert array.min() >= 0
    assert array.max() <= 1
    main(["sample", str(copied / "S2")])
    with Image.open(copied / "S2" / "figures" / "samples.png") as picture:
        assert picture.size[0] > 100
    assert np.array_equal(runs.sample(copied / "S2", 5, seed=1), array)


def test_reconstruct_and_encode_give_every_component(copied, tmp_path):
    main(["reconstruct", str(copied / "S2"), "--n", "4", "--out", str(tmp_path / "r.npy")])
    assert np.load(tmp_path / "r.npy").shape == (2, 4, 1, 8, 8)
    main(["reconstruct", str(copied / "S2")])
    main(["encode", str(copied / "S2"), "--out", str(tmp_path / "z.npz")])
    with np.load(tmp_path / "z.npz") as arrays:
        assert arrays["mean"].shape == arrays["std"].shape == (400, 2, 3)
        assert arrays["labels"].shape == (400,)
        assert (arrays["std"] > 0).all()


def test_resuming_with_more_epochs_trains_on(two, tmp_path):
    main(["train", "digits", "--out", str(tmp_path / "r"), *SMALL])
    main(["train", "--resume", str(tmp_path / "r"), "--training.epochs", "5"])
    assert [row["epoch"] for row in open_run(tmp_path / "r").metrics] == [1, 2, 3, 4, 5]
    assert config.read(tmp_path / "r" / "config.yaml").training.epochs == 5


def test_the_same_seed_gives_the_same_run(two, tmp_path):
    main(["train", "digits", "--out", str(tmp_path / "r"), "--model.components=2", *SMALL])
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == (two / "S2" / "model.safetensors").read_bytes()


def test_the_default_directory_names_preset_components_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["train", "digits", "--seed", "3", "--model.components", "2", *SMALL])
    assert (tmp_path / "runs" / "digits-S2-seed3" / "model.safetensors").exists()


def test_yaml_file_trains_a_custom_encoder_on_custom_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_encoder.py").write_text(USER_MODULE)
    np.save("own.npy", np.random.default_rng(0).normal(size=(60, 5)))
    (tmp_path / "own.yaml").write_text(
        "data: {name: own.npy, binarize: none}\n"
        "model: {components: 2, latent: 2, likelihood: GaussianLikelihood, "
        "encoder: {class_path: own_encoder.MyEncoder}}\n"
        "training: {epochs: 2}\n"
    )
    main(["train", "own.yaml", "--out", "run", "--trust", "own_encoder"])
    main(["evaluate", "run", "--total-draws", "10"])
    assert read_json("run/results.json")["components"] == 2
    main(["report", "run"])
    assert "own" in (tmp_path / "run" / "report.html").read_text()


BAD = {
    "unknown preset": (["train", "digit"], "did you mean digits?"),
    "unknown command": (["trian"], "unknown command 'trian': did you mean train?"),
    "unknown option": (["train", "--training.epoch", "3"], "--training.epoch: did you mean --training.epochs?"),
    "unknown option of evaluate": (["evaluate", "x", "--draw", "3"], "--draw: did you mean --total-draws?"),
    "wrong type": (["train", "--seed", "x"], "seed: expected int; got x"),
    "unknown data": (["train", "digits", "--data.name", "mnst"], "unknown data set 'mnst': did you mean mnist?"),
    "grey data": (["train", "digits", "--data.binarize", "none"], "outside the likelihood's support"),
    "unknown likelihood": (["train", "digits", "--model.likelihood", "GausianLikelihood"], "mean GaussianLikelihood?"),
    "untested strategy": (["train", "digits", "--training.strategy", "fsdp"], "use auto or ddp"),
    "unknown accelerator": (["train", "digits", "--training.accelerator", "abacus"], "abacus"),
    "unknown precision": (["train", "digits", "--training.precision", "3"], "3"),
    "unknown optimiser": (["train", "digits", "--training.optimizer.class_path", "torch.optim.Adm"], "Adam"),
    "unknown bound": (["train", "digits", "--training.bound", "elbow"], "did you mean elbo?"),
    "unknown optimiser argument": (["train", "digits", "--training.optimizer.lrr", "1"], "did you mean lr?"),
    "devices that are no number": (["train", "digits", "--training.devices", "abc"], "devices"),
    "no threads": (["train", "digits", "--training.threads", "-1"], "threads must be at least 1; got -1"),
    "negative epochs": (["train", "digits", "--training.epochs", "-1"], "epochs must be at least 1; got -1"),
    "too many pseudo-inputs": (
        ["train", "digits", "--model.prior.class_path", "VampPrior", "--model.prior.pseudo_inputs", "5000"],
        "5000 pseudo-inputs need as many examples",
    ),
    "encoder of another size": (
        ["train", "digits", "--model.encoder.class_path", "GatedEncoder", "--model.encoder.latent", "7"],
        r"the posterior has latent shape (7,), the prior (16,)",
    ),
    "encoder that takes other data": (
        ["train", "digits", "--model.encoder.class_path", "GatedEncoder", "--model.encoder.shape", "[5]"],
        "do not fit each other or data of shape (1, 8, 8): mat1 and mat2 shapes cannot be multiplied (1x64 and 5x400)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_train_is_one_line_and_writes_nothing(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, told = BAD[case]
    assert told in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_bad_input_to_other_commands_is_one_line(two, tmp_path, capsys):
    run = two / "S1"
    for words, told in (
        (["evaluate", tmp_path / "none"], "is not a run: it has no run.json"),
        (["evaluate", run, "--total-draws", "0"], "draws must be at least 1; got 0"),
        (["evaluate", run, "--seed", "99999999999999999999"], "seed must be"),
        (["evaluate", run, "--examples", "0"], "examples must be at least 1; got 0"),
        (["evaluate", run, "--split", "tset"], "split: expected"),
        (["sample", run, "--out", "x.jpg"], "--out must end in .png or .npy; got x.jpg"),
        (["sample", run, "--n", "0"], "n must be at least 1; got 0"),
        (["train", "digits", "--out", run], f"{run} already exists: resume it with `mixvae train --resume {run}`"),
        (["train", "--resume", tmp_path / "none"], "is not a run: it has no run.json"),
        (["train", "digits", "--resume", run], "has its own configuration; leave digits out"),
        (
            ["train", "--resume", run, "--model.components", "4"],
            "made from something else: model.components is 1, not 4",
        ),
        (["report", tmp_path], "is not a run: it has no run.json"),
        (["list", tmp_path / "none"], "there is no folder"),
    ):
        assert told in refused(capsys, *words), words


def test_damaged_files_of_a_run_are_told(two, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(two / "S1", run)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "model.safetensors is truncated, damaged or replaced" in refused(
        capsys, "evaluate", run, "--total-draws", "3"
    )
    shutil.copy(two / "S2" / "model.safetensors", weights)
    assert "model.safetensors is truncated, damaged or replaced" in refused(capsys, "sample", run)
    state = run / "last" / "state.pt"
    state.write_bytes(b"PK\x03\x04" + b"\0" * 50)
    assert "state.pt is truncated, damaged or replaced" in refused(capsys, "train", "--resume", run)
    shutil.copytree(two / "S1", tmp_path / "edited")
    file = tmp_path / "edited" / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("latent: 3", "latent: 4"))
    assert "config.yaml was changed after the training, at model.latent" in refused(capsys, "sample", file.parent)
    file.write_text("model: {laten: 3}")
    assert "did you mean model.latent?" in refused(capsys, "sample", file.parent)
    file.write_text(text + "# a remark of its owner\n")
    main(["sample", str(file.parent), "--n", "2"])
    file.unlink()
    main(["sample", str(file.parent), "--n", "2"])


def test_ctrl_c_and_divergence_have_their_own_status(tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["train", "digits", "--out", str(tmp_path / "r")])
    assert end.value.code == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(SystemExit) as end:
        main(["train", "digits", "--out", str(tmp_path / "r"), "--training.optimizer.lr", "1e20", *SMALL])
    assert end.value.code == 1
    assert "lower the learning rate or clip gradients" in capsys.readouterr().err


def test_report_is_one_file_without_any_request(copied, capsys):
    main(["report", str(copied / "S1"), str(copied / "S2"), "--out", str(copied / "both.html")])
    page = (copied / "both.html").read_text()
    assert "http" not in page
    assert (
        page.count("data:image/png;base64,") == 3 + 2 * 3 + 3
    )  # gains, split and curves, each run, how components cooperate
    rows = reports.compare([copied / "S2", copied / "S1"]).table
    assert [row["components"] for row in rows] == [1, 2]
    each = [runs.evaluation_of(copied / f"S{s}").bounds["log_px"] for s in (1, 2)]
    gain = each[1] - each[0]
    assert rows[1]["gain"] == pytest.approx(gain.mean())
    assert rows[1]["gain_se"] == pytest.approx(gain.std(ddof=1) / 20)
    assert f"{gain.mean():+.3f} ± {rows[1]['gain_se']:.3f}".replace("-", "−") in page
    assert f"{rows[1]['nll']:.2f}" in page
    assert f"{rows[1]['nll']:.2f}" in capsys.readouterr().out


def other_data(evaluation, **changes):
    """The same evaluation as if of other data."""
    identity = replace(evaluation.identity, **({"data": "0" * 64, "observations": "0" * 64} | changes))
    return replace(evaluation, identity=identity)


def test_comparing_different_examples_warns_and_has_no_gain(two):
    one, other = (runs.evaluation_of(two / f"S{s}") for s in (1, 2))
    comparison = reports.compare([two / "S1", two / "S2"], [one, other_data(other, draws_per_component=7)])
    assert not any("gain" in row for row in comparison.table)
    notes = " ".join(comparison.warnings)
    assert "different examples, by their data checksums:" in notes
    assert "different numbers of draws" in notes


def test_runs_of_different_data_are_not_compared(two, tmp_path, capsys):
    one, other = (runs.evaluation_of(two / f"S{s}") for s in (1, 2))
    other = replace(other, results={**other.results, "data": "mnist"})
    with_gain = reports.compare([two / "S1", two / "S2"], [one, other]).table
    assert "gain" in with_gain[1], "equal data under two names were not compared"
    other = other_data(other)
    with pytest.raises(ValueError, match=r"runs on different data cannot be compared: digits \(S1\), mnist \(S2\)"):
        reports.compare([two / "S1", two / "S2"], [one, other])


def test_commands_that_are_suggested_can_be_typed(two, tmp_path):
    """A path with a space was two words."""
    spaced = shutil.copytree(two / "S1", tmp_path / "my run")
    shutil.rmtree(spaced / "evaluations")
    with pytest.raises(FileNotFoundError) as told:
        runs.evaluation_of(spaced)
    command = str(told.value).split("`")[1]
    assert shlex.split(command) == ["mixvae", "evaluate", str(spaced)]


def test_runs_of_one_name_are_told_apart_in_table_and_figure(two, tmp_path):
    paths = [tmp_path / folder / "S2" for folder in ("a", "b")]
    for path in paths:
        shutil.copytree(two / "S2", path)
    comparison = reports.compare([*paths, two / "S1"])
    assert [row["run"] for row in comparison.table] == ["S1", "a/S2", "b/S2"]
    assert {label(row, comparison.table) for row in comparison.table} == {"S = 1", "a/S2", "b/S2"}
    assert len(reports.compare([two / "S1", two / "S1"]).table) == 2  # a run beside itself has no other name


def test_gains_are_over_the_first_run_on_the_same_examples(two):
    own = [runs.evaluation_of(two / f"S{s}") for s in (1, 2)]
    paths = [two / "S1", two / "S2"] * 2
    rows = reports.compare(paths, [*own, *map(other_data, own)]).table
    gains = [row.get("gain") for row in rows]
    assert gains[0] is gains[2] is None
    assert gains[1] == gains[3] == pytest.approx((own[1].bounds["log_px"] - own[0].bounds["log_px"]).mean())


def test_the_demo_is_done_once(tmp_path, capsys):
    from mixvae.sweeps import demo

    comparison, page = demo(tmp_path, components=(1, 2), total_draws=4, epochs=1)
    first = (tmp_path / "S2" / "metrics.jsonl").read_text()
    assert page.exists()
    assert [row["components"] for row in comparison.table] == [1, 2]
    told = "Compared at unequal draws per step (S·L): S = 2 (2, 1): a gain may be that of the draws."
    assert told in comparison.warnings
    assert told in page.read_text()
    demo(tmp_path, components=(1, 2), total_draws=4, epochs=1)
    assert (tmp_path / "S2" / "metrics.jsonl").read_text() == first


def test_text_is_printed_as_text_wherever_it_comes_from(two, tmp_path, capsys):
    """`[/d]` in a path ended a whole training in an error of the printing library; `[d]` and `:smile:` were eaten."""
    from mixvae.cli.output import show, show_rows
    from mixvae.progress import Terminal
    from mixvae.reports import Column

    strange = "[d] [/d] [bold]x :smile:"
    show(strange)
    show_rows([Column(strange, "a"), Column("b", "b")], [{"a": strange, "b": 1.0}], strange)
    with Terminal() as progress:
        progress.announce(strange)
    out, err = capsys.readouterr()
    assert out.count(strange) == 4
    assert strange in err
    run = tmp_path / "[/d]:smile:"
    main(["train", "digits", "--out", str(run), *SMALL])
    assert "[/d]:smile:" in capsys.readouterr().out.replace("\n", "")


def test_own_data_are_found_from_another_folder_and_at_home(tmp_path, monkeypatch):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).random((60, 6)).astype("f4"))
    monkeypatch.chdir(tmp_path)
    words = ["train", "vanilla", "--model.latent=2", "--training.epochs=1", "--training.warmup=0"]
    main([*words, "--data.name=mine.npy", "--out", "run"])
    assert config.read("run/config.yaml").data.name == str((tmp_path / "mine.npy").resolve())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["evaluate", "../run", "--total-draws", "4"])
    main(["train", "--resume", "../run", "--data.name", "../mine.npy", "--training.epochs", "2"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.load_dataset("~/mine.npy").shape == (6,)
    assert datasets.resolve_paths("digits") == ("digits", None)


def test_presets_are_listed_with_what_they_are(capsys):
    main(["presets"])
    out = capsys.readouterr().out
    for name in config.presets():
        assert name in out
    assert "VampPrior of 500 pseudo-inputs" in out


def test_the_installed_command_runs():
    done = subprocess.run([sys.executable, "-m", "mixvae"], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert "reconstruct" in done.stdout
    assert torch.__version__


def test_every_option_of_the_data_reaches_them():
    """Catches an option that the configuration takes and the loading forgets, as flips once were."""
    data = runs.open_data(DataConfig("digits", binarize="fixed", seed=3, limit=100, limit_validation=50, flip=True))
    assert (len(data.train), len(data.validation), data.train.flip) == (100, 50, True)
    assert (
        data.sha256()
        == datasets.load_dataset("digits", binarize="fixed", seed=3, limit=100, limit_validation=50).sha256()
    )
    assert set(inspect.signature(datasets.load_dataset).parameters) - {"progress"} == {
        field.name for field in fields(DataConfig)
    }


def test_components_draws_all_that_the_run_allows(two, tmp_path, capsys):
    main(["components", str(two / "S2"), "--draws-per-component", "4", "--examples", "60", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"components.png", "spread.png", "classes.png"}
    shown = capsys.readouterr().out
    assert "KL to the prior" in shown
    main(["train", "digits", "--out", str(tmp_path / "flat"), *SMALL, "--model.latent=2"])
    main(["components", str(tmp_path / "flat"), "--draws-per-component", "4", "--examples", "60"])
    assert (tmp_path / "flat" / "figures" / "posteriors.png").stat().st_size > 10_000
    table = runs.posteriors(tmp_path / "flat", 2).table
    assert len(table) == 2
    assert all(row["kl"] > 0 for row in table)


def test_evaluate_classifies_by_the_latents(copied, capsys, monkeypatch):
    words = ["evaluate", str(copied / "S2"), "--total-draws", "20", "--representation", "--samples", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(queries, "write_bytes", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(SystemExit, match="130"):
            main(words)
    assert runs.representations(copied / "S2") == []  # scores that stand mean that the figure stands too
    main(words)
    shown = capsys.readouterr().out
    assert "3 samples" in shown
    assert "mean and std" in shown
    assert "NLL" in shown
    [(split, found)] = runs.representations(copied / "S2")
    assert split == "test"
    assert set(found.scores["means"]) == {"knn", "svm", "mlp", "qda", "ari", "nmi", "asw"}
    assert all(len(values) == 3 for values in found.scores["means"].values())
    assert max(found.scores["means"]["knn"]) > 0.2, "digits are found better than by chance"
    assert (copied / "S2" / "figures" / "representation.png").stat().st_size > 5000


def test_data_without_labels_or_with_too_few_are_not_classified(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((60, 1, 4, 4)))
    out = tmp_path / "run"
    main(["train", "digits", f"--data.name={tmp_path / 'x.npy'}", "--out", str(out), *SMALL[1:]])
    error = refused(capsys, "evaluate", out, "--representation")
    assert "classification needs labels" in error
    assert not Layout(out).results.exists()
    few = tmp_path / "few"
    main(["train", "digits", "--out", str(few), "--data.limit=8", *SMALL[1:]])
    assert "got 8 examples of" in refused(capsys, "evaluate", few, "--representation")


def test_a_flag_stands_alone_or_takes_a_value():
    from mixvae.cli import _flags

    assert _flags(["extend", "run", "--fresh"]) == ["extend", "run", "--fresh=true"]
    assert _flags(["extend", "--fresh", "run"]) == ["extend", "--fresh=true", "run"]
    assert _flags(["extend", "run", "--fresh", "true"]) == ["extend", "run", "--fresh", "true"]
    assert _flags(["toy", "ring", "--no_rival"]) == ["toy", "ring", "--rival=false"]
    assert _flags(["train", "--resume", "runs/a"]) == ["train", "--resume", "runs/a"]
