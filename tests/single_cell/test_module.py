"""The mixture's densities and loss against loops over plain scvi-tools, and bounds against quadrature."""

import math

import numpy as np
import pytest
import scvi
import torch
from scipy.special import logsumexp
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from torch.distributions import Normal

from mixvae import bounds
from mixvae.single_cell import MixtureSCVI
from mixvae.single_cell.joint import library_prior

from .conftest import batch_of, make

SETUPS = {
    "plain": {},
    "batch": {"batch_key": "batch"},
    "covariates": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["percent_mito"],
    },
    "size factor": {"size_factor_key": "size"},
    "labels": {"batch_key": "batch", "labels_key": "kind"},
}
KINDS = [
    ("plain", {}),
    ("batch", {"dispersion": "gene-batch", "gene_likelihood": "nb"}),
    ("covariates", {"dispersion": "gene-cell", "encode_covariates": True, "n_layers": 2}),
    ("size factor", {"gene_likelihood": "poisson"}),
    ("labels", {"dispersion": "gene-label", "gene_likelihood": "normal"}),
    ("batch", {"use_observed_lib_size": False}),
    ("batch", {"latent_distribution": "ln"}),
    ("batch", {"batch_representation": "embedding", "encode_covariates": True}),
    ("covariates", {"batch_representation": "embedding", "gene_likelihood": "nb", "use_batch_norm": "none"}),
]
IDS = [" ".join(map(str, (setup, *kwargs.values()))) for setup, kwargs in KINDS]


def loop(module, tensors, z, library):
    """Densities of the draws z (L, S, B, D) by a loop over draws and components, with scvi-tools' own classes."""
    draws, components, cells, _ = z.shape
    inputs = module._get_inference_input(tensors)
    qz = module.inference(**inputs)[MODULE_KEYS.QZ_KEY]
    log_px, log_pz, log_q = (torch.zeros(draws, components, cells) for _ in range(3))
    log_q = torch.zeros(draws, components, components, cells)
    for i in range(draws):
        for s in range(components):
            outputs = {
                MODULE_KEYS.Z_KEY: z[i, s],
                MODULE_KEYS.LIBRARY_KEY: library[i, s],
                MODULE_KEYS.QZ_KEY: qz,
            }
            generated = module.generative(**module._get_generative_input(tensors, outputs))
            log_px[i, s] = generated[MODULE_KEYS.PX_KEY].log_prob(tensors["X"]).sum(-1)
            log_pz[i, s] = Normal(0, 1).log_prob(z[i, s]).sum(-1)
            for j in range(components):
                log_q[i, s, j] = Normal(qz.means[:, j], qz.scales[:, j]).log_prob(z[i, s]).sum(-1)
    return log_px, log_pz, log_q


@pytest.mark.parametrize(("setup", "kwargs"), KINDS, ids=IDS)
def test_terms_are_those_of_a_loop_over_components(cells, setup, kwargs):
    model = make(cells, setup=SETUPS[setup], epochs=1, **kwargs)
    module, tensors = model.module, batch_of(model, range(20))
    latent = module.n_latent
    noise = torch.randn(2, 3, 20, latent + (not module.use_observed_lib_size))
    with torch.no_grad():
        terms = module.terms(tensors, 2, noise=noise)
        outputs = module.inference(**module._get_inference_input(tensors))
        qz, ql = outputs[MODULE_KEYS.QZ_KEY], outputs[MODULE_KEYS.QL_KEY]
        z = qz.means.transpose(0, 1) + qz.scales.transpose(0, 1) * noise[..., :latent]
        library = (
            outputs[MODULE_KEYS.LIBRARY_KEY].expand(2, 3, 20, 1)
            if ql is None
            else ql.loc + ql.scale * noise[..., latent:]
        )
        log_px, log_pz, log_q = loop(module, tensors, z, library)
        if ql is not None:
            means, variances = module._compute_local_library_params(tensors["batch"])
            log_pz = log_pz + Normal(means, variances.sqrt()).log_prob(library).sum(-1)
            log_q = log_q + ql.log_prob(library).sum(-1).unsqueeze(2)
    torch.testing.assert_close(terms.log_px, log_px, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.log_pz, log_pz, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(terms.log_q, log_q, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_gradients_are_those_of_a_loop_over_components(cells, family, dispersion):
    kwargs = {"gene_likelihood": family, "dispersion": dispersion}
    model = make(cells, setup=SETUPS["labels"], epochs=0, **kwargs)
    module, tensors = model.module.eval(), batch_of(model, range(20))
    noise = torch.randn(2, 3, 20, module.n_latent)
    outputs = module.inference(**module._get_inference_input(tensors))
    qz = outputs[MODULE_KEYS.QZ_KEY]
    z = qz.means.transpose(0, 1) + qz.scales.transpose(0, 1) * noise
    values = (
        module.terms(tensors, 2, noise=noise).log_px,
        loop(module, tensors, z, outputs[MODULE_KEYS.LIBRARY_KEY].expand(2, 3, 20, 1))[0],
    )
    parameters = dict(module.named_parameters())
    ours, theirs = (torch.autograd.grad(v.mean(), [*parameters.values()], allow_unused=True) for v in values)
    for name, own, expected in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("setup", "kwargs"), KINDS, ids=IDS)
def test_loss_is_minus_the_elbo_of_the_mixture(cells, setup, kwargs):
    model = make(cells, setup=SETUPS[setup], epochs=1, **kwargs)
    module, tensors = model.module, batch_of(model)
    with torch.no_grad():
        inferred, generated, losses = module(tensors, inference_kwargs={"n_samples": 400})
        terms = module._terms(tensors, inferred, generated)
        loss = losses.reconstruction_loss["reconstruction_loss"] + losses.kl_local["kl_divergence_z"]
        loss = loss + losses.kl_local["kl_divergence_l"]
        log_w = bounds.log_weights(terms)
        expected = -bounds.elbo(log_w, terms.weight)
    # the KL to the prior is in closed form in one and sampled in the other: equal up to the error of sampling it
    error = (terms.log_pz - terms.log_own()).std(0).mean(0) / math.sqrt(400 * 3)
    assert ((loss - expected).abs() < 6 * error + 1e-3).all()
    assert loss.shape == (120,)
    torch.testing.assert_close(losses.loss, loss.mean())


def test_one_component_is_scvi_to_rounding(cells):
    plain = make(cells, SCVI, setup={"batch_key": "batch"})
    mixture = MixtureSCVI.from_scvi_model(plain, 1)
    tensors = batch_of(plain)
    with torch.no_grad():
        inferred, generated, expected = plain.module(tensors)
        one = mixture.module.inference(**mixture.module._get_inference_input(tensors))
        losses = mixture.module.loss(tensors, inferred | {"qz": one["qz"]}, generated)
    torch.testing.assert_close(losses.loss, expected.loss)
    torch.testing.assert_close(losses.kl_local["kl_divergence_z"], expected.kl_local["kl_divergence_z"])
    np.testing.assert_allclose(mixture.get_latent_representation(), plain.get_latent_representation(), rtol=1e-5)


def test_same_seed_gives_scvis_initial_encoder_and_decoder(cells):
    plain, mixture = make(cells, SCVI, epochs=0), make(cells, epochs=0)
    theirs, ours = plain.module.state_dict(), mixture.module.state_dict()
    assert all(torch.equal(v, ours[k.replace("z_encoder.", "z_encoder.c0.")]) for k, v in theirs.items())
    weights = [e.mean_encoder.weight for e in mixture.module.z_encoder.values()]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def exact_log_likelihood(model, tensors, low, high, points):
    """Log p(x) of every cell by the trapezoidal rule over the latents, and the library where it is latent."""
    module, cells = model.module, len(tensors["X"])
    grid = torch.linspace(low, high, points)
    cell = (high - low) / (points - 1)
    latent_library = not module.use_observed_lib_size
    dimensions = module.n_latent + latent_library
    z = torch.cartesian_prod(*[grid] * dimensions).reshape(-1, dimensions)
    total = []
    with torch.no_grad():
        observed = module.inference(**module._get_inference_input(tensors))[MODULE_KEYS.LIBRARY_KEY]
        prior = library_prior(module, tensors["batch"]) if latent_library else None
        for some in z.split(500):  # every cell at every point, flattened as draws are
            points = some.repeat_interleave(cells, 0)
            if latent_library:
                library = prior.loc.repeat(len(some), 1) + prior.scale.repeat(len(some), 1) * points[:, -1:]
            else:
                library = observed.repeat(len(some), 1)
            outputs = {MODULE_KEYS.Z_KEY: points[:, : module.n_latent], MODULE_KEYS.LIBRARY_KEY: library}
            px = module.generative(**module._get_generative_input(tensors, outputs))[MODULE_KEYS.PX_KEY]
            log_px = px.log_prob(tensors["X"].repeat(len(some), 1)).double().sum(-1).reshape(len(some), cells)
            total.append(log_px + Normal(0, 1).log_prob(some.double()).sum(-1, keepdim=True))
    return logsumexp(torch.cat(total).numpy(), 0) + dimensions * math.log(cell)


@pytest.mark.parametrize(
    ("kwargs", "low", "high", "points"),
    [
        ({"n_latent": 2}, -5.5, 5.5, 90),
        ({"n_latent": 2, "latent_distribution": "ln"}, -5.5, 5.5, 90),
        ({"n_latent": 1, "use_observed_lib_size": False}, -5.5, 5.5, 200),
    ],
    ids=["normal", "ln", "latent library"],
)
def test_bounds_meet_the_exact_likelihood(cells, kwargs, low, high, points):
    model = make(cells[:, :12].copy(), setup={"batch_key": "batch"}, epochs=30, **kwargs)
    exact = exact_log_likelihood(model, batch_of(model, range(8)), low, high, points)
    estimate = model.get_bounds(indices=range(8), n_mc_samples=20_000, proposal="posterior")
    assert (np.abs(estimate.pooled - exact) < 5 * estimate.pooled_mc_se + 2e-3).all()
    assert (estimate.miselbo < exact + 5 * estimate.miselbo_mc_se + 2e-3).all()
    assert (estimate.elbo < exact + 5 * estimate.elbo_mc_se).all()
    assert estimate.pooled_mc_se.max() < 0.2, "the test says nothing if the error is large"


@pytest.mark.parametrize(("total", "at_once"), [(1, 1), (7, 3), (9, 2), (30, 300)])
def test_marginal_is_normalised_for_any_draws_per_pass(trained, monkeypatch, total, at_once):
    """If every importance weight is e⁻⁷ then so is their mean, however many there are and however they are split."""
    original = type(trained.module).terms

    def constant(self, tensors, draws=1, **kwargs):
        terms = original(self, tensors, draws, **kwargs)
        log_px = terms.log_mixture() - terms.log_pz - 7.0
        return bounds.Terms(log_px, terms.log_pz, terms.log_q, terms.log_pi, terms.weight, terms.own)

    monkeypatch.setattr(type(trained.module), "terms", constant)
    tensors = batch_of(trained, range(5))
    found = trained.module.marginal_ll(tensors, total, n_mc_samples_per_pass=at_once)
    torch.testing.assert_close(found, torch.full((5,), -7.0), rtol=1e-4, atol=1e-4)
    assert trained.module.marginal_ll(tensors, total, return_mean=True) == pytest.approx(-7, abs=1e-4)


def test_bounds_are_ordered_and_ignore_batching_and_cell_order(trained):
    few = trained.get_bounds(n_mc_samples=20, batch_size=7, decoded=2000, proposal="posterior")
    many = trained.get_bounds(n_mc_samples=20, batch_size=120, proposal="posterior")
    assert few.draws_per_component == 7
    np.testing.assert_allclose(few.pooled, many.pooled, atol=1e-3)
    np.testing.assert_allclose(few.jsd, many.jsd, atol=1e-3)
    picked = trained.get_bounds(indices=[5, 3], n_mc_samples=20, proposal="posterior")
    np.testing.assert_allclose(picked.pooled, many.pooled[[5, 3]], atol=1e-3)
    assert (many.elbo <= many.miselbo + 1e-6).all()
    assert (many.miselbo <= many.pooled + 1e-6).all()
    assert trained.get_marginal_ll(n_mc_samples=20, bound="miselbo") == pytest.approx(many.miselbo.mean())
    assert trained.get_marginal_ll(indices=[5, 3, 8], n_mc_samples=20, return_mean=False).shape == (3,)


def test_elbo_and_reconstruction_match_bounds_at_any_batch_size(trained):
    estimate = trained.get_bounds(n_mc_samples=3000, proposal="posterior")
    draws = [float(trained.get_elbo(batch_size=size)) for size in (7, 50, 120) for _ in range(4)]
    per_cell = trained.get_elbo(return_mean=False)
    assert per_cell.shape == (120,)
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - estimate.elbo.mean()) < 5 * error
    losses = [float(trained.get_reconstruction_error(batch_size=size)["reconstruction_loss"]) for size in (7, 120)]
    assert abs(losses[0] - losses[1]) < 5


def test_all_but_library_and_dispersion_layers_get_gradients(cells):
    model = make(cells, epochs=0, setup={"batch_key": "batch"})
    model.module.train()
    _, _, losses = model.module(batch_of(model))
    losses.loss.backward()
    idle = [n for n, p in model.module.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(n.startswith(("l_encoder", "decoder.px_r_decoder")) for n in idle), idle


def test_expression_samples_one_component_and_loss_samples_all(trained):
    tensors = batch_of(trained, range(6))
    inferred, generated = trained.module(tensors, compute_loss=False)
    assert inferred["z"].shape == (6, 3)
    assert generated["px"].mu.shape == (6, 60)
    inferred, generated, _ = trained.module(tensors)
    assert inferred["z"].shape == (18, 3)
    inferred, _ = trained.module(tensors, inference_kwargs={"n_samples": 4}, compute_loss=False)
    assert inferred["z"].shape == (4, 6, 3)


def test_seeds_repeat_a_training(cells):
    first = make(cells, seed=3).get_latent_representation()
    assert np.array_equal(first, make(cells, seed=3).get_latent_representation())
    assert scvi.settings.seed == 3
