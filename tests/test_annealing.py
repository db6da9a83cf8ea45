"""Annealed importance sampling against exact likelihoods, its transitions against their own invariants."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from mixvae.annealing import FORWARD, Annealed, _Part, _Point, _schedule, anneal, bracket
from mixvae.decoders import Decoder, GaussianLikelihood
from mixvae.joint import Joint, ModelJoint
from mixvae.model import MixtureVAE, evaluating
from mixvae.priors import StandardNormal


class Linear(Joint):
    """x = A z + noise: log p(x) and p(z|x) are Gaussian."""

    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -1.0], [0.3, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    noise = 0.4
    latent = 3

    def __init__(self, x):
        self.x, self.size, self.like = x, len(x), x.new_empty(0)

    def log_prior(self, z):
        return Normal(z.new_zeros(()), 1.0).log_prob(z).sum(-1)

    def log_likelihood(self, z):
        return Normal(z @ self.matrix.T, self.noise).log_prob(self.x).sum(-1)

    def sample_prior(self, draws):
        return torch.randn(draws, self.size, self.latent).to(self.like)

    def least_precision(self):
        return 1.0

    def part(self, start, stop):
        return type(self)(self.x[start:stop])

    def simulated(self, z):
        return type(self)(z @ self.matrix.T + self.noise * torch.randn(self.size, 4).to(self.like))

    def exact(self):
        covariance = self.matrix @ self.matrix.T + self.noise**2 * torch.eye(4).double()
        return MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(self.x).numpy()


class Bimodal(Linear):
    """x = |z| + noise in one dimension: the posterior has a mode on either side of 0."""

    latent, noise = 1, 0.2

    def log_likelihood(self, z):
        return Normal(z[..., 0].abs(), self.noise).log_prob(self.x)

    def simulated(self, z):
        return Bimodal(z[:, 0].abs() + self.noise * torch.randn(self.size).to(self.like))

    def exact(self):
        z = torch.linspace(-9, 9, 200_001).double()[:, None, None]
        return (self.log_prob(z.expand(-1, self.size, 1)).logsumexp(0) + math.log(18 / 200_000)).numpy()


class Walled(Linear):
    """No density where the first latent is negative; a NaN in its place, or an error for latents that overflowed."""

    def log_likelihood(self, z):
        assert z.isfinite().all()
        return torch.where(z[..., 0] < 0, math.nan, super().log_likelihood(z))

    def exact(self):
        a, x = self.matrix, self.x
        precision = torch.eye(3).double() + a.T @ a / self.noise**2
        mean = torch.linalg.solve(precision, a.T @ x.T / self.noise**2)[0]
        share = Normal(0.0, 1.0).cdf(mean / precision.inverse()[0, 0].sqrt())
        return super().exact() + share.log().numpy()


class Constant(Linear):
    """The likelihood does not depend on z, but for the value of z at which it is 0 or NaN everywhere."""

    value = -math.inf

    def log_likelihood(self, z):
        return z.sum(-1) * 0 + self.value


def linear(n=4, kind=Linear, seed=0):
    torch.manual_seed(seed)
    return kind(torch.randn(n, 4).double() @ torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.5]).double()))


def model_joint(n=3):
    torch.manual_seed(0)
    decoder = Decoder(nn.Linear(3, 4), GaussianLikelihood((4,)))
    nn.init.normal_(decoder.network.weight)
    return ModelJoint(MixtureVAE(nn.Identity(), StandardNormal(3), decoder).double().eval(), torch.randn(n, 4).double())


def model_exact(joint):
    decoder = joint.model.decoder
    weight, scale = decoder.network.weight, decoder(torch.zeros(1, 3).double()).stddev[0]
    p = MultivariateNormal(decoder.network.bias, weight @ weight.T + torch.diag(scale**2))
    return p.log_prob(joint.x).detach().numpy()


def part_of(joint, leapfrog=7):
    return _Part(joint, range(joint.size), leapfrog, 0, lambda transitions: None)


def agree(annealed, exact, errors=4.0):
    assert (annealed.mc_se > 0).all()
    np.testing.assert_array_less(abs(annealed.log_px - exact), errors * annealed.mc_se)


def test_agrees_with_exact_likelihood_of_linear_gaussian():
    joint = linear()
    annealed = anneal(joint, chains=64, temperatures=60, leapfrog=4)
    agree(annealed, joint.exact())
    assert (annealed.ess > 10).all()
    assert (abs(annealed.acceptance - 0.65) < 0.12).all()


def test_agrees_with_exact_likelihood_of_a_model():
    joint = model_joint()
    agree(anneal(joint, chains=64, temperatures=40, leapfrog=4), model_exact(joint))


def test_agrees_with_quadrature_of_two_modes():
    joint = Bimodal(torch.tensor([0.4, 1.5]).double())
    agree(anneal(joint, chains=64, temperatures=60, leapfrog=4), joint.exact())


@pytest.mark.parametrize("temperatures", [2, 5])
def test_mean_weight_is_unbiased_at_few_temperatures(temperatures):
    joint = model_joint(2)
    annealed = anneal(joint, chains=4000, temperatures=temperatures, leapfrog=2, chunk=8192)
    agree(annealed, model_exact(joint))
    assert (annealed.log_weights.mean(0) < model_exact(joint) - 0.01).all()  # Jensen


def test_one_temperature_is_importance_sampling_from_prior():
    joint = model_joint(2)
    annealed = anneal(joint, chains=4000, temperatures=1, leapfrog=1)
    agree(annealed, model_exact(joint))
    assert np.isnan(annealed.acceptance).all()


def test_standard_error_covers_as_often_as_it_says():
    joint = linear(60)
    joint.x[:] = joint.x[:1].clone()  # independent runs of one observation
    annealed = anneal(joint, chains=64, temperatures=40, leapfrog=3, chunk=4096)
    score = (annealed.log_px - joint.exact()) / annealed.mc_se
    assert 0.7 < score.std() < 1.35  # ±3.5 standard errors of a standard deviation of 60
    assert abs(score.mean()) < 4 / math.sqrt(60)


def test_trajectory_reversed_ends_where_it_began():
    joint = linear(3)
    part, z, momentum = part_of(joint), torch.randn(5, 3, 3).double(), torch.randn(5, 3, 3).double()
    start, step = part.at(z), torch.tensor([0.05, 0.1, 0.2]).double()
    end, last = part.trajectory(start, momentum, step, 0.7)
    again, first = part.trajectory(end, -last, step, 0.7)
    assert (end.z - z).abs().max() > 0.1
    torch.testing.assert_close(again.z, z)
    torch.testing.assert_close(-first, momentum)


def test_trajectory_preserves_volume():
    class Differentiable(_Part):
        def at(self, z):  # log p(x|z) = Σ sin z_d · Σ z_d, not quadratic
            ones, total = torch.ones_like(z), z.sum(-1, keepdim=True)
            slope = z.cos() * total + z.sin().sum(-1, keepdim=True) * ones
            return _Point(z, -z.square().sum(-1) / 2, (z.sin() * total).sum(-1), -z, slope)

    part, step = Differentiable(*part_of(linear(1))), torch.tensor([0.1, 0.2, 0.3]).double()

    def flow(flat):
        z, momentum = flat.view(2, 1, 1, 3)
        end, last = part.trajectory(part.at(z), momentum, step, 0.6)
        return torch.cat([end.z.flatten(), last.flatten()])

    torch.manual_seed(0)
    jacobian = torch.autograd.functional.jacobian(flow, torch.randn(6).double())
    assert (jacobian - torch.eye(6).double()).abs().max() > 0.1
    torch.testing.assert_close(torch.linalg.det(jacobian), torch.ones(()).double())


def test_transition_keeps_the_tempered_posterior():
    """Exact draws stay exact, with steps so large that many proposals are rejected."""
    joint, beta, chains = linear(1), 0.3, 20_000
    torch.manual_seed(0)
    a, scale = joint.matrix, joint.noise**2 / beta
    precision = torch.eye(3).double() + a.T @ a / scale
    exact = MultivariateNormal(torch.linalg.solve(precision, a.T @ joint.x[0] / scale), precision_matrix=precision)
    part = part_of(joint, leapfrog=3)
    point = part.at(exact.sample((chains, 1)))
    for _, noise in part.noise(chains, [beta] * 5, FORWARD):
        point, acceptance = part.transition(point, noise, torch.tensor([0.5]).double(), beta)
    assert 0.2 < acceptance.mean() < 0.8
    z = point.z[:, 0] - exact.mean
    white = z @ torch.linalg.cholesky(precision)
    assert white.mean(0).abs().max() < 4 / math.sqrt(chains)
    assert (white.T @ white / chains - torch.eye(3)).abs().max() < 4 * math.sqrt(2 / chains)


def test_bracket_contains_the_exact_value():
    result = bracket(linear(30), chains=16, temperatures=200, leapfrog=4)
    exact = result.joint.exact()
    gap = result.table[2]
    assert 0 < gap["log p(x)"] + 4 * gap["se"]
    assert gap["log p(x)"] < 0.5
    for bound in (result.lower, result.upper):
        error = bound.log_px - exact
        assert abs(error.mean()) < 4 * error.std(ddof=1) / math.sqrt(30)


def test_loose_bounds_lie_on_either_side():
    result = bracket(linear(30), chains=1, temperatures=12, leapfrog=2)
    exact = result.joint.exact()
    for side in (exact - result.lower.log_px, result.upper.log_px - exact, result.gap):
        assert side.mean() > 2 * side.std(ddof=1) / math.sqrt(30)
    assert np.isnan(result.upper.mc_se).all()


def test_inverse_weights_are_unbiased():
    result = bracket(model_joint(400), chains=8, temperatures=8, leapfrog=2, chunk=8192)
    ratio = np.exp(result.upper.log_weights + model_exact(result.joint)).mean(0)  # of mean 1, independent
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / 20


def test_proposals_without_density_are_rejected():
    joint = linear(3, Walled, seed=1)
    joint.x = joint.x.abs()
    agree(anneal(joint, chains=128, temperatures=60, leapfrog=4), joint.exact())


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
def test_starts_without_density_weigh_nothing(value, monkeypatch):
    monkeypatch.setattr(Constant, "value", value)
    annealed = anneal(linear(2, Constant), chains=3, temperatures=4, leapfrog=2)
    assert (annealed.log_px == -math.inf).all()
    assert (annealed.ess == 0).all()
    assert np.isnan(annealed.mc_se).all()
    with pytest.raises(ValueError, match="must be finite where x was drawn"):
        bracket(linear(2, Constant), chains=3, temperatures=4)


def test_overflowing_trajectories_are_rejected():
    joint = linear(2, Walled)
    part = part_of(joint)
    point = part.at(torch.ones(5, 2, 3).double())
    _, noise = next(part.noise(5, [1.0], FORWARD))
    moved, acceptance = part.transition(point, noise, torch.tensor([1e200, 1e200]).double(), 1.0)
    assert (acceptance == 0).all()
    assert all(torch.equal(new, old) for new, old in zip(moved, point, strict=True))


def test_proposals_of_infinite_density_are_rejected():
    class Spiked(Linear):
        def log_prior(self, z):
            return torch.where(z[..., 0] == 1, 0.0, math.inf) - z.square().sum(-1)

    part = part_of(linear(2, Spiked))
    point = part.at(torch.ones(5, 2, 3).double())
    _, noise = next(part.noise(5, [1.0], FORWARD))
    moved, acceptance = part.transition(point, noise, torch.full((2,), 0.01).double(), 1.0)
    assert (acceptance == 0).all()
    assert torch.equal(moved.z, point.z)


def test_constant_likelihood_is_exact(monkeypatch):
    monkeypatch.setattr(Constant, "value", -3.0)
    result = bracket(linear(2, Constant), chains=3, temperatures=7, leapfrog=2)
    np.testing.assert_allclose(result.lower.log_px, -3.0)
    np.testing.assert_allclose(result.upper.log_px, -3.0)


def test_result_does_not_depend_on_chunks():
    joint = linear(3)
    whole, split = (anneal(joint, 8, 12, 2, chunk=chunk) for chunk in (1024, 32))
    np.testing.assert_allclose(split.log_weights, whole.log_weights, rtol=1e-9)
    np.testing.assert_allclose(split.acceptance, whole.acceptance, rtol=1e-9)
    whole, split = (bracket(joint, 8, 12, 2, chunk=chunk) for chunk in (1024, 32))
    np.testing.assert_allclose(split.gap, whole.gap, rtol=1e-9, atol=1e-9)


def test_seed_repeats_and_leaves_the_generator():
    joint = linear(2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (bracket(joint, 4, 10, 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.gap == again.gap).all()
    assert (first.gap != other.gap).all()
    assert not torch.equal(first.joint.x, other.joint.x)


def test_pilot_shares_no_noise_with_the_run(monkeypatch):
    keys = []
    original = _Part.noise
    monkeypatch.setattr(_Part, "noise", lambda self, *args: (keys.append(args[2]), original(self, *args))[1])
    starts = []
    begin = _Part.starts
    monkeypatch.setattr(_Part, "starts", lambda self, *args: starts.append(begin(self, *args)) or starts[-1])
    bracket(linear(2), 16, 5, 2)
    assert len(set(keys)) == len(keys) == 3
    assert not (starts[0] == starts[1]).any()


def test_works_without_gradients_and_trains_nothing():
    joint = model_joint(2)
    with torch.no_grad(), evaluating(joint.model):
        annealed = anneal(joint, 4, 5, 2)
    assert np.isfinite(annealed.log_px).all()
    assert all(p.grad is None for p in joint.model.parameters())


def test_prior_that_does_not_depend_on_z():
    class Flat(Linear):
        def log_prior(self, z):
            return torch.zeros(z.shape[:-1]).to(z) - math.log(8)

        def sample_prior(self, draws):
            return torch.rand(draws, self.size, 3).to(self.like)

    assert np.isfinite(anneal(linear(2, Flat), 4, 5, 2).log_px).all()


def test_schedule_runs_from_prior_to_posterior():
    assert _schedule(1) == [0.0, 1.0]
    betas = np.array(_schedule(1000))
    assert (np.diff(betas) > 0).all()
    np.testing.assert_allclose(betas + betas[::-1], 1.0)


def test_progress_ends_at_its_total():
    class Log:
        seen = []

        def announce(self, text):
            pass

        def update(self, done, total, text=""):
            self.seen.append((done, total))

    bracket(linear(3), 16, 20, 1, chunk=32, progress=Log())
    assert Log.seen[-1][0] == Log.seen[-1][1]
    assert sorted(Log.seen) == Log.seen


@pytest.mark.parametrize("name", ["chains", "temperatures", "leapfrog", "chunk", "seed"])
@pytest.mark.parametrize("function", [anneal, bracket])
def test_refuses_settings_out_of_range(function, name):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        function(linear(2), **{name: -1})


@pytest.mark.parametrize("function", [anneal, bracket])
def test_refuses_no_observations(function):
    with pytest.raises(ValueError, match="observations must be at least 1; got 0"):
        function(linear(0))


def test_tables_hold_means_and_errors():
    annealed = Annealed(np.log([[1.0, 2.0], [3.0, 2.0]]), np.array([0.5, 0.7]), 10, 5, 0)
    row = annealed.table[0]
    np.testing.assert_allclose(annealed.log_px, math.log(2))
    np.testing.assert_allclose(annealed.ess, [1.6, 2])
    np.testing.assert_allclose(annealed.mc_se, [math.sqrt(2) / math.sqrt(2) / 2, 0])
    assert row["mc_se"] == pytest.approx(0.25)
    assert row["se"] == pytest.approx(0)
    assert repr(bracket(linear(2), 4, 5, 2)).startswith("Bracket\nbound  log p(x)")


def test_pilot_finds_the_steps_of_a_narrow_prior():
    wide = Independent(Normal(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([0.01, 0.02, 0.05])), 1)

    class Narrow(Linear):
        def log_prior(self, z):
            return wide.log_prob(z)

        def sample_prior(self, draws):
            return wide.sample((draws, self.size)).to(self.like)

        def exact(self):
            a, noise = self.matrix, self.noise**2 * torch.eye(4).double()
            covariance = a @ torch.diag(wide.variance).double() @ a.T + noise
            return MultivariateNormal(a @ wide.mean.double(), covariance).log_prob(self.x).numpy()

    joint = linear(2, Narrow)
    annealed = anneal(joint, chains=64, temperatures=40, leapfrog=4)
    agree(annealed, joint.exact())
    assert (annealed.acceptance > 0.5).all()
