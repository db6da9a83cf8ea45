"""MixtureSCVI as its user meets it: every method of SCVI, on real cells."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scanpy
import scvi
import torch
from scipy.sparse import csr_matrix
from scvi.model import SCANVI, SCVI

from mixvae.single_cell import MixtureSCVI, cortex, diagnose, distinguishing_genes, integration_scores, queries

from .conftest import QUIET, batch_of, make
from .test_module import IDS, KINDS, SETUPS


def empty(cells, *rows):
    """Take all counts of some cells away."""
    counts = cells.X.toarray()
    counts[list(rows)] = 0
    cells.X = csr_matrix(counts)


@pytest.mark.parametrize(("setup", "kwargs"), KINDS, ids=IDS)
def test_queries_work_with_any_covariate_likelihood_dispersion(cells, setup, kwargs):
    model = make(cells, setup=SETUPS[setup], **kwargs)
    some = np.arange(30)
    assert model.get_latent_representation().shape == (120, 3)
    assert model.get_latent_representation(give_mean=False, indices=some).shape == (30, 3)
    assert np.isfinite(model.get_marginal_ll(indices=some, n_mc_samples=6))
    batches = ["a", "b"] if "batch_key" in SETUPS[setup] else None
    for n in (1, 3):
        expression = model.get_normalized_expression(indices=some, n_samples=n, transform_batch=batches)
        assert expression.shape == (30, 60)
        assert np.isfinite(expression.to_numpy()).all()
        assert np.isfinite(model.get_normalized_expression(indices=some, n_samples=n, library_size=1e4)).all(axis=None)
        parameters = model.get_likelihood_parameters(indices=some, n_samples=n)
        assert all(v.shape[-2:] == (30, 60) for v in parameters.values())
        if kwargs.get("gene_likelihood") != "normal":
            assert model.posterior_predictive_sample(indices=some, n_samples=n).shape[:2] == (30, 60)
    if kwargs.get("gene_likelihood") in ("poisson", "normal"):
        with pytest.raises(ValueError, match="importance weights are for the likelihoods zinb and nb"):
            model.get_normalized_expression(indices=some, n_samples_overall=40, weights="importance")
    else:
        weighted = model.get_normalized_expression(
            indices=some, n_samples_overall=40, weights="importance", return_numpy=True
        )
        assert weighted.shape == (40, 60)
        assert np.isfinite(weighted).all()


def test_importance_weights_are_those_of_an_explicit_loop(trained):
    """Weight of a draw, summed over anchor cells: p(z) p(x_a|z) / p(x_a) over the sum of the cells' posteriors."""
    indices = np.arange(6)
    tensors = batch_of(trained, indices)
    with torch.no_grad():
        inferred, generated = trained.module(tensors, compute_loss=False)
    z, qz, px = inferred["z"], inferred["qz"], generated["px"]
    found = trained.get_importance_weights(trained.adata, indices, qz=qz, px=px, zs=z, n_mc_samples=60)
    log_px = trained.get_marginal_ll(indices=indices, n_mc_samples=60, return_mean=False)
    expected = np.zeros(6)
    for i in range(6):
        log_q = torch.stack([torch.logsumexp(torch.stack([
            torch.distributions.Normal(qz.means[a, s], qz.scales[a, s]).log_prob(z[i]).sum() - np.log(3)
            for s in range(3)]), 0) for a in range(6)])  # fmt: skip
        log_pz = torch.distributions.Normal(0, 1).log_prob(z[i]).sum()
        for a in range(6):
            x = tensors["X"][a]
            theirs = type(px)(mu=px.scale[i] * x.sum(), theta=px.theta[i], zi_logits=px.zi_logits[i])
            expected[i] += np.exp(float(log_pz + theirs.log_prob(x).sum() - log_px[a] - torch.logsumexp(log_q, 0)))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=2e-3)


@pytest.mark.parametrize(("mode", "weights"), [("vanilla", "uniform"), ("change", "uniform"), ("change", "importance")])
def test_differential_expression_finds_the_genes_that_differ(trained, mode, weights):
    found = trained.differential_expression(
        groupby="kind", group1="dendritic", group2="other", mode=mode, weights=weights, silent=True
    )
    assert len(found) == 60
    assert np.isfinite(found.select_dtypes("number")).all(axis=None)
    raw = found["raw_normalized_mean1"] - found["raw_normalized_mean2"]
    change = found["scale1"] - found["scale2"]
    assert np.corrcoef(raw, change)[0, 1] > 0.5


def test_latents_are_moments_of_the_mixture_and_its_components(trained):
    mean, variance = trained.get_latent_representation(return_dist=True)
    means, variances = trained.get_latent_representation(components=True)
    assert means.shape == variances.shape == (120, 3, 3)
    np.testing.assert_allclose(mean, means.mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, (variances + means**2).mean(1) - mean**2, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(), mean, rtol=1e-5)
    drawn = np.stack([trained.get_latent_representation(give_mean=False) for _ in range(300)])
    assert (np.abs(drawn.mean(0) - mean) < 6 * np.sqrt(variance / 300)).all()


def test_latents_of_the_logistic_normal_lie_on_the_simplex(cells):
    model = make(cells, latent_distribution="ln")
    for give_mean in (True, False):
        z = model.get_latent_representation(give_mean=give_mean, mc_samples=50)
        np.testing.assert_allclose(z.sum(1), 1, rtol=1e-4)
        assert (z > 0).all()
    assert (model.get_latent_representation(return_dist=True)[0].sum(1) != 1).all()


def test_warm_up_fits_the_epochs_or_warns(cells):
    model = make(cells, epochs=0)
    seen = []
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, plan):
            seen.append((plan.n_epochs_kl_warmup, float(plan.kl_weight)))

    model.train(5, callbacks=[Watch()], **QUIET)
    assert seen[-1] == (5, pytest.approx(0.8))
    with pytest.warns(UserWarning, match="warm-up of 40 epochs outlasts the 2 epochs of training.*ends at 0.05"):
        model.train(2, plan_kwargs={"n_epochs_kl_warmup": 40}, **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the KL warm-up")
        model.train(2, plan_kwargs={"n_epochs_kl_warmup": 2}, **QUIET)
        model.train(2, plan_kwargs={"n_steps_kl_warmup": 10, "n_epochs_kl_warmup": None}, **QUIET)


@pytest.mark.parametrize("cells_left", [1, 2])
def test_last_batch_of_one_or_two_cells_keeps_the_elbo_finite(cells, cells_left):
    model = make(cells[: 30 * 2 + cells_left].copy(), epochs=0)
    model.train(2, train_size=1.0, batch_size=30, **QUIET)
    assert np.isfinite(model.history["elbo_train"].to_numpy(float)).all()


def test_queries_read_larger_batches_and_answer_alike(trained, monkeypatch):
    monkeypatch.setattr(queries, "AT_ONCE", 60 * 140)  # 60 genes
    assert len(batch_of(trained)["X"]) == 120
    loader = trained._make_data_loader(adata=trained.adata)
    assert loader.sampler.batch_size == 140
    few = trained.get_latent_representation(batch_size=7)
    np.testing.assert_allclose(trained.get_latent_representation(), few, rtol=1e-4, atol=1e-5)


def test_early_stopping_ends_the_training(cells):
    model = make(cells, epochs=0)
    options = {"early_stopping_patience": 2, "early_stopping_min_delta": 1e6, "check_val_every_n_epoch": 1}
    model.train(30, early_stopping=True, train_size=0.8, **options, **QUIET)
    assert len(model.history["elbo_validation"]) < 10


def test_saved_model_is_loaded_as_it_was(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    loaded = MixtureSCVI.load(str(tmp_path / "model"), trained.adata.copy(), accelerator="cpu")
    assert loaded.module.n_components == 3
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation())
    assert "mixture of 3 encoders" in repr(loaded) + loaded._model_summary_string
    shuffled = trained.adata[:, ::-1].copy()
    with pytest.raises(ValueError, match="does not have the genes that .* was trained on, in their order"):
        MixtureSCVI.load(str(tmp_path / "model"), shuffled, accelerator="cpu")


def test_scvi_encoder_copies_start_at_scvi_and_differ_by_noise(cells):
    plain = make(cells, SCVI, setup={"batch_key": "batch"})
    same = MixtureSCVI.from_scvi_model(plain, 3, noise=0.0)
    one = MixtureSCVI.from_scvi_model(plain, 1)
    np.testing.assert_allclose(same.get_latent_representation(), plain.get_latent_representation(), atol=1e-5)
    np.testing.assert_allclose(same.get_bounds(n_mc_samples=3).jsd, 0, atol=1e-4)
    np.testing.assert_allclose(
        same.get_elbo(return_mean=False).mean(), one.get_elbo(return_mean=False).mean(), rtol=0.02
    )
    means, _ = MixtureSCVI.from_scvi_model(plain, 3, noise=0.05).get_latent_representation(components=True)
    np.testing.assert_allclose(means[:, 0], plain.get_latent_representation(), atol=1e-5)
    assert (np.abs(means[:, 1] - means[:, 0]).max(), np.abs(means[:, 2] - means[:, 1]).max()) > (1e-3, 1e-3)
    with pytest.raises(ValueError, match=r"takes a scvi.model.SCVI; got a MixtureSCVI"):
        MixtureSCVI.from_scvi_model(one)
    with pytest.raises(ValueError, match="that was trained"):
        MixtureSCVI.from_scvi_model(make(cells, SCVI, epochs=0))


def test_frozen_decoder_is_fixed_in_training_and_after_loading(cells, tmp_path):
    plain = make(cells, SCVI, setup={"batch_key": "batch"})
    model = MixtureSCVI.from_scvi_model(plain, 2, freeze_decoder=True)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.train(2, train_size=1.0, batch_size=60, **QUIET)
    after = model.module.state_dict()
    assert len(model.history["elbo_train"]) == 4, "the history goes on from that of SCVI"
    moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {"z_encoder"}
    model.save(str(tmp_path / "model"))
    loaded = MixtureSCVI.load(str(tmp_path / "model"), cells, accelerator="cpu")
    assert not any(p.requires_grad for p in loaded.module.decoder.parameters())
    assert not loaded.module.train().decoder.training


def test_minified_data_keep_every_component(cells):
    model = make(cells, setup={"batch_key": "batch"})
    means, variances = model.get_latent_representation(components=True)
    mean = model.get_latent_representation()
    model.minify_adata()
    assert model.adata.X.nnz == 0
    np.testing.assert_allclose(model.get_latent_representation(components=True)[0], means, rtol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(components=True)[1], variances, rtol=1e-4)
    np.testing.assert_allclose(model.get_latent_representation(), mean, rtol=1e-4, atol=1e-6)
    assert model.get_normalized_expression(n_samples=2).shape == (120, 60)
    assert not [key for key in [*cells.obsm, *model.adata.obsm] if key.startswith("_mixvae")]
    for query in (model.get_elbo, model.get_marginal_ll, model.get_responsibilities):
        with pytest.raises(ValueError, match="minified"):
            query()


def test_minified_data_may_keep_the_counts(cells, tmp_path):
    model = make(cells, setup={"batch_key": "batch"})
    before = model.get_latent_representation()
    model.minify_adata("latent_posterior_parameters_with_counts")
    assert model.adata.X.nnz > 0
    np.testing.assert_allclose(model.get_latent_representation(), before, rtol=1e-4, atol=1e-6)
    model.save(str(tmp_path / "model"), save_anndata=True)
    loaded = MixtureSCVI.load(str(tmp_path / "model"), accelerator="cpu")
    np.testing.assert_allclose(loaded.get_latent_representation(), before, rtol=1e-4, atol=1e-6)


def test_posteriors_of_another_shape_are_not_minified(cells):
    model = make(cells)
    moments, components = (
        model.get_latent_representation(return_dist=True),
        model.get_latent_representation(components=True),
    )
    cells.obsm["m"], cells.obsm["v"] = moments[0][:, :2], moments[1][:, :2]
    expected = r"all components side by side, \(120, 9\), or moments of the mixture, \(120, 3\); got \(120, 2\)"
    with pytest.raises(ValueError, match=expected):
        model.minify_adata(use_latent_qzm_key="m", use_latent_qzv_key="v")
    cells.obsm["m"], cells.obsm["v"] = moments[0], components[1].reshape(120, -1)
    with pytest.raises(ValueError, match=r"got \(120, 9\)"):
        model.minify_adata(use_latent_qzm_key="m", use_latent_qzv_key="v")
    with pytest.raises(ValueError, match="keys of both means and variances"):
        model.minify_adata(use_latent_qzm_key="m")


def test_surgery_trains_only_parameters_of_the_new_batch(cells):
    model = make(cells, setup={"batch_key": "batch"}, encode_covariates=True)
    query = cells[:50].copy()
    query.obs["batch"] = "new"
    mapped = MixtureSCVI.load_query_data(query, model, accelerator="cpu")
    before = {k: v.clone() for k, v in mapped.module.state_dict().items()}
    mapped.train(2, train_size=1.0, batch_size=25, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    columns = {}
    for name, tensor in mapped.module.state_dict().items():
        if name.startswith("l_encoder") or not (change := tensor - before[name]).any():
            continue
        columns[name] = change.ndim == 2 and change[:, :-3].abs().max() == 0  # three batches, one of them new
    first = {f"z_encoder.c{i}.encoder.fc_layers.Layer 0.0.weight" for i in range(3)}
    assert first < set(columns)
    assert all(only for name, only in columns.items() if name in first)
    rest = set(columns) - first
    assert all(name.startswith("decoder.px_decoder.fc_layers.Layer 0.") for name in rest), rest
    assert mapped.get_latent_representation(query).shape == (50, 3)


def test_query_with_other_genes_is_refused_with_the_way_out(cells):
    model = make(cells, setup={"batch_key": "batch"})
    query = cells[:40, 2:].copy()
    with pytest.raises(
        ValueError, match=r"needs its 60 genes in their order; this AnnData lacks 2 \(such as .*prepare"
    ):
        MixtureSCVI.load_query_data(query, model)
    with pytest.raises(ValueError, match="lacks 2"):
        model.get_latent_representation(query)
    with pytest.raises(ValueError, match="has them in another order"):
        model.get_latent_representation(cells[:, ::-1].copy())
    ready = MixtureSCVI.prepare_query_anndata(query, model, inplace=False)
    assert MixtureSCVI.load_query_data(ready, model, accelerator="cpu").module.n_components == 3


def test_scanvi_is_refused_with_the_way_out_which_works(cells):
    model = make(cells, setup={"batch_key": "batch", "labels_key": "kind"})
    with pytest.raises(ValueError, match="scANVI has one encoder and this model a mixture.*as_scvi"):
        SCANVI.from_scvi_model(model, unlabeled_category="unknown")
    plain = model.as_scvi(1)
    means, _ = model.get_latent_representation(components=True)
    np.testing.assert_allclose(plain.get_latent_representation(), means[:, 1], rtol=1e-4, atol=1e-6)
    scanvi = SCANVI.from_scvi_model(plain, unlabeled_category="unknown")
    np.testing.assert_array_equal(
        scanvi.module.z_encoder.mean_encoder.weight.detach(),
        model.module.z_encoder["c1"].mean_encoder.weight.detach(),
    )
    with pytest.raises(ValueError, match="component must be from 0 to 2; got 3"):
        model.as_scvi(3)


@pytest.mark.parametrize(
    ("spoil", "setup", "message"),
    [
        (lambda a: a.X.data.__setitem__(0, 0.5), {}, r"adata.X must hold counts.*got 0.5: name the layer"),
        (lambda a: a.X.data.__setitem__(0, -1), {}, "got -1"),
        (lambda a: a.X.data.__setitem__(0, np.nan), {}, "got nan"),
        (
            lambda a: a.layers["counts"].data.__setitem__(3, 1.25),
            {"layer": "counts"},
            r"adata.layers\['counts'\] must hold counts.*got 1.25",
        ),
        (lambda a: empty(a, 4, 5), {}, r"cell '.*' \(and 1 more\) has no counts in adata.X"),
    ],
)
def test_what_is_no_count_is_refused(cells, spoil, setup, message):
    spoil(cells)
    MixtureSCVI.setup_anndata(cells, **setup)
    with pytest.raises(ValueError, match=message) as error:
        MixtureSCVI(cells)
    assert "\n" not in str(error.value)


def test_real_values_are_fine_under_a_normal_likelihood(cells):
    cells.X = np.log1p(cells.X.toarray())
    assert make(cells, gene_likelihood="normal").get_latent_representation().shape == (120, 3)


def test_queries_on_new_cells_check_their_counts(trained, real):
    new = real[:5].copy()
    empty(new, 2)
    with pytest.raises(ValueError, match="has no counts"):
        trained.get_latent_representation(new)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"batch_key": "bach"}, "no column 'bach': did you mean 'batch'"),
        ({"categorical_covariate_keys": ["dono"]}, "did you mean 'donor'"),
        ({"layer": "count"}, "no layer 'count': did you mean 'counts'"),
        ({"labels_key": "zzzzz"}, "no column 'zzzzz': it has"),
    ],
)
def test_a_missing_key_is_named_with_the_nearest(cells, setup, message):
    with pytest.raises(ValueError, match=message):
        MixtureSCVI.setup_anndata(cells, **setup)


def test_unregistered_anndata_and_zero_components_are_refused(cells):
    with pytest.raises(ValueError, match=r"set up your AnnData with MixtureSCVI\.setup_anndata first"):
        MixtureSCVI(cells)
    with pytest.raises(ValueError, match="n_components must be at least 1; got 0"):
        MixtureSCVI(cells, n_components=0)


def test_responsibilities_are_written_and_sum_to_one(cells):
    model = make(cells)
    shares = model.get_responsibilities()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(cells.obsm["X_mixvae_responsibilities"], shares)
    same = model.get_responsibilities(batch_size=11, key_added=None)
    np.testing.assert_allclose(same, shares, atol=1e-4)


def test_component_at_the_posterior_takes_all_responsibility(cells):
    """Two components are moved far away: the first must cover every cell."""
    model = make(cells, SCVI, epochs=20)
    mixture = MixtureSCVI.from_scvi_model(model, 3, noise=0.0)
    with torch.no_grad():
        for name in ("c1", "c2"):
            mixture.module.z_encoder[name].mean_encoder.bias += 30.0
    assert (mixture.get_responsibilities(n_mc_samples=90) > [0.99, -1, -1]).all()
    estimate = mixture.get_bounds(n_mc_samples=90)
    assert (estimate.jsd > 0).all()


def first_latents(cells):
    """Two latents in the place of a UMAP."""
    cells.obsm["X_umap"] = cells.X[:, :2]


@pytest.mark.parametrize(
    "embed", ["latents", pytest.param("umap", marks=pytest.mark.slow)]
)  # which numba compiles first
def test_diagnosis_names_shifted_genes_and_draws_a_map(cells, monkeypatch, embed):
    if embed == "latents":
        monkeypatch.setattr("scanpy.pp.neighbors", lambda *args, **kwargs: None)
        monkeypatch.setattr("scanpy.tl.umap", first_latents)
    model = make(cells, epochs=10)
    found = diagnose(model, n_mc_samples=12, n_genes=4)
    assert list(found.table.columns) == ["share", "share_se", "dominated_cells", "genes"]
    assert found.table["share"].sum() == pytest.approx(1)
    assert found.table["dominated_cells"].sum() == 120
    assert 1 <= found.effective_components <= 3.3
    assert list(found.genes.groupby("component").size()) == [4, 4, 4]
    assert set(found.genes["gene"]) <= set(cells.var_names)
    figure = found.figure({"kind": cells.obs["kind"]})
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["dominant component", "kind"]
    assert distinguishing_genes(make(cells, n_components=1)).empty


def test_distinguishing_genes_have_different_decoded_expression(cells, monkeypatch):
    """The decoder is replaced by one that doubles gene 7 under component 1, and only there."""
    model = make(cells)
    module = model.module
    original = type(module).generative

    def generative(self, z, **inputs):
        outputs = original(self, z, **inputs)
        scale = torch.full_like(outputs["px"].scale, 1e-2).unflatten(0, (-1, 3, len(z) // 24))
        scale[:, 1, :, 7] *= 2
        outputs["px"].scale = scale.flatten(0, 2)
        return outputs

    monkeypatch.setattr(type(module), "generative", generative)
    found = distinguishing_genes(model, n_genes=1, shares=np.full((120, 3), 1 / 3)).set_index("component")
    assert found.loc[1, "gene"] == cells.var_names[7]
    assert found.loc[1, "log2_fold_change"] == pytest.approx(1, abs=0.01)
    assert found.loc[0, "log2_fold_change"] == pytest.approx(-np.log2(1.5), abs=0.01)


def test_cortex_has_the_cells_of_the_paper():
    cells = cortex(50)
    assert cells.shape == (3005, 50)
    assert sorted(cells.obs["cell_type"].value_counts()) == [98, 224, 235, 290, 399, 820, 939]
    assert cells.obs["precise_type"].nunique() == 48
    assert (cells.X.data == np.rint(cells.X.data)).all()
    everything = cortex(None)
    assert everything.n_vars == 4000
    variance = np.log1p(everything.X.toarray()).var(0)
    assert set(cells.var_names) == set(everything.var_names[np.argsort(-variance)[:50]])


def test_scores_of_integration_need_batches_and_embeddings(cells):
    cells.obs["one"] = "x"
    with pytest.raises(ValueError, match="at least 2 batches; 'one' has 1"):
        integration_scores(cells, [], batch_key="one", label_key="kind")
    with pytest.raises(ValueError, match=r"adata.obsm has no 'X_mixvae'"):
        integration_scores(cells, ["X_mixvae"], batch_key="batch", label_key="kind")


@pytest.mark.slow
def test_scores_of_integration_tell_good_from_bad(cells):
    scanpy.pp.pca(cells, 5)
    cells.obsm["split"] = np.concatenate(
        [cells.obsm["X_pca"], 50.0 * (cells.obs["batch"] == "a").to_numpy()[:, None]], 1
    )
    scores = integration_scores(cells, ["X_pca", "split"], batch_key="batch", label_key="kind")
    assert scores.loc["X_pca", "Batch correction"] > scores.loc["split", "Batch correction"]


@pytest.mark.slow
def test_two_processes_train_as_one_would(tmp_path):
    """DDP on the CPU with validation, which a metric of its own in the loss would break."""
    script = tmp_path / "ddp.py"
    script.write_text(
        """
import warnings; warnings.simplefilter("ignore")
import torch; torch.set_num_threads(1)
from mixvae.single_cell import MixtureSCVI, pbmc68k
cells = pbmc68k()[:128, :40].copy()
cells = cells[(cells.X.sum(1) > 0).A1 if hasattr(cells.X.sum(1), "A1") else cells.X.sum(1).ravel() > 0].copy()
MixtureSCVI.setup_anndata(cells)
model = MixtureSCVI(cells, n_components=2, n_hidden=8)
model.train(2, train_size=0.75, batch_size=16, accelerator="cpu", devices=2, enable_progress_bar=False,
            strategy="ddp_find_unused_parameters_true", check_val_every_n_epoch=1)
if model.trainer.is_global_zero:
    print("elbo", model.history["elbo_validation"].to_numpy().ravel().tolist(), model.trainer.world_size)
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "elbo [" in done.stdout
    assert done.stdout.strip().endswith(" 2")


def test_seed_of_scvi_is_left_to_the_user():
    scvi.settings.seed = 5
    from mixvae.single_cell import pbmc68k

    pbmc68k()
    assert scvi.settings.seed == 5
