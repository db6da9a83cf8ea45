"""Runs of cells on the hub: without pickle, without paths, and with a word on scvi.hub."""

import json

import anndata
import numpy as np
import pytest
import yaml

pytest.importorskip("huggingface_hub")

from conftest import refused  # noqa: E402
from hub_server import at_hub, serving  # noqa: E402
from mixvae.cli import main  # noqa: E402
from mixvae.runs import open_run  # noqa: E402
from mixvae.single_cell import MixtureSCVI, runs  # noqa: E402

REPO = "ada/cells"
KEYS = {"batch_key": "batch", "categorical_covariate_keys": ("donor",)}


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An empty hub."""
    with serving() as server:
        at_hub(monkeypatch, server.url, tmp_path)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def finished(cells, tmp_path):
    """A run of cells in a folder whose name nobody should see."""
    (folder := tmp_path / "home-of-ada").mkdir()
    cells.write_h5ad(folder / "mine.h5ad")
    runs.train(folder / "mine.h5ad", folder / "run", runs.Settings(components=2, latent=3, epochs=1, **KEYS))
    return folder / "run"


def test_pulled_cells_are_embedded_as_before(at, finished, cells, tmp_path, capsys):
    main(["push", str(finished), REPO, "--license=mit"])
    main(["pull", REPO])
    assert "runs/cells: ada/cells at commit" in capsys.readouterr().out
    main(["sc", "embed", "runs/cells", str(tmp_path / "home-of-ada" / "mine.h5ad"), "--out=embedded.h5ad"])
    embedded = anndata.read_h5ad("embedded.h5ad")
    latents = runs.load(finished, cells).get_latent_representation()
    np.testing.assert_array_equal(embedded.obsm[runs.LATENT_KEY], latents)
    assert open_run("runs/cells").recipe.sha256 == open_run(finished).recipe.sha256


def test_cells_are_embedded_by_a_run_on_the_hub(at, finished, cells, tmp_path):
    main(["push", str(finished), REPO, "--license=mit"])
    runs.embed(f"hub://{REPO}", tmp_path / "home-of-ada" / "mine.h5ad", "embedded.h5ad")
    latents = runs.load(f"hub://{REPO}@main", cells).get_latent_representation()
    np.testing.assert_array_equal(anndata.read_h5ad("embedded.h5ad").obsm[runs.LATENT_KEY], latents)


def test_the_card_of_cells_has_no_paths_and_a_command(at, finished):
    main(["push", str(finished), REPO, "--license=mit"])
    files = at.repos[REPO].files
    assert set(files) == {".gitattributes", "README.md", "model.safetensors", "run.json"}
    assert all(word not in b"".join(files.values()) for word in (b"home-of-ada", finished.parents[1].name.encode()))
    assert json.loads(files["run.json"])["runtime"]["data"]["name"] == "mine.h5ad"
    text = files["README.md"].decode()
    assert yaml.safe_load(text.split("---\n")[1])["tags"][-1] == "single-cell"
    assert (
        "mixvae sc train mine.h5ad --batch-key batch --categorical-covariates donor --components 2 --latent 3 "
        "--likelihood zinb --epochs 1 --patience 45 --seed 0"
    ) in text
    assert "scvi.hub does not open it" in text


def test_categories_that_look_like_paths_stay(at, cells, tmp_path):
    cells.obs["batch"] = np.where(cells.obs["batch"] == "a", "/a/b", "~/c +/+")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    runs.train(tmp_path / "cells.h5ad", "run", runs.Settings(components=1, latent=2, epochs=1, batch_key="batch"))
    main(["push", "run", REPO, "--license=mit"])
    main(["pull", REPO])
    assert open_run("runs/cells").manifest["model"] == open_run("run").manifest["model"]
    assert isinstance(runs.load("runs/cells", cells), MixtureSCVI)


def test_a_baseline_of_cells_is_refused(at, finished, capsys):
    error = refused(capsys, "push", finished, REPO, "--license=mit", "--baseline", finished)
    assert "which runs of cells do not have: leave it out" in error


def test_the_hub_of_scvi_tools_knows_no_mixture(cells):
    """What docs/hub.md says of scvi-tools: its cards are of a closed list of classes."""
    from scvi.hub import HubModelCardHelper

    with pytest.raises(ValueError, match="Model class name MixtureSCVI not recognized"):
        HubModelCardHelper("mit", "MixtureSCVI", {"non_kwargs": {}, "kwargs": {}}, {}, {}, {}, "1.4.2", "0.12")
