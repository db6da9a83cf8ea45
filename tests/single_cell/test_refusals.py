"""What is asked of the wrong cells, run or size is refused in one line; what minified cells can answer, they do."""

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from anndata import AnnData

from mixvae._resources import TooLarge
from mixvae.cli import main
from mixvae.single_cell import MixtureSCANVI, MixtureSCVI, runs
from mixvae.single_cell.runs import Settings

QUIET = {"enable_progress_bar": False, "logger": False}


def cells_of(labels, seed=0):
    counts = np.random.default_rng(seed).poisson(2.0, (len(labels), 12)).astype(np.float32)
    return AnnData(counts, obs=pd.DataFrame({"type": labels}, index=[f"c{i}" for i in range(len(labels))]))


@pytest.fixture(scope="module")
def labelled():
    scvi.settings.seed = 0
    adata = cells_of(["B", "T", "unknown"] * 14)
    MixtureSCANVI.setup_anndata(adata, labels_key="type", unlabeled_category="unknown")
    model = MixtureSCANVI(adata, n_components=3, n_hidden=8, n_latent=2)
    model.train(2, **QUIET)
    return model


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["B", None, "T"] * 4, r"adata.obs\['type'\] has no category for cell 'c1'"),
        (["B", "NK", "T"] * 4, r"is NK for cell 'c1'.* trained on .*B, T.*: give such cells the label 'unknown'"),
    ],
)
def test_unknown_labels_of_a_query_are_refused(labelled, labels, told):
    with pytest.raises(ValueError, match=told):
        MixtureSCANVI.load_query_data(cells_of(labels), labelled)


def test_a_query_with_some_labels_or_without_is_taken(labelled):
    mapped = MixtureSCANVI.load_query_data(cells_of(["T", "unknown"] * 6), labelled)
    assert set(mapped.predict()) <= {"B", "T"}
    query = cells_of(["x"] * 12)
    del query.obs["type"]
    with pytest.warns(UserWarning, match="Missing labels key type"):
        mapped = MixtureSCANVI.load_query_data(query, labelled)
    assert set(mapped.predict()) <= {"B", "T"}


def test_a_query_of_scvi_needs_the_column_of_labels():
    adata = cells_of(["B", "T"] * 10)
    MixtureSCVI.setup_anndata(adata, labels_key="type")
    model = MixtureSCVI(adata, n_components=2, n_hidden=8, n_latent=2)
    model.train(1, **QUIET)
    query = cells_of(["B"] * 10)
    del query.obs["type"]
    with pytest.raises(KeyError, match="adata.obs has no column 'type'"):
        MixtureSCVI.load_query_data(query, model)


@pytest.mark.parametrize("kept", ["latent_posterior_parameters", "latent_posterior_parameters_with_counts"])
def test_minified_cells_are_predicted_as_before(labelled, tmp_path, kept):
    labelled.save(str(tmp_path / "model"), save_anndata=True)
    model = MixtureSCANVI.load(str(tmp_path / "model"))
    before = model.predict(soft=True)
    model.minify_adata(kept)
    after = model.predict(soft=True)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert list(model.predict()) == list(before.columns[before.to_numpy().argmax(1)])
    torch.manual_seed(0)
    drawn = model.predict(soft=True, use_posterior_mean=False)
    np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    cells_of(["B", "T"] * 20).write_h5ad(folder / "cells.h5ad")
    runs.train(folder / "cells.h5ad", folder / "run", Settings(components=2, epochs=1))
    return folder / "run"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN"], ["evaluate", "RUN"], ["report", "RUN"], ["reconstruct", "RUN"],
        ["extend", "RUN", "--components", "3", "--out", "OUT"], ["train", "--resume", "RUN", "--training.epochs", "3"],
        ["train", "digits", "--start.run", "RUN", "--out", "OUT"], ["interpolate", "RUN", "--between", "0", "1"],
    ],
)  # fmt: skip
def test_commands_for_images_point_to_those_for_cells(run, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as end:
        main([{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(word, word) for word in words])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{run} is a run of cells: use `mixvae sc embed {run} FILE.h5ad`" in told
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_fit_is_not_built(run):
    with pytest.raises(TooLarge, match="latent size 1000000000 needs at least .* give fewer components or a smaller"):
        runs.train(run.parent / "cells.h5ad", run.parent / "large", Settings(components=2, latent=10**9))
    assert not (run.parent / "large").exists()
