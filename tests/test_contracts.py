"""One contract for every posterior, prior and decoder: a new one joins by adding one line to a table."""

import math

import pytest
import torch

from mixvae.bounds import elbo, log_weights
from mixvae.files import load_tensors
from mixvae.model import MixtureVAE, evaluating
from zoo import BATCH, COMPONENTS, DECODERS, LATENT, POSTERIORS, PRIORS, SHAPE, TWO_LEVEL_PRIORS, data, separate


@pytest.fixture(params=POSTERIORS)
def posterior(request):
    return POSTERIORS[request.param]().double()


@pytest.fixture(params=PRIORS | TWO_LEVEL_PRIORS)
def prior(request):
    return (PRIORS | TWO_LEVEL_PRIORS)[request.param](separate().double()).double()


@pytest.fixture(params=DECODERS)
def decoder(request):
    return DECODERS[request.param]().double(), data(request.param)[0].double()


def test_posterior_gives_components_that_score_their_own_draws(posterior):
    x = torch.rand(BATCH, *SHAPE, dtype=torch.float64)
    q = posterior(x)
    assert q.batch_shape == (COMPONENTS, BATCH)
    assert q.event_shape == (LATENT,)
    assert q.log_pi.exp().sum().item() == pytest.approx(1)
    z = q.rsample((7,))
    assert z.shape == (7, COMPONENTS, BATCH, LATENT)
    cross, own = q.cross_log_prob(z), q.log_prob(z)
    for s in range(COMPONENTS):
        torch.testing.assert_close(cross[:, s, s], own[:, s])
        torch.testing.assert_close(cross[:, s], q.log_prob(z[:, s : s + 1]))
    pairs = q.pairwise_log_prob(z[:, 0, 0])
    torch.testing.assert_close(pairs[:, :, 0], cross[:, 0, :, 0])


def test_posterior_is_a_function_of_its_noise(posterior):
    x = torch.rand(BATCH, *SHAPE, dtype=torch.float64)
    noise = torch.randn(2, COMPONENTS, BATCH, LATENT, dtype=torch.float64)
    q = posterior(x)
    assert torch.equal(q.rsample((2,), noise), q.rsample((2,), noise))
    index = torch.tensor([2, 0])
    torch.testing.assert_close(q.select(index).rsample((2,), noise[:, index]), q.rsample((2,), noise)[:, index])
    torch.testing.assert_close(posterior(x, index).rsample((2,), noise[:, index]), q.rsample((2,), noise)[:, index])
    z, cross = q.rsample_and_cross_log_prob((2,), index, noise[:, index])
    torch.testing.assert_close(z, q.rsample((2,), noise)[:, index])
    torch.testing.assert_close(cross, q.cross_log_prob(z))


def test_posterior_extended_by_exact_copies_is_the_same_mixture(posterior):
    x, z = torch.rand(BATCH, *SHAPE, dtype=torch.float64), torch.randn(5, 1, BATCH, LATENT, dtype=torch.float64)
    q = posterior(x)
    before, weights = q.mixture().log_prob(z), q.log_pi
    posterior.extend(2 * COMPONENTS, noise=0.0)
    q = posterior(x)
    assert posterior.components == q.batch_shape[0] == 2 * COMPONENTS
    torch.testing.assert_close(q.log_pi, weights.repeat(2) - math.log(2))
    torch.testing.assert_close(q.mixture().log_prob(z), before)
    posterior.extend(2 * COMPONENTS + 1, noise=0.1)
    apart = posterior(x).cross_log_prob(z)[:, 0]
    assert not torch.allclose(apart[:, -1], apart[:, 0]), "a noisy copy differs from what it was copied from"
    posterior.extend(2 * COMPONENTS + 2, fresh=True)
    assert posterior(x).cross_log_prob(z)[:, 0, -1].isfinite().all()
    with pytest.raises(ValueError, match=f"already has {2 * COMPONENTS + 2} components; got components = 1"):
        posterior.extend(1)


def test_each_component_integrates_to_one(posterior):
    q = posterior(torch.rand(BATCH, *SHAPE, dtype=torch.float64))
    axis = torch.linspace(-30, 30, 801, dtype=torch.float64)  # flows widen the tails
    points = torch.cartesian_prod(axis, axis)
    total = sum(q.pairwise_log_prob(part).exp().sum(0) for part in points.split(50_000)) * (60 / 800) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), atol=5e-4, rtol=0)


def test_prior_is_normalised_and_draws_what_it_scores(prior):
    p = prior()
    assert p.batch_shape == ()
    assert p.event_shape == (LATENT,)
    axis = torch.linspace(-12, 12, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    density = p.log_prob(points).exp() * (24 / 400) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-4)
    n = 4000
    draws = p.sample((n,))
    assert draws.shape == (n, LATENT)
    assert ((draws.mean(0) - density @ points).abs() < 5 * draws.std(0) / n**0.5).all()
    assert p.log_prob(draws.reshape(10, 20, -1, LATENT)).shape == (10, 20, n // 200)


def test_decoder_handles_any_batch_shape_of_latents(decoder):
    module, x = decoder
    z = torch.randn(3, 2, BATCH, LATENT, dtype=torch.float64)
    p = module(z)
    assert p.batch_shape == (3, 2, BATCH)
    assert p.event_shape == SHAPE
    assert p.mean.shape == (3, 2, BATCH, *SHAPE)
    whole = p.log_prob(x)
    torch.testing.assert_close(module(z[1, 0, 2]).log_prob(x[2]), whole[1, 0, 2])


def models():
    """Every posterior, every prior and every decoder at least once, without their whole product."""
    first_q, first_p, first_d = (next(iter(table)) for table in (POSTERIORS, PRIORS, DECODERS))
    yield from ((q, first_p, first_d) for q in POSTERIORS)
    yield from ((first_q, p, first_d) for p in PRIORS | TWO_LEVEL_PRIORS)
    yield from ((first_q, first_p, d) for d in DECODERS)


@pytest.fixture(params=models(), ids=" · ".join)
def model_and_data(request):
    q, p, d = request.param
    posterior = POSTERIORS[q]()
    return MixtureVAE(posterior, (PRIORS | TWO_LEVEL_PRIORS)[p](posterior), DECODERS[d]()).double(), data(d)[0].double()


def test_every_parameter_learns_and_is_saved(model_and_data):
    model, x = model_and_data
    terms = model(x, 2)
    elbo(log_weights(terms), terms.weight).mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    names = list(model.state_dict())
    assert len(set(names)) == len(names)
    shared = [t.data_ptr() for t in model.state_dict().values()]
    assert len(set(shared)) == len(shared), "safetensors refuses shared tensors"
    noise = torch.randn(2, COMPONENTS, BATCH, LATENT, dtype=torch.float64)
    with evaluating(model):
        before = log_weights(model(x, 2, noise=noise))
        saved = {name: t.clone() for name, t in model.state_dict().items()}
        for p in model.parameters():
            p.data.normal_()
        load_tensors(model, saved, "memory")
        torch.testing.assert_close(log_weights(model(x, 2, noise=noise)), before)


def test_examples_of_a_batch_do_not_influence_each_other(model_and_data):
    model, x = model_and_data
    noise = torch.randn(2, COMPONENTS, BATCH, LATENT, dtype=torch.float64)
    with torch.no_grad():
        for mode in (True, False):
            model.train(mode)
            whole = log_weights(model(x, 2, noise=noise))
            alone = log_weights(model(x[1:2], 2, noise=noise[:, :, 1:2]))
            torch.testing.assert_close(alone[..., 0], whole[..., 1])
