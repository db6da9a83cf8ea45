"""The model against exact answers: linear-Gaussian p(x), quadrature, explicit loops, finite differences."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from conftest import binary, tiny_model
from mixvae.bounds import elbo, iwelbo, log_weights, miselbo, pooled
from mixvae.decoders import Decoder, GaussianLikelihood
from mixvae.evaluation import evaluate
from mixvae.model import MixtureVAE, evaluating
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import GaussianMixturePrior, StandardNormal, VampPrior

WEIGHTS = [0.5, 0.2, 0.2, 0.1]


def all_images(shape=(1, 2, 2), dtype=torch.float64):
    n = math.prod(shape)
    return torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=dtype).reshape(-1, *shape)


class AffineEncoder(nn.Module):
    """Mean A x + b and one log-variance, so that it can be set to an exact or a wrong posterior."""

    def __init__(self, matrix, shift, log_var):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)
        self.register_buffer("log_var", log_var)

    def forward(self, x):
        mean = x @ self.matrix.T + self.shift
        return mean, self.log_var.expand_as(mean)


def linear_gaussian(components=3, latent=2, observed=3):
    """p(z) = N(0, I), p(x|z) = N(W z, σ² I): log p(x) is a Gaussian's. The encoders are off, each its own way."""
    weight, noise = torch.randn(observed, latent, dtype=torch.float64), 0.7
    likelihood = GaussianLikelihood((observed,), minimum=0.0).double()
    nn.init.constant_(likelihood.raw_scale, math.log(math.expm1(noise)))
    network = nn.Linear(latent, observed, bias=False).double()
    network.weight.data = weight
    covariance = torch.linalg.inv(torch.eye(latent, dtype=torch.float64) + weight.T @ weight / noise**2)
    matrix = covariance @ weight.T / noise**2
    variance = covariance.diagonal().log() + 0.7  # wider than the posterior, so that weights stay bounded

    encoders = iter(
        AffineEncoder(matrix, 0.2 * torch.randn(latent, dtype=torch.float64), variance) for _ in range(components)
    )
    posterior = SeparateEncoders(lambda: next(encoders), components, [3.0, 2.0, 1.0][:components]).double()
    model = MixtureVAE(posterior, StandardNormal(latent).double(), Decoder(network, likelihood))
    marginal = MultivariateNormal(
        torch.zeros(observed, dtype=torch.float64),
        weight @ weight.T + noise**2 * torch.eye(observed, dtype=torch.float64),
    )
    return model, marginal


def test_pooled_bound_reaches_exact_linear_gaussian_likelihood():
    model, marginal = linear_gaussian()
    x = marginal.sample((20,))
    found = evaluate(model, x, 60_000, proposal="posterior")
    off = (found.pooled - marginal.log_prob(x).numpy()) / found.pooled_mc_se
    assert abs(off.mean()) < 5 / 20**0.5
    assert abs(off).max() < 5
    assert (found.pooled_mc_se < 0.02).all()
    assert (found.elbo < found.miselbo).all()
    assert (found.miselbo < found.pooled + 5 * found.pooled_mc_se).all()  # unequal weights: by different draws
    refined = evaluate(model, x, 1000)
    assert (abs(refined.log_px - marginal.log_prob(x).numpy()) < 5 * refined.log_px_mc_se).all()


@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp"])
def test_pooled_bound_meets_quadrature_in_two_dimensions(prior):
    make = {
        "standard": None,
        "mixture": lambda q, shape, latent: GaussianMixturePrior(latent, 3),
        "vamp": lambda q, shape, latent: VampPrior(q, shape, 4),
    }[prior]
    model, x = tiny_model(4, prior=make, weights=WEIGHTS), all_images()[:6]
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        joint = model.decoder(points[:, None]).log_prob(x) + model.prior().log_prob(points)[:, None]
    exact = (joint.logsumexp(0) + 2 * math.log(20 / 400)).numpy()
    found = evaluate(model, x, 10_000)
    assert (abs(found.pooled - exact) < 5 * found.pooled_mc_se + 1e-4).all()
    assert (found.pooled_mc_se < 0.05).all()


def test_likelihoods_of_all_tiny_images_sum_to_one():
    model, x = tiny_model(), all_images()
    z = torch.randn(5, 1, 2, dtype=torch.float64)
    total = model.log_likelihood(x, z.expand(5, len(x), 2)).logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros(5, dtype=torch.float64))


def test_terms_equal_an_explicit_double_loop_over_components():
    model, x = tiny_model(4, weights=WEIGHTS), binary(3)
    noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    terms = model(x, 2, noise=noise)
    pi = torch.tensor(WEIGHTS, dtype=torch.float64)
    for s, b in itertools.product(range(4), range(3)):
        mean, log_var = model.posterior.encoders[s](x[b : b + 1])
        z = mean[0] + (0.5 * log_var[0]).exp() * noise[:, s, b]
        torch.testing.assert_close(terms.log_px[:, s, b], model.decoder(z).log_prob(x[b]))
        torch.testing.assert_close(terms.log_pz[:, s, b], Normal(0, 1).log_prob(z).sum(-1))
        for j in range(4):
            mean, log_var = model.posterior.encoders[j](x[b : b + 1])
            expected = Normal(mean[0], (0.5 * log_var[0]).exp()).log_prob(z).sum(-1)
            torch.testing.assert_close(terms.log_q[:, s, j, b], expected)
    torch.testing.assert_close(terms.weight, pi)
    torch.testing.assert_close(terms.log_pi, pi.log())


def test_one_component_is_the_ordinary_vae():
    model, x = tiny_model(1), binary(5)
    noise = torch.randn(3, 1, 5, 2, dtype=torch.float64)
    terms = model(x, 3, noise=noise)
    mean, log_var = model.posterior.encoders[0](x)
    std = (0.5 * log_var).exp()
    z = mean + std * noise[:, 0]
    logits = model.decoder.network(z.flatten(0, 1)).unflatten(0, (3, 5))
    log_px = -nn.functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    log_w = log_px.sum((2, 3, 4)) + Normal(0, 1).log_prob(z).sum(-1) - Normal(mean, std).log_prob(z).sum(-1)
    torch.testing.assert_close(elbo(log_weights(terms), terms.weight), log_w.mean(0))
    torch.testing.assert_close(iwelbo(log_weights(terms), terms.weight), log_w.logsumexp(0) - math.log(3))


def bound_of(model, x, n, active=None, scored=None):
    """ELBO of n independent draws, summed over x: (n,)."""
    terms = model(x, n, active=active, scored=scored)
    return torch.einsum("lsb,s->l", log_weights(terms), terms.weight)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_s2a_is_unbiased_and_s2s_lies_below_it(weights):
    """Averaged over every subset of 2 of 4 components; with weights only the A/S-scaled formula holds."""
    model, x, n = tiny_model(4, weights=weights), binary(3), 4000
    subsets = list(itertools.combinations(range(4), 2))
    with torch.no_grad():
        full = bound_of(model, x, n)
        s2a = torch.stack([bound_of(model, x, n, active=list(phi)) for phi in subsets])
        s2s = torch.stack([bound_of(model, x, n, active=list(phi), scored=list(phi)) for phi in subsets])

    def mean_and_error(values):  # over all subsets: no error from choosing them
        means = values.reshape(-1, n)
        return means.mean(), (means.var(1) / n).sum().sqrt() / len(means)

    (a, da), (b, db), (c, dc) = map(mean_and_error, (full, s2a, s2s))
    assert abs(a - b) < 4 * (da**2 + db**2).sqrt()
    assert c < b - 4 * (db**2 + dc**2).sqrt()


@pytest.mark.parametrize("outer", ["weights of the subset, renormalised", "equal weights"])
def test_the_obvious_weights_of_a_subset_are_biased(outer):
    """Why the outer weights are (A/S) π_s: each of these is off by many standard errors where the weights differ."""
    model, x, n = tiny_model(4, weights=WEIGHTS), binary(3), 4000
    with torch.no_grad():
        model.posterior.encoders[0].head.bias += 1  # a heavy component that is worse than the others
        full = bound_of(model, x, n)
        values = []
        for phi in itertools.combinations(range(4), 2):
            terms = model(x, n, active=list(phi))
            weight = (
                terms.weight / terms.weight.sum() if "renormalised" in outer else torch.full_like(terms.weight, 0.5)
            )
            values.append(torch.einsum("lsb,s->l", log_weights(terms), weight))
    obvious = torch.stack(values)
    error = (full.var() / n + (obvious.var(1) / n).sum() / len(obvious) ** 2).sqrt()
    assert abs(full.mean() - obvious.mean()) > 8 * error


def test_all_components_active_is_the_full_bound():
    model, x = tiny_model(4, weights=WEIGHTS), binary(3)
    noise = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    full = model(x, 2, noise=noise)
    for active, scored in (([0, 1, 2, 3], None), ([0, 1, 2, 3], [0, 1, 2, 3])):
        terms = model(x, 2, active=active, scored=scored, noise=noise)
        torch.testing.assert_close(log_weights(terms), log_weights(full))
        torch.testing.assert_close(terms.weight, full.weight)


def test_s2a_tracks_the_component_of_each_draw():
    model, x = tiny_model(4), binary(3)
    terms = model(x, active=[3, 1])
    assert terms.own.tolist() == [3, 1]
    assert terms.log_q.shape == (1, 2, 4, 3)
    assert model(x, active=[3], scored=[1, 3]).own.tolist() == [1]


def test_a_component_is_scored_once():
    """Twice, it counted twice in the mixture, which was no bound."""
    with pytest.raises(ValueError, match=r"scored components must differ, or one would count twice; got \[0, 0\]"):
        tiny_model(4)(binary(3), scored=[0, 0])


def test_an_active_component_must_be_scored():
    with pytest.raises(ValueError, match=r"active \[2\], scored \[0, 1\]"):
        tiny_model(4)(binary(3), active=[2], scored=[0, 1])


@pytest.mark.parametrize("bound", [elbo, miselbo, pooled])
@pytest.mark.parametrize("prior", ["standard", "vamp"])
def test_gradient_of_the_bound_equals_finite_differences(bound, prior):
    make = None if prior == "standard" else lambda q, shape, latent: VampPrior(q, shape, 3)
    model, x = tiny_model(2, prior=make, weights=[2.0, 1.0], learn_weights=True), binary(3)
    noise = torch.randn(2, 2, 3, 2, dtype=torch.float64)

    def value(parameters):
        for own, new in zip(model.parameters(), parameters, strict=True):
            own.data = new
        terms = model(x, 2, noise=noise)
        return bound(log_weights(terms), terms.weight).mean()

    parameters = [p.detach().clone() for p in model.parameters()]
    terms = model(x, 2, noise=noise)
    gradients = torch.autograd.grad(bound(log_weights(terms), terms.weight).mean(), list(model.parameters()))
    for gradient, index in zip(gradients, range(len(parameters)), strict=True):
        direction = torch.randn_like(parameters[index])
        shifted = [
            [p + (1e-5 * sign * direction if i == index else 0) for i, p in enumerate(parameters)] for sign in (1, -1)
        ]
        with torch.no_grad():
            numeric = (value(shifted[0]) - value(shifted[1])) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), numeric, atol=2e-7, rtol=2e-5)


def test_results_do_not_depend_on_batch_size_order_or_mode():
    model, x = tiny_model(3), binary(8)
    noise = torch.randn(2, 3, 8, 2, dtype=torch.float64)
    whole = log_weights(model(x, 2, noise=noise))
    for i in range(8):
        alone = log_weights(model(x[i : i + 1], 2, noise=noise[:, :, i : i + 1]))
        torch.testing.assert_close(alone[..., 0], whole[..., i])
    order = torch.randperm(8)
    torch.testing.assert_close(log_weights(model(x[order], 2, noise=noise[:, :, order])), whole[..., order])
    with evaluating(model):
        torch.testing.assert_close(log_weights(model(x, 2, noise=noise)), whole)


def test_evaluating_restores_the_mode_of_every_part():
    model = tiny_model(2)
    model.decoder.eval()
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert model.training
    assert model.posterior.training
    assert not model.decoder.network.training


def test_grey_values_are_refused_by_a_binary_likelihood():
    with pytest.raises(ValueError, match="from 0.5 to 0.5.*Boolean.*binarise"):
        tiny_model()(torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64))


def test_mismatched_latent_sizes_error_names_both_sizes():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"latent shape \(2,\), the prior \(3,\)"):
        MixtureVAE(model.posterior, StandardNormal(3).double(), model.decoder)(binary(2))


def test_data_and_decoder_mismatch_error_names_both_shapes():
    model, other = tiny_model(), tiny_model(shape=(1, 1, 4))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 4\); x has shape \(1, 2, 2\)"):
        MixtureVAE(model.posterior, model.prior, other.decoder)(binary(2))


def test_samples_and_reconstructions_have_the_datas_shape():
    model = tiny_model(3)
    assert model.sample(5).shape == (5, 1, 2, 2)
    assert model.reconstruct(binary(4)).shape == (3, 4, 1, 2, 2)
