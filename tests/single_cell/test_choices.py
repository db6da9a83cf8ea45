"""What a call chooses among cells, labels and groups, and counts that change after they were checked."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scanpy
import scipy.sparse as sp

from conftest import refused
from mixvae.single_cell import MixtureSCANVI, MixtureSCVI, read_cells, runs
from mixvae.single_cell.data import BLOCK, BLOCKS

from .conftest import make


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("change", [scanpy.pp.normalize_total, scanpy.pp.log1p])
def test_counts_changed_in_place_are_refused_afterwards(cells, change):
    cells.X = cells.X.copy()
    model = make(cells, epochs=1)
    change(cells)
    for ask in (
        lambda: model.train(1), model.get_latent_representation, lambda: model.get_bounds(n_mc_samples=3),
        model.get_elbo, model.get_responsibilities,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must hold counts") as error:
            ask()
        one_line(error)


def test_an_empty_cell_beyond_the_sample_is_found(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (2 * BLOCKS * BLOCK, 5)).astype(np.float32) + 1
    counts[100] = 0
    scanpy.AnnData(sp.csr_matrix(counts)).write_h5ad(tmp_path / "cells.h5ad")
    atlas = read_cells([tmp_path / "cells.h5ad"], backed=True)
    MixtureSCVI.setup_anndata(atlas)
    model = MixtureSCVI(atlas, n_components=2, n_hidden=4, n_latent=2)
    model.is_trained_ = True
    for ask in (lambda: model.train(1), model.get_latent_representation, lambda: model.get_bounds(indices=[100])):
        with pytest.raises(ValueError, match="cell '100' has no counts in adata.X") as error:
            ask()
        one_line(error)
    normal = MixtureSCVI(atlas, n_components=2, n_hidden=4, n_latent=2, gene_likelihood="normal")
    normal.is_trained_ = True
    assert np.isfinite(normal.get_latent_representation()).all()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "choose no cells"), (np.zeros(120, bool), "choose no cells"), (np.array(5), "must be a list"),
        (np.array(["cell3"]), "whole numbers or by a mask; got .*cell3"), ([1000], "from 0 to 119; got 1000"),
        ([-121], "from 0 to 119; got -121"), ([True] * 119, "each of the 120 cells; got .119"),
        (np.ones(121, bool), "each of the 120 cells"), (np.array([1.5]), "whole numbers"),
        (np.array([[1, 2]]), "must be a list"),
    ],
)  # fmt: skip
def test_indices_that_choose_no_cells_are_refused(trained, indices, message):
    for ask in (
        trained.get_latent_representation, trained.get_elbo, trained.get_normalized_expression,
        trained.get_responsibilities, lambda indices: trained.get_bounds(indices=indices, n_mc_samples=3),
        lambda indices: trained.get_latent_representation(indices=indices, components=True),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            ask(indices=indices)
        one_line(error)


def test_numbers_and_masks_choose_the_same_cells(trained):
    mask = np.arange(120) % 7 == 0
    whole = trained.get_latent_representation()
    for indices in (mask, mask.tolist(), np.flatnonzero(mask) - 120, range(0, 120, 7)):
        np.testing.assert_allclose(trained.get_latent_representation(indices=indices), whole[mask], rtol=1e-5)


def test_a_mistyped_label_of_unlabelled_cells_is_warned_of(cells):
    with pytest.warns(UserWarning, match="no cell has the unlabeled_category 'dendriic'.*did you mean 'dendritic'"):
        MixtureSCANVI.setup_anndata(cells, labels_key="kind", unlabeled_category="dendriic")


@pytest.mark.parametrize("labels", ["unknown", ["unknown", "B"] * 60, ["B"] * 120])
def test_labels_that_leave_nothing_to_tell_apart_are_refused(cells, labels):
    cells.obs["kind"] = labels
    with pytest.raises(
        ValueError, match=r"needs two labels or more; adata.obs\['kind'\] has (B|none) besides"
    ) as error:
        MixtureSCANVI.setup_anndata(cells, labels_key="kind", unlabeled_category="unknown")
    one_line(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groupby": "batch", "group1": "zz"}, r"obs\['batch'\] has no group 'zz': it has"),
        ({"groupby": "batch", "group1": ["a"], "group2": "bb"}, "no group 'bb'"),
        ({"groupby": "bach"}, "has no column 'bach': did you mean 'batch'"),
        ({"idx1": []}, "choose no cells"), ({"idx1": [3], "idx2": [500]}, "from 0 to 119"), ({}, "what to compare"),
    ],
)  # fmt: skip
def test_groups_that_are_not_there_are_refused(trained, options, message):
    with pytest.raises(ValueError, match=message) as error:
        trained.differential_expression(**options)
    one_line(error)


def test_counts_that_anndata_left_on_disk_are_not_summed(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model = make(scanpy.read_h5ad(tmp_path / "cells.h5ad", backed="r"), epochs=0)
    model.is_trained_ = True
    with pytest.raises(ValueError, match=r"read_cells\(\[file\], backed=True\)"):
        model.differential_expression(groupby="batch")


def test_a_vamp_prior_is_loaded_for_few_cells(cells, tmp_path):
    setup = {"batch_key": "batch"}
    model = make(cells, setup=setup, epochs=1, prior="vamp", n_prior_components=50)
    model.save(str(tmp_path / "model"))
    few = cells[:20].copy()
    loaded = MixtureSCVI.load(str(tmp_path / "model"), few)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation()[:20], rtol=1e-4, atol=1e-5
    )
    few = cells[:20].copy()
    few.obs["batch"] = "new"
    query = MixtureSCVI.load_query_data(few, model)
    assert query.module.prior.raw_inputs.equal(model.module.prior.raw_inputs)
    with pytest.raises(ValueError, match="50 pseudo-inputs begin as cells, of which there are 20"):
        make(cells[:20].copy(), prior="vamp", n_prior_components=50)


def test_queries_name_new_batches_and_missing_columns(cells, trained):
    cells.obs["batch"] = "zzz"
    with pytest.raises(ValueError, match=r"adata.obs\['batch'\] is zzz for cell .* trained on a, b"):
        trained.get_latent_representation(cells)
    cells.obs["batch"] = ["a"] + ["b"] * 119
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*fewer than 3 cells")
        trained.get_latent_representation(cells[:5].copy())
    del cells.obs["kind"]
    with pytest.raises(ValueError, match="has no column 'kind'"):
        trained.get_latent_representation(cells)


def test_texts_for_a_batch_that_was_numbers_are_named(cells):
    cells.obs["batch"] = [1, 2] * 60
    model = make(cells, setup={"batch_key": "batch"}, epochs=1)
    query = cells.copy()
    query.obs["batch"] = query.obs["batch"].astype(str)
    with pytest.raises(ValueError, match=r"\['batch'\] is '1' for cell .* trained on 1, 2: make them int"):
        model.get_latent_representation(query)


def test_genes_that_a_query_lacks_are_warned_of(cells, trained):
    query = cells[:, 5:].copy()
    with pytest.raises(ValueError, match="with counts of 0 for every gene that it lacks"):
        trained.get_latent_representation(query)
    with pytest.warns(UserWarning, match="these cells lack 5 of the model's 60 genes"):
        MixtureSCVI.prepare_query_anndata(query, trained)
    assert query.n_vars == 60


def test_draws_and_sources_of_bounds_are_checked(trained):
    for draws in (0, -3, True):
        with pytest.raises(ValueError, match="n_mc_samples must be a whole number, at least 1"):
            trained.get_bounds(n_mc_samples=draws)
    batches = list(trained._make_data_loader(adata=trained.adata))
    for options in ({"adata": trained.adata}, {"indices": [3]}):
        for ask in (trained.get_bounds, lambda **given: trained.get_latent_representation(components=True, **given)):
            with pytest.raises(ValueError, match="give one or the other"):
                ask(dataloader=batches, **options)


@pytest.mark.parametrize("backed", [False, True])
def test_texts_and_numbers_in_one_column_are_refused(cells, tmp_path, backed):
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for file, rows, values in zip(files, (slice(70), slice(70, None)), (7, "x"), strict=True):
        part = cells[rows].copy()
        part.obs["site"] = values
        part.write_h5ad(file)
    settings = runs.Settings(components=2, batch_key="site", latent=2, epochs=1)
    message = r"obs\['site'\] holds texts and numbers: 'x' for cell .*, and 7 for .* make it texts in every file"
    with pytest.raises(ValueError, match=message) as error:
        runs.train(files, tmp_path / "run", settings, backed=backed)
    one_line(error)
    runs.train(files, tmp_path / "run", replace(settings, batch_key=None), backed=backed)
    with pytest.raises(ValueError, match=message):
        runs.embed(tmp_path / "run", files, tmp_path / "out.h5ad", backed=backed)
    assert not (tmp_path / "out.h5ad").exists()


def test_a_column_named_twice_is_refused(tmp_path):
    for settings in (
        runs.Settings(continuous_covariate_keys=("size", "size")),
        runs.Settings(batch_key="donor", categorical_covariate_keys=("donor",)),
    ):
        with pytest.raises(ValueError, match="is named twice among batch and covariates"):
            runs.train(tmp_path / "no.h5ad", tmp_path / "run", settings)


def test_command_line_names_a_swapped_run_and_an_empty_out(cells, tmp_path, capsys):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert "takes the run first" in refused(capsys, "sc", "embed", tmp_path / "cells.h5ad", tmp_path / "run")
    for words in (["train", tmp_path / "cells.h5ad"], ["embed", tmp_path / "run", tmp_path / "cells.h5ad"]):
        assert "--out must be the name of" in refused(capsys, "sc", *words, "--out", "")
