"""A model is described by import paths and plain arguments, truly or not at all, and built again from that."""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from zuko.flows import MaskedAutoregressiveTransform

from conftest import tiny_model
from mixvae import config
from mixvae.bounds import log_weights
from mixvae.config import ModelConfig, describe, rebuild
from mixvae.decoders import (
    Bernoulli,
    ContinuousBernoulli,
    ConvDecoder,
    Decoder,
    GaussianLikelihood,
    LogisticMixture,
    MLPDecoder,
    PixelCNNDecoder,
)  # fmt: skip
from mixvae.files import load_tensors
from mixvae.flows import CouplingFlow, InverseAutoregressiveFlow, ZukoFlow
from mixvae.model import MixtureVAE, evaluating
from mixvae.networks import (
    GatedConvEncoder,
    GatedConvTrunk,
    GatedEncoder,
    GatedTrunk,
    GaussianNetwork,
    TwoLevelConv,
    TwoLevelDense,
)  # fmt: skip
from mixvae.parts import Part, arguments_of
from mixvae.posteriors import FlowPosterior, OneHotPosterior, SeparateEncoders, TwoLevelPosterior
from mixvae.priors import GaussianMixturePrior, StandardNormal, TwoLevelPrior, VampPrior

SHAPE, LATENT, COMPONENTS = (1, 4, 4), 2, 3
LAYERS = ((3, 3, 1), (2, 3, 2))
ENCODER = partial(GatedEncoder, SHAPE, LATENT, (5,))


class LazyEncoder(nn.Module):
    """What a user may have: no base class, no arguments, sizes from the data."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Dropout(0.2), nn.Linear(4, 2 * LATENT))

    def forward(self, x):
        return self.net(x).chunk(2, -1)


class Network(Part):
    """A user's part: functions, tensors and open-ended arguments."""

    def __init__(self, latent, *widths, activation=F.relu, scale=None, **options):
        super().__init__()
        sizes = [latent, *widths, 16]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes[:-1], sizes[1:], strict=True))
        self.activation, self.options = activation, options
        self.register_buffer("scale", torch.ones(16) if scale is None else scale, persistent=False)

    def forward(self, z):
        for layer in self.layers:
            z = self.activation(layer(z))
        return (z * self.scale).unflatten(-1, SHAPE)


class Plain(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(LATENT, width)

    def forward(self, z):
        return self.layer(z).unflatten(-1, SHAPE)


class Wrapped(Part):
    """Keeps something else than its argument under the argument's name."""

    def __init__(self, network):
        super().__init__()
        self.network = nn.Sequential(network, nn.Unflatten(-1, SHAPE))

    def forward(self, z):
        return self.network(z)


class Unsaved(Part):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(LATENT, 16)
        self.direction = torch.randn(16)

    def forward(self, z):
        return (self.layer(z) * self.direction).unflatten(-1, SHAPE)


def model_of(posterior=None, prior=None, decoder=None):
    posterior = SeparateEncoders(ENCODER, COMPONENTS) if posterior is None else posterior
    return MixtureVAE(posterior, prior or StandardNormal(LATENT), decoder or MLPDecoder(LATENT, SHAPE, (5,)))


def vamp(posterior=None, **options):
    posterior = SeparateEncoders(ENCODER, COMPONENTS) if posterior is None else posterior
    return model_of(posterior, VampPrior(posterior, SHAPE, 4, **options))


def two_level():
    posterior = TwoLevelPosterior(partial(TwoLevelDense, SHAPE, 1, (5,)), COMPONENTS)
    return model_of(
        posterior, TwoLevelPrior(VampPrior(posterior.top_level(), SHAPE, 4), GaussianNetwork(1, 1, (5,)), 1)
    )


def flow_on_two_levels():
    base = TwoLevelPosterior(partial(TwoLevelConv, SHAPE, 1, LAYERS, 5), COMPONENTS)
    posterior = FlowPosterior(base, partial(ZukoFlow, 1, MaskedAutoregressiveTransform, hidden_features=(3,)), 1)
    lower = GaussianNetwork(1, 1, (5,))
    return model_of(posterior, TwoLevelPrior(VampPrior(posterior.top_level(), SHAPE, 4), lower, 1))


def shared_layer():
    layer = nn.Linear(LATENT, LATENT)
    network = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(LATENT, 16), nn.Unflatten(-1, SHAPE))
    return model_of(decoder=Decoder(network))


def extended():
    return vamp(SeparateEncoders(ENCODER, COMPONENTS, [3.0, 2.0, 1.0])).extended(5)


def extended_one_hot():
    return model_of(OneHotPosterior(partial(GatedTrunk, SHAPE, (5,)), SHAPE, LATENT, COMPONENTS)).extended(5)


def extended_flows():
    flow = partial(CouplingFlow, LATENT, 2, (6,))
    return model_of(FlowPosterior(SeparateEncoders(ENCODER, 2), flow, LATENT, per_component=True)).extended(3)


def frozen():
    model = vamp()
    model.freeze("prior", "decoder")
    return model


def frozen_two_level():
    model = two_level()
    model.freeze("prior")
    return model


def replaced():
    model = vamp()
    model.decoder = ConvDecoder(LATENT, SHAPE, 3)
    return model


def replaced_network():
    model = model_of(decoder=Decoder(nn.Linear(LATENT, 16)))
    model.decoder.network = Network(LATENT, 3)
    return model


def mixture_of_fixed():
    parts = Independent(Normal(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.ones(2, 2)), 1)
    return MixtureSameFamily(Categorical(logits=torch.tensor([0.3, -0.2])), parts)


MODELS = {
    "separate, weighted": lambda: model_of(SeparateEncoders(ENCODER, COMPONENTS, [3.0, 2.0, 1.0])),
    "separate, learned weights": lambda: model_of(
        SeparateEncoders(partial(GatedConvEncoder, SHAPE, latent=LATENT, layers=LAYERS), 2, learn_weights=True)
    ),
    "a user's own, lazy": lambda: model_of(SeparateEncoders(LazyEncoder, COMPONENTS)),
    "shared autoregressive flow": lambda: vamp(
        FlowPosterior(
            SeparateEncoders(ENCODER, 2), partial(InverseAutoregressiveFlow, LATENT, hidden=[6]), latent=LATENT
        )
    ),
    "one-hot": lambda: model_of(OneHotPosterior(partial(GatedConvTrunk, SHAPE, LAYERS), SHAPE, LATENT, COMPONENTS)),
    "two levels": two_level,
    "two levels, flow on the lower": flow_on_two_levels,
    "VampPrior from examples": lambda: vamp(examples=torch.rand(500, *SHAPE)),
    "VampPrior on the real line": lambda: vamp(squash=nn.Identity()),
    "Gaussian mixture": lambda: model_of(prior=GaussianMixturePrior(LATENT, 3)),
    "a distribution": lambda: model_of(prior=Independent(Normal(torch.zeros(2), 2 * torch.ones(2)), 1)),
    "a mixture of distributions": lambda: model_of(prior=mixture_of_fixed()),
    "continuous Bernoulli": lambda: model_of(decoder=MLPDecoder(LATENT, SHAPE, (5,), ContinuousBernoulli)),
    "Gaussian": lambda: model_of(
        decoder=MLPDecoder(LATENT, SHAPE, likelihood=GaussianLikelihood(SHAPE, minimum=0.1), hidden=[5])
    ),
    "likelihood with arguments": lambda: model_of(
        decoder=MLPDecoder(LATENT, SHAPE, (5,), partial(TorchBernoulli, validate_args=False))
    ),
    "PixelCNN": lambda: model_of(decoder=PixelCNNDecoder(LATENT, SHAPE, 2, 4, likelihood=LogisticMixture(SHAPE))),
    "modules of torch": lambda: model_of(
        decoder=Decoder(
            nn.Sequential(
                OrderedDict(
                    z=nn.Linear(LATENT, 16, bias=False), norm=nn.LayerNorm(16, eps=1e-3), act=nn.LeakyReLU(0.3),
                    image=nn.Unflatten(-1, (1, 4, 4)), conv=nn.Conv2d(1, 3, 3, padding=1), gelu=nn.GELU("tanh"),
                    back=nn.ConvTranspose2d(3, 1, 3, padding=1), none=nn.ModuleDict({"a": nn.Identity()})["a"],
                )
            )
        )
    ),
    "a user's part": lambda: model_of(
        decoder=Decoder(Network(LATENT, 3, 4, activation=F.softplus, scale=torch.arange(16.0), note=float("inf")))
    ),
    "a wrapped argument": lambda: model_of(decoder=Decoder(Wrapped(nn.Linear(LATENT, 16)))),
    "a layer used twice": shared_layer,
    "extended": extended,
    "extended, one-hot": extended_one_hot,
    "extended, flow per component": extended_flows,
    "frozen": frozen,
    "frozen, two levels": frozen_two_level,
    "a replaced part": replaced,
    "a replaced network": replaced_network,
}  # fmt: skip


def through_json(spec):
    return json.loads(json.dumps(spec, sort_keys=True, allow_nan=False))


def value(model):
    """Log-weights at fixed observations and noise."""
    x = (torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(5)) < 0.5).double()
    q = model.posterior(x)
    noise = torch.randn(2, *q.batch_shape, *q.event_shape, generator=torch.Generator().manual_seed(6)).double()
    with torch.no_grad(), evaluating(model):
        return log_weights(model(x, 2, noise=noise))


def same_after_loading(model, again):
    shapes, others = ({n: t.shape for n, t in m.state_dict().items()} for m in (model, again))
    assert list(shapes) == list(others)
    assert shapes == others
    load_tensors(again, model.state_dict(), "memory")
    assert torch.equal(value(model), value(again))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_again_from_its_description(name):
    model = MODELS[name]()
    with torch.no_grad(), evaluating(model):
        model.posterior(torch.zeros(1, *SHAPE))  # lazy layers
    state = torch.get_rng_state()
    spec = describe(model, SHAPE)
    assert torch.equal(torch.get_rng_state(), state), "describing a model draws nothing from the caller's generator"
    assert len(json.dumps(spec)) < 10_000, "large tensors are not written"
    same_after_loading(model.double(), rebuild(through_json(spec)).double())


@pytest.mark.parametrize("name", [n for n in config.presets() if not n.startswith("your")])
def test_every_preset_is_built_again_from_its_description(name):
    settings = config.read(name).model
    settings.components = min(settings.components, 3)
    model = config.build(settings, SHAPE, torch.rand(600, *SHAPE))
    again = rebuild(through_json(describe(model, SHAPE)))
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in again.state_dict().items()}
    assert str(model) == str(again)


def test_description_survives_copying_pickling_and_casting():
    for model in (vamp(), two_level(), extended(), frozen()):
        spec = describe(model)
        assert describe(copy.deepcopy(model)) == spec
        assert describe(pickle.loads(pickle.dumps(model))) == spec
        assert describe(copy.deepcopy(model).double()) == spec
    model = vamp()
    spec, shallow = describe(model), copy.copy(model.posterior)
    model.extended(5)
    shallow.amend_arguments(components=7)
    assert describe(model) == spec, "what is done to a copy is not remembered of the original"
    model = copy.deepcopy(vamp())
    assert arguments_of(model).named["posterior"] is model.posterior


def test_remembered_arguments_are_neither_registered_nor_large():
    posterior = SeparateEncoders(ENCODER, 2)
    prior = VampPrior(posterior, SHAPE, 3, examples=torch.rand(5000, *SHAPE))
    assert [name for name, _ in prior.named_parameters()] == ["raw_inputs"]
    assert list(prior.modules()) == [prior]
    assert len(pickle.dumps(VampPrior(ENCODER().forward, SHAPE, 3, examples=torch.rand(5000, *SHAPE)))) < 20_000
    pickle.dumps(OneHotPosterior(lambda: GatedTrunk(SHAPE, (5,)), SHAPE, LATENT, 2))  # as before


def test_a_vampprior_of_the_rebuilt_model_follows_its_posterior():
    model = rebuild(through_json(describe(vamp())))
    assert model.prior._posterior[0] is model.posterior
    model = rebuild(through_json(describe(flow_on_two_levels())))
    assert model.prior.top._posterior[0].__self__ is model.posterior.base


OWN = """
from torch import nn
from mixvae.parts import Part

class Encoder(Part):
    def __init__(self, latent, width=7):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Tanh(), nn.Linear(width, 2 * latent))

    def forward(self, x):
        return self.net(x).chunk(2, -1)

class Outer:
    class Network(Part):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, z):
            return self.layer(z).unflatten(-1, (1, 4, 4))
"""

ELSEWHERE = """
import json, sys, torch
from mixvae.config import rebuild
from mixvae.files import load_tensors, load_weights
model = rebuild(json.load(open(sys.argv[1] + "/spec.json"))).double()
load_tensors(model, load_weights(sys.argv[1] + "/w.safetensors"), "file")
x = torch.ones(2, 1, 4, 4).double()
print(json.dumps(model.reconstruct(x).tolist()))
"""


def test_another_process_builds_the_model_of_a_users_own_parts(tmp_path, monkeypatch):
    from mixvae.files import save_weights

    (tmp_path / "own_parts_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_parts_of_a_user as own  # pyright: ignore

    posterior = SeparateEncoders(partial(own.Encoder, LATENT, width=5), COMPONENTS)
    model = vamp(posterior)
    model.decoder = Decoder(own.Outer.Network(nn.Linear(LATENT, 16)), Bernoulli)
    model.double()
    x = torch.ones(2, *SHAPE).double()
    model.reconstruct(x)
    spec = describe(model, SHAPE)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    save_weights(tmp_path / "w.safetensors", model.state_dict())
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.tensor(json.loads(done.stdout), dtype=torch.float64), model.reconstruct(x))
    monkeypatch.delitem(sys.modules, "own_parts_of_a_user")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    with pytest.raises(ValueError, match="no module 'own_parts_of_a_user': put its folder on PYTHONPATH; or pass the"):
        rebuild(spec)


def local_class():
    class Local(Part):
        def forward(self, z):
            return z

    return model_of(decoder=Decoder(Local()))


class Contrary:
    """Cannot be compared."""

    __slots__ = ()

    def __eq__(self, other):
        raise RuntimeError("not to be compared\nat all")

    __hash__ = object.__hash__


class Odd(Part):
    def __init__(self):
        super().__init__()
        self.value, self.layers = Contrary(), [nn.Identity()]

    def forward(self, z):
        return z


class Hidden(Part):
    """Keeps a layer where no state dict finds it."""

    def __init__(self, value=3):
        super().__init__()
        self.make = partial(max, value)
        self.layers = [nn.Linear(2, 2)]

    def forward(self, z):
        return z


def changed_partial():
    model = model_of(decoder=Decoder(Network(LATENT, 3, activation=partial(F.leaky_relu, negative_slope=0.1))))
    model.decoder.network.activation = partial(F.leaky_relu, negative_slope=0.2)
    return model


def local_function():
    def build():
        return ENCODER()

    return model_of(SeparateEncoders(build, 2))


def of_a_script():
    kind = type("Script", (Part,), {"__module__": "__main__"})
    return model_of(decoder=Decoder(kind()))


def renamed():
    kind = type("Network", (Part,), {"__module__": __name__})
    return model_of(decoder=Decoder(kind()))


def other_posterior():
    return model_of(prior=VampPrior(SeparateEncoders(ENCODER, 2), SHAPE, 3))


def changed_attribute():
    model = model_of(decoder=Decoder(nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.1), nn.Unflatten(-1, SHAPE))))
    model.decoder.network[1].inplace = True  # read back
    model.decoder.likelihood = ContinuousBernoulli
    return model


def changed_within():
    model = model_of()
    model.decoder.network[0] = nn.Linear(LATENT, 5)
    return model


def changed_shape():
    model = model_of()
    model.posterior.encoders.append(ENCODER())
    return model


def hooked():
    model = model_of()
    model.decoder.register_forward_hook(lambda *_: None)
    return model


REFUSED = {
    "a lambda": (
        lambda: model_of(SeparateEncoders(lambda: ENCODER(), 2)),
        r"model.posterior.build is a lambda \(line \d+ of .*test_naming.py\): give .*functools.partial",
    ),
    "a partial of a lambda": (
        lambda: model_of(SeparateEncoders(partial(lambda n: ENCODER(), 3), 2)),
        "model.posterior.build is a lambda",
    ),
    "tiny_model of the tests": (tiny_model, "model.posterior.build is a lambda"),
    "a local function": (local_function, "model.posterior.build is the function build, which was made inside a func"),
    "a local class": (local_class, "model.decoder.network is of class local_class.<locals>.Local, which was made"),
    "a script's class": (of_a_script, r"of class Script of the script itself \(__main__\): move it to a module"),
    "another class of that name": (renamed, "of class Network, which is not what importing test_naming.Network gives"),
    "a plain module": (
        lambda: model_of(decoder=Decoder(Plain(16))),
        r"model.decoder.network is a Plain, whose arguments \(width\) are not recorded: subclass mixvae.Part instead",
    ),
    "an object": (
        lambda: model_of(decoder=Decoder(Network(LATENT, note=object()))),
        "model.decoder.network.note is an object: give plain values",
    ),
    "a module of torch that tells little": (
        lambda: model_of(decoder=Decoder(nn.TransformerEncoderLayer(2, 1))),
        "is a TransformerEncoderLayer, whose argument d_model cannot be read back",
    ),
    "another posterior": (other_posterior, "model.prior.posterior is a SeparateEncoders that is not a submodule"),
    "a tensor that is not saved": (
        lambda: model_of(decoder=Decoder(Unsaved())),
        "model.decoder.network.direction is not what it would be built as",
    ),
    "a large tensor that is not saved": (
        lambda: model_of(decoder=Decoder(Network(LATENT, scale=torch.rand(5000)))),
        "scale is a buffer that is not saved, and not what it would be built as",
    ),
    "a changed attribute": (changed_attribute, "model.decoder.likelihood is not what it would be built as"),
    "a changed argument of a partial": (changed_partial, "network.activation is not what it would be built as"),
    "a layer in a list": (
        lambda: model_of(decoder=Decoder(Hidden())),
        "model.decoder.network.layers is not what it would be built as",
    ),
    "what cannot be compared": (
        lambda: model_of(decoder=Decoder(Odd())),
        "the model cannot be described: not to be compared",
    ),
    "a change within a part": (
        changed_within,
        "model.decoder.network.0 is a Linear, but would be built as a Sequential",
    ),
    "a changed shape": (changed_shape, "model.posterior.encoders.3 is a GatedEncoder, but would be built as not there"),
    "hooks": (hooked, "model.decoder has hooks"),
    "lazy layers without data": (
        lambda: model_of(SeparateEncoders(LazyEncoder, 2)),
        "lazy layers that have not seen an example",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unnameable_or_changed_models_are_refused_in_one_line(name):
    make, told = REFUSED[name]
    with pytest.raises(ValueError, match=told + r".*; or pass the model, as load\(path, model\)") as caught:
        describe(make())
    assert "\n" not in str(caught.value)


def test_lazy_layers_need_the_shape_of_an_example():
    model = model_of(SeparateEncoders(LazyEncoder, 2))
    model.posterior(torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match="take their sizes from data: give the shape of an example"):
        describe(model)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 2}, "in version 2 of the format, not 1"),
        ({"model": {"class_path": "mixvae.model.Nothing"}}, "cannot import 'mixvae.model.Nothing'"),
        ({"model": {"class_path": "mixvae.model.MixtureVAE"}}, "cannot be built from its description: TypeError"),
        ({"model": {"class": "x"}}, "an entry of no known kind"),
        ({"model": {"class_path": "torch.nn.Sequential", "id": 1, "args": [{"ref": 1}]}}, "refers to itself"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(change, told):
    with pytest.raises(ValueError, match=told + ".*; or pass the model") as caught:
        rebuild(describe(model_of()) | change)
    assert "\n" not in str(caught.value)


def test_model_built_from_config_pickles_and_is_described():
    model = config.build(
        ModelConfig(components=2, latent=2, encoder={"class_path": "GatedEncoder", "hidden": [3]}), (4,)
    )
    assert describe(pickle.loads(pickle.dumps(model))) == describe(model)
