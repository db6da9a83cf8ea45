"""Refined proposals: tight bounds, and no rule that keeps them bounds can be broken unnoticed."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Cauchy, Distribution, Independent, Laplace, StudentT, constraints

from conftest import binary, tiny_model
from mixvae import MixtureVAE, MLPDecoder, evaluate
from mixvae.decoders import Decoder, GaussianLikelihood
from mixvae.distributions import DiagonalGaussian, keyed_normal, least_precision, natural_parameters
from mixvae.evaluation import _marginal
from mixvae.joint import Joint, ModelJoint
from mixvae.model import evaluating
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import GaussianMixturePrior, StandardNormal
from mixvae.proposals import _mixture, _modes, _refine, curvature, find_peaks, refine, systematic_counts
from zoo import DECODERS, LATENT, POSTERIORS, PRIORS, TWO_LEVEL_PRIORS, FullGaussian, data

GRID = torch.linspace(-9, 9, 181, dtype=torch.float64)


def quadrature(joint):
    """Exact log p(x) of two latents, by a grid."""
    z = torch.cartesian_prod(GRID, GRID)
    step = float(GRID[1] - GRID[0])
    with torch.no_grad():
        values = [joint.log_prob(part.unsqueeze(1).expand(-1, joint.size, -1)) for part in z.split(4096)]
    return (torch.cat(values).logsumexp(0) + 2 * math.log(step)).numpy()


class Constant(nn.Module):
    """An encoder that says the same of every example."""

    def __init__(self, mean, log_var):
        super().__init__()
        self.mean, self.log_var = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(log_var))

    def forward(self, x):
        return self.mean.expand(len(x), -1), self.log_var.expand(len(x), -1)


def linear_gaussian(latent=3, values=5):
    """A model whose log p(x) is exact, with a poor posterior."""
    torch.manual_seed(4)
    network = nn.Linear(latent, values)
    decoder = Decoder(network, GaussianLikelihood((values,)))
    means = iter([[0.5] * latent, [-1.0] * latent])
    posterior = SeparateEncoders(lambda: Constant(next(means), [-2.0] * latent), 2)
    model = MixtureVAE(posterior, StandardNormal(latent), decoder).double().eval()
    noise = model.decoder(torch.zeros(1, latent).double()).base_dist.variance[0]
    covariance = network.weight @ network.weight.T + torch.diag(noise)
    exact = torch.distributions.MultivariateNormal(network.bias, covariance)
    return model, exact


def test_estimates_equal_the_exact_likelihood_of_a_linear_model():
    model, exact = linear_gaussian()
    with torch.no_grad():
        x = exact.sample((40,))
        truth = exact.log_prob(x).numpy()
    found = evaluate(model, x, 400)
    assert found.log_px_mc_se.max() < 0.1
    assert (np.abs(found.log_px - truth) < 5 * found.log_px_mc_se).all()
    assert abs((found.log_px - truth).mean()) < 4 * np.sqrt((found.log_px_mc_se**2).sum()) / 40
    assert (found.pooled - truth).mean() < -0.5, "the posterior is meant to be poor, or this test shows nothing"
    np.testing.assert_allclose(found.kl_posterior, found.log_px - found.elbo)


CASES = [(q, "standard normal", "Bernoulli") for q in POSTERIORS if "two levels" not in q]
CASES += [("separate", p, "Bernoulli") for p in PRIORS] + [("separate", "standard normal", d) for d in DECODERS]
CASES += [(q, p, "Bernoulli") for q in POSTERIORS if "two levels" in q for p in TWO_LEVEL_PRIORS]


@pytest.mark.parametrize(("posterior", "prior", "decoder"), dict.fromkeys(CASES))
def test_estimates_equal_quadrature_for_every_kind_of_part(posterior, prior, decoder):
    torch.manual_seed(0)
    q = POSTERIORS[posterior]().double()
    made = (PRIORS | TWO_LEVEL_PRIORS)[prior](q)
    model = MixtureVAE(q, made, DECODERS[decoder]()).double().eval()
    x = data(decoder)[0].double()[:2]
    with torch.no_grad(), evaluating(model):
        truth = quadrature(ModelJoint(model, x))
    found = evaluate(model, x, 300)
    assert (np.abs(found.log_px - truth) < 5 * found.log_px_mc_se + 1e-4).all()
    assert found.log_px_mc_se.max() < 0.25
    assert found.proposal_notes["fallbacks"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_do_not_depend_on_batch_chunk_or_order(dtype):
    model, x = tiny_model(3, shape=(1, 4, 4), dtype=dtype), binary(9, (1, 4, 4), dtype=dtype)
    whole = evaluate(model, x, 240, chunk=100_000)
    order = np.random.default_rng(0).permutation(9)
    shuffled = evaluate(model, x[order], 240, chunk=64, examples=order)
    np.testing.assert_allclose(shuffled.log_px, whole.log_px[order], atol=1e-3)


# What keeps it a bound: E exp(estimate) = p(x), exactly, at any number of draws


class HeavyTailed(Joint):
    """Two Student's t of 3 degrees, one latent: ∫ p(x, z) dz = 1, and the proposals' own tails are lighter."""

    latent = 1

    def __init__(self, size):
        self.size, self.like = size, torch.zeros(0, dtype=torch.float64)

    def log_prior(self, z):
        return torch.zeros_like(z[..., 0])

    def log_likelihood(self, z):
        one, other = (StudentT(3.0, loc, scale).log_prob(z[..., 0]) for loc, scale in ((0.0, 1.0), (-9.0, 0.5)))
        return torch.logaddexp(one + math.log(0.7), other + math.log(0.3))

    def sample_prior(self, draws):
        raise NotImplementedError

    def least_precision(self):
        return 0.1

    def part(self, start, stop):
        return HeavyTailed(len(range(self.size)[start:stop]))

    def simulated(self, z):
        raise NotImplementedError


def near_both(size):
    mean = torch.tensor([0.5, -8.5], dtype=torch.float64)[:, None, None].expand(2, size, 1)
    return DiagonalGaussian(mean, torch.full_like(mean, -1.0), torch.tensor([0.7, 0.3], dtype=torch.float64).log())


def average(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def without_the_largest(log_w):
    """An average that drops a weight where it dominates: a choice by the final weights."""
    kept = log_w.sort(0).values[:-1]
    dominated = log_w.amax(0) > log_w.logsumexp(0) + math.log(0.2)
    return torch.where(dominated, average(kept), average(log_w))


def ratios(repeats=1000, draws=80, estimate=average):
    """Estimates of p(x) = 1, independent of each other."""
    joint, q = HeavyTailed(repeats), near_both(repeats)
    refined = refine(joint, q, draws)
    assert refined.pilot == draws // 2, "the rules about pilots are tested only if there are some"
    return estimate(torch.cat([some for some, _ in refined.proposal.log_weights(joint, q, 16)])).exp().numpy()


def biased(values):
    """Whether a mean is known to differ from one."""
    return abs(values.mean() - 1) > 4 * values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("draws", [60, 80])  # one pilot round, and two
def test_the_mean_of_the_estimates_is_the_likelihood(draws):
    assert not biased(ratios(6000, draws))


def reuse_a_pilot(which):
    def mutation(monkeypatch):
        right = _mixture.stream
        monkeypatch.setattr(_mixture, "stream", lambda kind, pilot: right(kind, 0 if pilot == which else pilot))

    return mutation


def forget_the_posterior(monkeypatch):
    def wrong(self, z, q):
        return (self.student.log_prob(z.double()) + (self.counts / self.draws).log().unsqueeze(1)).logsumexp(0)

    monkeypatch.setattr(_mixture.Proposal, "log_prob", wrong)


@pytest.mark.parametrize(
    ("mutation", "repeats", "draws"),
    [(reuse_a_pilot(1), 6000, 60), (reuse_a_pilot(2), 6000, 80), (forget_the_posterior, 1000, 80)],
)
def test_unbiasedness_is_lost_where_a_rule_is_broken(mutation, repeats, draws, monkeypatch):
    mutation(monkeypatch)
    assert biased(ratios(repeats, draws)), "the test of the mean would not notice"


def test_unbiasedness_is_lost_by_choosing_final_weights():
    assert biased(ratios(estimate=without_the_largest)), "the test of the mean would not notice"


def test_every_purpose_has_noise_of_its_own(monkeypatch):
    streams = {}

    def recording(where):
        def keyed(seed, examples, start, stop, event, stream=0):
            streams.setdefault(stream, set()).add(where)
            return keyed_normal(seed, examples, start, stop, event, stream)

        return keyed

    monkeypatch.setattr(_marginal, "keyed_normal", recording("amortised"))
    monkeypatch.setattr(_mixture, "keyed_normal", recording("proposal"))
    evaluate(tiny_model(2), binary(2), 200)
    own = {_mixture.stream(kind, pilot) for kind in (_mixture.POSTERIOR, _mixture.STUDENT) for pilot in range(3)}
    assert streams == {_mixture.AMORTISED: {"amortised"}, **{key: {"proposal"} for key in own}}
    noises = [keyed_normal(0, [0], 0, 64, (1, 2), key).flatten() for key in streams]
    assert np.abs(np.corrcoef(np.stack(noises)) - np.eye(7)).max() < 0.4


class Cut(Distribution):
    """Standard normals cut off at zero: −∞ below."""

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self):
        super().__init__(torch.Size(), torch.Size([2]), validate_args=False)

    def log_prob(self, value):
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(value) + math.log(2)
        return normal.masked_fill(value < 0, -math.inf).sum(-1)

    def sample(self, sample_shape=()):
        return torch.randn(*sample_shape, 2, dtype=torch.float64).abs()


def test_draws_without_density_count_as_draws():
    model = tiny_model(2)
    model = MixtureVAE(model.posterior, Cut(), model.decoder).double()
    x = binary(30)
    with torch.no_grad():
        truth = quadrature(ModelJoint(model.eval(), x))
    ratio = np.exp(evaluate(model, x, 400).log_px - truth)
    assert abs(ratio.mean() - 1) < 0.15, "the grid itself is off by a few per cent at the cut"  # dropped draws: 2 or 4


def test_a_nan_at_a_draw_is_an_error_not_a_dropped_draw():
    model, x = tiny_model(2), binary(2)
    right = model.log_likelihood
    model.log_likelihood = lambda x, z: right(x, z) + torch.where(z[..., 0] > 1.0, math.nan, 0.0)
    with pytest.raises(FloatingPointError, match="NaN or infinite at a draw"):
        evaluate(model, x, 200)


def test_errors_are_those_of_repeated_evaluations():
    """Of the strata each within itself: by the formula for independent draws they would be too large by half."""
    model, exact = linear_gaussian()
    x = exact.sample((2,)).repeat(150, 1)
    found = evaluate(model, x, 100)
    for b in range(2):
        spread, stated = found.log_px[b::2].std(ddof=1), np.sqrt((found.log_px_mc_se[b::2] ** 2).mean())
        assert stated == pytest.approx(spread, rel=4 / math.sqrt(2 * 150))
    np.testing.assert_allclose(found.bias, found.log_px_mc_se**2 / 2)


# The parts


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_systematic_counts_are_proportional_on_average(weights, draws):
    pi = np.array(weights) / np.sum(weights)
    counts = np.stack([systematic_counts(pi, draws, (k + 0.5) / 500) for k in range(500)])
    assert (counts.sum(1) == draws).all()
    assert (np.abs(counts - draws * pi) < 1 + 1e-9).all()
    np.testing.assert_allclose(counts.mean(0), draws * pi, atol=3 / 500 + 1e-9)


def test_the_proposal_integrates_to_one():
    model, x = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(2)
    with torch.no_grad():
        joint, q = ModelJoint(model, x), model.posterior(x)
        proposal = refine(joint, q, 57).proposal
        z = torch.cartesian_prod(GRID * 3, GRID * 3).unsqueeze(1).expand(-1, 2, -1)
        mass = proposal.log_prob(z, q).exp().sum(0) * float(GRID[1] - GRID[0]) ** 2 * 9
    np.testing.assert_allclose(mass, 1, atol=2e-3)


def test_draws_of_the_proposal_have_its_moments():
    torch.manual_seed(0)
    location = torch.randn(2, 1, 3, dtype=torch.float64)
    scale = torch.linalg.cholesky(torch.eye(3).double() + torch.ones(3, 3).double()).expand(2, 1, 3, 3)
    student = _mixture.Student(location, scale)
    noise = keyed_normal(0, [0], 0, 40_000, (1, 3 + _mixture.DEGREES))[:, 0]
    z = student.draw(torch.zeros(40_000, 1, dtype=torch.long), noise)[:, 0]
    spread = _mixture.DEGREES / (_mixture.DEGREES - 2)
    np.testing.assert_allclose(z.mean(0), location[0, 0], atol=5 * math.sqrt(2 * spread / 40_000))
    np.testing.assert_allclose(np.cov(z.T), spread * (scale[0, 0] @ scale[0, 0].T), atol=0.12)


def test_draws_go_somewhere_where_no_mode_was_found():
    """Where p(x, z) is zero at the start, shares were NaN if another example had two modes."""
    location, scale = torch.randn(2, 3, 2).double(), torch.eye(2).double().expand(2, 3, 2, 2)
    log_joint = torch.tensor([[0.0, -math.inf, -math.inf], [1.0, -math.inf, 0.0]]).double()
    distinct = torch.tensor([True, False, True])
    peaks = _modes.Peaks(location, scale, log_joint, *[torch.zeros(3)] * 3, distinct)
    for widened in (False, True):
        _, shares = _refine._around(peaks, widened=widened)
        torch.testing.assert_close(shares.sum(0), torch.ones(3).double())
        assert shares[0, 1] == 1 - widened * _refine.DEFENSIVE_T
        assert shares[0, 2] == 0, "only its second mode has mass"


@pytest.mark.parametrize("decoder", DECODERS)
def test_curvature_equals_that_of_an_explicit_loop(decoder):
    torch.manual_seed(1)
    model = tiny_model(2, shape=(1, 4, 4))
    model = MixtureVAE(model.posterior, GaussianMixturePrior(LATENT, 3), DECODERS[decoder]()).double().eval()
    x, z = data(decoder)[0].double(), torch.randn(4, LATENT, dtype=torch.float64)
    joint = ModelJoint(model, x)
    found = curvature(joint, z)
    for b in range(4):
        one = joint.part(b, b + 1)

        def negative(z, one=one):
            return -one.log_prob(z[None]).squeeze()

        if one.natural(z[b : b + 1]) is None:
            expected = torch.autograd.functional.hessian(negative, z[b])
        else:
            natural = one.natural(z[b : b + 1])
            jacobian = torch.autograd.functional.jacobian(lambda z, one=one: one.natural(z[None]).parameters[0], z[b])
            prior = torch.autograd.functional.hessian(lambda z, one=one: -one.log_prior(z[None]).squeeze(), z[b])
            expected = jacobian.T @ (natural.information[0][:, None] * jacobian) + prior
        np.testing.assert_allclose(found[b].detach(), expected.detach(), rtol=1e-8, atol=1e-9)


class Once(torch.autograd.Function):
    """Sine, of which only the first derivative is known."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return grads[0] * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    """A network that can be differentiated once, or not at all."""

    def __init__(self, detached=False):
        super().__init__()
        self.linear, self.detached = nn.Linear(2, 4), detached

    def forward(self, z):
        return self.linear(z.detach().sin() if self.detached else Once.apply(z)).unflatten(-1, (1, 2, 2))


def test_a_decoder_differentiable_once_is_refined_all_the_same():
    model = tiny_model(2)
    model = MixtureVAE(model.posterior, StandardNormal(2), Decoder(Sine())).double().eval()
    x, z = binary(3), torch.randn(3, 2, dtype=torch.float64)
    joint = ModelJoint(model, x)
    found = curvature(joint, z)

    def negative(z):
        return -(torch.distributions.Bernoulli(logits=model.decoder.network.linear(z.sin())).log_prob(x.flatten(1)))

    expected = torch.stack(
        [
            torch.autograd.functional.hessian(lambda v, b=b: negative(v)[b].sum() + v.square().sum() / 2, z[b])
            for b in range(3)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        truth = quadrature(joint)
    estimate = evaluate(model, x, 300)
    assert (np.abs(estimate.log_px - truth) < 5 * estimate.log_px_mc_se + 1e-4).all()


def test_a_flow_whose_inverse_explodes_is_done_without():
    torch.manual_seed(0)
    q = POSTERIORS["shared autoregressive flow"]().double()
    model = MixtureVAE(q, StandardNormal(LATENT), DECODERS["Bernoulli"]()).double().eval()
    x = data("Bernoulli")[0].double()
    with torch.no_grad():
        assert any(refine(ModelJoint(model, x), q(x), 100).proposal.of_posterior)
        wrong = q(x)
        wrong.cross_log_prob = lambda z: type(wrong).cross_log_prob(wrong, z) + 0.1
        refined = refine(ModelJoint(model, x), wrong, 100)
    assert not any(refined.proposal.of_posterior)
    assert len(refined.proposal.counts) >= 2, "a wider t takes its place"


def test_a_decoder_without_gradient_is_one_line_with_the_remedy():
    model = tiny_model(2)
    model = MixtureVAE(model.posterior, StandardNormal(2), Decoder(Sine(detached=True))).double()
    with pytest.raises(ValueError, match="no gradient in z.*posterior"):
        evaluate(model, binary(2), 50)
    assert np.isfinite(evaluate(model, binary(2), 50, proposal="posterior").log_px).all()


@pytest.mark.parametrize("decoder", ["Bernoulli", "continuous Bernoulli", "Gaussian", "PixelCNN"])
def test_information_is_the_expected_curvature(decoder):
    torch.manual_seed(1)
    z = torch.randn(1, LATENT, dtype=torch.float64)
    p = DECODERS[decoder]().double().eval()(z)
    x = data(decoder)[0].double()[:1]
    natural = natural_parameters(p, x)
    assert natural.parameters.shape == natural.information.shape == (1, 16)
    if decoder != "Gaussian":  # in natural parameters, curvature does not depend on x
        theta = natural.parameters.detach().requires_grad_()
        family = type(getattr(p, "base_dist", None) or p.likelihood(theta))
        log_p = family(theta).log_prob(x.reshape(1, 16)).sum()
        (gradient,) = torch.autograd.grad(log_p, theta, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), theta)
        np.testing.assert_allclose(natural.information.detach(), -second, rtol=1e-6)


def test_flat_and_negative_directions_are_floored_and_counted():
    matrix = torch.diag(torch.tensor([4.0, 1e-9, -2.0], dtype=torch.float64))[None]
    scale, floored, broken = _modes.inverse_scale(matrix, floor=0.1)
    np.testing.assert_allclose((scale @ scale.mT)[0], np.diag([0.25, 10, 10]), atol=1e-12)
    assert floored.tolist() == [2]
    assert broken.tolist() == [False]
    assert _modes.inverse_scale(matrix * math.nan, 0.1)[2].tolist() == [True]


def test_modes_of_a_linear_model_are_the_posterior_means():
    model, _ = linear_gaussian()
    x = torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        peaks = find_peaks(ModelJoint(model, x), model.posterior(x))
        likelihood = model.decoder(torch.zeros(1, 3, dtype=torch.float64)).base_dist
        w, bias = model.decoder.network.weight, model.decoder.network.bias
        precision = torch.eye(3, dtype=torch.float64) + w.T @ (w / likelihood.variance[0][:, None])
        means = torch.linalg.solve(precision, w.T @ ((x - bias) / likelihood.variance[0]).T).T
        np.testing.assert_allclose(peaks.scale[0] @ peaks.scale[0].mT, precision.inverse().expand(6, 3, 3), atol=1e-8)
    lag = (peaks.location[0] - means).unsqueeze(-1)
    assert float((lag.mT @ precision @ lag).max()) < _modes.CONVERGED
    assert bool(peaks.converged.all())
    assert not bool(peaks.distinct.any())


def test_a_second_mode_far_away_gets_draws():
    joint, q = HeavyTailed(3), near_both(3)
    peaks = find_peaks(joint, q)
    np.testing.assert_allclose(peaks.location[:, 0, 0], [0, -9], atol=0.1)
    refined = refine(joint, q, 100)
    assert (refined.proposal.counts[:2] >= 8).all()
    assert bool(refined.second.all())


def test_a_prior_tells_its_least_precision():
    mixture = GaussianMixturePrior(2, 3).double()
    with torch.no_grad():
        mixture.log_var.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.5], [0.2, -3.0]]))
    assert least_precision(mixture()) == pytest.approx(math.exp(-1.0))
    assert least_precision(Independent(Laplace(torch.zeros(2), torch.tensor([1.0, 2.0])), 1)) == pytest.approx(1 / 8)
    state = torch.get_rng_state()
    for heavy in (Cauchy, partial(StudentT, 1.0), partial(StudentT, 2.0)):
        wide = Independent(heavy(torch.zeros(2), torch.tensor([1.0, 2.0])), 1)
        assert 0.05 < least_precision(wide) < 0.3, "quartiles of Cauchy's are at ±2"
    assert least_precision(Cut()) == pytest.approx(1 / (1 - 2 / math.pi), rel=0.15)
    assert torch.equal(state, torch.get_rng_state())


class Unsound(FullGaussian):
    """Components whose inverse is wrong for some examples, as that of a flow that explodes."""

    def __init__(self, loc, factor, wrong):
        super().__init__(loc, factor)
        self.wrong = wrong

    def cross_log_prob(self, z):
        return super().cross_log_prob(z) + self.wrong

    def rsample_and_cross_log_prob(self, sample_shape, own=None, noise=None):
        z = self.rsample(sample_shape, noise)
        return z, super().cross_log_prob(z)


class SometimesUnsound(SeparateEncoders):
    def forward(self, x, index=None):
        q = super().forward(x, index)
        return Unsound(q.loc, torch.diag_embed(q.scale), 1.0 * (x[:, 0, 0, 0] == 1))


def test_a_posterior_failing_one_example_serves_the_others():
    """One example decided for its whole group, so that estimates depended on who else was there."""
    torch.manual_seed(0)
    q = SometimesUnsound(lambda: GatedEncoder((1, 4, 4), 2, (5,)), 2)
    model = MixtureVAE(q, StandardNormal(2), MLPDecoder(2, (1, 4, 4), (5,))).double().eval()
    x = binary(5, (1, 4, 4), dtype=torch.float64)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 0, 0, 1])
    whole = evaluate(model, x, 100)
    alone = [evaluate(model, x[i : i + 1], 100, examples=[i]).log_px[0] for i in range(5)]
    np.testing.assert_allclose(whole.log_px, alone, atol=1e-8)
    joint = ModelJoint(model, x)
    with torch.no_grad():
        truth = quadrature(joint)
    assert (np.abs(whole.log_px - truth) < 5 * whole.log_px_mc_se + 1e-4).all()
