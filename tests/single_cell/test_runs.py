"""`mixvae sc`: runs on disk that survive, and bad input in one line."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import anndata
import numpy as np
import pytest
import torch

from mixvae import cli
from mixvae.files import load_weights, write_json
from mixvae.files._lease import Lease
from mixvae.progress import Silent
from mixvae.runs import listing, open_run
from mixvae.single_cell import MixtureSCVI, runs
from mixvae.single_cell.recipes import Training, recipe_of


@pytest.fixture
def file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


SETTINGS = runs.Settings(components=2, batch_key="batch", latent=3, epochs=4, categorical_covariate_keys=("donor",))


class Killed(BaseException):
    """As good as a kill: nobody catches it."""


class Calling(Silent):
    """A progress that calls a function with every epoch."""

    def __init__(self, function):
        self.function = function

    def update(self, done, total, text=""):
        self.function(done)


def stop_after(last_epoch, error=Killed):
    """End a training as a kill does, once an epoch is on disk."""

    def stop(epoch):
        if epoch == last_epoch:
            raise error

    return Calling(stop)


def without_clock(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_killed_training_goes_on_bit_for_bit(file, finished, tmp_path, error):
    with pytest.raises((error, SystemExit)):
        runs.train(file, tmp_path / "cut", SETTINGS, stop_after(2, error))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    assert open_run(tmp_path / "cut").state == "stopped"
    with pytest.raises(ValueError, match="has not finished training"):
        runs.load(tmp_path / "cut", anndata.read_h5ad(file))
    seen = []
    runs.train(file, tmp_path / "cut", SETTINGS, Calling(seen.append))
    assert seen == [3, 4], "it began anew, or left epochs out"
    whole, cut = (load_weights(path / "model.safetensors") for path in (finished / "run", tmp_path / "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    whole, cut = (open_run(path) for path in (finished / "run", tmp_path / "cut"))
    assert without_clock(whole.metrics) == without_clock(cut.metrics)
    assert whole.weights_sha256 == cut.weights_sha256
    assert whole.recipe.sha256 == cut.recipe.sha256


def test_run_killed_after_its_last_epoch_is_done_with_weights(file, tmp_path):
    settings = replace(SETTINGS, epochs=1)
    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", settings, stop_after(1))
    assert open_run(tmp_path / "run").state == "done"
    assert runs.load(tmp_path / "run", anndata.read_h5ad(file)).is_trained_
    with pytest.raises(ValueError, match="is a finished run"):
        runs.train(file, tmp_path / "run", settings)


def test_run_stopped_early_by_patience_counts_as_done(file, tmp_path):
    runs.train(file, tmp_path / "run", replace(SETTINGS, epochs=60, patience=1, latent=2))
    run = open_run(tmp_path / "run")
    assert run.epoch < 60, "the validation ELBO of 12 cells rose 60 times in a row"
    assert run.is_done
    assert run.metrics[-1]["best_epoch"] == run.epoch - 1


def test_a_run_of_cells_opens_as_any_other_run(finished):
    [listed] = (row for row in listing(finished).table if row["run"] == "run")
    assert (listed["state"], listed["epochs"], listed["components"]) == ("done", 4, 2)
    run = open_run(finished / "run")
    assert (run.state, run.epoch, run.is_done, len(run.metrics)) == ("done", 4, True, 4)
    assert [row["epoch"] for row in run.metrics] == [1, 2, 3, 4]
    validation = [row["validation"] for row in run.metrics]
    assert run.metrics[-1]["best_epoch"] == 1 + int(np.argmax(validation))
    assert validation == [-row["elbo_validation"] for row in run.metrics]
    seconds = [row["seconds"] for row in run.metrics]
    assert seconds == sorted(seconds)
    assert len(run.weights_sha256) == 64
    identity = run.recipe.identity
    assert identity["model"]["components"] == 2
    assert identity["model"]["n_hidden"] == 128, "defaults are part of the identity"
    assert identity["training"]["kl_warmup"] == 4
    assert run.manifest["model"]["genes"] == list(anndata.read_h5ad(finished / "cells.h5ad").var_names)
    assert run.manifest["runtime"]["data"]["name"] == str(finished / "cells.h5ad")


def test_resuming_on_replaced_cells_is_refused_by_checksum(cells, file, tmp_path):
    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", SETTINGS, stop_after(1))
    one_count = cells.copy()
    one_count.X.data[0] += 1
    before = (tmp_path / "run" / "run.json").read_bytes()
    for other, name in ((one_count, "data.sha256"), (cells[::-1], "data.sha256"), (cells[:90], "data.cells")):
        other.copy().write_h5ad(file)
        with pytest.raises(ValueError, match=f"was made from something else: {name} is"):
            runs.train(file, tmp_path / "run", SETTINGS)
        assert (tmp_path / "run" / "run.json").read_bytes() == before
    cells.obs["donor"] = cells.obs["donor"].to_numpy()[::-1]
    cells.write_h5ad(file)
    with pytest.raises(ValueError, match="data.sha256"):  # a covariate counts as much as a count
        runs.train(file, tmp_path / "run", SETTINGS)


def test_data_checksum_ignores_sparsity_and_unused_columns(cells):
    def sha(adata):
        MixtureSCVI.setup_anndata(adata, **SETTINGS.setup())
        return recipe_of(SETTINGS.model(adata), Training(2, None, 2)).identity["data"]["sha256"]

    dense = cells.copy()
    dense.X = dense.X.toarray().astype(np.int64)
    noted = cells.copy()
    noted.obs["note"] = "new"
    assert sha(cells.copy()) == sha(dense) == sha(noted)
    noted.var_names = [f"{name}-1" for name in noted.var_names]
    assert sha(noted) != sha(dense)


def test_second_trainer_of_a_folder_is_refused_in_one_line(file, tmp_path):
    refused = []

    def meanwhile(epoch):
        with pytest.raises(ValueError, match="is being trained by process") as error:
            runs.train(file, tmp_path / "run", SETTINGS)
        refused.append(str(error.value))
        raise Killed

    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", SETTINGS, Calling(meanwhile))
    assert "\n" not in refused[0]
    Lease.acquire(tmp_path / "run").release()  # the killed training gave it back


def test_flipped_bit_in_weights_is_refused_and_not_embedded(copied, file, capsys, as_users_run):
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    status, _, err = run(capsys, "sc", "embed", copied, file, "--out", copied / "x.h5ad")
    assert status == 2
    assert "model.safetensors is truncated, damaged or replaced" in err
    assert len(err.strip().splitlines()) == 1
    assert open_run(copied).state == "damaged"


def test_a_flipped_bit_in_the_state_stops_a_resume(file, tmp_path):
    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", SETTINGS, stop_after(1))
    state = tmp_path / "run" / "last" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(ValueError, match="state.pt is truncated, damaged or replaced"):
        runs.train(file, tmp_path / "run", SETTINGS)


def test_loaded_run_reproduces_latents_of_the_trained_model(file, cells, tmp_path):
    model = runs.train(file, tmp_path / "run", replace(SETTINGS, epochs=2))
    shuffled = cells[::-1].copy()
    shuffled.obs["batch"] = shuffled.obs["batch"].astype("category").cat.reorder_categories(["b", "a"])
    loaded = runs.load(tmp_path / "run", shuffled)
    np.testing.assert_allclose(
        loaded.get_latent_representation()[::-1], model.get_latent_representation(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        loaded.get_bounds(indices=[119], n_mc_samples=8).elbo, loaded.get_elbo(indices=[119]), rtol=0.2
    )
    cells.obs["batch"] = "new"
    with pytest.raises(ValueError, match=r"obs\['batch'\] is new for cell .* was trained on a, b: leave"):
        runs.load(tmp_path / "run", cells)


def test_runs_hold_no_executable_pickle_and_one_commit_point(finished):
    files = {str(path.relative_to(finished / "run")) for path in (finished / "run").rglob("*") if path.is_file()}
    assert files == {"run.json", "metrics.jsonl", "model.safetensors", "last/state.pt"}
    assert torch.load(finished / "run" / "last" / "state.pt", weights_only=True)["epoch"] == 3
    rows = [json.loads(line) for line in (finished / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == open_run(finished / "run").metrics


def test_a_legacy_run_is_embedded_as_before_but_not_trained_on(finished, copied, file, cells, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    described = open_run(copied).manifest["model"]
    write_json(old / "settings.json", {**asdict(SETTINGS), "file": "x", "cells": 120, "genes": described["genes"]})
    write_json(old / "registry.json", described["registry"])
    with pytest.raises(ValueError, match="has not finished training"):
        runs.load(old, cells.copy())
    shutil.copy(copied / "model.safetensors", old)
    latents = [runs.load(path, cells.copy()).get_latent_representation() for path in (old, copied)]
    np.testing.assert_array_equal(*latents)
    before = sorted(old.iterdir())
    with pytest.raises(ValueError, match="is a legacy run, .* cannot be resumed"):
        runs.train(file, old, SETTINGS)
    assert sorted(old.iterdir()) == before


def run(capsys, *words):
    """Status and what the command line says."""
    try:
        cli.main(list(map(str, words)))
        status = 0
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_command_line_trains_and_embeds(file, tmp_path, capsys, as_users_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--components", 2, "--batch-key", "batch", "--epochs", 2, "--latent", 3]
    status, out, err = run(capsys, "sc", "train", file, *options)
    assert status == 0, err
    assert "cells-S2: 2 epochs; validation ELBO" in out
    status, out, _ = run(capsys, "sc", "embed", "runs/cells-S2", file)
    assert status == 0
    embedded = anndata.read_h5ad(tmp_path / "cells-embedded.h5ad")
    assert embedded.obsm["X_mixvae"].shape == (120, 3)
    assert embedded.obsm["X_mixvae_responsibilities"].shape == (120, 2)
    assert not [key for key in [*embedded.obs, *embedded.uns] if key.startswith("_scvi")]
    assert "obsm['X_mixvae'] and obsm['X_mixvae_responsibilities']" in out
    status, out, _ = run(capsys, "sc", "embed", "runs/cells-S2", file, "--responsibilities", "false", "--out", "z.h5ad")
    assert (status, out) == (0, "wrote z.h5ad: 120 cells, obsm['X_mixvae']\n")
    quick = anndata.read_h5ad(tmp_path / "z.h5ad")
    assert list(quick.obsm) == ["X_mixvae"]
    assert np.array_equal(quick.obsm["X_mixvae"], embedded.obsm["X_mixvae"])
    for words, message in (
        (["sc", "train", file, *options], "cells-S2 is a finished run: give another --out"),
        (["sc", "train", tmp_path / "no.h5ad"], "there is no file"),
        (["sc", "train", tmp_path / "runs" / "cells-S2" / "run.json"], "is not an HDF5 file"),
        (["sc", "train", file, "--batch-key", "bach"], "did you mean 'batch'"),
        (["sc", "train", file, "--component", 3], "unknown option --component: did you mean --components?"),
        (["sc", "train", file, "--components", 0], "n_components must be at least 1; got 0"),
        (["sc", "train", file, "--epochs", 0], "epochs must be at least 1; got 0"),
        (["sc", "train", file, "--seed", -1], "seed must be at least 0; got -1"),
        (["sc", "train", file, *options, "--out", tmp_path], "is not a run: it has no run.json"),
        (["sc", "embed", tmp_path, file], "is not a run of `mixvae sc train`"),
        (["sc", "embed", "runs/cells-S2", file, "--out", "x.csv"], "--out must end in .h5ad"),
        (["sc", "embd"], "did you mean sc embed?"),
    ):
        status, out, err = run(capsys, *words)
        assert status == 2, (words, err)
        assert message in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x.csv").exists()
    assert run(capsys, "sc")[0] == 0
    assert "sc train" in run(capsys, "sc", "--help")[1]


def test_another_setting_does_not_resume_a_run(file, tmp_path):
    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", SETTINGS, stop_after(1))
    for changed, what in (
        ({"components": 3}, "model.components is 2, not 3"),
        ({"likelihood": "nb"}, "model.likelihood is zinb, not nb"),
        ({"batch_key": None}, "data.setup.batch_key is batch, not"),
        ({"epochs": 5}, "epochs is 4, not 5, and therefore training.kl_warmup is 4, not 5"),
        ({"seed": 1}, "seed is 0, not 1"),
    ):
        with pytest.raises(ValueError, match=f"was made from something else: {what}"):
            runs.train(file, tmp_path / "run", replace(SETTINGS, **changed))


def test_default_epochs_follow_the_number_of_cells():
    assert runs.Settings().training(80_000).epochs == 100
    assert runs.Settings().training(120).warmup == 400


def test_without_scvi_tools_there_is_one_line_on_how_to_get_it():
    script = """
import sys
sys.modules["scvi"] = None
from mixvae.cli import main
main(["sc", "train", "cells.h5ad"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'mixvae[scvi]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, as_users_run):
    import re
    from pathlib import Path

    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "single_cell.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    names: dict = {}
    exec(code.replace("max_epochs=100", "max_epochs=10"), names)
    assert (tmp_path / "components.png").stat().st_size > 10_000
    assert names["adata"].obsm["X_mixvae_responsibilities"].shape == (700, 3)
    assert names["adata"].obs["leiden"].nunique() > 1
    commands = re.findall(r"^mixvae sc (\w+)", page, re.MULTILINE)
    assert {f"sc-{name}" for name in commands} <= set(cli.COMMANDS)
