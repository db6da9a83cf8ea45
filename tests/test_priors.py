"""Priors: pseudo-inputs learn, are shared by nobody, and are encoded once."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from conftest import binary, tiny_model
from mixvae.bounds import elbo, log_weights
from mixvae.distributions import DiagonalGaussian, Fixed
from mixvae.model import MixtureVAE
from mixvae.networks import GaussianNetwork
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import TwoLevelPrior, VampPrior


def vamp(q, shape, latent, **options):
    return VampPrior(q, shape, 6, **options)


def from_examples(q, shape, latent):
    return VampPrior(q, shape, 6, examples=binary(6, shape, dtype=torch.float32))


class Normalised(nn.Module):
    """An encoder of four values that differs between training and evaluation."""

    def __init__(self, layer):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), layer(), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.layers(x).chunk(2, -1)


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm1d(8), lambda: nn.Dropout(0.5)])
@pytest.mark.parametrize("named", [lambda posterior: posterior, lambda posterior: posterior.forward])
def test_a_frozen_vampprior_is_that_of_evaluation(layer, named):
    """It froze the density of one batch, or of one dropout mask, and counted pseudo-inputs as data."""
    posterior = SeparateEncoders(lambda: Normalised(layer), 2)
    posterior(5 + 2 * torch.randn(64, 4))
    prior, z = VampPrior(named(posterior), (4,), 5), torch.randn(6, 2)
    posterior.eval()
    expected, kept = prior().log_prob(z), copy.deepcopy(posterior.state_dict())
    posterior.train()
    torch.testing.assert_close(prior.frozen()().log_prob(z), expected)
    torch.testing.assert_close(dict(posterior.state_dict()), dict(kept))
    assert all(part.training for part in posterior.modules())


def test_vamp_density_matches_a_loop_over_inputs_and_encoders():
    model = tiny_model(3, prior=vamp, weights=[2.0, 1.0, 1.0])
    z = torch.randn(4, 2, dtype=torch.float64)
    total = torch.zeros(4, dtype=torch.float64)
    for weight, encoder in zip((0.5, 0.25, 0.25), model.posterior.encoders, strict=True):
        for u in model.prior.inputs:
            mean, log_var = encoder(u[None])
            total += weight / 6 * Normal(mean[0], (0.5 * log_var[0]).exp()).log_prob(z).sum(-1).exp()
    torch.testing.assert_close(model.prior().log_prob(z), total.log())


@pytest.mark.parametrize("make", [vamp, from_examples])
def test_every_pseudo_input_gets_a_gradient(make):
    """A hard clamp has none at 0 and 1, where binary examples lie."""
    model = tiny_model(2, prior=make)
    terms = model(binary(50))
    elbo(log_weights(terms), terms.weight).mean().backward()
    assert (model.prior.raw_inputs.grad.flatten(1).abs().amax(1) > 0).all()


def test_pseudo_inputs_start_from_distinct_examples():
    examples = torch.rand(10, 1, 2, 2) * 0.8 + 0.1
    model = tiny_model(2, prior=lambda q, shape, latent: VampPrior(q, shape, 10, examples=examples))
    found = model.prior.inputs.detach().float().flatten(1)
    assert torch.cdist(found, examples.flatten(1)).argmin(1).unique().numel() == 10


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("examples", [torch.zeros(5, 1, 2, 2), torch.zeros(9, 1, 2, 3)])
def test_examples_that_do_not_fit_are_refused(examples):
    with pytest.raises(ValueError, match="6 pseudo-inputs need as many examples of shape"):
        VampPrior(lambda x: None, (1, 2, 2), 6, examples=examples)


def test_step_encodes_data_and_pseudo_inputs_once_each(monkeypatch):
    """The published code recomputes the prior for every component."""
    model, calls = tiny_model(3, prior=vamp), []
    forward = SeparateEncoders.forward
    monkeypatch.setattr(SeparateEncoders, "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    model(binary(4), 5)
    assert len(calls) == 2


def test_a_copied_model_refers_to_its_own_posterior():
    """A running average of the weights is such a copy."""
    model = tiny_model(2, prior=vamp)
    other = copy.deepcopy(model)
    for p in other.posterior.parameters():
        p.data.zero_()
    assert isinstance(other.prior().components, DiagonalGaussian)
    assert other.prior().components.mean.abs().max() == 0
    assert model.prior().components.mean.abs().max() > 0
    assert not any("posterior" in name for name in model.prior.state_dict())


def test_a_bare_distribution_is_a_prior():
    p = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    model = tiny_model(2, dtype=torch.float32)
    noise = torch.randn(1, 2, 3, 2)
    x = binary(3, dtype=torch.float32)
    bare = MixtureVAE(model.posterior, p, model.decoder)
    torch.testing.assert_close(log_weights(bare(x, noise=noise)), log_weights(model(x, noise=noise)))


@pytest.mark.parametrize(
    ("distribution", "told"),
    [
        (lambda: Normal(torch.zeros(2), torch.ones(2)), r"got \(2,\) and \(\): Independent"),
        (
            lambda: Independent(Normal(torch.zeros(2, requires_grad=True), torch.ones(2)), 1),
            "loc of the prior requires",
        ),
        (
            lambda: MixtureSameFamily(
                Categorical(logits=torch.zeros(3, requires_grad=True)),
                Independent(Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1),
            ),
            "logits of the prior requires gradients, but a bare MixtureSameFamily",
        ),
    ],
)
def test_bare_distribution_that_would_not_learn_is_refused(distribution, told):
    with pytest.raises(ValueError, match=told):
        Fixed(distribution())


def test_a_distribution_may_be_the_top_of_a_two_level_prior():
    top = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    prior = TwoLevelPrior(top, GaussianNetwork(2, 3, (4,)), 3)
    assert prior().log_prob(torch.zeros(5, 5)).shape == (5,)
    assert prior.frozen() is prior
