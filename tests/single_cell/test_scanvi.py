"""scANVI with a mixture of encoders: labels, surgery, and what is loaded again."""

import numpy as np
import pytest
import scvi
from scvi.model import SCVI

from mixvae.single_cell import MixtureSCANVI, MixtureSCVI

from .conftest import QUIET, make


@pytest.fixture
def half(cells):
    """Cells of which every other has its label."""
    cells.obs["seen"] = np.where(np.arange(len(cells)) % 2, cells.obs["kind"].astype(str), "unknown")
    return cells


SETUP = {"batch_key": "batch", "labels_key": "seen"}


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
    _, model = labelled(half, 60, 100)
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
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=6))
    assert np.isfinite(model.get_elbo())
    assert len(model.differential_expression(groupby="kind", group1="other")) == half.n_vars
    half.obsm["X_latent_qzm"], half.obsm["X_latent_qzv"] = model.get_latent_representation(return_dist=True)
    model.minify_adata()
    assert np.allclose(model.get_latent_representation(), half.obsm["X_latent_qzm"])


def test_what_scanvi_cannot_begin_with_is_refused(half):
    plain = make(half, SCVI, setup=SETUP)
    with pytest.raises(ValueError, match="takes a MixtureSCVI; got a SCVI"):
        MixtureSCANVI.from_scvi_model(plain, "unknown")
    vamp = make(half, setup=SETUP, prior="vamp", n_prior_components=5)
    with pytest.raises(ValueError, match="a prior that labels make"):
        MixtureSCANVI.from_scvi_model(vamp, "unknown")
    frozen = MixtureSCVI.from_scvi_model(plain, n_components=2, freeze_decoder=True)
    with pytest.raises(ValueError, match="freeze_decoder"):
        MixtureSCANVI.from_scvi_model(frozen, "unknown")
