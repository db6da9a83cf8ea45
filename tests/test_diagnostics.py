"""What components are for, against quadrature and explicit sums."""

import math

import numpy as np
import pytest
import torch

from conftest import binary, tiny_model
from mixvae.analysis import Overlap, exact_posteriors, overlap
from mixvae.evaluation import evaluate
from mixvae.flows import CouplingFlow
from mixvae.model import MixtureVAE, evaluating
from mixvae.posteriors import FlowPosterior, SeparateEncoders
from mixvae.priors import StandardNormal


def test_the_overlap_is_that_of_explicit_sums():
    model, x = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(4)
    found = overlap(model, x, 4000)
    with torch.no_grad(), evaluating(model):
        q = model.posterior(x)
        for i in range(3):
            for j in range(3):
                a, b = (torch.distributions.Normal(q.loc[k], q.scale[k]) for k in (i, j))
                exact = torch.distributions.kl_divergence(a, b).sum(-1).mean()
                assert found.kl[i, j] == pytest.approx(float(exact), abs=0.02 + 0.05 * float(exact))
        flat = torch.distributions.Normal(0.0, 1.0)
        to_prior = torch.distributions.kl_divergence(torch.distributions.Normal(q.loc, q.scale), flat).sum(-1).T
        axis = torch.linspace(-6, 6, 161, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)[:, None].expand(-1, 4, -1)
        log_p = model.log_likelihood(x, points) + model.prior().log_prob(points)
        share = torch.einsum("nb,nsb->s", log_p.softmax(0), q.mixture().responsibilities(points)) / 4
        log_q, mixture = q.log_prob(points[:, None]), q.mixture().log_prob(points)
        weight = q.log_pi.exp()
        cell = (axis[1] - axis[0]) ** 2
        divergence = torch.einsum("s,nsb->b", weight, log_q.exp() * (log_q - mixture[:, None])) * cell
    np.testing.assert_allclose(found.kl_prior, to_prior, atol=0.05, rtol=0.05)
    np.testing.assert_allclose(found.jsd, divergence, atol=0.03)
    np.testing.assert_allclose(found.share, share, atol=0.02)
    assert found.share.sum() == pytest.approx(1)


def test_redundant_components_are_named_with_the_reason():
    kl = np.array([[0, 0.01, 3, 3], [0.02, 0, 3, 3], [3, 3, 0, 3], [3, 3, 3, 0.0]])
    found = Overlap(kl, np.zeros(1), np.zeros((1, 4)), np.array([[0.5, 0.299, 0.2, 0.001]])).redundant()
    assert list(found) == [1, 3]
    assert "same as component 0 within 0.03 nats" in found[1]
    assert "covers 0.10%" in found[3]


def test_copies_are_found_out():
    model = tiny_model(2).extended(3, noise=0.0)
    found = overlap(model, binary(8), 200)
    assert len(found.redundant()) == 1
    assert set(found.redundant()) <= {0, 2}
    assert found.nearest()[0][0] == 2


def test_shares_by_label_are_means_over_the_label():
    model, x = tiny_model(2), binary(6)
    labels = np.array([5, 5, 9, 9, 9, 5])
    found = overlap(model, x, 50, labels=labels)
    names, shares = found.by_label()
    assert names.tolist() == [5, 9]
    np.testing.assert_allclose(shares[1], found.shares[2:5].mean(0))
    np.testing.assert_allclose(shares.sum(1), 1)
    with pytest.raises(ValueError, match="these data have none"):
        overlap(model, x, 5).by_label()


def test_overlap_has_a_row_per_component_and_every_figure_draws():
    found = overlap(tiny_model(3), binary(6), 20, labels=np.arange(6) % 2)
    assert [row["component"] for row in found.table] == [0, 1, 2]
    assert sum(row["share"] for row in found.table) == pytest.approx(1)
    for figure in (found.figure, found.spread, found.classes):
        figure.canvas.draw()


def test_the_exact_posterior_agrees_with_importance_sampling():
    model, x = tiny_model(3, weights=[3.0, 2.0, 1.0]), binary(3)
    plane = exact_posteriors(model, x)
    estimate = evaluate(model, x, 60_000)
    for i, row in enumerate(plane.table):
        assert abs(row["log_px"] - estimate.pooled[i]) < 5 * estimate.pooled_mc_se[i] + 1e-4
        assert abs(row["elbo"] - estimate.elbo[i]) < 5 * estimate.elbo_mc_se[i] + 1e-3
        assert row["kl"] > 0
        assert 0 < row["covered"] < 1


def test_posterior_window_holds_the_mass_with_axes_unswapped():
    model, x = tiny_model(2), binary(1)
    (found,) = exact_posteriors(model, x, points=201).posteriors
    cell = (2 * found.span / 200) ** 2
    assert found.exact.sum() * cell == pytest.approx(1, abs=1e-6)
    assert found.mixture.sum() * cell == pytest.approx(1, abs=2e-3)
    with torch.no_grad(), evaluating(model):
        q = model.posterior(x)
    axis = np.linspace(-found.span, found.span, 201)
    first = (found.mixture.sum(0) * cell * (axis + found.centre[0])).sum()
    second = (found.mixture.sum(1) * cell * (axis + found.centre[1])).sum()
    np.testing.assert_allclose([first, second], q.mean.mean(0)[0], atol=0.02)


def test_a_mode_that_no_component_covers_is_seen():
    """A likelihood with two modes at z₁ = ±4 and a posterior at one of them: half of the mass is missed."""

    class Modes(torch.nn.Module):
        def forward(self, z):
            probability = torch.exp(-8 * (z[..., :1].abs() - 4).square()).clamp(max=0.999)
            return torch.distributions.Independent(torch.distributions.Bernoulli(probability), 1)

    class Fixed(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[4.0, 0.0]]).double().expand(len(x), 2), torch.tensor([[-2.8, 0.0]]).double().expand(
                len(x), 2
            )

    model = MixtureVAE(SeparateEncoders(Fixed, 1), StandardNormal(2), Modes()).double()
    (found,) = exact_posteriors(model, torch.ones(1, 1).double()).posteriors
    assert found.centre[0] - found.span < -4
    assert found.covered == pytest.approx(0.5, abs=0.1)
    assert found.log_px - found.elbo > math.log(2) - 0.01


def test_components_without_moments_are_drawn_as_points():
    model = tiny_model(2)
    flowed = MixtureVAE(FlowPosterior(model.posterior, lambda: CouplingFlow(2), 2), model.prior, model.decoder).double()
    (found,) = exact_posteriors(flowed, binary(1)).posteriors
    assert found.gaussians is None
    assert found.draws.shape == (400, 2)
    exact_posteriors(flowed, binary(2)).figure.canvas.draw()


def test_another_latent_size_is_refused_in_one_line():
    model = tiny_model(2, latent=3)
    with pytest.raises(ValueError, match="needs 2 latents; this model has 3"):
        exact_posteriors(model, binary(1))
