"""Likelihoods of cells under SCVI and mixtures: the joint density and its bounds against quadrature."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from torch.distributions import Normal

from mixvae.single_cell import MixtureSCVI, bounds, get_marginal_ll, joint_and_posterior
from mixvae.single_cell.joint import library_prior

from .conftest import batch_of, make

FEW = range(6)
POINTS, REACH = 121, 6.0


@pytest.fixture(scope="module")
def few(real):
    """Few genes, so that posteriors are wide enough for a grid."""
    return real[:, :12].copy()


def exact(module, tensors):
    """Log p(x) of every cell by the trapezoidal rule in float64, with scvi-tools' own classes and a loop over cells."""
    latent_library = not module.use_observed_lib_size
    dimensions = module.n_latent + latent_library
    grid = torch.linspace(-REACH, REACH, POINTS)
    z = torch.cartesian_prod(*[grid] * dimensions).reshape(-1, dimensions)
    encoder = module.z_encoder
    transform = getattr(encoder, "transform", encoder.z_transformation)
    log_p = []
    for cell in range(len(tensors["X"])):
        own = {name: value[cell : cell + 1].expand(len(z), -1) for name, value in tensors.items()}
        library = own["X"].sum(1, keepdim=True).log()
        if latent_library:
            prior = library_prior(module, own["batch"])
            library = prior.loc + prior.scale * z[:, -1:]
        given = {"batch_index": own["batch"], "y": own["labels"]}
        with torch.no_grad():
            px = module.generative(transform(z[:, : module.n_latent]), library, **given)["px"]
            log_px = px.log_prob(own["X"]).double().sum(-1)
        log_joint = log_px + Normal(0, 1).log_prob(z.double()).sum(-1)
        log_p.append(logsumexp(log_joint.numpy()) + dimensions * math.log(2 * REACH / (len(grid) - 1)))
    return np.array(log_p)


def check(model):
    """Check the bounds of a few cells."""
    truth = exact(model.module.eval(), batch_of(model, FEW))
    estimate = bounds(model, indices=FEW, n_mc_samples=2000)
    assert estimate.log_px_mc_se.max() < 0.1, "the test says nothing if the error is large"
    assert (np.abs(estimate.log_px - truth) < 5 * estimate.log_px_mc_se + 2e-3).all()
    assert (estimate.elbo < truth + 5 * estimate.elbo_mc_se).all()


@pytest.mark.parametrize("observed", [True, False], ids=["observed library", "latent library"])
@pytest.mark.parametrize(("likelihood", "components"), [("zinb", 3), ("nb", 1), ("poisson", 3), ("normal", 1)])
def test_refined_likelihood_of_cells_is_that_of_quadrature(few, likelihood, observed, components):
    options = {"gene_likelihood": likelihood, "use_observed_lib_size": observed, "n_latent": 1}
    few = few.copy()
    if likelihood == "normal":  # which is for logarithms
        few.X = few.X.log1p()
    cls, more = (SCVI, {}) if components == 1 else (MixtureSCVI, {"n_components": components})
    check(make(few, cls, setup={"batch_key": "batch"}, epochs=3, **options, **more))


@pytest.mark.parametrize("cls", [SCVI, MixtureSCVI])
def test_refined_likelihood_of_logistic_normals_is_exact(few, cls):
    check(make(few.copy(), cls, setup={"batch_key": "batch"}, epochs=3, n_latent=2, latent_distribution="ln"))


def test_plain_scvi_has_the_bounds_of_a_mixture_of_one(cells):
    plain = make(cells, SCVI, setup={"batch_key": "batch"})
    mixture = MixtureSCVI.from_scvi_model(plain, 1, noise=0.0)
    ours, theirs = mixture.get_bounds(indices=FEW, n_mc_samples=200), bounds(plain, indices=FEW, n_mc_samples=200)
    for name, values in ours.arrays().items():
        np.testing.assert_allclose(values, theirs.arrays()[name], rtol=1e-4, atol=1e-3, err_msg=name)
    assert get_marginal_ll(plain, indices=FEW, n_mc_samples=200) == pytest.approx(theirs.log_px.mean())


@pytest.mark.parametrize("observed", [True, False], ids=["observed library", "latent library"])
def test_refined_bounds_ignore_batch_size_and_cell_order(cells, observed):
    model = make(cells, setup={"batch_key": "batch"}, use_observed_lib_size=observed)
    many = model.get_bounds(indices=range(8), n_mc_samples=200)
    few = model.get_bounds(indices=range(8), n_mc_samples=200, batch_size=7, decoded=50_000)
    picked = model.get_bounds(indices=[5, 3], n_mc_samples=200)
    np.testing.assert_allclose(few.log_px, many.log_px, atol=1e-3)
    np.testing.assert_allclose(picked.log_px, many.log_px[[5, 3]], atol=1e-3)
    assert many.proposal_notes["examples"] == few.proposal_notes["examples"] == 8
    assert np.median(many.ess) > 0.2 * many.total_draws, "the proposals are poor"
    posterior = model.get_bounds(indices=range(8), n_mc_samples=200, proposal="posterior")
    np.testing.assert_array_equal(posterior.log_px, many.pooled)


def test_refined_bounds_work_within_inference_mode(cells):
    model = make(cells)
    expected = model.get_bounds(indices=FEW, n_mc_samples=50).log_px
    with torch.inference_mode():
        tensors = {name: value.clone() for name, value in batch_of(model, FEW).items()}
        found = model.get_bounds(n_mc_samples=50, dataloader=iter([tensors]))
    np.testing.assert_allclose(found.log_px, expected, atol=1e-3)


SETUP = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["percent_mito"],
}


@pytest.fixture(params=[True, False], ids=["observed library", "latent library"])
def joint(request, cells):
    """Joint density of seven cells with every kind of covariate."""
    model = make(cells, setup=SETUP, use_observed_lib_size=request.param)
    with torch.no_grad():
        return joint_and_posterior(model.module.eval(), batch_of(model, range(7)))[0]


def test_gradient_of_the_joint_density_is_its_slope(joint):
    z = torch.randn(7, joint.latent, generator=torch.Generator().manual_seed(0)) / 2
    if joint.library is None:
        z[:, -1] += joint.x.sum(1).log()
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(joint.log_prob(leaf).sum(), leaf)
    for d in range(joint.latent):
        step = torch.zeros(joint.latent)
        step[d] = 1e-2
        with torch.no_grad():
            slope = (joint.log_prob(z + step) - joint.log_prob(z - step)) / 2e-2
        torch.testing.assert_close(gradient[:, d], slope, rtol=2e-2, atol=0.3)


def test_part_of_a_joint_density_is_that_of_some_cells(joint):
    z = joint.sample_prior(3)
    assert z.shape == (3, 7, joint.latent)
    part = joint.part(2, 5)
    torch.testing.assert_close(part.log_prob(z[:, 2:5]), joint.log_prob(z)[:, 2:5], rtol=1e-4, atol=1e-3)


def test_prior_draws_of_cells_have_the_priors_moments(joint):
    torch.manual_seed(0)
    z = joint.sample_prior(4000)
    assert (z[..., :3].mean(0).abs() < 5 / math.sqrt(4000)).all()
    assert joint.least_precision() <= 1
    if joint.library is None:
        prior = library_prior(joint.module, joint.inputs["batch_index"])
        assert ((z[..., 3:].mean(0) - prior.loc).abs() < 5 * prior.scale / math.sqrt(4000)).all()
        assert joint.least_precision() == pytest.approx(min(1, 1 / float(joint.module.library_log_vars.max())))


def test_simulated_cells_keep_library_and_covariates(joint):
    torch.manual_seed(0)
    z = joint.sample_prior(1)[0]
    with torch.no_grad():
        simulated = [joint.simulated(z) for _ in range(300)]
        mean = joint.decoded(z).mean
    assert simulated[0].inputs is not joint.inputs
    for name, value in joint.inputs.items():
        assert value is simulated[0].inputs[name]
    assert simulated[0].library is joint.library
    counts = torch.stack([one.x for one in simulated])
    assert counts.shape == (300, 7, 60)
    assert (counts == counts.round()).all()
    assert not torch.equal(counts[0], counts[1])
    error = counts.std(0) / math.sqrt(300)
    assert ((counts.mean(0) - mean).abs() < 6 * error + 0.05 * mean + 0.05).all()
    assert REGISTRY_KEYS.X_KEY == "X"
