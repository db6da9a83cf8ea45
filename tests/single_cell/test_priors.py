"""Priors of cells: densities against the encoders called one by one, losses by loops, likelihoods by quadrature."""

import math

import numpy as np
import pytest
import torch
from scvi.module._constants import MODULE_KEYS
from torch.distributions import Normal, kl_divergence

from mixvae.priors import GaussianMixturePrior
from mixvae.single_cell import MixtureSCVI
from mixvae.single_cell.joint import library_prior

from .conftest import QUIET, batch_of, make

SEVERAL = {"n_prior_components": 4}
KINDS = [
    {"prior": "gaussian_mixture"},
    {"prior": "vamp"},
    {"prior": "vamp", "encode_covariates": True},
    {"prior": "vamp", "use_observed_lib_size": False},
    {"prior": "vamp", "batch_representation": "embedding"},
    {"prior": "gaussian_mixture", "use_observed_lib_size": False, "latent_distribution": "ln"},
]
SETUP = {"batch_key": "batch", "categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["percent_mito"]}
IDS = [" ".join(map(str, kind.values())) for kind in KINDS]


def density(module, z):
    """log p(z) by a loop over the prior's Gaussians."""
    if isinstance(module.prior, GaussianMixturePrior):
        means, scales = module.prior.mean, (0.5 * module.prior.log_var).exp()
        log_w = module.prior.scores.log_softmax(0)
    else:
        prior = module.prior
        seen = prior.inputs.log1p()
        covariates = ()
        if module.encode_covariates:
            seen = torch.cat([seen, prior.cont_covs], -1)
            covariates = prior.cat_covs.split(1, 1)
        normals = [encoder(seen, prior.batch_index, *covariates)[0] for encoder in module.z_encoder.values()]
        means, scales = torch.cat([n.loc for n in normals]), torch.cat([n.scale for n in normals])
        log_w = torch.full((len(means),), -math.log(len(means)))
    parts = [w + Normal(m, s).log_prob(z).sum(-1) for m, s, w in zip(means, scales, log_w, strict=True)]
    return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("kwargs", KINDS, ids=IDS)
def test_the_loss_has_the_prior_that_was_asked_for(cells, kwargs):
    model = make(cells, setup=SETUP, epochs=1, **SEVERAL, **kwargs)
    module, tensors = model.module.eval(), batch_of(model, range(9))
    inferred, generated = module(tensors, compute_loss=False, inference_kwargs={"stratified": True, "n_samples": 2})
    found = module.loss(tensors, inferred, generated, kl_weight=0.3)
    qz, z = inferred[MODULE_KEYS.QZ_KEY], inferred[MODULE_KEYS.Z_KEY].unflatten(0, (2, 3, 9))
    own = [Normal(qz.means[:, s], qz.scales[:, s]) for s in range(3)]
    log_q = torch.stack([q.log_prob(z).sum(-1) for q in own])  # (scored, L, S, B)
    entropy = torch.stack([q.entropy().sum(-1) for q in own]).mean(0)
    apart = (log_q.diagonal(dim1=0, dim2=2).permute(0, 2, 1) - (log_q.logsumexp(0) - math.log(3))).mean((0, 1))
    kl = -entropy - density(module, z).mean((0, 1)) - apart
    assert torch.allclose(found.kl_local[MODULE_KEYS.KL_Z_KEY], kl, atol=2e-4)
    if ql := inferred[MODULE_KEYS.QL_KEY]:
        kl_l = kl_divergence(ql, library_prior(module, tensors["batch"])).sum(-1)
        assert torch.allclose(found.kl_local[MODULE_KEYS.KL_L_KEY], kl_l)
    assert torch.allclose(generated[MODULE_KEYS.PZ_KEY].log_prob(z).sum(-1), density(module, z), atol=2e-4)


@pytest.mark.parametrize("prior", ["gaussian_mixture", "vamp"])
def test_the_refined_likelihood_is_that_of_quadrature(cells, prior):
    model = make(cells, n_latent=1, epochs=20, prior=prior, **SEVERAL)
    module, tensors = model.module.eval(), batch_of(model, range(20))
    grid = torch.linspace(-8, 8, 641)
    with torch.no_grad():
        library = tensors["X"].sum(-1, keepdim=True).log()
        joint = []
        for z in grid:
            outputs = {"z": z.expand(20, 1), "library": library, "qz": None}
            px = module.generative(**module._get_generative_input(tensors, outputs))["px"]
            joint.append(px.log_prob(tensors["X"]).sum(-1) + density(module, z.expand(1, 1)))
        exact = (torch.stack(joint).double().logsumexp(0) + math.log(grid[1] - grid[0])).mean()
    found = model.get_bounds(indices=range(20), n_mc_samples=2000)
    assert found.log_px.mean() == pytest.approx(float(exact), abs=0.01)
    assert found.pooled.mean() <= float(exact) + 0.01


def test_pseudo_inputs_begin_as_cells_and_feed_no_batch_norm(cells):
    model = make(cells, setup={"batch_key": "batch"}, epochs=0, prior="vamp", encode_covariates=True, **SEVERAL)
    prior = model.module.prior
    rows = np.asarray(cells.X.todense())
    for counts, batch in zip(prior.inputs, prior.batch_index, strict=True):
        distance = np.abs(rows - counts.detach().numpy()).max(1)
        assert distance.min() < 0.06
        assert batch.item() == (cells.obs["batch"].iloc[distance.argmin()] == "b")
    layer = next(m for m in model.module.z_encoder.modules() if isinstance(m, torch.nn.BatchNorm1d))
    before = layer.running_mean.clone()
    prior()
    assert torch.equal(layer.running_mean, before)
    raw = prior.raw_inputs.detach().clone()
    model.train(1, **QUIET)
    assert not torch.equal(prior.raw_inputs, raw), "pseudo-inputs learn"


def test_draws_under_embedded_batches_have_the_prior_too(cells):
    model = make(cells, setup=SETUP, epochs=0, prior="vamp", batch_representation="embedding", **SEVERAL)
    module, tensors = model.module.eval(), batch_of(model, range(9))
    _, generated = module(tensors, compute_loss=False, inference_kwargs={"n_samples": 2})
    z = torch.zeros(9, 3)
    assert torch.allclose(generated[MODULE_KEYS.PZ_KEY].log_prob(z).sum(-1), density(module, z), atol=1e-4)


def test_a_saved_prior_is_loaded(cells, tmp_path):
    model = make(cells, prior="vamp", **SEVERAL)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = MixtureSCVI.load(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="a plain SCVI has a standard normal prior"):
        loaded.as_scvi()
    assert torch.equal(loaded.module.prior.raw_inputs, model.module.prior.raw_inputs)
    assert loaded.get_marginal_ll(n_mc_samples=10) == model.get_marginal_ll(n_mc_samples=10)


def test_priors_that_cannot_be_are_refused(cells):
    with pytest.raises(ValueError, match="prior must be one of standard_normal, gaussian_mixture, vamp; got 'flow'"):
        make(cells, prior="flow")
    with pytest.raises(ValueError, match="n_prior_components must be at least 1; got 0"):
        make(cells, prior="vamp", n_prior_components=0)
    with pytest.raises(ValueError, match="cannot be frozen with the decoder"):
        make(cells, prior="vamp", freeze_decoder=True)
    with pytest.raises(ValueError, match="500 pseudo-inputs begin as cells, of which there are 120"):
        make(cells, prior="vamp", n_prior_components=500)


def test_bounds_keep_their_order_under_a_learned_prior(cells):
    model = make(cells, epochs=10, prior="gaussian_mixture", **SEVERAL)
    found = model.get_bounds(n_mc_samples=300)
    assert found.elbo.mean() <= found.pooled.mean() <= found.log_px.mean() + 0.2
