"""Networks of one's own: they train, or one line says why not and what to do."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Beta, Distribution, Exponential, Independent, Normal, Uniform

from mixvae import (
    MixtureVAE,
    MLPDecoder,
    SeparateEncoders,
    StandardNormal,
    VampPrior,
    datasets,
    evaluate,
    fit,
    load,
    open_run,
)
from mixvae._trying import coupling
from mixvae.analysis import encode
from mixvae.decoders import Decoder
from mixvae.distributions import Bernoulli
from mixvae.networks import GatedEncoder
from mixvae.training import Trainer

SHAPE = (1, 8, 8)


class Normalised(nn.Module):
    """An encoder with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x).chunk(2, -1)


def network(*layers):
    return nn.Sequential(nn.Linear(2, 64), *layers, nn.Unflatten(-1, SHAPE))


def model(encoder=Normalised, decoder=None, prior=None):
    torch.manual_seed(0)
    posterior = SeparateEncoders(encoder, 2)
    made = StandardNormal(2) if prior is None else prior(posterior)
    return MixtureVAE(posterior, made, MLPDecoder(2, SHAPE, (8,)) if decoder is None else decoder)


@pytest.fixture(scope="module")
def digits():
    return datasets.load_dataset("digits", limit=41, limit_validation=20)


def test_batchnorm_trains_where_the_last_batch_has_one_example(digits):
    trained = model()
    assert np.isfinite(fit(trained, digits, epochs=2, batch=20)[-1]["bound"])
    for encoder in trained.posterior.encoders:  # 20 and 21 examples
        assert int(encoder.net[2].num_batches_tracked) in (2, 4), "the weights of the best epoch"


def test_the_trial_leaves_running_statistics_alone(digits, monkeypatch):
    seen = []

    def resume(trainer):
        seen.extend(
            (e.net[2].running_mean.clone(), int(e.net[2].num_batches_tracked)) for e in trainer.model.posterior.encoders
        )

    monkeypatch.setattr(Trainer, "_resume", resume)
    fit(model(), digits, epochs=1, batch=20)
    assert len(seen) == 2
    assert all(not mean.any() and tracked == 0 for mean, tracked in seen)


@pytest.mark.parametrize("words", [{"batch": 1}, {"batch": 20, "limit": 1}])
def test_batchnorm_with_batches_of_one_is_refused(words, tmp_path):
    data = datasets.load_dataset("digits", limit=words.pop("limit", 5), limit_validation=20)
    with pytest.raises(ValueError, match="cannot train on a single example.*give a batch of 2 or more"):
        fit(model(), data, epochs=1, run=tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


def test_pseudo_inputs_do_not_feed_running_statistics():
    built = model(prior=lambda q: VampPrior(q, SHAPE, 10)).train()
    x = torch.rand(50, *SHAPE).round()
    before = built.posterior.encoders[0].net[2].running_mean.clone()
    inside = built.prior()
    assert torch.equal(built.posterior.encoders[0].net[2].running_mean, before)
    assert built.posterior.encoders[0].net[2].training
    built.eval()
    z = torch.randn(5, 2)
    torch.testing.assert_close(inside.log_prob(z), built.prior().log_prob(z))
    built.train()(x)
    assert int(built.posterior.encoders[0].net[2].num_batches_tracked) == 1


def test_batchnorm_is_named_where_it_spoils_the_bound(digits):
    built = model(decoder=Decoder(network(nn.BatchNorm1d(64)), Bernoulli))
    with pytest.warns(UserWarning, match=r"the BatchNorm decoder.network.1 lets .* depend on its batch in training"):
        fit(built, digits, epochs=1)
    assert np.isfinite(evaluate(built, digits.test.x[:3].float().round(), 20).log_px).all(), (
        "evaluation has fixed statistics"
    )
    never = model(decoder=Decoder(network(nn.BatchNorm1d(64, track_running_stats=False)), Bernoulli))
    with pytest.raises(ValueError, match="in evaluation mode too, so that there is no bound .* use GroupNorm"):
        evaluate(never, torch.ones(3, *SHAPE), 20)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.LayerNorm(64), nn.GroupNorm(4, 64)])
def test_layers_that_keep_examples_apart_are_not_accused(digits, layer, recwarn):
    fit(model(decoder=Decoder(network(layer), Bernoulli)), digits, epochs=1)
    assert not [w for w in recwarn if "depend on its batch" in str(w.message)]


class Returning(nn.Module):
    """An encoder that returns what a function makes of mean and log-variance."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = nn.Linear(64, 4), make

    def forward(self, x):
        return self.make(*self.net(x.flatten(1)).chunk(2, -1))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda m, v: torch.distributions.Normal(m, v.exp()), "got Normal: return its mean and 2 · log"),
        (lambda m, v: (m, v, v), "got tuple of 3 values: return the first two alone"),
        (lambda m, v: {"mean": m, "log_var": v}, "got dict with mean, log_var: return the two as a tuple"),
        (lambda m, v: torch.cat([m, v], -1), r"got Tensor of shape \(2, 4\): split it"),
    ],
)
def test_what_else_an_encoder_returns_is_told_with_its_remedy(digits, make, told):
    with pytest.raises(ValueError, match=told):
        fit(model(lambda: Returning(make)), digits, epochs=1)


class Separate:
    """Something else than a module."""


def separate(logits):
    return torch.distributions.Bernoulli(logits=logits)


class Describing(nn.Module):
    """A decoder that returns what a function makes of its logits."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = network(), make

    def forward(self, z):
        return self.make(self.net(z.flatten(0, -2)).unflatten(0, z.shape[:-1]))


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (lambda: MLPDecoder(3, SHAPE, (8,)), "the decoder cannot decode latents of size 2, which is the posterior's"),
        (lambda: Decoder(network(nn.Sigmoid()), Bernoulli), "Bernoulli takes logits: leave the sigmoid out"),
        (lambda: Describing(torch.sigmoid), r"must return a torch Distribution of x; .* wrap a network"),
        (lambda: Describing(separate), r"join them with torch.distributions.Independent\(p, 3\)"),
        (lambda: Decoder(Describing(separate)), "is a decoder by itself"),
        (lambda: MLPDecoder(2, (1, 4, 4), (8,)), r"of shape \(1, 4, 4\); x has shape \(1, 8, 8\)"),
    ],
)  # fmt: skip
def test_a_decoder_that_does_not_fit_is_told_with_its_remedy(digits, tmp_path, decoder, told):
    with pytest.raises(ValueError, match=told):
        fit(model(decoder=decoder()), digits, epochs=1, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=told):
        evaluate(model(decoder=decoder()), torch.ones(3, *SHAPE), 20)


class Bare(Distribution):
    """A unit Gaussian with a density and draws, and nothing else."""

    arg_constraints = {}

    def __init__(self, mean):
        self.loc = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    def log_prob(self, value):
        return Normal(self.loc, 1.0, validate_args=False).log_prob(value).sum(-1)


class Decoding(nn.Module):
    """A linear decoder of four values and their log scales, with any likelihood."""

    def __init__(self, likelihood):
        super().__init__()
        self.linear, self.likelihood = nn.Linear(2, 8), likelihood

    def forward(self, z):
        return self.likelihood(*self.linear(z).chunk(2, -1))


@pytest.mark.parametrize(
    "likelihood",
    [
        lambda mean, scale: Independent(Normal(mean, scale.exp(), validate_args=True), 1),
        lambda mean, scale: Bare(mean),
        lambda mean, scale: Independent(Uniform(mean - 1.5, mean + 1.5, validate_args=False), 1),
    ],
    ids=["whose scale is zero far away", "without a support", "whose density is zero in places"],
)
def test_valid_likelihoods_pass_the_trial(likelihood):
    """They ended in an error of torch, an empty one, and an accusation of BatchNorm."""
    torch.manual_seed(0)
    posterior = SeparateEncoders(lambda: GatedEncoder((4,), 2, (8,)), 2)
    model = MixtureVAE(posterior, StandardNormal(2), Decoding(likelihood))
    p = model.decoder(torch.randn(5, 2))
    x = p.loc if isinstance(p, Bare) else p.mean
    assert np.isfinite(evaluate(model, x.detach(), 200).log_px).all()


def test_logits_that_start_at_zero_are_no_probabilities(digits):
    blank = network()
    nn.init.zeros_(blank[0].weight)
    nn.init.zeros_(blank[0].bias)
    fit(model(decoder=Decoder(blank, Bernoulli)), digits, epochs=1)


@pytest.mark.parametrize("what", ["instance", "no module"])
def test_an_encoder_in_place_of_what_makes_it_is_told(what):
    with pytest.raises(ValueError, match="pass the class|must return a torch.nn.Module; it returned Separate"):
        SeparateEncoders(Normalised() if what == "instance" else Separate, 2)


BINARY = np.random.default_rng(0).integers(0, 2, (6, 1, 8, 8))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64, ">f8"])
@pytest.mark.parametrize(
    "make", [np.asarray, lambda x: x.tolist(), lambda x: torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))]
)
def test_observations_of_any_kind_give_the_same_numbers(dtype, make):
    built = model()
    expected = evaluate(built, torch.from_numpy(BINARY).float(), 20)
    given = make(BINARY.astype(dtype))
    np.testing.assert_array_equal(evaluate(built, given, 20).log_px, expected.log_px)
    torch.testing.assert_close(encode(built, given), encode(built, torch.from_numpy(BINARY).float()), rtol=0, atol=0)
    torch.testing.assert_close(built.reconstruct(given), built.reconstruct(torch.from_numpy(BINARY).float()))


def test_observations_that_cannot_be_held_are_refused():
    with pytest.raises(ValueError, match="does not hold these observations of torch.int64 exactly"):
        evaluate(model(), np.full((2, *SHAPE), 2**40 + 1), 20)
    with pytest.raises(ValueError, match="an example must hold numbers; got a str"):
        evaluate(model(), ["a"], 20)
    with pytest.raises(
        ValueError, match=r"x is torch.float64, but the model is torch.float32: pass x.to\(torch.float32\)"
    ):
        model()(torch.ones(2, *SHAPE).double())


def test_a_model_in_double_precision_trains_and_is_evaluated(digits):
    built = model(lambda: GatedEncoder(SHAPE, 2, (8,))).double()
    assert np.isfinite(fit(built, digits, epochs=1)[-1]["bound"])
    assert evaluate(built, digits.test.x[:3].double().round(), 20).log_px.dtype == np.float64


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved], ids=["deepcopy", "pickle", "save"]
)
def test_a_model_with_a_lambda_can_be_copied_and_pickled(way):
    built = model(lambda: GatedEncoder(SHAPE, 2, (8,)), prior=lambda q: VampPrior(q, SHAPE, 3))
    other = way(built)
    x = torch.from_numpy(BINARY).float()
    np.testing.assert_array_equal(evaluate(other, x, 20).log_px, evaluate(built, x, 20).log_px)
    assert other.prior._posterior[0] is other.posterior, "a VampPrior follows the copy's encoders"
    assert other.extended(4).posterior.components == 4
    if way is copy.deepcopy:
        assert other.extended(4, fresh=True).posterior.components == 4
    else:
        with pytest.raises(ValueError, match="a lambda .* was not kept when its model was pickled"):
            other.extended(4, fresh=True)


def test_a_trained_model_becomes_a_run_and_goes_on(digits, tmp_path):
    def built():
        torch.manual_seed(0)
        return MixtureVAE(
            SeparateEncoders(partial(GatedEncoder, SHAPE, 2, (8,)), 2), StandardNormal(2), MLPDecoder(2, SHAPE, (8,))
        )

    trained = built()
    fit(trained, digits, epochs=1)
    fit(trained, digits, epochs=1, run=tmp_path / "run")
    again = load(tmp_path / "run")
    torch.testing.assert_close(again.state_dict(), trained.state_dict(), rtol=0, atol=0)
    fit(trained, digits, epochs=2, run=tmp_path / "run")
    assert open_run(tmp_path / "run").epoch == 2


class Coupled(nn.Module):
    """A decoder of 7000 values whose batch moves a log-likelihood of some thousand nats by less than one."""

    def __init__(self, strength):
        super().__init__()
        self.net, self.strength = nn.Linear(2, 7000), strength

    def forward(self, z):
        return self.net(z) + self.strength * z.mean()


def test_a_weak_coupling_beside_a_large_likelihood_is_found():
    """Up to a ten-thousandth of the log-likelihood, 0.7 nats here, passed for rounding."""
    x = (torch.rand(3, 7000, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    for strength, found in ((0.0, None), (0.003, "a layer of the decoder")):
        torch.manual_seed(0)
        encoder = lambda: GatedEncoder((7000,), 2, (4,))  # noqa: E731
        model = MixtureVAE(SeparateEncoders(encoder, 2), StandardNormal(2), Decoder(Coupled(strength), Bernoulli))
        assert coupling(model.eval(), x) == found


class Bounded(nn.Module):
    """A prior on a square."""

    def __init__(self, validate):
        super().__init__()
        self.validate = validate
        self.register_buffer("end", torch.full((2,), 3.0))

    def forward(self):
        inner = Uniform(-self.end, self.end, validate_args=self.validate)
        return Independent(inner, 1, validate_args=self.validate)


class Flattening(nn.Module):
    """A decoder that makes one axis of all the axes of z."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 64)

    def forward(self, z):
        return Independent(Bernoulli(self.net(z.reshape(-1, 2)).view(-1, *SHAPE)), 3)


def test_priors_and_decoders_that_cannot_train_are_told(digits):
    """Both ended in torch's own errors, of many lines or about shapes."""
    with pytest.raises(ValueError, match="a Bounded does not give latents outside its support, .* a density of 0"):
        fit(model(prior=lambda q: Bounded(validate=True)), digits, epochs=1)
    with pytest.raises(
        ValueError, match=r"must keep the leading axes of z; .* \(2, 1, 2, 2\) .* batch shape \(4,\), not"
    ):
        fit(model(decoder=Flattening()), digits, epochs=1)
    for kind in (Exponential, Beta):

        class Positive(nn.Module):
            def __init__(self, kind=kind):
                super().__init__()
                self.kind = kind

            def forward(self):
                each = torch.ones(2)
                inner = self.kind(each, validate_args=False) if self.kind is Exponential else self.kind(each, each)
                return Independent(inner, 1, validate_args=False)

        with pytest.raises(ValueError, match="does not give latents outside its support"):
            evaluate(model(prior=lambda q: Positive()), torch.ones(3, *SHAPE), 20)
    estimate = evaluate(model(prior=lambda q: Bounded(validate=False)), digits.test.x[:3].float().round(), 200)
    assert np.isfinite(estimate.log_px).all()


class Boxes(nn.Module):
    """A decoder to uniform densities around a centre that z moves."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 64)

    def forward(self, z):
        centre = self.net(z).view(*z.shape[:-1], *SHAPE)
        return Independent(Uniform(centre - 1.5, centre + 2.5, validate_args=False), 3, validate_args=False)


def test_a_support_that_depends_on_z_does_not_bound_the_data():
    """Observations outside the support at one latent, such as the origin, were refused."""
    built, x = model(decoder=Boxes()), 3 * torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert not Boxes()(torch.zeros(1, 2)).support.check(x).all()
    built.check(x)
    assert evaluate(built, x[:3], 50).log_px.shape == (3,)
    same = model(decoder=Decoder(network(), lambda h: Uniform(0 * h, 0 * h + 2)))
    for look in (lambda: same.check(x), lambda: same(x)):
        with pytest.raises(ValueError, match="some outside the likelihood's support"):
            look()
