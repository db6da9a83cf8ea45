"""`mixvae sc`: runs on disk that survive, and bad input in one line."""

import shutil
import subprocess
import sys

import anndata
import numpy as np
import pytest
import torch

from mixvae import cli
from mixvae.files import load_weights, read_json
from mixvae.single_cell import runs


@pytest.fixture
def file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


SETTINGS = runs.Settings(components=2, batch_key="batch", latent=3, epochs=4, categorical_covariate_keys=("donor",))


class Killed(BaseException):
    """As good as a kill: nobody catches it."""


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_killed_training_goes_on_bit_for_bit(file, tmp_path, error):
    runs.train(file, tmp_path / "whole", SETTINGS)

    def stop(epoch, last, elbo):
        if epoch == 2:
            raise error

    with pytest.raises((error, SystemExit)):
        runs.train(file, tmp_path / "cut", SETTINGS, stop)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="has not finished training"):
        runs.load(tmp_path / "cut", anndata.read_h5ad(file))
    seen = []
    runs.train(file, tmp_path / "cut", SETTINGS, lambda epoch, last, elbo: seen.append(epoch))
    assert seen[0] > 1, "it began anew"
    whole, cut = (load_weights(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not list((tmp_path / "cut").glob("*.ckpt"))
    whole, cut = (read_json(tmp_path / name / "history.json") for name in ("whole", "cut"))
    assert whole == cut
    assert len(cut["elbo_validation"]) == len(cut["elbo_train"]) == 4


def test_loaded_run_gives_the_latents_that_the_trained_model_gave(file, cells, tmp_path):
    model = runs.train(file, tmp_path / "run", SETTINGS)
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
    with pytest.raises(ValueError, match="new not found"):
        runs.load(tmp_path / "run", cells)


def test_runs_hold_no_pickle(file, tmp_path):
    runs.train(file, tmp_path / "run", SETTINGS)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "history.json",
        "model.safetensors",
        "registry.json",
        "settings.json",
    }
    assert len(read_json(tmp_path / "run" / "history.json")["elbo_validation"]) == 4


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
    for words, message in (
        (["sc", "train", file, *options], "cells-S2 is a finished run: give another --out"),
        (["sc", "train", tmp_path / "no.h5ad"], "there is no file"),
        (["sc", "train", tmp_path / "runs" / "cells-S2" / "settings.json"], "cannot be read as AnnData"),
        (["sc", "train", file, "--batch-key", "bach"], "did you mean 'batch'"),
        (["sc", "train", file, "--component", 3], "unknown option --component: did you mean --components?"),
        (["sc", "train", file, "--components", 0], "n_components must be at least 1; got 0"),
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
    def stop(epoch, last, elbo):
        raise Killed

    with pytest.raises(Killed):
        runs.train(file, tmp_path / "run", SETTINGS, stop)
    with pytest.raises(ValueError, match="was begun with another components"):
        runs.train(file, tmp_path / "run", runs.Settings(components=3, batch_key="batch"))


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


def test_study_compares_models_seed_by_seed_and_resumes(cells, tmp_path):
    from mixvae.single_cell import study

    cells.obs["cell_type"], cells.obs["precise_type"] = cells.obs["kind"], cells.obs["donor"]
    listed = [
        study.Job(study.SCVI_NAME, 1, 0),
        study.Job(study.MIXTURE, 2, 0),
        study.Job(study.FROZEN, 2, 0),
        study.Job(study.SCVI_NAME, 1, 1),
        study.Job(study.MIXTURE, 2, 1),
        study.Job(study.UNNORMALISED, 2, 0),
    ]
    settings = {"epochs": 3, "warmup": 2, "draws": 20, "data": cells}
    results = study.run(tmp_path, listed, **settings)
    rows = {(row["model"], row["S"]): row for row in study.table(results)}
    assert set(rows) == {
        ("scvi", 1),
        ("mixture", 2),
        ("frozen", 2),
        ("nobatchnorm", 2),
        *(("samples", s) for s in range(1, 6)),
    }
    gains = [results[1 + 3 * i]["estimate"]["nll_pooled"] - results[3 * i]["estimate"]["nll_pooled"] for i in (0, 1)]
    assert rows["mixture", 2]["pooled_gain"][0] == pytest.approx(-np.mean(gains))
    assert rows["mixture", 2]["pooled_gain"][1] == pytest.approx(np.std(gains, ddof=1) / np.sqrt(2))
    assert rows["scvi", 1]["pooled_gain"][0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(before) == 6
    assert study.run(tmp_path, listed, **settings) == results
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    shutil.rmtree(tmp_path / "scvi-S1-seed0")
    (tmp_path / "frozen-S2-seed0.json").unlink()
    again = study.run(tmp_path, listed, **settings)[2]
    assert again["estimate"] == results[2]["estimate"]
    assert [len(part) for part in study.split(3005)] == [2400, 200, 405]
    assert sorted(np.concatenate(study.split(120))) == list(range(120))


def test_the_experiment_is_reproduced_by_name_on_real_cells(tmp_path):
    from mixvae.files import read_json
    from mixvae.reproduce import reproduce

    found = reproduce("single_cell", "smoke", tmp_path, say=lambda line: None)
    rows = {(row["model"], row["size"]) for row in found.table}
    assert rows == {("scvi", 1), ("mixture", 1), ("mixture", 2), ("frozen", 2), *(("samples", s) for s in range(1, 6))}
    assert all(verdict.holds is None for verdict in found.verdicts)
    assert len(read_json(tmp_path / "results.json")["table"]) == len(rows)


def test_all_models_of_the_paper_are_in_the_study():
    from mixvae.single_cell import study

    names = [job.name for job in study.jobs()]
    assert len(names) == len(set(names)) == 45
    for s in range(1, 6):
        assert sum(name.startswith(f"mixture-S{s}-") for name in names) == (6 if s in (1, 3) else 3)
    assert sum(name.startswith("scvi") for name in names) == 6


def test_cells_are_thinned_in_one_batch_only(cells):
    from mixvae.single_cell import study

    batched = study.with_batches(cells)
    theirs = cells[batched.obs_names]
    whole = (batched.obs["batch"] == "whole").to_numpy()
    assert (batched.X[whole] != theirs.X[whole]).nnz == 0
    assert (batched.X[~whole] > theirs.X[~whole]).nnz == 0
    assert 0.3 < batched.X[~whole].sum() / theirs.X[~whole].sum() < 0.8


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
