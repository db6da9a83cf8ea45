"""Autoregressive decoders: normalised, causal, independent of other images, and sampled as they score."""

import itertools

import pytest
import torch

from mixvae.decoders import Bernoulli, GaussianLikelihood, LogisticMixture, PixelCNNDecoder
from mixvae.distributions import DiscretizedLogisticMixture
from mixvae.networks import PixelCNN


def decoder(shape=(1, 4, 5), layers=3, width=6, likelihood=Bernoulli, latent=2, kernel=3, seed=0):
    torch.manual_seed(seed)
    made = PixelCNNDecoder(latent, shape, layers, width, likelihood=likelihood).double()
    for p in made.parameters():  # far from symmetric, so that every dependence shows
        p.data += 0.5 * torch.randn_like(p)
    return made


@pytest.mark.parametrize("size", [(2, 2), (2, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_probabilities_of_all_tiny_binary_images_sum_to_one(size, training):
    module = decoder((1, *size)).train(training)
    n = size[0] * size[1]
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).double().reshape(-1, 1, *size)
    z = torch.randn(3, 2, dtype=torch.float64)
    log_p = torch.stack([module(z[i].expand(len(images), 2)).log_prob(images) for i in range(3)], 1)
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    assert log_p.std() > 0.1


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("autoregressive", [True, False])
def test_probabilities_of_all_values_of_one_pixel_sum_to_one(channels, autoregressive):
    """Two bits a channel: 4, 16 and 64 colours."""
    levels = 3
    colours = torch.tensor(list(itertools.product(range(levels + 1), repeat=channels))).double() / levels
    images = colours.reshape(-1, channels, 1, 1)
    likelihood = LogisticMixture((channels, 1, 1), mixtures=3, levels=levels)
    if autoregressive:
        p = decoder((channels, 1, 1), likelihood=likelihood)(torch.randn(2).double().expand(len(images), 2))
    else:
        p = likelihood(3 * torch.randn(likelihood.output_shape, dtype=torch.float64).expand(len(images), -1, 1, 1))
    torch.testing.assert_close(p.log_prob(images).logsumexp(0), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_mixture_is_normalised_for_extreme_parameters(dtype):
    """A difference of sigmoids in float32 loses all its digits in the tails."""
    x = (torch.arange(256, dtype=dtype) / 255).reshape(256, 1, 1, 1)
    for mean, log_scale in ((0.0, -7.0), (0.999, -7.0), (5.0, -3.0), (-9.0, -6.0), (0.3, 3.0)):
        parameters = torch.tensor([0.0, mean, log_scale], dtype=dtype).reshape(3, 1, 1)
        log_p = DiscretizedLogisticMixture(parameters.expand(256, 3, 1, 1), 1).log_prob(x)
        assert log_p.isfinite().all()
        torch.testing.assert_close(log_p.logsumexp(0).double(), torch.zeros((), dtype=torch.float64), atol=2e-4, rtol=0)


def test_logistic_mixture_equals_its_formula_channel_by_channel():
    torch.manual_seed(0)
    m, c, levels = 2, 3, 255
    raw = torch.randn(m * 10, 1, 1, dtype=torch.float64)
    x = torch.tensor([100.0, 3.0, 200.0], dtype=torch.float64) / levels
    score, mean, log_scale, coefficients = raw.reshape(m, 10).split([1, c, c, 3], 1)
    y, total = 2 * x - 1, 0.0
    for k in range(m):
        a, b, g = coefficients[k].tanh()
        means = mean[k, 0], mean[k, 1] + a * y[0], mean[k, 2] + b * y[0] + g * y[1]
        product = score.softmax(0)[k, 0]
        for i in range(c):
            s = log_scale[k, i].exp()
            product *= ((y[i] + 1 / levels - means[i]) / s).sigmoid() - ((y[i] - 1 / levels - means[i]) / s).sigmoid()
        total += product
    torch.testing.assert_close(DiscretizedLogisticMixture(raw, 3).log_prob(x.reshape(3, 1, 1)), total.log())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("likelihood", [Bernoulli, "logistics"])
def test_pixel_never_affects_the_distribution_of_earlier_ones(training, likelihood):
    """BatchNorm in training mode, or a norm over space, fails here."""
    shape = (1, 4, 5) if likelihood is Bernoulli else (3, 3, 4)
    module = decoder(shape, likelihood=likelihood if likelihood is Bernoulli else LogisticMixture(shape)).train(
        training
    )
    network, context = module.network, module.conditioning(torch.randn(1, 2, dtype=torch.float64))
    x = torch.rand(1, *shape, dtype=torch.float64)
    before = network(x, context)
    height, width = shape[1:]
    reached = 0
    for i, j in itertools.product(range(height), range(width)):
        changed = x.clone()
        changed[..., i, j] += 0.7
        moved = (network(changed, context) - before).abs().amax((0, 1)).flatten() > 0
        assert not moved[: i * width + j + 1].any(), "it, or an earlier pixel, was changed"
        reached += int(moved[i * width + j + 1 :].any())
    assert reached > height * width / 2, "later pixels do depend on it"


def test_the_latent_reaches_every_pixel_the_first_one_too():
    module = decoder()
    x = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    one, other = (module.network(x, module.conditioning(torch.randn(1, 2, dtype=torch.float64))) for _ in range(2))
    assert (one != other).all()


def test_an_image_is_scored_alike_alone_and_among_others():
    module = decoder().train()
    x, z = (torch.rand(5, 1, 4, 5) < 0.5).double(), torch.randn(3, 2, 5, 2, dtype=torch.float64)
    whole = module(z).log_prob(x)
    assert whole.shape == (3, 2, 5)
    for i in range(5):
        torch.testing.assert_close(module(z[2, 1, i]).log_prob(x[i]), whole[2, 1, i])


@pytest.mark.parametrize("likelihood", [Bernoulli, "logistics"])
def test_fast_sampling_matches_full_passes_on_the_same_uniforms(likelihood):
    shape = (1, 4, 5) if likelihood is Bernoulli else (3, 3, 4)
    module = decoder(shape, likelihood=likelihood if likelihood is Bernoulli else LogisticMixture(shape))
    p = module(torch.randn(6, 2, dtype=torch.float64))
    parameters = module.network(torch.zeros(6, *shape, dtype=torch.float64), p.context)
    u = torch.rand(module.likelihood(parameters).uniforms, dtype=torch.float64)
    x = torch.zeros(6, *shape, dtype=torch.float64)
    for i, j in itertools.product(*map(range, shape[1:])):
        drawn = module.likelihood(module.network(x, p.context)).from_uniform(u)
        x[..., i, j] = drawn[..., i, j]
    torch.testing.assert_close(p.sample(uniforms=u), x, atol=1e-12, rtol=0)
    assert x.std() > 0.1
    assert p.support.check(x).all()


def test_samples_have_the_distribution_that_is_scored():
    """Frequencies of all 16 binary 2×2 images against their probabilities, in standard errors."""
    module, n = decoder((1, 2, 2)), 20_000
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).double().reshape(-1, 1, 2, 2)
    p = module(torch.randn(2, dtype=torch.float64))
    expected = torch.stack([p.log_prob(image) for image in images]).exp()
    drawn = p.sample((n,)).reshape(n, 4)
    frequency = (drawn @ (2.0 ** torch.arange(3, -1, -1).double())).long().bincount(minlength=16) / n
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_logistic_samples_have_the_distribution_that_is_scored():
    torch.manual_seed(1)
    levels, n = 7, 20_000
    likelihood = LogisticMixture((1, 1, 1), mixtures=2, levels=levels)
    parameters = torch.randn(likelihood.output_shape, dtype=torch.float64)
    p = likelihood(parameters)
    values = torch.arange(levels + 1).double() / levels
    expected = torch.stack([p.log_prob(v.reshape(1, 1, 1)) for v in values]).exp()
    frequency = (p.sample((n,)).flatten() * levels).round().long().bincount(minlength=levels + 1) / n
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_sampling_takes_a_tenth_of_the_work_of_full_passes():
    """Counted in floating-point operations, which no other load on the machine changes."""
    from torch.utils.flop_counter import FlopCounterMode

    module = PixelCNNDecoder(4, (1, 16, 16), width=16)
    with torch.no_grad():
        p = module(torch.randn(1, 4))
        with FlopCounterMode(display=False) as fast:
            p.sample()
        with FlopCounterMode(display=False) as one:
            module.network(torch.zeros(1, 1, 16, 16), p.context)
    assert fast.get_total_flops() < one.get_total_flops() * 256 / 10


def test_recomputing_layers_gives_the_same_gradients():
    plain = decoder()
    lean = PixelCNNDecoder(2, (1, 4, 5), 3, 6, checkpoint=True).double()
    lean.load_state_dict(plain.state_dict())
    x, z = (torch.rand(5, 1, 4, 5) < 0.5).double(), torch.randn(3, 5, 2, dtype=torch.float64)
    for module in (plain, lean):
        module(z).log_prob(x).sum().backward()
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_papers_masked_layers_have_the_papers_weights():
    """8 masked layers of 64 without bias, an affine norm each, one output: 260,224 + 65."""
    assert sum(p.numel() for p in PixelCNN(1, 1, 1).parameters()) == 9 * 2 * 64 + 7 * 9 * 64 * 64 + 8 * 128 + 65


@pytest.mark.parametrize(
    ("shape", "likelihood", "told"),
    [
        ((3, 4, 4), Bernoulli, "got 3 channels: use LogisticMixture"),
        ((5,), Bernoulli, r"needs images of shape \(C, H, W\); got data of shape \(5,\)"),
        (
            (1, 4, 4),
            GaussianLikelihood((1, 4, 4)),
            "takes Bernoulli or LogisticMixture as its likelihood; got GaussianLikelihood",
        ),
    ],
)
def test_data_and_likelihoods_that_do_not_fit_are_refused(shape, likelihood, told):
    with pytest.raises(ValueError, match=told):
        PixelCNNDecoder(2, shape, likelihood=likelihood)


def test_discretised_likelihood_refuses_values_between_levels():
    p = LogisticMixture((1, 2, 2))(torch.zeros(9, 2, 2))
    assert p.support.check(torch.full((1, 2, 2), 17 / 255))
    assert not p.support.check(torch.full((1, 2, 2), 0.123))
    assert repr(p.support) == "multiples of 1/255 in [0, 1]"
