"""What code written for scvi-tools' SCVI relies on: signatures, errors, minified data, cells that are not in memory."""

import inspect

import anndata
import numpy as np
import pytest
import torch
from anndata.experimental import AnnCollection
from mudata import MuData
from scipy.sparse import csr_array, csr_matrix
from scvi.dataloaders import CollectionAdapter, DataSplitter
from scvi.model import SCVI
from scvi.module import VAE

from mixvae.single_cell import MixtureSCVI, distinguishing_genes
from mixvae.single_cell.data import BLOCK, BLOCKS, MissingKey, check_counts, check_setup

from .conftest import QUIET, batch_of, make
from .test_module import IDS, KINDS, SETUPS

WITH_COUNTS = "latent_posterior_parameters_with_counts"
METHODS = [name for name, value in inspect.getmembers(SCVI, inspect.isroutine) if not name.startswith("_")]
OTHER_DEFAULTS = {"minify_adata"}
"""Methods whose defaults differ: the keys of minified data, which are computed unless they are named."""


def draws(model, **kwargs):
    """Parameters of the likelihood at draws of a fixed seed."""
    torch.manual_seed(5)
    return model.get_likelihood_parameters(**kwargs)


def take_away(cells, column):
    values = cells.obs[column].astype(object)
    values.iloc[[3, 7]] = None
    cells.obs[column] = values.astype(float) if column == "size" else values.astype("category")


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_arguments_have_the_places_they_have_in_scvi(name):
    theirs = [
        p for p in inspect.signature(getattr(SCVI, name)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    ours = inspect.signature(getattr(MixtureSCVI, name))
    bound = ours.bind(*[p.name for p in theirs]).arguments  # every value is the name of its place
    assert all(key == value for key, value in bound.items() if key != "args")
    ours.bind(**{p.name: p.name for p in theirs})
    for p in theirs:
        if p.name in ours.parameters and name not in OTHER_DEFAULTS:
            assert ours.parameters[p.name].default == p.default


def test_architecture_is_recorded_with_its_defaults(cells):
    theirs, ours = make(cells, SCVI, epochs=0).init_params_, make(cells, epochs=0).init_params_
    assert ours["kwargs"] == theirs["kwargs"]
    assert theirs["non_kwargs"].items() < ours["non_kwargs"].items()
    assert MixtureSCVI(cells, None, 7, 2, 2).init_params_["non_kwargs"]["n_layers"] == 2


@pytest.mark.parametrize(("setup", "kwargs"), KINDS, ids=IDS)
def test_encoders_are_scvis_and_take_no_draw(cells, setup, kwargs):
    model = make(cells, setup=SETUPS[setup], epochs=1, **kwargs)
    inputs = model.module._get_inference_input(batch_of(model, range(20)))
    before = torch.get_rng_state()
    with torch.no_grad():
        qz = VAE._regular_inference(model.module, **inputs)["qz"]
        if model.module.use_observed_lib_size:
            assert torch.equal(torch.get_rng_state(), before)
        for s in range(3):
            normal = model.as_scvi(s).module.inference(**inputs)["qz"]
            torch.testing.assert_close(qz.means[:, s], normal.loc)
            torch.testing.assert_close(qz.scales[:, s], normal.scale)


@pytest.mark.parametrize("n_samples", [1, 4])
def test_minified_cells_have_the_draws_of_their_counts(cells, n_samples):
    model = make(cells, setup={"batch_key": "batch"})
    before = draws(model, n_samples=n_samples)
    model.minify_adata()
    for name, values in draws(model, n_samples=n_samples).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-4, atol=1e-6)


def test_minified_expression_is_that_of_a_loop_of_plain_scvi(cells):
    """The mean over draws: components by a loop, noise by NumPy, decoded by scvi-tools' own module."""
    model = make(cells, setup={"batch_key": "batch"}, epochs=20)
    means, variances = model.get_latent_representation(components=True)
    total, batches = np.asarray(cells.X.sum(1)).ravel(), (cells.obs["batch"] == "b").to_numpy(int)
    decoder, generator, n = model.as_scvi(0).module, np.random.default_rng(0), 600
    parts = []
    for _ in range(n // 3):
        for s in range(3):  # stratified: each component has a third of the draws
            z = means[:, s] + np.sqrt(variances[:, s]) * generator.standard_normal(means[:, s].shape)
            given = (z.astype(np.float32), np.log(total)[:, None].astype(np.float32), batches[:, None])
            with torch.no_grad():
                parts.append(decoder.generative(*map(torch.from_numpy, given))["px"].mu.numpy())
    expected, spread = np.mean(parts, 0), np.std(parts, 0)
    model.minify_adata()
    found = np.asarray(draws(model, n_samples=n, give_mean=True)["mean"])
    score = (found - expected) / (spread * np.sqrt(2 / n))
    assert np.abs(score).max() < 6
    assert (score**2).mean() < 1.3, "1 but for draws that genes share: 7200 scores of 360 latents"


def test_moments_of_the_mixture_may_be_kept(cells):
    model = make(cells, setup={"batch_key": "batch"})
    mean, variance = model.get_latent_representation(return_dist=True)
    cells.obsm["X_latent_qzm"], cells.obsm["X_latent_qzv"] = mean, variance
    with pytest.warns(UserWarning, match="the moments of the mixture is kept instead of its 3 components"):
        model.minify_adata(use_latent_qzm_key="X_latent_qzm", use_latent_qzv_key="X_latent_qzv")
    for found, kept in zip(model.get_latent_representation(return_dist=True), (mean, variance), strict=True):
        np.testing.assert_allclose(found, kept, rtol=1e-5)
    assert model.get_latent_representation(components=True)[0].shape == (120, 1, 3)
    with torch.no_grad():
        z = model.module.inference(**model.module._get_inference_input(batch_of(model)), n_samples=400)["z"].numpy()
    assert (np.abs(z.mean(0) - mean) < 6 * np.sqrt(variance / 400)).all()
    assert abs(z.var(0).mean() / variance.mean() - 1) < 0.1
    with pytest.raises(ValueError, match="only moments of the mixture were kept"):
        distinguishing_genes(model, shares=np.full((120, 3), 1 / 3))


def test_bounds_stay_as_counts_are_kept_with_minified_data(cells):
    model = make(cells, setup={"batch_key": "batch"})
    made = {"n_mc_samples": 30, "indices": range(20)}
    before, shares = model.get_bounds(**made), model.get_responsibilities(key_added=None)
    model.minify_adata(WITH_COUNTS)
    after = model.get_bounds(**made)
    for name in ("log_px", "elbo", "miselbo", "pooled"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=2e-3)
    np.testing.assert_allclose(model.get_responsibilities(key_added=None), shares, atol=1e-4)


def test_cells_without_counts_are_loaded_only_to_be_minified(cells, tmp_path):
    model = make(cells, setup={"batch_key": "batch"})
    model.save(str(tmp_path / "model"))
    bare = cells.copy()
    bare.obsm["_scvi_latent_qzm"], bare.obsm["_scvi_latent_qzv"] = model.get_latent_representation(return_dist=True)
    bare.X = csr_matrix(bare.shape, dtype=np.float32)
    loaded = MixtureSCVI.load(str(tmp_path / "model"), bare, accelerator="cpu")
    for used in (loaded.get_latent_representation, loaded.train):
        with pytest.raises(ValueError, match="has no counts"):
            used()
    with pytest.warns(UserWarning, match="have no counts, so their library sizes are kept as 0"):
        loaded.minify_adata(use_latent_qzm_key="_scvi_latent_qzm", use_latent_qzv_key="_scvi_latent_qzv")
    np.testing.assert_allclose(loaded.get_latent_representation(), model.get_latent_representation(), rtol=1e-5)


def test_mean_of_a_likelihood_is_a_number_of_numpy(trained):
    found = trained.get_marginal_ll(indices=[1, 2], n_mc_samples=3)
    assert isinstance(found, np.float64)
    each = trained.get_marginal_ll(indices=[1, 2], n_mc_samples=3, return_mean=False)
    assert found == pytest.approx(float(each.double().mean()), rel=1e-9)


def test_a_model_without_cells_is_made_by_its_data_module(cells):
    MixtureSCVI.setup_anndata(cells, batch_key="batch")
    module = DataSplitter(MixtureSCVI._get_most_recent_anndata_manager(cells), batch_size=40)
    module.n_vars, module.n_batch = cells.n_vars, 2
    with pytest.warns(UserWarning, match="initialized without `adata`"):
        model = MixtureSCVI(n_components=3, n_hidden=8, n_latent=2)
    assert model.module is None
    with pytest.raises(AttributeError):
        model.train()
    with pytest.raises(ValueError, match="`max_epochs` must be passed in"):
        model.train(datamodule=module)
    model.train(2, datamodule=module, **QUIET)
    assert model.module.n_components == 3
    module.setup("fit")
    assert model.get_latent_representation(dataloader=module.train_dataloader()).shape == (108, 2)
    with pytest.raises(ValueError, match="was made without cells"):
        model.get_latent_representation(cells)


def test_cells_on_disk_are_taken_as_those_in_memory(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model = make(cells, setup={"batch_key": "batch"})
    backed = make(anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+"), setup={"batch_key": "batch"})
    backed.module.load_state_dict(model.module.state_dict())
    np.testing.assert_allclose(backed.get_latent_representation(), model.get_latent_representation(), atol=1e-5)
    made = {"indices": range(5), "n_mc_samples": 30, "return_mean": False}
    np.testing.assert_allclose(backed.get_marginal_ll(**made), model.get_marginal_ll(**made), atol=2e-3)


@pytest.mark.parametrize("wrong", [None, "first", "last"])
def test_counts_on_disk_are_read_in_part(wrong):
    asked, cells = [], 200_000

    class Disk:
        def __getitem__(self, rows):
            asked.append(rows)
            block = np.ones((rows.stop - rows.start, 5), dtype=np.float32)
            if wrong is not None and (rows.start == 0) == (wrong == "first") and rows.stop in (BLOCK, cells):
                block[-1 if wrong == "last" else 0, 2] = 0.5
            return csr_matrix(block)

    class OnDisk(anndata.AnnData):
        isbacked = True

    adata = OnDisk(shape=(cells, 5))
    if wrong is None:
        check_counts(adata, Disk(), "raw")
        assert sum(rows.stop - rows.start for rows in asked) == BLOCKS * BLOCK
        assert asked[-1].stop == cells
    else:
        with pytest.raises(ValueError, match=r"adata.layers\['raw'\] must hold counts.*got 0.5"):
            check_counts(adata, Disk(), "raw")


def test_a_collection_of_cells_is_taken_like_an_anndata(cells):
    parts = [cells[:60].copy(), cells[60:].copy()]
    collection = CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner", label="part"))
    with pytest.raises(ValueError, match="no layer 'count': did you mean 'counts'"):
        MixtureSCVI.setup_anndata(collection, layer="count")
    model = make(collection, setup={"layer": "counts", "batch_key": "part"})
    assert model.get_latent_representation().shape == (120, 3)
    parts[1].layers["counts"].data[-1] = 0.5
    MixtureSCVI.setup_anndata(collection, layer="counts")
    with pytest.raises(ValueError, match="got 0.5"):
        MixtureSCVI(collection)


def test_a_missing_column_is_a_key_error_with_plain_words(cells):
    with pytest.raises(KeyError) as caught:
        MixtureSCVI.setup_anndata(cells, batch_key="bach")
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == "adata.obs has no column 'bach': did you mean 'batch'?"
    model = make(cells, setup={"batch_key": "batch"})
    other = cells.copy()
    del other.obs["batch"]
    with pytest.raises(MissingKey):
        model.adata = other


def test_another_number_of_components_is_not_loaded(cells, tmp_path):
    make(cells, SCVI).save(str(tmp_path / "plain"))
    with pytest.raises(ValueError, match="a model of another class than MixtureSCVI: .* MixtureSCVI.from_scvi_model"):
        MixtureSCVI.load(str(tmp_path / "plain"), cells, accelerator="cpu")
    with pytest.raises(ValueError, match="leave n_components out"):
        MixtureSCVI.load(str(tmp_path / "plain"), cells, n_components=4)


@pytest.mark.parametrize(
    ("spoil", "setup", "message"),
    [
        (
            lambda a: take_away(a, "batch"),
            {"batch_key": "batch"},
            r"obs\['batch'\] has no category for cell '.*' \(and 1",
        ),
        (lambda a: take_away(a, "kind"), {"labels_key": "kind"}, r"obs\['kind'\] has no category"),
        (lambda a: take_away(a, "donor"), {"categorical_covariate_keys": ["donor"]}, "name one for them"),
        (lambda a: take_away(a, "size"), {"size_factor_key": "size"}, r"obs\['size'\] has no finite number for cell"),
        (lambda a: take_away(a, "size"), {"continuous_covariate_keys": ["size"]}, r"\(and 1 more\): fill it in"),
        (lambda a: None, {"continuous_covariate_keys": ["donor"]}, "must hold numbers; got .*: name it in categorical"),
        (lambda a: setattr(a, "X", csr_array(a.X)), {}, r"adata.X is a sparse array.*adata.X = csr_matrix\(adata.X\)"),
    ],
)
def test_cells_that_cannot_be_set_up_are_refused(cells, spoil, setup, message):
    spoil(cells)
    with pytest.raises(ValueError, match=message) as error:
        MixtureSCVI.setup_anndata(cells, **setup)
    assert "\n" not in str(error.value)


def test_parts_of_multimodal_data_are_asked_for(cells):
    with pytest.raises(
        ValueError, match=r"must be an AnnData; got a MuData: pass one of its parts, mdata.mod\['rna'\]"
    ):
        check_setup(MuData({"rna": cells}), [], [], None)


def test_genes_of_the_same_name_are_warned_of(cells):
    cells.var_names = [*cells.var_names[:-1], cells.var_names[0]]
    with pytest.warns(UserWarning, match=f"several genes are named '{cells.var_names[0]}'"):
        MixtureSCVI.setup_anndata(cells)


def test_a_training_without_validation_is_refused_as_by_scvi(cells):
    model = make(cells, epochs=0)
    with pytest.raises(ValueError, match="no validation set"):
        model.train(1, train_size=1.0, early_stopping=True, **QUIET)
