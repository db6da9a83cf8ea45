"""Gradient estimators: the plain one's expectation, and no variance where there should be none."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from conftest import binary, tiny_model
from mixvae import gradients as gradients_module
from mixvae.bounds import elbo, iwelbo, log_weights, miselbo, pooled
from mixvae.decoders import Decoder, GaussianLikelihood, MLPDecoder
from mixvae.flows import CouplingFlow, InverseAutoregressiveFlow
from mixvae.gradients import doubly_reparameterised, proportional, reparameterised, sticking_the_landing
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


@pytest.mark.parametrize("subset", ["S2A", pytest.param("S2S", marks=pytest.mark.slow)])
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
        (proportional, pooled, {"active": [0]}, "each draw by the weights; got a subset"),
        (proportional, miselbo, {}, "an elbo and a pooled bound; got miselbo"),
    ],
)
def test_a_gradient_that_would_be_biased_is_refused(estimator, bound, options, told):
    with pytest.raises(ValueError, match=told):
        estimator(tiny_model(3), binary(2), bound, **options)


@pytest.mark.parametrize("estimator", [doubly_reparameterised, proportional])
def test_estimators_that_choose_refuse_learned_weights(estimator):
    with pytest.raises(ValueError, match="needs fixed mixture weights"):
        estimator(tiny_model(2, learn_weights=True), binary(2), pooled)


def on_a_line(weights, seed):
    """A model of one latent coordinate whose components lie apart, and one example."""
    model = tiny_model(len(weights), latent=1, weights=list(weights), seed=seed)
    with torch.no_grad():
        for s, encoder in enumerate(model.posterior.encoders):
            encoder.head.bias[0] += 3 * s - 1.5 * (len(weights) - 1)
    return model, binary(1)


def exact(model, x, allocations, weigh, nodes=24):
    """Expectation of a bound of few draws by quadrature, with its gradient.

    Each allocation is its probability and the component of every draw; `weigh` maps an allocation to weights of the
    draws in log Σ_n weight_n w_n.
    """
    points, masses = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
    masses = masses / masses.sum()
    q = model.posterior(x)
    z = q.rsample((nodes,), points.reshape(-1, 1, 1, 1).expand(-1, q.batch_shape[0], 1, 1))
    log_w = model.log_likelihood(x, z) + model.prior().log_prob(z) - q.mixture().log_prob(z)  # (nodes, S, 1)
    total = 0.0
    for probability, components in allocations:
        n = len(components)
        grids = torch.meshgrid(*(log_w[:, s, 0] for s in components), indexing="ij")
        mass = torch.stack(torch.meshgrid(*[masses] * n, indexing="ij")).prod(0)
        value = (torch.stack(grids) + weigh(components).log().reshape(-1, *[1] * n)).logsumexp(0)
        total = total + probability * (mass * value).sum()
    return total


def equal(components):
    return torch.full((len(components),), 1 / len(components), dtype=torch.float64)


def by_systematic_rounding(pi, n):
    """Every allocation of n draws and its probability: the u at which one changes are those where k + u = n Σ π."""
    edges = pi.cumsum(0)[:-1]
    cuts = sorted({0.0, 1.0, *((n * edges) % 1).tolist()})
    for low, high in itertools.pairwise(cuts):
        points = [(k + (low + high) / 2) / n for k in range(n)]
        yield high - low, [int((edges <= point).sum()) for point in points]


def expectation_of(name, model, x, n):
    """Expected pooled bound of n draws, taken as one of the estimators takes them."""
    pi = model.posterior.log_pi().exp()
    if name == "stratified":
        assert n == len(pi)
        return exact(model, x, [(1.0, list(range(n)))], lambda components: pi)
    if name == "independent":
        every = itertools.product(range(len(pi)), repeat=n)
        return exact(model, x, [(float(pi[list(c)].prod()), list(c)) for c in every], equal)
    return exact(model, x, by_systematic_rounding(pi, n), equal)


DRAWING = {"stratified": reparameterised, "independent": doubly_reparameterised, "proportional": proportional}


def averages(estimator, model, x, bound=pooled, times=100, copies=100, **options):
    """Value and gradient in the encoders, means of many calls and their standard errors."""
    parameters, values, rows = list(model.posterior.parameters()), [], []
    for seed in range(times):
        torch.manual_seed(seed)
        value = estimator(model, x.expand(copies, *SHAPE), bound, **options).mean()
        values.append(value.detach())
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    both = torch.cat([torch.stack(values)[:, None], torch.stack(rows)], 1)
    return both.mean(0), both.std(0) / times**0.5


@pytest.mark.parametrize("name", DRAWING)
def test_pooled_estimators_have_three_different_bounds(name):
    """Stratified, independent and proportional draws: value and gradient of each against quadrature."""
    model, x = on_a_line((1.0, 3.0), seed=2)
    expected = expectation_of(name, model, x, 2)
    gradient = torch.autograd.grad(expected, list(model.posterior.parameters()))
    expected = torch.cat([expected.detach()[None], *(g.flatten() for g in gradient)])
    mean, error = averages(DRAWING[name], model, x)
    assert ((mean - expected).abs() <= 4.5 * error + 1e-9).all()
    stratified, independent, proportionally = (expectation_of(each, model, x, 2).item() for each in DRAWING)
    assert (stratified, independent, proportionally) == pytest.approx((-3.804, -5.551, -5.332), abs=1e-3)
    assert name == "stratified" or abs(mean[0] - stratified) > 5 * error[0], "the bounds are told apart"


def test_independent_draws_may_be_tighter_or_looser():
    with torch.no_grad():
        lines = [on_a_line(weights, seed=1) for weights in ((1.0, 3.0), (3.0, 1.0))]
        stratified, independent = (
            [expectation_of(name, *line, 2).item() for line in lines] for name in list(DRAWING)[:2]
        )
    assert stratified == pytest.approx([-2.940, -2.928], abs=1e-3)
    assert independent == pytest.approx([-3.196, -2.886], abs=1e-3)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_proportional_counts_average_to_their_shares(n, monkeypatch):
    pi = torch.tensor([0.05, 0.6, 0.02, 0.33], dtype=torch.float64)
    shifts = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    counts = []
    for u in shifts:
        monkeypatch.setattr(torch, "rand", lambda *shape, u=u, **options: u)
        counts.append(gradients_module._in_proportion(pi.log(), n).bincount(minlength=4))
    counts = torch.stack(counts).double()
    assert (counts.sum(1) == n).all()
    assert ((counts - n * pi).abs() < 1).all()
    torch.testing.assert_close(counts.mean(0), n * pi, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["weighted", "flow per component"])
def test_proportional_elbo_has_the_plain_expectation(name):
    model = MODELS[name]()
    plain = gradients(reparameterised, model, elbo, beta=0.6)
    assert_same_expectation(gradients(proportional, model, elbo, beta=0.6), plain)


@pytest.mark.parametrize("bound", [elbo, pooled])
def test_proportional_with_equal_weights_is_the_plain_estimator(bound):
    model, x, noise = tiny_model(3), binary(5), torch.randn(4, 3, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(
        proportional(model, x, bound, 4, noise=noise), reparameterised(model, x, bound, 4, noise=noise)
    )


def test_proportional_draws_vary_less_than_the_other_two():
    """Variance of the ELBO of N = 8 draws, from means and variances of log w within each component.

    No law: L draws of each vary less where the components of little weight vary most.
    """
    model, x = on_a_line((20.0, 8.0, 1.0, 1.0), seed=1)
    pi = model.posterior.log_pi().exp()
    with torch.no_grad():
        log_w = log_weights(model(x, 4000))[..., 0]
    mean, var, n = log_w.mean(0), log_w.var(0), 8
    chosen = torch.stack([gradients_module._in_proportion(pi.log(), n) for _ in range(500)])
    proportionally = var[chosen].sum(1).mean() / n**2 + mean[chosen].mean(1).var()
    independently = (pi @ var + pi @ (mean - pi @ mean).square()) / n
    stratified = pi.square() @ var / 2
    assert proportionally < 0.8 * independently
    assert proportionally < 0.8 * stratified
