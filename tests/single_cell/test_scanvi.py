"""scANVI with a mixture of encoders: labels, surgery, and what is loaded again."""

import numpy as np
import pytest
import scvi
from scvi.model import SCANVI, SCVI

from mixvae.single_cell import MixtureSCANVI, MixtureSCVI, bounds, diagnose
from mixvae.single_cell.data import MissingKey
from mixvae.single_cell.loading import LabelSplitter

from .conftest import QUIET, make


@pytest.fixture
def half(cells):
    """Cells of which every other has its label."""
    cells.obs["seen"] = np.where(np.arange(len(cells)) % 2, cells.obs["kind"].astype(str), "unknown")
    return cells


SETUP = {"batch_key": "batch", "labels_key": "seen"}
CHOSEN = [np.array([1, *range(0, 120, 2)]), np.arange(3, 120, 2), np.array([], int)]
"""All cells without labels and one with, and the others to validate."""


def labelled(half, epochs=20, before=40):
    scvi.settings.seed = 0
    start = make(half, setup=SETUP, epochs=before)
    model = MixtureSCANVI.from_scvi_model(start, "unknown")
    if epochs:
        model.train(epochs, train_size=1.0, batch_size=60, **QUIET)
    return start, model


def test_a_trained_mixture_begins_with_all_its_encoders(half):
    start, model = labelled(half, epochs=0)
    assert model.module.n_components == 3
    before, after = start.module.state_dict(), model.module.state_dict()
    shared = [name for name in before if name in after]
    assert all((before[name] == after[name]).all() for name in shared)
    assert {name.split(".")[1] for name in shared if name.startswith("z_encoder")} == {"c0", "c1", "c2"}


def test_labels_that_were_hidden_are_predicted(half):
    _, model = labelled(half, 40, 60)
    hidden = (half.obs["seen"] == "unknown").to_numpy()
    accuracy = (model.predict() == half.obs["kind"].to_numpy())[hidden].mean()
    assert accuracy > 0.75  # the larger class is 63 %
    soft = model.predict(soft=True)
    assert list(soft.columns) == ["dendritic", "other"]
    assert np.allclose(soft.sum(1), 1, atol=1e-5)
    assert (soft.to_numpy().argmax(1) == np.searchsorted(soft.columns, model.predict())).all()


def test_queries_are_mapped_onto_a_labelled_reference(half, tmp_path):
    _, model = labelled(half[:80].copy())
    query = half[80:].copy()
    query.obs["seen"] = "unknown"
    query.obs["batch"] = "c"
    mapped = MixtureSCANVI.load_query_data(query, model)
    mapped.train(3, batch_size=40, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    assert set(mapped.predict()) <= {"dendritic", "other"}
    for name, parameter in model.module.z_encoder.state_dict().items():
        if name.endswith("mean_encoder.weight"):
            assert (mapped.module.z_encoder.state_dict()[name] == parameter).all(), "surgery leaves the reference alone"
    mapped.save(tmp_path / "mapped")
    again = MixtureSCANVI.load(str(tmp_path / "mapped"), query)
    assert (again.predict() == mapped.predict()).all()


def test_the_other_queries_of_scanvi_are_answered(half):
    _, model = labelled(half, epochs=3)
    assert model.get_latent_representation().shape == (120, 3)
    assert model.get_normalized_expression(n_samples=2).shape == half.shape
    assert np.isfinite(model.get_elbo())
    assert len(model.differential_expression(groupby="kind", group1="other")) == half.n_vars
    assert diagnose(model).responsibilities.shape == (120, 3)
    means, variances = model.get_latent_representation(components=True)
    assert means.shape == variances.shape == (120, 3, 3)
    kept = model.get_latent_representation(), model.predict(soft=True)
    model.minify_adata()
    assert model.adata.obsm[model._LATENT_QZM_KEY].shape == (120, 9)
    assert np.allclose(model.get_latent_representation(), kept[0], atol=1e-6)
    assert np.allclose(model.get_latent_representation(components=True)[0], means, atol=1e-6)


def test_bounds_of_scanvi_are_keyed_and_tight(half):
    """The headline lies above every bound of the encoders' draws, and batches do not matter."""
    start, model = labelled(half, epochs=3)
    found = model.get_bounds(n_mc_samples=600)
    assert (found.pareto_k < 0.7).mean() > 0.9
    assert found.log_px.mean() > found.pooled.mean() > found.miselbo.mean() > found.elbo.mean()
    again = model.get_bounds(n_mc_samples=600, batch_size=7, indices=[3, 50, 80])
    for name in ("log_px", "elbo", "pooled"):
        assert np.allclose(getattr(again, name), getattr(found, name)[[3, 50, 80]], atol=1e-3), name
    assert model.get_marginal_ll(n_mc_samples=600) == found.log_px.mean(dtype=np.float64)
    plain = SCANVI.from_scvi_model(start.as_scvi(0), "unknown")
    plain.is_trained_ = True
    assert np.isfinite(bounds(plain, n_mc_samples=6).log_px).all()


def test_what_cannot_be_set_up_is_refused_as_for_scvi(half):
    with pytest.raises(MissingKey, match="sene.*did you mean 'seen'"):
        MixtureSCANVI.setup_anndata(half, labels_key="sene", unlabeled_category="unknown")
    half.obs["seen"] = half.obs["seen"].where(np.arange(120) > 0)
    with pytest.raises(ValueError, match="seen"):
        MixtureSCANVI.setup_anndata(half, labels_key="seen", unlabeled_category="unknown")
    half.obs["seen"] = half.obs["seen"].fillna("unknown")
    half.layers["logged"] = np.log1p(half.X)
    MixtureSCANVI.setup_anndata(half, "seen", "unknown", layer="logged")
    with pytest.raises(ValueError, match="logged"):
        MixtureSCANVI(half, n_components=2)


def test_what_scanvi_cannot_begin_with_is_refused(half):
    plain = make(half, SCVI, setup=SETUP)
    with pytest.raises(ValueError, match="takes a MixtureSCVI; got a SCVI"):
        MixtureSCANVI.from_scvi_model(plain, "unknown")
    vamp = make(half, setup=SETUP, prior="vamp", n_prior_components=5)
    with pytest.raises(ValueError, match="a prior made of labels"):
        MixtureSCANVI.from_scvi_model(vamp, "unknown")
    frozen = MixtureSCVI.from_scvi_model(plain, n_components=2, freeze_decoder=True)
    with pytest.raises(ValueError, match="freeze_decoder"):
        MixtureSCANVI.from_scvi_model(frozen, "unknown")


@pytest.mark.parametrize(("batch", "per_label"), [(59, None), (7, None), (119, None), (5, 3)])
def test_a_batch_of_one_cell_is_left_out(half, batch, per_label):
    _, model = labelled(half, epochs=0, before=1)
    model.train(2, train_size=1.0, batch_size=batch, n_samples_per_label=per_label, **QUIET)
    labels = 60 if per_label is None else 2 * per_label
    splitter = LabelSplitter(model.adata_manager, train_size=1.0, batch_size=batch, n_samples_per_label=per_label)
    splitter.setup()
    loader = splitter.train_dataloader()
    for _ in range(2):
        sizes = [[len(cells["X"]) for cells in part] for part in loader.dataloaders]
        assert [sum(of_each) for of_each in sizes] == [n - (n % batch == 1) for n in (120, labels)]
        assert min(map(min, sizes)) > 1
        loader.resample_labels()


def test_one_labelled_cell_is_refused(half):
    _, model = labelled(half, epochs=0, before=1)
    with pytest.raises(ValueError, match="one labelled cell, is left to train on"):
        model.train(1, train_size=0.9, datasplitter_kwargs={"external_indexing": CHOSEN}, **QUIET)
