"""The posterior of cells, and the likelihood of counts, against explicit loops."""

import pytest
import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.distributions._utils import DistributionConcatenator, subset_distribution

from mixvae.single_cell.likelihood import log_likelihood
from mixvae.single_cell.posterior import CellPosterior, ComponentEncoders


@pytest.fixture
def q():
    torch.manual_seed(1)
    return CellPosterior(torch.randn(5, 3, 2).double(), torch.rand(5, 3, 2).double() + 0.2)


def by_torch(q, cell):
    """The mixture of one cell by torch's own classes."""
    parts = torch.distributions.Independent(torch.distributions.Normal(q.means[cell], q.scales[cell]), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(3)), parts)


def test_density_is_of_the_mixture_with_a_trailing_axis_to_sum(q):
    z = torch.randn(4, 5, 2).double()
    expected = torch.stack([by_torch(q, b).log_prob(z[:, b]) for b in range(5)], 1)
    assert q.log_prob(z).shape == (4, 5, 1)
    torch.testing.assert_close(q.log_prob(z).sum(-1), expected)


def test_one_point_is_broadcast_and_scored_for_every_cell(q):
    z = torch.randn(4, 7, 1, 2).double()
    expected = torch.stack([by_torch(q, b).log_prob(z[..., 0, :]) for b in range(5)], -1)
    torch.testing.assert_close(q.log_prob(z).sum(-1), expected)


def test_moments_are_those_of_the_whole_mixture(q):
    for b in range(5):
        torch.testing.assert_close(q.loc[b], by_torch(q, b).mean)
        torch.testing.assert_close(q.scale[b].square(), by_torch(q, b).variance)


def test_deviation_is_not_nan_for_cells_far_from_zero():
    """E[z²] − E[z]² was below zero in float32, and its root NaN or 0."""
    means = 300 + torch.tensor([[[0.0], [0.01]]])
    q = CellPosterior(means, torch.full_like(means, 0.05))
    torch.testing.assert_close(q.scale, torch.full((1, 1), (0.05**2 + 0.005**2) ** 0.5), rtol=1e-3, atol=0)


def test_draws_come_from_all_components_with_their_weights(q):
    draws = q.sample((20_000,))
    error = (q.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - q.loc).abs() < 5 * error).all()
    assert q.sample().shape == (5, 2)


def test_cells_are_concatenated_and_picked_along_the_first_axis(q):
    store = DistributionConcatenator()
    store.store_distribution(q)
    store.store_distribution(q)
    both = store.get_concatenated_distributions(axis=0)
    assert both.means.shape == (10, 3, 2)
    picked = subset_distribution(both, torch.tensor([6, 2]), 0)
    torch.testing.assert_close(picked.means, q.means[[1, 2]])


def test_kl_to_the_prior_is_the_mean_of_the_components(q):
    prior = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
    normal = torch.distributions.Normal(q.means, q.scales)
    expected = torch.distributions.kl_divergence(normal, prior).sum(-1).mean(-1)
    torch.testing.assert_close(q.kl_to_standard_normal(), expected)


def test_no_encoder_name_looks_like_a_layer_index_to_surgery():
    from scvi.nn import Encoder

    encoders = ComponentEncoders(Encoder(4, 2, return_dist=True) for _ in range(2))
    batch_norms = [name for name, _ in encoders.named_parameters() if name.endswith(".1.weight")]
    assert batch_norms
    assert not [name for name in batch_norms if ".0." in name.replace("Layer 0.", "")]


@pytest.mark.parametrize("per", ["gene", "cell", "draw"])
@pytest.mark.parametrize("family", ["zinb", "nb", "poisson", "normal"])
def test_likelihood_of_many_draws_is_that_of_repeated_counts(family, per):
    torch.manual_seed(0)
    draws, cells, genes = 3, 4, 6
    x = torch.poisson(torch.full((cells, genes), 1.5)).double()
    mean, logits = torch.rand(draws * cells, genes).double() * 3 + 0.1, torch.randn(draws * cells, genes).double()
    theta = {"gene": (1, 1), "cell": (1, cells), "draw": (draws, cells)}[per]
    theta = torch.rand(*theta, genes).double() + 0.3
    theta.requires_grad_()
    full = theta.expand(draws, cells, genes).reshape(draws * cells, genes)
    px = {
        "zinb": lambda: ZeroInflatedNegativeBinomial(mu=mean, theta=full, zi_logits=logits),
        "nb": lambda: NegativeBinomial(mu=mean, theta=full),
        "poisson": lambda: Poisson(mean),
        "normal": lambda: Normal(mean, full),
    }[family]()
    expected = px.log_prob(x.repeat(draws, 1)).sum(-1).reshape(draws, cells)
    found = log_likelihood(px, x, theta if family in ("zinb", "nb") else None)
    torch.testing.assert_close(found, expected)
    if family in ("zinb", "nb"):
        torch.testing.assert_close(
            *(torch.autograd.grad(v.sum(), theta, retain_graph=True)[0] for v in (found, expected))
        )
