"""Models elsewhere: programs of their encoders and decoders, and models that travel as objects."""

import copy
import importlib.util
import io
import itertools
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from conftest import refused, tiny_model
from mixvae import config, runs
from mixvae.analysis import encode
from mixvae.cli import main
from mixvae.decoders import Decoder
from mixvae.exporting import export
from mixvae.model import MixtureVAE
from mixvae.priors import StandardNormal

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
HAS_RUNTIME = HAS_ONNX and importlib.util.find_spec("onnxruntime") is not None
ESTIMATED = ("shared autoregressive flow", "flow per component", "two levels", "two levels, flow on the lower")


def of(posterior="separate", decoder="Bernoulli"):
    torch.manual_seed(0)
    q = zoo.POSTERIORS[posterior]()
    return MixtureVAE(q, StandardNormal(zoo.LATENT), zoo.DECODERS[decoder]()).eval()


def check_program(model, part, given, path):
    """The program's answers are ours, for another number of examples than it was traced with, with ONNX too."""
    with torch.no_grad():
        wanted = encode(model, given) if part == "encoder" else (model.decode(given),)
    made = export(model, path / "program.pt2", part=part)
    loaded = torch.export.load(path / "program.pt2").module()
    found = loaded(given)
    for got, want in zip(found if part == "encoder" else (found,), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert [("B", *w.shape[1:]) for w in wanted] == list(made.outputs.values())
    if not HAS_RUNTIME:
        return
    import onnxruntime

    export(model, path / "program.onnx", part=part)
    session = onnxruntime.InferenceSession(path / "program.onnx")
    assert [i.name for i in session.get_inputs()] == list(made.inputs)
    assert [o.name for o in session.get_outputs()] == list(made.outputs)
    answers = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    for got, want in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "posterior", ["separate, weighted", pytest.param("convolutional", marks=pytest.mark.slow), "one-hot"]
)
def test_an_exported_encoder_gives_the_same_moments(posterior, tmp_path):
    model = of(posterior)
    check_program(model, "encoder", torch.rand(7, *zoo.SHAPE), tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [pytest.param("continuous Bernoulli", marks=pytest.mark.slow), "Gaussian",
     pytest.param("convolutional", marks=pytest.mark.slow), "user network"],
)  # fmt: skip
def test_an_exported_decoder_gives_the_same_means(decoder, tmp_path):
    check_program(of(decoder=decoder), "decoder", torch.randn(7, zoo.LATENT), tmp_path)


@pytest.mark.parametrize("posterior", ESTIMATED)
def test_moments_that_are_estimated_have_no_program(posterior, tmp_path):
    with pytest.raises(ValueError, match="have no mean in closed form, so the encoder cannot be exported"):
        export(of(posterior), tmp_path / "encoder.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("decoder", ["PixelCNN", "PixelCNN of discretised logistics"])
def test_a_decoder_whose_mean_is_a_draw_has_no_program(decoder, tmp_path):
    with pytest.raises(ValueError, match="autoregressive p\\(x\\|z\\) has no mean in closed form"):
        export(of(decoder=decoder), tmp_path / "decoder.pt2", part="decoder")


def test_a_mean_computed_in_pieces_has_no_program(tmp_path):
    with pytest.raises(ValueError, match="depends on the number of examples"):
        export(of(decoder="discretised logistics"), tmp_path / "decoder.pt2", part="decoder")


class Branching(nn.Module):
    """Python that depends on values."""

    def forward(self, z):
        return z.repeat(1, 8) if z.sum() > 0 else -z.repeat(1, 8)


def test_a_network_that_cannot_be_traced_is_told_in_one_line(tmp_path, capfd):
    model = MixtureVAE(of().posterior, StandardNormal(2), Decoder(Branching()))
    with pytest.raises(ValueError, match="decoder cannot be traced as one program") as told:
        export(model, tmp_path / "decoder.pt2", part="decoder")
    assert "\n" not in str(told.value)
    assert "".join(capfd.readouterr()) == ""


def test_export_leaves_the_model_and_the_generator_alone(tmp_path):
    model = of().train()
    before = torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "encoder.pt2")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_an_exported_double_model_takes_doubles(tmp_path):
    model = tiny_model()
    export(model, tmp_path / "e.pt2")
    x = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    mean, _ = torch.export.load(tmp_path / "e.pt2").module()(x)
    torch.testing.assert_close(mean, encode(model, x)[0])


def test_onnx_without_its_packages_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"pip install 'mixvae\[onnx\]', or write .pt2"):
        export(of(), tmp_path / "encoder.onnx")


def test_wrong_paths_and_parts_are_refused(tmp_path, as_users_run):
    with pytest.raises(ValueError, match=r"\.pt2 or \.onnx file; got encoder.pt"):
        export(of(), "encoder.pt")
    with pytest.raises(ValueError, match="encoder or decoder; got 'prior'"):
        export(of(), tmp_path / "a.pt2", part="prior")


def test_the_command_writes_a_program(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2", "--model.latent=3"]
    runs.train(config.read("digits", flags), run)
    main(["export", str(run)])
    assert "x (B, 1, 8, 8) → mean (B, 2, 3), std (B, 2, 3)" in capsys.readouterr().out
    features = runs.encode_split(run, examples=6)
    x = runs.reconstruct(run, 6)[0]
    mean, std = torch.export.load(run / "encoder.pt2").module()(torch.from_numpy(x))
    np.testing.assert_allclose(mean.detach().numpy(), features["mean"], atol=1e-5)
    np.testing.assert_allclose(std.detach().numpy(), features["std"], atol=1e-5)
    assert "--out must end in .pt2 or .onnx" in refused(capsys, "export", run, "--out", "encoder.pth")
    assert "part: expected one of encoder, decoder" in refused(capsys, "export", run, "--part", "prior")


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def by_cloudpickle(model):
    cloudpickle = pytest.importorskip("cloudpickle")  # what Ray and joblib send objects by
    return pickle.loads(cloudpickle.dumps(model))


WAYS = {"pickle": by_pickle, "deepcopy": copy.deepcopy, "torch.save": by_torch, "cloudpickle": by_cloudpickle}


def zoo_models():
    """Every posterior, prior and decoder, one new part at a time."""
    for name, make in zoo.POSTERIORS.items():
        yield name, lambda make=make: (make(), StandardNormal(zoo.LATENT), zoo.DECODERS["Bernoulli"]())
    for name, make in zoo.PRIORS.items():
        yield name, lambda make=make: ((q := zoo.separate()), make(q), zoo.DECODERS["Bernoulli"]())
    for name, make in zoo.TWO_LEVEL_PRIORS.items():
        yield name, lambda make=make: ((q := zoo.two_level().double()), make(q), zoo.DECODERS["Bernoulli"]())
    for name, make in zoo.DECODERS.items():
        yield f"decoder, {name}", lambda make=make: (zoo.separate(), StandardNormal(zoo.LATENT), make())


MODELS = dict(zoo_models())


@pytest.mark.parametrize(("name", "way"), list(itertools.product(MODELS, WAYS)))
def test_models_travel_as_objects_with_equal_bounds(name, way):
    torch.manual_seed(0)
    posterior, prior, decoder = MODELS[name]()
    model = MixtureVAE(posterior, prior, decoder).double().eval()
    x, _ = zoo.data(name.removeprefix("decoder, ") if name.startswith("decoder, ") else "Bernoulli")
    other = WAYS[way](model)
    noise = torch.randn(1, zoo.COMPONENTS, len(x), zoo.LATENT, dtype=torch.float64)
    terms, again = (each(x.double(), noise=noise) for each in (model, other))
    for field in ("log_px", "log_pz", "log_q"):
        torch.testing.assert_close(getattr(again, field), getattr(terms, field), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)  # nothing is shared with the first
    after = model(x.double(), noise=noise)
    assert torch.equal(after.log_px, terms.log_px)
    assert torch.equal(after.log_pz, terms.log_pz)
    moved = other(x.double(), noise=noise)
    assert not torch.equal(moved.log_pz, terms.log_pz)


@pytest.mark.parametrize("preset", list(config.presets()))
def test_models_from_a_configuration_travel_too(preset):
    settings = config.read(preset, [])
    settings.model.shape = {"cifar10": [3, 8, 8], "cifar10_pixelcnn": [3, 8, 8], "tabular": [5]}.get(preset, [1, 8, 8])
    model = config.build(settings.model).eval()
    for way in WAYS.values():
        other = way(model)
        assert other.state_dict().keys() == model.state_dict().keys()
        assert other.prior().event_shape == model.prior().event_shape
