"""Likelihoods are normalised and learn what they should."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from mixvae.decoders import (
    ContinuousBernoulli,
    ConvDecoder,
    Decoder,
    GaussianLikelihood,
    LogisticMixture,
    MLPDecoder,
    PixelCNNDecoder,
)


def test_gaussian_variance_is_learned_and_has_a_floor():
    likelihood = GaussianLikelihood((3,), minimum=0.1).double()
    assert likelihood(torch.zeros(3, dtype=torch.float64)).scale.tolist() == pytest.approx([1.1] * 3)
    data = torch.randn(2000, 3, dtype=torch.float64) * torch.tensor([0.5, 2.0, 0.0])
    optimizer = torch.optim.Adam(likelihood.parameters(), 0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(3, dtype=torch.float64)).log_prob(data).mean()).backward()
        optimizer.step()
    scale = likelihood(torch.zeros(3, dtype=torch.float64)).scale
    torch.testing.assert_close(scale[:2].double(), data.square().mean(0).sqrt()[:2], rtol=0.02, atol=0)
    assert 0.1 <= scale[2] < 0.12


def test_gaussian_likelihood_is_the_normal_density():
    decoder = MLPDecoder(2, (3,), (4,), GaussianLikelihood((3,)))
    z, x = torch.randn(5, 2), torch.randn(5, 3)
    expected = Normal(decoder.network(z), decoder.likelihood(torch.zeros(3)).scale).log_prob(x).sum(-1)
    torch.testing.assert_close(decoder(z).log_prob(x), expected)


def test_any_callable_that_gives_a_distribution_is_a_likelihood():
    decoder = Decoder(nn.Linear(2, 3), lambda rate: torch.distributions.Poisson(rate.exp()))
    assert decoder(torch.zeros(4, 2)).log_prob(torch.ones(4, 3)).shape == (4,)


def test_half_precision_logits_keep_a_float32_likelihood():
    p = ContinuousBernoulli(torch.ones(3, dtype=torch.bfloat16))
    assert p.log_prob(torch.rand(3)).dtype == torch.float32


@pytest.mark.parametrize("kind", [MLPDecoder, ConvDecoder, PixelCNNDecoder])
def test_colour_images_with_a_bernoulli_likelihood_are_refused(kind):
    with pytest.raises(ValueError, match=r"got (RGB images of shape \(3, 8, 8\)|3 channels): use LogisticMixture"):
        kind(2, (3, 8, 8))


def test_counts_below_one_are_refused_when_the_decoder_is_made():
    """They failed in the first forward pass, with an IndexError or a RuntimeError of torch."""
    with pytest.raises(ValueError, match="layers must be at least 1; got 0"):
        PixelCNNDecoder(2, (1, 4, 4), layers=0)
    with pytest.raises(ValueError, match="mixtures must be at least 1; got 0"):
        LogisticMixture((1, 4, 4), mixtures=0)
