"""The mixture as one distribution: its density, draws, divergence, and the gradient of its draws against quadrature."""

import pytest
import torch
from torch.distributions import Distribution, Independent, Normal

from mixvae.distributions import DiagonalGaussian
from mixvae.priors import StandardNormal
from zoo import BATCH, COMPONENTS, LATENT, POSTERIORS, SHAPE

FIXED = [name for name in POSTERIORS if "learned" not in name]
SPAN, STEPS = 24.0, 801


def grid():
    axis = torch.linspace(-SPAN, SPAN, STEPS, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * SPAN / (STEPS - 1)) ** 2


def posterior_of(name):
    torch.manual_seed(0)
    return POSTERIORS[name]().double(), torch.rand(BATCH, *SHAPE, dtype=torch.float64)


def overlapping():
    """Three Gaussians that overlap, with unequal weights, and their parameters."""
    mean = torch.tensor([[0.0, 0.0], [1.0, -0.5], [-0.8, 0.9]], dtype=torch.float64)[:, None].requires_grad_()
    log_var = torch.tensor([[0.2, -0.5], [-0.3, 0.4], [0.1, -1.0]], dtype=torch.float64)[:, None].requires_grad_()
    log_pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    return DiagonalGaussian(mean, log_var, log_pi), [mean, log_var]


def value(z):
    """Something of z that couples its coordinates, so that marginal distributions do not determine it."""
    return (z[..., 0] * z[..., 1]).sin() + 0.3 * z[..., 0].square() * z[..., 1]


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_mixture_is_a_torch_distribution_over_the_batch(name):
    q, x = posterior_of(name)
    with torch.no_grad():
        components = q(x)
        mixture = components.mixture()
        assert isinstance(mixture, Distribution)
        assert (mixture.batch_shape, mixture.event_shape) == ((BATCH,), (LATENT,))
        z = mixture.sample((5, 3))
        assert z.shape == (5, 3, BATCH, LATENT)
        cross = components.cross_log_prob(z.reshape(15, 1, BATCH, LATENT))[:, 0]
        expected = (cross + components.log_pi[:, None]).logsumexp(1).reshape(5, 3, BATCH)
        torch.testing.assert_close(mixture.log_prob(z), expected)
        torch.testing.assert_close(mixture.log_prob(z[0, 0]), expected[0, 0])
        torch.testing.assert_close(mixture.responsibilities(z).sum(-2), torch.ones(5, 3, BATCH, dtype=torch.float64))
        normal = Independent(Normal(torch.zeros(LATENT).double(), 1.0), 1)
        assert mixture.kl(normal, 2).shape == (BATCH,)


@pytest.mark.parametrize("name", POSTERIORS)
def test_noise_of_a_value_reproduces_it_under_every_component(name):
    q, x = posterior_of(name)
    components = q(x)
    z = components.rsample((2,))
    torch.testing.assert_close(components.rsample((2,), components.noise_of(z)), z)
    one = z[:, :1]
    again = components.rsample((2,), components.noise_of(one))
    torch.testing.assert_close(again, one.expand_as(again))


def test_draws_come_from_the_mixture():
    mixture = overlapping()[0].mixture()
    z = mixture.sample((40_000,))[:, 0]
    points, area = grid()
    with torch.no_grad():
        density = mixture.log_prob(points[:, None]).exp()[:, 0] * area
    assert density.sum().item() == pytest.approx(1, abs=1e-6)
    for f in (value, lambda p: p[..., 0], lambda p: (3 * p[..., 1]).tanh()):
        drawn = f(z)
        assert abs(drawn.mean() - density @ f(points)) < 4.5 * drawn.std() / len(z) ** 0.5
    torch.testing.assert_close(mixture.mean[0], density @ points, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixture.variance[0], density @ (points - density @ points) ** 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("centre", [0.0, 300.0, 3000.0, 1e6])
def test_mixture_variance_survives_far_means(centre):
    """E[z²] − E[z]² was negative at means of 300, and 0 at 3000."""
    components, _ = overlapping()
    loc = components.mean.detach().float() + centre
    q = DiagonalGaussian(loc, components.log_var.detach().float(), components.log_pi.float())
    pi, mean = q.log_pi.double().exp()[:, None, None], loc.double()
    overall = (pi * mean).sum(0)
    expected = (pi * (q.variance.double() + (mean - overall) ** 2)).sum(0)
    torch.testing.assert_close(q.mixture().variance.double(), expected, rtol=1e-5 if centre < 1e4 else 0.02, atol=0)


def assert_gradient_of_draws(mixture, parameters, example, draws):
    """Compare ∂ E[value(z)] by draws with the derivative of its quadrature."""
    points, area = grid()
    density = mixture.log_prob(points[:, None].expand(-1, mixture.batch_shape[0], -1))[:, example].exp() * area
    gradient = torch.autograd.grad(density @ value(points), parameters, retain_graph=True)
    exact = torch.cat([g.flatten() for g in gradient])
    rows = []
    for seed in range(40):
        torch.manual_seed(seed)
        z = mixture.rsample((draws,))[:, example]
        parts = torch.autograd.grad(value(z).mean(), parameters, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in parts]))
    found = torch.stack(rows)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 5 * error + 1e-7).all()
    assert (exact.abs() > 5 * error).any(), "nothing would be found out"


def test_draws_of_gaussians_have_the_gradient_of_quadrature():
    components, parameters = overlapping()
    assert_gradient_of_draws(components.mixture(), parameters, 0, 2000)


@pytest.mark.parametrize("name", ["flow per component", "two levels"])
def test_flow_and_chain_draws_have_the_quadrature_gradient(name):
    q, x = posterior_of(name)
    with torch.no_grad():
        for p in q.parameters():  # apart from each other
            p += 0.2 * torch.randn_like(p)
    parameters = [p for p in q.parameters() if p.requires_grad]
    assert_gradient_of_draws(q(x[:1]).mixture(), parameters, 0, 400)


def test_learned_weights_are_told_to_have_no_path():
    q, x = posterior_of("separate, learned weights")
    with pytest.raises(ValueError, match="no gradient in its weights"):
        q(x).mixture().rsample()
    with torch.no_grad():
        assert q(x).mixture().rsample().shape == (BATCH, LATENT)


@pytest.mark.parametrize("batched", [False, True])
def test_divergence_is_that_of_quadrature(batched):
    components, (mean, _) = overlapping()
    mixture, p = components.mixture(), StandardNormal(2).double()()
    if batched:
        p = Independent(Normal(torch.zeros(1, 2, dtype=torch.float64), torch.ones((), dtype=torch.float64)), 1)
    points, area = grid()
    points = points[points.abs().amax(1) < 12]
    log_q = mixture.log_prob(points[:, None])[:, 0]
    exact = (log_q.exp() * (log_q - p.log_prob(points[:, None] if batched else points).reshape(-1))).sum() * area
    estimates = torch.stack([mixture.kl(p, draws_per_component=500) for _ in range(60)])[:, 0]
    assert abs(estimates.mean() - exact) < 4.5 * estimates.std() / 60**0.5
    gradient = torch.autograd.grad(exact, mean, retain_graph=True)[0]
    found = torch.stack([torch.autograd.grad(e, mean, retain_graph=True)[0] for e in estimates])
    assert ((found.mean(0) - gradient).abs() < 5 * found.std(0) / 60**0.5).all()
    assert COMPONENTS == len(components.log_pi)


def test_a_guide_is_written_as_with_any_other_distribution():
    """The loop of a probabilistic programme: one draw with gradients, the model's and the guide's log-density."""
    components, parameters = overlapping()
    guide = Independent(components.mixture(), 1)  # the batch as one event, as a plate does
    assert guide.has_rsample
    target = Independent(Normal(torch.tensor([[2.0, 1.0]], dtype=torch.float64), 0.7), 2)
    optimizer = torch.optim.Adam(parameters, 0.05)
    for _ in range(300):
        z = guide.rsample((32,))
        loss = (guide.log_prob(z) - target.log_prob(z)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guide = Independent(DiagonalGaussian(*parameters, components.log_pi).mixture(), 1)
    assert float(loss.detach()) < 0.15


def test_the_mixture_of_a_subset_is_normalised():
    """Weights of a subset are scaled to be unbiased, A/S π_s, and do not sum to one."""
    mean = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)[:, None]
    q = DiagonalGaussian(mean, torch.zeros_like(mean), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log())
    grid = torch.linspace(-12, 12, 4801, dtype=torch.float64)[:, None, None]
    density = q.select(torch.tensor([0, 2])).mixture().log_prob(grid).exp()
    assert float(density.sum() * 0.005) == pytest.approx(1.0, abs=1e-9)
