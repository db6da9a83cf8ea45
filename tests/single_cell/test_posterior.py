"""The posterior of cells, and the likelihood of counts, against explicit loops."""

import pytest
import torch
from scvi.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi.distributions._utils import DistributionConcatenator, subset_distribution
from scvi.nn import Encoder

from mixvae.single_cell import likelihood
from mixvae.single_cell.likelihood import log_likelihood
from mixvae.single_cell.posterior import CellPosterior, ComponentEncoders, moments


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
    encoders = ComponentEncoders(Encoder(4, 2, return_dist=True) for _ in range(2))
    batch_norms = [name for name, _ in encoders.named_parameters() if name.endswith(".1.weight")]
    assert batch_norms
    assert not [name for name in batch_norms if ".0." in name.replace("Layer 0.", "")]


@pytest.mark.parametrize("categories", [None, [2]], ids=["no covariates", "covariates"])
def test_moments_are_those_of_scvis_encoder(categories):
    torch.manual_seed(0)
    kwargs = {"n_layers": 2, "n_hidden": 4, "use_layer_norm": True, "return_dist": True}
    encoder = Encoder(5, 2, categories, **kwargs).eval()
    x, batch = torch.randn(7, 5), torch.arange(7).unsqueeze(1) % 2
    expected, _ = encoder(x, batch)
    torch.testing.assert_close(moments(encoder, x, batch), (expected.loc, expected.scale))


FAMILIES = {
    "zinb": lambda mean, theta, logits: ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=logits),
    "nb": lambda mean, theta, logits: NegativeBinomial(mu=mean, theta=theta),
    "poisson": lambda mean, theta, logits: Poisson(mean),
    "normal": lambda mean, theta, logits: Normal(mean, theta),
}
DRAWS, CELLS, GENES = 3, 2, 4


def counts_and_parameters(per, *, seed=0):
    """Counts, and mean, log odds of a dropout and dispersion of several draws, that require gradients."""
    torch.manual_seed(seed)
    x = torch.poisson(torch.full((CELLS, GENES), 2.5)).double()
    x[:, 0] = 0
    mean, logits = torch.rand(DRAWS * CELLS, GENES).double() * 3 + 0.1, torch.randn(DRAWS * CELLS, GENES).double()
    shape = {"gene": (1, 1), "cell": (1, CELLS), "draw": (DRAWS, CELLS)}[per]
    theta = torch.rand(*shape, GENES).double() + 0.3
    return x, [part.requires_grad_() for part in (mean, theta, logits)]


def score(family, x, mean, theta, logits):
    """The likelihood of scvi-tools on repeated counts, and ours."""
    px = FAMILIES[family](mean, theta.expand(DRAWS, CELLS, GENES).reshape(-1, GENES), logits)
    theirs = px.log_prob(x.repeat(DRAWS, 1)).sum(-1).reshape(DRAWS, CELLS)
    return theirs, log_likelihood(px, x, theta if family in ("zinb", "nb") else None)


@pytest.mark.parametrize("per", ["gene", "cell", "draw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_of_many_draws_is_that_of_repeated_counts(family, per):
    x, parameters = counts_and_parameters(per)
    expected, found = score(family, x, *parameters)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    theirs, ours = (
        torch.autograd.grad((weight * value).sum(), parameters, allow_unused=True) for value in (expected, found)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("per", ["gene", "cell", "draw"])
@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_likelihood_has_two_derivatives(family, per):
    x, parameters = counts_and_parameters(per)

    def value(*parameters):
        return score(family, x, *parameters)[1]

    assert torch.autograd.gradcheck(value, parameters, nondet_tol=1e-10)  # of the first pass and the others
    assert torch.autograd.gradgradcheck(value, parameters, nondet_tol=1e-10)


@pytest.mark.parametrize("cached", [1, CELLS * GENES, (2 * CELLS + 1) * GENES])
def test_likelihood_does_not_depend_on_its_blocks(monkeypatch, cached):
    x, parameters = counts_and_parameters("cell")
    expected = score("zinb", x, *parameters)[1]
    monkeypatch.setattr(likelihood, "CACHED", cached)
    found = score("zinb", x, *parameters)[1]
    torch.testing.assert_close(found, expected)
    theirs, ours = (torch.autograd.grad(value.square().sum(), parameters) for value in (expected, found))
    torch.testing.assert_close(ours, theirs)


def test_second_pass_has_the_gradient_of_the_first():
    """The first scales its gradient in place."""
    x, parameters = counts_and_parameters("gene")
    value = score("zinb", x, *parameters)[1].square().sum()
    first = [part.clone() for part in torch.autograd.grad(value, parameters, retain_graph=True)]
    torch.testing.assert_close(list(torch.autograd.grad(value, parameters)), first)


def test_gradient_of_some_parameters_needs_no_others():
    x, (mean, theta, logits) = counts_and_parameters("gene")
    expected, found = score("zinb", x, mean, theta.detach(), logits.detach())
    for graph in (False, True):
        theirs, ours = (
            torch.autograd.grad(value.sum(), mean, create_graph=graph, retain_graph=True) for value in (expected, found)
        )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_extreme_parameters_lose_no_digits(family):
    """Probabilities of a zero that underflow, and means far beyond and far below the dispersion."""
    means, thetas = torch.tensor([1e-6, 1e-2, 1.0, 1e2, 1e5]), torch.tensor([1e-2, 1.0, 1e2, 1e5])
    logits = torch.tensor([-200.0, -20.3, 0.7, 20.3, 200.0])
    rows = torch.cartesian_prod(torch.tensor([0.0, 1.0, 30.0]), means, thetas, logits)
    x, mean, theta, logits = rows.T.unsqueeze(-1)
    exact = FAMILIES[family](mean.double(), theta.double(), logits.double()).log_prob(x.double()).sum(-1)
    mean, theta, logits = (part.clone().requires_grad_() for part in (mean, theta, logits))
    found = log_likelihood(FAMILIES[family](mean, theta, logits), x, theta[None])
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(found.sum(), (mean, theta, logits), allow_unused=True)
    assert all(part.isfinite().all() for part in gradient if part is not None)


@pytest.mark.parametrize("theta", [1e-3, 0.1, 1.0, 29.9, 30.1, 1e3, 1e5, 1e7, 1e9, 1e12])
def test_probabilities_of_all_counts_sum_to_one(theta):
    """With a large inverse dispersion, nearly a Poisson, they did not in single precision: at 1e6 to 0.66."""
    mean, x = 0.02 if theta < 1 else 5.0, torch.arange(400.0).unsqueeze(1)
    own = torch.full((1, 1, 1), theta, requires_grad=True)
    found = log_likelihood(NegativeBinomial(mu=torch.full_like(x, mean), theta=own[0].expand_as(x)), x, own)
    assert found.dtype == torch.float32
    assert float(found.detach().double().exp().sum()) == pytest.approx(1, abs=3e-6)
    few, rate = x.squeeze(1) < 15, torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    exact = NegativeBinomial(mu=torch.tensor(mean).double(), theta=rate).log_prob(x.double())[few, 0]
    if theta <= 1e5:  # beyond, it cancels in double precision too
        torch.testing.assert_close(found[0, few].double(), exact, rtol=1e-6, atol=3e-6)
        weight = torch.linspace(1, 2, len(exact))
        [ours] = torch.autograd.grad((weight * found[0, few]).sum(), own)
        [theirs] = torch.autograd.grad((weight * exact).sum(), rate)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["zinb", "nb"])
def test_cells_without_counts_have_a_likelihood(family):
    x, parameters = counts_and_parameters("gene")
    expected, found = score(family, torch.zeros_like(x), *parameters)
    torch.testing.assert_close(found, expected)


def test_no_intermediate_result_is_kept_for_the_gradient():
    """A training kept twenty arrays of the size of the means."""
    x, parameters = counts_and_parameters("gene")
    mean, theta, logits = (part + 0 for part in parameters)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        log_likelihood(FAMILIES["zinb"](mean, theta[0].expand(len(mean), -1), logits), x, theta)
    given = {part.untyped_storage().data_ptr() for part in (mean, logits)}
    assert not [
        part for part in kept if part.numel() >= mean.numel() and part.untyped_storage().data_ptr() not in given
    ]
