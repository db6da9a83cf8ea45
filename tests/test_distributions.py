"""Densities against explicit loops, quadrature and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from mixvae.distributions import (
    DRAW_BLOCK,
    Bernoulli,
    Components,
    ContinuousBernoulli,
    DiagonalGaussian,
    DiscretizedLogisticMixture,
    Pooled,
    keyed_normal,
)
from mixvae.distributions._gaussian import FEW


def gaussians(components=3, batch=4, latent=5, spread=2.0, low=-6.0, high=2.0, dtype=torch.float64, weighted=True):
    log_var = torch.rand(components, batch, latent, dtype=dtype) * (high - low) + low
    log_pi = torch.randn(components, dtype=dtype).log_softmax(0) if weighted else None
    return DiagonalGaussian(torch.randn(components, batch, latent, dtype=dtype) * spread, log_var, log_pi)


def test_log_prob_follows_the_rule_of_the_component_axis():
    q = gaussians()
    z = q.rsample((6,))
    own, every = q.log_prob(z), q.log_prob(z[:, :1])
    for l, s, b in itertools.product(range(6), range(3), range(4)):  # noqa: E741
        normal = Normal(q.mean[s, b], q.scale[s, b])
        torch.testing.assert_close(own[l, s, b], normal.log_prob(z[l, s, b]).sum())
        torch.testing.assert_close(every[l, s, b], normal.log_prob(z[l, 0, b]).sum())


@pytest.mark.parametrize("components", [3, FEW + 1])
def test_cross_density_matches_a_loop_over_draws_and_components(components):
    """Difference by difference, and as one product where there are more."""
    q = gaussians(components=components)
    z = q.rsample((2,))
    cross = q.cross_log_prob(z)
    for l, s, j, b in itertools.product(range(2), range(3), range(3), range(4)):  # noqa: E741
        expected = Normal(q.mean[j, b], q.scale[j, b]).log_prob(z[l, s, b]).sum()
        torch.testing.assert_close(cross[l, s, j, b], expected)


@pytest.mark.parametrize(("batch", "points"), [(4, 7), (FEW, FEW + 1)])
def test_pairwise_density_covers_all_components_of_all_examples(batch, points):
    q, points = gaussians(batch=batch), torch.randn(points, 5, dtype=torch.float64)
    torch.testing.assert_close(q.pairwise_log_prob(points), Components.pairwise_log_prob(q, points))


@pytest.mark.parametrize(("spread", "log_var"), [(2.0, -6.0), (50.0, -6.0), (1e3, -12.0)])
def test_matrix_product_is_accurate_for_narrow_or_far_gaussians(spread, log_var):
    """A quadratic expanded in float32 alone is wrong by hundreds of nats for the last of these."""
    exact = gaussians(components=FEW + 1, spread=spread, low=log_var, high=log_var + 1)
    z = exact.rsample((2,))
    rounded = DiagonalGaussian(exact.mean.float(), exact.log_var.float(), exact.log_pi.float())
    as_doubles = DiagonalGaussian(rounded.mean.double(), rounded.log_var.double(), rounded.log_pi.double())
    z = rounded.rsample((2,))
    found, expected = rounded.cross_log_prob(z).double(), as_doubles.log_prob(z.double().unsqueeze(-3))
    near = expected > expected.amax(2, keepdim=True) - 50  # components that count in the mixture
    assert (found - expected)[near].abs().max() < 0.01 + 1e-6 * expected[near].abs().max()


def test_densities_stay_exact_under_autocast():
    """A product taken in bfloat16 would be wrong by whole nats."""
    q = gaussians(components=FEW + 1, dtype=torch.float32)
    z = q.rsample((2,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = q.cross_log_prob(z), Pooled(q).log_prob(z)
    torch.testing.assert_close(found[0], q.cross_log_prob(z))
    torch.testing.assert_close(found[1], Pooled(q).log_prob(z))


def test_half_precision_parameters_are_promoted():
    q = DiagonalGaussian(torch.zeros(1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 2, dtype=torch.bfloat16))
    assert q.log_prob(torch.zeros(1, 1, 2)).dtype == torch.float32


def grid(low=-9.0, high=9.0, n=361):
    axis = torch.linspace(low, high, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    return points, ((high - low) / (n - 1)) ** 2


def test_weighted_mixture_integrates_to_one_in_two_dimensions():
    q = gaussians(batch=1, latent=2, spread=1.5, low=-2.0, high=0.5)
    points, area = grid()
    log_mixture = (q.pairwise_log_prob(points)[:, :, 0] + q.log_pi).logsumexp(-1)
    assert log_mixture.exp().sum().item() * area == pytest.approx(1, abs=1e-6)


def test_pooled_density_integrates_to_one_and_weighs_components():
    q = gaussians(batch=3, latent=2, spread=1.5, low=-2.0, high=0.5)
    points, area = grid()
    assert Pooled(q).log_prob(points).exp().sum().item() * area == pytest.approx(1, abs=1e-6)
    looped = sum(
        q.log_pi[s].exp() / 3 * Normal(q.mean[s, k], q.scale[s, k]).log_prob(points).sum(-1).exp()
        for s in range(3)
        for k in range(3)
    )
    torch.testing.assert_close(Pooled(q).log_prob(points).exp(), looped)


def test_pooled_samples_have_the_mixtures_mean_and_variance():
    q, n = gaussians(batch=3, latent=2), 40_000
    pooled = Pooled(q)
    draws = pooled.sample((n,))
    weight = pooled.log_pi.exp()[..., None]
    mean = (weight * q.mean).sum((0, 1))
    second = (weight * (q.variance + q.mean.square())).sum((0, 1))
    for found, expected in ((draws, mean), (draws.square(), second)):
        error = found.std(0) / n**0.5
        assert ((found.mean(0) - expected).abs() < 5 * error).all()


def test_pooled_samples_keep_any_shape():
    pooled = Pooled(gaussians(latent=2))
    assert pooled.sample().shape == (2,)
    assert pooled.sample((3, 4)).shape == (3, 4, 2)


def test_samples_have_the_components_moments():
    q, n = gaussians(), 20_000
    z = q.rsample((n,))
    assert ((z.mean(0) - q.mean).abs() < 5.5 * q.scale / n**0.5).all()
    assert ((z.var(0) / q.variance - 1).abs() < 5.5 * (2 / n) ** 0.5).all()


def test_selected_components_keep_the_bound_unbiased():
    q = gaussians(components=4)
    chosen = q.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.mean, q.mean[[2, 0]])
    torch.testing.assert_close(chosen.log_pi.exp(), 2 * q.log_pi[[2, 0]].exp())


@pytest.mark.usefixtures("as_users_run")
def test_shapes_that_do_not_fit_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(S, B, D\); got \(2, 3, 4\) and \(2, 3, 5\)"):
        DiagonalGaussian(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"log_pi must have shape \(2,\); got \(3,\)"):
        DiagonalGaussian(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [0.0, 1e-4, -0.0099, 0.0101, 2.0, -30.0, 80.0])
def test_continuous_bernoulli_is_normalised_with_correct_mean(logit, dtype):
    """torch's own density loses its normaliser in float32 beyond logits of about 16."""
    edges = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    x = (edges[1:] + edges[:-1]) / 2
    p = ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    density = p.log_prob(x.to(dtype)).double().exp()
    assert density.mean().item() == pytest.approx(1, abs=2e-4 if dtype == torch.float32 else 1e-5)
    assert p.mean.item() == pytest.approx((density * x).mean().item(), abs=2e-4)


def test_bernoulli_stays_finite_for_extreme_logits():
    """log(sigmoid(l) + ε) would be −18 here whatever l."""
    assert Bernoulli(torch.tensor([-500.0])).log_prob(torch.tensor([1.0])).item() == -500


def test_keyed_noise_depends_on_nothing_but_its_key():
    whole = keyed_normal(3, [5, 9, 2], 0, 40, (2, 3))
    assert torch.equal(keyed_normal(3, [9], 7, 33, (2, 3)), whole[7:33, :, 1:2])
    assert torch.equal(keyed_normal(3, [2, 5], 0, 1, (2, 3)), whole[:1, :, [2, 0]])
    generator = np.random.Generator(np.random.Philox(key=[3, 9], counter=[0, 0, 6, 1]))
    np.testing.assert_array_equal(
        keyed_normal(3, [5, 9], 16, 32, (2, 3), 6)[:, :, 1], generator.standard_normal((16, 2, 3))
    )
    other = keyed_normal(4, [5, 9, 2], 0, 40, (2, 3))
    assert not torch.isclose(whole, other).any()


def test_keyed_noise_is_normal_across_examples_and_blocks():
    noise = keyed_normal(0, np.arange(200), 0, 4 * DRAW_BLOCK, (2, 3)).numpy()
    n = noise.size
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (2 / n) ** 0.5
    blocks = noise.reshape(4, DRAW_BLOCK, -1)
    flat = blocks.reshape(4, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 5 / flat.shape[1] ** 0.5


def test_negligible_components_keep_density_without_denormals():
    """Denormal weights and gradients made a training step with 2000 pseudo-posteriors twice as slow."""
    mean = torch.linspace(-40, 40, 400)[None, :, None].expand(1, 400, 2).clone().requires_grad_()
    q = DiagonalGaussian(mean, torch.full((1, 400, 2), -1.0))
    points = torch.tensor([[0.0, 0.0], [25.0, 25.0], [39.0, 41.0]])
    found = Pooled(q).log_prob(points)
    exact = (q.pairwise_log_prob(points).double().flatten(1).logsumexp(1) - np.log(400)).float()
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=0)
    found.sum().backward()
    assert not ((mean.grad != 0) & (mean.grad.abs() < 1.2e-38)).any()
    assert (mean.grad != 0).any()


LOGITS = [0.0, 1e-6, -1e-3, 0.009, -0.011, 0.49, -0.51, 3.0, -20.0, 99.0, -1e3, 1e4, -1e4]


def quadrature(logit):
    """Nodes of [0, 1], geometric towards the end with the mass, and probabilities of a continuous Bernoulli."""
    node, weight = np.polynomial.legendre.leggauss(40)
    edge = np.concatenate([[0], np.geomspace(1e-9, 1, 60)])
    y = ((edge[1:] + edge[:-1])[:, None] + np.diff(edge)[:, None] * node).ravel() / 2  # distance from that end
    density = np.exp(-abs(logit) * y) * (np.diff(edge)[:, None] * weight).ravel() / 2
    probability = density / density.sum()
    return y, probability


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_moments_are_those_of_quadrature(logit, dtype):
    """torch's variance, of saturated probabilities, was wrong or negative, and its entropy off by nats."""
    y, probability = quadrature(logit)
    mean = probability @ y
    variance = probability @ (y - mean) ** 2
    low = -abs(logit)
    constant = math.log(math.expm1(low) / low) if low else 0.0
    p = ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    close = {"rel": 1e-5 if dtype == torch.float32 else 1e-9}
    assert p.variance.item() == pytest.approx(variance, **close)
    assert p.stddev.item() == pytest.approx(variance**0.5, **close)
    assert (p.mean.item() if logit < 0 else 1 - p.mean.item()) == pytest.approx(mean, abs=1e-7, **close)
    assert p.entropy().item() == pytest.approx(constant - low * mean, abs=1e-9, **close)


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_quantiles_are_right(logit):
    """Draws at a logit of 100 had mean 0.937 instead of 0.99."""
    u = torch.tensor([0.0, 1e-7, 0.1, 0.5, 0.9, 1 - 1e-7, 1.0], dtype=torch.float64)
    p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    x = p.icdf(u)
    assert ((x >= 0) & (x <= 1)).all()
    y = u if logit <= 0 else 1 - u
    low = -abs(logit)
    exact = (torch.log1p(y * math.expm1(low)) / low).clamp(max=1) if low else y
    torch.testing.assert_close(x, exact if logit <= 0 else 1 - exact, atol=1e-9, rtol=1e-8)
    torch.testing.assert_close(p.cdf(x), u, atol=1e-10, rtol=0)
    single = ContinuousBernoulli(torch.tensor(logit))
    torch.testing.assert_close(single.icdf(u.float()).double(), p.icdf(u.float().double()), atol=2e-7, rtol=1e-5)
    torch.manual_seed(0)
    for draw in (single.sample, single.rsample):
        error = abs(draw((10_000,)).double().mean() - p.mean)
        assert error < 5 * p.stddev / 100


@pytest.mark.parametrize("logit", LOGITS)
def test_continuous_bernoulli_gradients_are_right(logit):
    u = torch.tensor([1e-3, 0.3, 0.8], dtype=torch.float64)
    for dtype, close in ((torch.float32, 1e-3), (torch.float64, 1e-6)):
        of_l = torch.tensor(logit, dtype=dtype, requires_grad=True)
        p = ContinuousBernoulli(of_l)
        (slope,) = torch.autograd.grad(p.mean, of_l)
        torch.testing.assert_close(slope, p.variance.detach(), rtol=close, atol=1e-10)  # exponential family
        (steepness,) = torch.autograd.grad(p.entropy(), of_l)
        torch.testing.assert_close(steepness, (-of_l * p.variance).detach(), rtol=10 * close, atol=3e-6)
        ends = torch.autograd.grad(p.icdf(torch.tensor([0.0, 1.0], dtype=dtype)).sum(), of_l)[0]
        assert ends.isfinite()
        x = p.icdf(u.to(dtype))
        for value, g in zip(x, (torch.autograd.grad(v, of_l, retain_graph=True)[0] for v in x), strict=True):
            at = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
            double = ContinuousBernoulli(at)
            (move,) = torch.autograd.grad(double.cdf(value.detach().double()), at)
            expected = -move / double.log_prob(value.detach().double()).exp()
            torch.testing.assert_close(g.double(), expected.detach(), rtol=close, atol=20 * close * 1e-3)


def test_continuous_bernoulli_divergence_is_that_of_quadrature():
    """torch's is of saturated probabilities."""
    for lp, lq in itertools.product(LOGITS, LOGITS):
        y, probability = quadrature(lp)
        x = torch.as_tensor(y if lp < 0 else 1 - y)
        p, q = (ContinuousBernoulli(torch.tensor(value, dtype=torch.float64)) for value in (lp, lq))
        exact = torch.as_tensor(probability) @ (p.log_prob(x) - q.log_prob(x))
        found = torch.distributions.kl_divergence(p, q)
        assert found.item() == pytest.approx(exact.item(), rel=1e-8, abs=1e-8)


def test_bernoulli_variance_is_not_rounded_to_zero():
    found = Bernoulli(torch.tensor([30.0, -30.0])).variance
    torch.testing.assert_close(found, torch.full((2,), math.exp(-30)), rtol=1e-5, atol=0)


def logistics(levels, log_scale, mixtures=2, pixels=3):
    raw = torch.randn(mixtures, 10, pixels, 1, dtype=torch.float64)
    raw[:, 4:7] = log_scale + torch.randn(mixtures, 3, pixels, 1, dtype=torch.float64)
    return DiscretizedLogisticMixture(raw.flatten(0, 1), 3, levels)


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, -1.0, 1.0, 8.0])
@pytest.mark.parametrize("levels", [1, 3, 15])
def test_colour_mean_is_that_of_every_level(levels, log_scale):
    """It was off by up to 0.12: later channels are linear in the drawn ones, not in their means."""
    torch.manual_seed(0)
    p = logistics(levels, log_scale)
    colours = torch.cartesian_prod(*[torch.arange(levels + 1, dtype=torch.float64) / levels] * 3)
    expected = []
    for pixel in range(3):
        one = DiscretizedLogisticMixture.__new__(DiscretizedLogisticMixture)
        one.channels, one.levels = 3, levels
        one.logistics = type(p.logistics)(*(part[..., pixel : pixel + 1, :] for part in p.logistics))
        expected.append(one.log_prob(colours[..., None, None]).exp() @ colours)
    torch.testing.assert_close(p.mean[..., 0], torch.stack(expected, 1), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("levels", "bound"), [(63, 5e-3), (255, 1e-3)])
def test_colour_mean_of_many_levels_is_near_all_of_them(levels, bound):
    """Against loops over the levels of the first two channels and a sum over those of the third."""
    torch.manual_seed(0)
    level = torch.linspace(-1, 1, levels + 1, dtype=torch.float64)
    edge = level[:-1] + 1 / levels

    def probabilities(location, scale):
        above = ((location[..., None] - edge) / scale).sigmoid()
        one = torch.ones_like(above[..., :1])
        return torch.cat([one, above], -1) - torch.cat([above, 0 * one], -1)

    for log_scale in (-5.0, -3.0, -1.0):
        p = logistics(levels, log_scale, mixtures=1, pixels=1)
        mean, scale, (a, b, g) = p.logistics.mean.flatten(), p.logistics.log_scale.exp().flatten(), p.logistics[3][0]
        first = probabilities(mean[0], scale[0])
        second = probabilities(mean[1] + a.flatten() * level, scale[1])
        third = probabilities(mean[2] + b.flatten() * level[:, None] + g.flatten() * level, scale[2]) @ level
        expected = torch.stack([first @ level, first @ second @ level, first @ (second * third).sum(1)])
        torch.testing.assert_close(p.mean.flatten(), (expected + 1) / 2, atol=bound, rtol=0)
        torch.testing.assert_close(p.mean.flatten()[0], (expected[0] + 1) / 2, atol=2e-5, rtol=0)


@pytest.mark.parametrize("raw", [-100.0, -7.0, 0.0, 8.0, 50.0, 95.0, 200.0])
def test_logistic_gradients_are_finite_at_any_log_scale(raw):
    """Bins' probabilities underflowed at e^95: their log was −∞ and its gradient NaN."""
    for value in (0.0, 0.3, 1.0):
        parameters = torch.zeros(10, 1, 1)
        parameters[4:7] = raw
        parameters.requires_grad_()
        log_p = DiscretizedLogisticMixture(parameters, 3).log_prob(torch.full((3, 1, 1), round(value * 255) / 255))
        log_p.backward()
        assert log_p.isfinite()
        assert parameters.grad.isfinite().all()


def test_widest_logistic_is_flat_between_its_end_bins():
    x = (torch.arange(256) / 255).reshape(256, 1, 1, 1)
    log_p = DiscretizedLogisticMixture(torch.tensor([0.0, 0.0, 99.0]).reshape(3, 1, 1), 1).log_prob(x)
    assert (log_p[1:-1] - log_p[128]).abs().max() < 2e-6


@pytest.mark.parametrize("path", ["cross", "pairwise"])
@pytest.mark.parametrize("latent", [2, 40])
def test_product_is_exact_for_narrow_far_apart_gaussians(path, latent):
    """Means 10⁵ apart with variances e⁻¹²: the product was wrong by 48 nats at D = 40, even in float64."""
    torch.manual_seed(0)
    batch = 1 if path == "cross" else 9
    components = 40 if path == "cross" else 4
    mean = 1e5 * torch.randn(1 if path == "pairwise" else components, batch, latent)
    mean = (mean + 1e-3 * torch.randn(components, batch, latent)).requires_grad_()
    q = DiagonalGaussian(mean, torch.full((components, batch, latent), -12.0))
    exact = DiagonalGaussian(mean.double(), q.log_var.double())
    z = q.rsample().detach()
    if path == "cross":
        found, expected = (p.cross_log_prob(z[None])[0].logsumexp(1) for p in (q, q))
        expected = exact.log_prob(z.double()[:, None]).logsumexp(1)
    else:
        z = z.flatten(0, 1)
        found = q.pairwise_log_prob(z).flatten(1).logsumexp(1)
        expected = exact.log_prob(z.double()[:, None, None]).flatten(1).logsumexp(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), mean, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)
