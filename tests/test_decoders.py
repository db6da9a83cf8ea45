"""Likelihoods are normalised and learn what they should, and so do the variances of encoders."""

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
from mixvae.networks import (
    LOG_VAR_RANGE,
    GatedConvEncoder,
    GatedEncoder,
    GatedTrunk,
    GaussianNetwork,
    OneHotHead,
    TwoLevelConv,
    TwoLevelDense,
    mean_and_log_var,
)
from mixvae.posteriors import OneHotPosterior


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


def test_log_variance_can_come_back_from_beyond_its_range():
    """A plain clamp has no gradient there: a log-variance that once overshot stayed for ever."""
    low, high = LOG_VAR_RANGE
    raw = torch.tensor([low - 3, low - 3, low, 0.0, high, high + 3, high + 3], dtype=torch.float64)
    head = torch.cat([torch.zeros_like(raw), raw]).requires_grad_()
    _, log_var = mean_and_log_var(head)
    assert torch.equal(log_var, raw.clamp(low, high))
    loss = torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)  # its slope at each
    log_var.backward(loss)
    assert head.grad[7:].tolist() == [-1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 1.0]


def test_gradient_within_the_range_is_that_of_a_clamp():
    raw = (torch.rand(100, dtype=torch.float32) * 8 - 6).requires_grad_()
    gradients = []
    for clamped in (mean_and_log_var(torch.cat([raw, raw]))[1], raw.clamp(*LOG_VAR_RANGE)):
        gradients.append(torch.autograd.grad(clamped.exp().sin().sum(), raw)[0])
    assert torch.equal(*gradients)


def test_an_overshot_log_variance_is_learned_again():
    encoder = GatedEncoder((4,), 2, (3,))
    encoder.head.bias.data[2:] = 5.0
    optimizer = torch.optim.SGD(encoder.parameters(), 0.5)
    for _ in range(100):
        optimizer.zero_grad()
        (encoder(torch.ones(1, 4))[1] + 1).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(encoder(torch.ones(1, 4))[1], torch.full((1, 2), -1.0), atol=1e-3, rtol=0)


ENCODERS = {
    "dense": lambda **o: (GatedEncoder((4,), 2, (3,), **o), torch.ones(5, 4)),
    "convolutional": lambda **o: (GatedConvEncoder((1, 4, 4), 2, ((2, 3, 2),), **o), torch.ones(5, 1, 4, 4)),
    "one-hot head": lambda **o: (OneHotHead(4, 2, 3, **o), torch.ones(5, 4)),
    "two levels": lambda **o: (TwoLevelDense((4,), 2, (3,), **o), torch.ones(5, 4)),
    "two levels, convolutional": lambda **o: (
        TwoLevelConv((1, 4, 4), 2, ((2, 3, 2),), 3, **o),
        torch.ones(5, 1, 4, 4),
    ),
    "between levels": lambda **o: (GaussianNetwork(4, 2, (3,), **o), torch.ones(5, 4)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_takes_a_range_of_log_variances(name):
    """Six log-variances down from 2 are too few for real data with little noise."""
    encoder, x = ENCODERS[name](log_var_range=[-14.0, -9.0])
    for p in encoder.parameters():
        p.data *= 50
    found = [encoder(x)[1]]
    if name.startswith("two"):
        found.append(encoder(x)[2](torch.ones(5, 2))[1])
    for log_var in found:
        assert -14 <= log_var.min() <= log_var.max() <= -9
    for wrong in ([1.0], [2.0, -6.0], [0.0, float("inf")], [1.0, 1.0]):
        with pytest.raises(ValueError, match=r"log_var_range must be the smallest and the largest log-variance"):
            ENCODERS[name](log_var_range=wrong)


def test_a_one_hot_posterior_passes_its_range_to_its_head():
    q = OneHotPosterior(lambda: GatedTrunk((4,), (3,)), (4,), 2, 5, log_var_range=(-14.0, -9.0))
    assert q(torch.ones(2, 4)).log_var.max() <= -9
