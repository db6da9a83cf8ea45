"""Gradient estimators: the plain one's expectation, and no variance where there should be none."""

import itertools
import math

import pytest
import torch
from torch import nn

from conftest import binary, tiny_model
from mixvae.bounds import elbo, iwelbo, log_weights, miselbo, pooled
from mixvae.decoders import Decoder, GaussianLikelihood, MLPDecoder
from mixvae.flows import CouplingFlow, InverseAutoregressiveFlow
from mixvae.gradients import doubly_reparameterised, reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE
from mixvae.networks import GaussianNetwork, TwoLevelDense
from mixvae.posteriors import FlowPosterior, SeparateEncoders, TwoLevelPosterior
from mixvae.priors import StandardNormal, TwoLevelPrior, VampPrior

SHAPE = (1, 2, 2)


def two_level(components=2):
    torch.manual_seed(0)
    posterior = TwoLevelPosterior(lambda: TwoLevelDense(SHAPE, 1, (4,)), components)
    prior = TwoLevelPrior(StandardNormal(1), GaussianNetwork(1, 1, (4,)), 1)
    return MixtureVAE(posterior, prior, MLPDecoder(2, SHAPE, (5,))).double()


def flowed(build=lambda: CouplingFlow(2, 1, (4,)), *, per_component=True):
    torch.manual_seed(0)
    base = tiny_model(2, dtype=torch.float32).posterior
    posterior = FlowPosterior(base, build, 2, per_component=per_component)
    return MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, SHAPE, (5,))).double()


MODELS = {
    "weighted": lambda: tiny_model(3, weights=[3.0, 2.0, 1.0]),
    "learned weights": lambda: tiny_model(2, weights=[2.0, 1.0], learn_weights=True),
    "VampPrior": lambda: tiny_model(2, prior=lambda q, shape, latent: VampPrior(q, shape, 3)),
    "two levels": two_level,
    "flow per component": flowed,
    "shared autoregressive flow": lambda: flowed(
        build=lambda: InverseAutoregressiveFlow(2, 1, (4,)), per_component=False
    ),
}


def gradients(estimator, model, bound, draws=1, subset=None, times=60, copies=100, **options):
    """Gradient in every parameter of the posterior, each the mean over many independent noises: (times, P)."""
    x = binary(1).expand(copies, *SHAPE)
    parameters = [p for p in model.posterior.parameters() if p.requires_grad]
    subsets = [None] if subset is None else itertools.combinations(range(model.posterior.components), 2)
    choices = [{}] if subset is None else [{"active": s, "scored": s if subset == "S2S" else None} for s in subsets]
    rows = []
    for seed in range(times):
        torch.manual_seed(seed)
        value = sum(estimator(model, x, bound, draws, **options, **choice).mean() for choice in choices)
        parts = torch.autograd.grad(value, parameters)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def assert_same_expectation(one, other):
    """Compare by the worst of the projections on fixed directions, each in standard errors."""
    directions = torch.randn(one.shape[1], 8, generator=torch.Generator().manual_seed(0), dtype=one.dtype)
    one, other = one @ directions, other @ directions
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("name", MODELS)
def test_sticking_the_landing_has_the_plain_expectation(name):
    model = MODELS[name]()
    plain = gradients(reparameterised, model, elbo, beta=0.6)
    assert_same_expectation(gradients(sticking_the_landing, model, elbo, beta=0.6), plain)


@pytest.mark.parametrize("subset", ["S2A", "S2S"])
def test_sticking_the_landing_is_unbiased_on_subsets(subset):
    model = tiny_model(3, weights=[3.0, 2.0, 1.0], learn_weights=True)
    plain = gradients(reparameterised, model, elbo, subset=subset)
    assert_same_expectation(gradients(sticking_the_landing, model, elbo, subset=subset), plain)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize(("components", "bound"), [(1, iwelbo), (2, pooled), (3, pooled)])
def test_doubly_reparameterised_mean_matches_independent_draws(components, bound, beta):
    model = tiny_model(components, weights=[3.0, 2.0, 1.0][:components])
    draws = 3

    def plain(model, x, bound, draws, beta):
        """The pooled bound of draws that come from the mixture one by one, as it stands."""
        n = draws * components
        chosen = torch.multinomial(model.posterior.log_pi().exp(), n, replacement=True)
        terms = model(x, 1, active=chosen)
        return bound(log_weights(terms, beta).transpose(0, 1), torch.ones(1, dtype=torch.float64))

    expected = gradients(plain, model, iwelbo, draws, beta=beta)
    assert_same_expectation(gradients(doubly_reparameterised, model, bound, draws, beta=beta), expected)


def test_textbook_squared_weights_are_biased_when_stratified():
    """Why `doubly_reparameterised` draws independently: the bias that this finds is what it avoids."""
    model = tiny_model(3)

    def textbook(model, x, bound, draws):
        held = {name: p.detach() for name, p in model.posterior.named_parameters()}
        q = model.posterior(x)
        z = q.rsample((draws,))
        log_q = torch.func.functional_call(_Cross(model.posterior), {f"q.{n}": p for n, p in held.items()}, (x, z))
        log_w = model.log_likelihood(x, z) + model.prior().log_prob(z) - (log_q.logsumexp(-2) - math.log(3))
        u = log_w.detach().flatten(0, 1).softmax(0).view_as(log_w)
        return (u.square() * log_w).sum((0, 1))

    plain, squared = (gradients(estimator, model, pooled, copies=4000) for estimator in (reparameterised, textbook))
    difference = squared.mean(0) - plain.mean(0)
    error = (squared.var(0) / len(squared) + plain.var(0) / len(plain)).sqrt()
    assert (difference.abs() > 8 * error).logical_and(error > 0).any()


class _Cross(nn.Module):
    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, x, z):
        return self.q(x).cross_log_prob(z)


@pytest.mark.parametrize(
    ("estimator", "bound", "components"),
    [(sticking_the_landing, elbo, 3), (doubly_reparameterised, iwelbo, 1), (reparameterised, pooled, 3)],
)
def test_the_value_is_that_of_the_bound(estimator, bound, components):
    model, x = tiny_model(components), binary(5)
    noise = torch.randn(4, components, 5, 2, dtype=torch.float64)
    terms = model(x, 4, noise=noise)
    torch.testing.assert_close(
        estimator(model, x, bound, 4, beta=0.7, noise=noise), bound(log_weights(terms, 0.7), terms.weight)
    )


class Exact(nn.Module):
    """The exact posterior of one latent of a linear-Gaussian model, as an encoder with weights of its own."""

    def __init__(self, gain, variance):
        super().__init__()
        self.gain = nn.Parameter(gain.clone())
        self.log_var = nn.Parameter(variance.log().reshape(1))

    def forward(self, x):
        mean = x @ self.gain[:, None]
        return mean, self.log_var.expand_as(mean)


class ExactTwoLevel(nn.Module):
    """The exact posterior of z2, and of z1 given z2."""

    def __init__(self, upper, lower):
        super().__init__()
        self.upper, self.lower = Exact(*upper), Exact(*lower)

    def forward(self, x):
        def below(z2):
            seen = x.expand(*z2.shape[:-1], x.shape[-1])
            mean, log_var = self.lower(torch.cat([z2, seen], -1))
            return mean, log_var

        return *self.upper(x), below


class Slope(nn.Module):
    """p(z1|z2) = N(0.8 z2, 0.5)."""

    def forward(self, z2):
        return 0.8 * z2, torch.full_like(z2, math.log(0.5))


def conditional(covariance, of, given):
    """Gain and variance of one Gaussian coordinate given others."""
    gain = torch.linalg.solve(covariance[given][:, given], covariance[given][:, of])
    return gain, covariance[of, of] - gain @ covariance[given][:, of]


def exact_model(levels):
    """Every component is the exact posterior, so that the mixture is it too."""
    weight = torch.tensor([[1.0, -0.5], [0.3, 0.9], [0.2, 1.4]], dtype=torch.float64)[:, :levels]
    latent = torch.eye(levels, dtype=torch.float64)
    if levels == 2:
        latent = torch.tensor([[1.0, 0.8], [0.8, 0.8**2 + 0.5]], dtype=torch.float64)
    observed = weight @ latent @ weight.T + 0.49 * torch.eye(3, dtype=torch.float64)
    joint = torch.cat([torch.cat([latent, latent @ weight.T], 1), torch.cat([weight @ latent, observed], 1)])
    likelihood = GaussianLikelihood((3,), minimum=0.0).double()
    nn.init.constant_(likelihood.raw_scale, math.log(math.expm1(0.7)))
    network = nn.Linear(levels, 3, bias=False).double()
    network.weight.data = weight
    if levels == 1:
        posterior = SeparateEncoders(lambda: Exact(*conditional(joint, 0, [1, 2, 3])), 2)
        prior = StandardNormal(1)
    else:
        upper, lower = conditional(joint, 0, [2, 3, 4]), conditional(joint, 1, [0, 2, 3, 4])
        posterior = TwoLevelPosterior(lambda: ExactTwoLevel(upper, lower), 2)
        prior = TwoLevelPrior(StandardNormal(1), Slope(), 1)
    return MixtureVAE(posterior, prior, Decoder(network, likelihood)).double()


@pytest.mark.parametrize("levels", [1, 2])
def test_sticking_the_landing_has_no_variance_at_true_posterior(levels):
    """Catches an estimator that detaches means but not the networks of a lower level, which keep their score."""
    model, x = exact_model(levels), torch.randn(4, 3, dtype=torch.float64)
    parameters = list(model.posterior.parameters())

    def gradient(estimator):
        return torch.cat([g.flatten() for g in torch.autograd.grad(estimator(model, x).sum(), parameters)])

    assert gradient(sticking_the_landing).abs().max() < 1e-10
    assert gradient(reparameterised).abs().max() > 0.1


def test_a_draw_is_scored_under_the_dropout_that_it_came_from():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 4)).double()

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).chunk(2, -1)

    model = MixtureVAE(SeparateEncoders(Encoder, 1), StandardNormal(2), MLPDecoder(2, SHAPE, (5,)).double()).double()
    x, noise = binary(3), torch.randn(1, 1, 3, 2, dtype=torch.float64)
    values = []
    for estimator in (reparameterised, sticking_the_landing):
        torch.manual_seed(3)
        values.append(estimator(model, x, noise=noise))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize(
    ("estimator", "bound", "options", "told"),
    [
        (sticking_the_landing, pooled, {}, "unbiased for the elbo only; got pooled"),
        (doubly_reparameterised, elbo, {}, "unbiased for pooled, and for iwelbo with one component; got elbo with 3"),
        (doubly_reparameterised, iwelbo, {}, "got iwelbo with 3"),
        (doubly_reparameterised, miselbo, {}, "got miselbo with 3"),
        (doubly_reparameterised, pooled, {"active": [0]}, "each draw independently; got a subset"),
    ],
)
def test_a_gradient_that_would_be_biased_is_refused(estimator, bound, options, told):
    with pytest.raises(ValueError, match=told):
        estimator(tiny_model(3), binary(2), bound, **options)


def test_doubly_reparameterised_refuses_learned_weights():
    with pytest.raises(ValueError, match="needs fixed mixture weights"):
        doubly_reparameterised(tiny_model(2, learn_weights=True), binary(2))
