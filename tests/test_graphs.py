"""The training step reads nothing back from its device, and compiles to one graph."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import graph_script
from conftest import Recorded, binary, refused, tiny_model
from graph_script import PRESETS, script
from mixvae import datasets, runs
from mixvae.bounds import elbo, miselbo
from mixvae.decoders import MLPDecoder
from mixvae.flows import CouplingFlow
from mixvae.gradients import doubly_reparameterised, reparameterised, sticking_the_landing
from mixvae.model import MixtureVAE, unread
from mixvae.networks import GatedEncoder, GatedTrunk
from mixvae.posteriors import FlowPosterior, OneHotPosterior, SeparateEncoders
from mixvae.priors import StandardNormal
from mixvae.runs import fit
from mixvae.training import Trainer
from mixvae.training._objective import Inputs, Objective, check_compile

GROUPS = [PRESETS[:2], *(pytest.param(names, marks=pytest.mark.slow) for names in (PRESETS[2:5], PRESETS[5:]))]
"""Presets that are compiled by one process; the convolutional ones take longest, and wait for `make test-slow`."""


@pytest.mark.parametrize("score_all", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_reads_nothing(name, score_all):
    """On the meta device there are no values: whatever reads one, fails."""
    model, *inputs = graph_script.preset(name)
    model.to("meta")
    inputs = [None if value is None else value.to("meta") for value in inputs]
    step = Objective(model, miselbo, reparameterised, score_all=score_all, device="meta")
    with unread(model):
        step(Inputs(*inputs)).backward()
    assert all(p.grad is not None for p in model.decoder.parameters())


@pytest.mark.parametrize("drawn", [None, [2, 0]])
def test_a_step_with_a_flow_for_each_component_reads_nothing(drawn):
    """Its inverse too. Which components are drawn is known to the host here, whose flows they have."""
    base = SeparateEncoders(partial(GatedEncoder, (4,), 2, (5,)), 3)
    posterior = FlowPosterior(base, partial(CouplingFlow, 2, 2, (4,)), 2, per_component=True)
    model = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, (4,), (5,))).to("meta")
    x = torch.zeros(6, 4, device="meta")
    with unread(model):
        terms = model(x, 2, active=drawn)
        assert terms.log_q.shape == (2, 2 if drawn else 3, 3, 6)
        terms.log_q.sum().backward()


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for its device; what passes the dispatcher by raises."""

    NAMES = (
        "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::is_nonzero",
        "aten::_unique2", "aten::unique_consecutive", "aten::bincount", "aten::allclose",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.found, self.allowed = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        masks = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if not self.allowed and (name in self.NAMES or masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def allowing(self):
        """Reads within are not counted."""
        self.allowed += 1
        try:
            yield
        finally:
            self.allowed -= 1


@pytest.fixture
def reads(monkeypatch):
    """Reads of a training beside those where it looks, validates, saves and begins."""
    mode = Reads()

    def permitted(owner, name):
        old = getattr(owner, name)

        def new(*args, **kwargs):
            with mode.allowing():
                return old(*args, **kwargs)

        monkeypatch.setattr(owner, name, new)

    def counted(name):
        old = getattr(torch.Tensor, name)

        def new(self, *args, **kwargs):
            if not mode.allowed:
                mode.found.append(name)
            return old(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, new)

    for name in ("_look", "_validate", "_save", "__init__", "_resume"):
        permitted(Trainer, name)
    for name in ("tolist", "numpy", "__array__", "cpu", "item"):
        counted(name)
    return mode


def separate(components=2):
    """A posterior of separate encoders."""
    return SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 2, (8,)), components)


def one_hot(components=6):
    """A posterior whose components are gathered on the device."""
    return OneHotPosterior(partial(GatedTrunk, (1, 8, 8), (8,)), (1, 8, 8), 2, components)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (separate, {}),
        (separate, {"clip": 1.0, "ema": 0.9, "warmup": 2}),
        (one_hot, {"active": 2}),
        (one_hot, {"active": 2, "score_all": False}),
    ],
)
def test_the_steps_of_a_training_read_nothing(reads, make, options):
    """Two epochs of 20 steps, each of which looks at step 16 and at its end."""
    model = MixtureVAE(make(), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    data = datasets.load_dataset("digits", limit=200, limit_validation=20)
    with reads:
        fit(model, data, epochs=2, batch=10, **options)
    assert reads.found == []


def test_reads_are_found_where_there_are_some(reads):
    """A training that looks at its bound at every step, as it once did."""

    def looking(log_w, weight):
        value = elbo(log_w, weight)
        assert bool(value.isfinite().all())
        return value

    data = datasets.load_dataset("digits", limit=50, limit_validation=20)
    model = MixtureVAE(one_hot(), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    with reads:
        fit(model, data, epochs=1, batch=10, bound=looking)
    assert reads.found.count("aten::_local_scalar_dense") + reads.found.count("aten::is_nonzero") >= 5


def test_values_are_checked_unless_that_was_done_before():
    model, x = tiny_model(), binary(3)
    bad = x + 0.5
    for call in (lambda: model(bad), lambda: model(x, active=[7]), lambda: model(x, active=[0], scored=[1])):
        with pytest.raises(ValueError, match="support|must be among"):
            call()
    with unread(model):
        model(bad)
        with pytest.raises(ValueError, match="has shape"):  # shapes are always looked at
            model.log_likelihood(x[:, :, :1], torch.zeros(3, 2, dtype=torch.float64))
        with pytest.raises(ValueError, match="support"):
            model.check(bad)
        with unread(model):
            model(bad)
        model(bad)
    with pytest.raises(ZeroDivisionError), unread(model):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="support"):
        model(bad)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_outside_the_support_are_refused_before_training(tmp_path, split):
    """One example of hundreds, which no trial of the first two finds."""
    data = datasets.load_dataset("digits", binarize="threshold", limit=300)
    part = data.split(split)
    x = part.x.float()
    x[-1, 0, 0, 0] = 0.5
    part = datasets.Split(x, part.y)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    broken = datasets.Dataset("mine", **splits | {split: part})
    model = MixtureVAE(one_hot(), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    with pytest.raises(ValueError, match="outside the likelihood's support"):
        fit(model, broken, epochs=1, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("save_every", [0.0, 1e9])
def test_diverged_step_is_named_though_detected_later(tmp_path, save_every):
    """Steps 5 to 16 of the second epoch are NaN; what was saved before is what is left."""

    class Poisoned:
        calls = 0

        def __call__(self, log_w, weight):
            if log_w.shape[-1] == 10:  # no trial
                self.calls += 1
            return elbo(log_w, weight) * (float("nan") if self.calls > 24 else 1)

    data, run = datasets.load_dataset("digits", limit=200, limit_validation=20), tmp_path / "run"
    model = MixtureVAE(one_hot(), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    with pytest.raises(FloatingPointError, match=r"the bound became NaN or infinite at epoch 2, step 5 "):
        fit(model, data, epochs=3, batch=10, bound=Poisoned(), run=run, save_every=save_every)
    state = runs.open_run(run).manifest["progress"]
    assert (state["epoch"], state["step"]) == ((1, 4) if save_every == 0 else (0, 0))
    assert all(p.isfinite().all() for p in model.parameters()), "the best epoch's weights are in the model"


def test_a_compiler_that_is_wrong_is_found_out(tmp_path, monkeypatch):
    """One did give gradients that were wrong by a quarter; here the encoder's are halved."""

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 2

    def compile(function, **options):
        del options
        objective = function.__self__

        def wrong(x, noise, active):
            return Halved.apply(function(x, noise, active))

        assert isinstance(objective, Objective)
        return wrong

    data = datasets.load_dataset("digits", limit=40, limit_validation=20)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", compile)
        model = MixtureVAE(separate(), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
        with pytest.raises(ValueError, match=r"differs from the eager one by 5\d\.\d%|differs .* by 4\d\.\d%"):
            fit(model, data, compile="default", run=tmp_path / "run")
        assert not (tmp_path / "run").exists()
        patch.setattr(torch, "compile", lambda function, **options: function)
        fit(model, data, epochs=1, batch=20, compile="default", progress=(seen := Recorded()))
    assert seen.lines[0].startswith("compiling the training step")


@pytest.mark.parametrize("gradient", [sticking_the_landing, doubly_reparameterised])
def test_estimators_that_replay_random_numbers_are_not_compiled(tmp_path, capsys, gradient):
    bound = "elbo" if gradient is sticking_the_landing else "pooled"
    words = [f"--training.gradient={gradient.__name__}", f"--training.bound={bound}", "--training.compile=default"]
    error = refused(capsys, "train", "digits", *words, "--out", tmp_path / "run")
    assert f"compile default cannot be used with {gradient.__name__}" in error
    assert "reparameterised" in error
    assert not (tmp_path / "run").exists()


def test_compiling_refuses_varying_components_unless_gathered(tmp_path, capsys):
    words = ["--model.components=2", "--training.active=1", "--training.compile=default"]
    error = refused(capsys, "train", "digits", *words, "--out", tmp_path / "run")
    assert "SeparateEncoders runs different encoders at each" in error
    error = refused(capsys, "train", "digits", "--training.compile=fast", "--out", tmp_path / "run")
    assert "one of none, default, reduce-overhead" in error


@pytest.mark.usefixtures("as_users_run")
def test_an_unknown_way_to_compile_is_refused():
    with pytest.raises(ValueError, match="compile must be none, default or reduce-overhead; got 'max'"):
        check_compile("max", reparameterised, None)


def test_graph_breaking_encoder_is_reported_before_writing(tmp_path, monkeypatch):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 4)

        def forward(self, x):
            h = self.net(x.flatten(1))
            return (h[:, :2], h[:, 2:]) if float(h.sum()) > -1e30 else (h[:, 2:], h[:, :2])

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: original(f, fullgraph=True, backend="eager"))
    model = MixtureVAE(SeparateEncoders(Reading, 2), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    with pytest.raises(ValueError, match="does not compile to one graph: set compile to none") as told:
        fit(model, datasets.load_dataset("digits", limit=40), compile="default", run=tmp_path / "run")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_trial_leaves_the_statistics_of_a_batchnorm_alone():
    """And a trial of one example, which a BatchNorm refuses in training, is no reason to refuse a training."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))

        def forward(self, x):
            return self.net(x).chunk(2, -1)

    model = MixtureVAE(SeparateEncoders(Normed, 2), StandardNormal(2), MLPDecoder(2, (1, 8, 8), (8,)))
    fit(model, datasets.load_dataset("digits", limit=40, limit_validation=20), epochs=1, batch=20)
    assert int(model.posterior.encoders[0].net[2].num_batches_tracked) == 2


@pytest.mark.parametrize("names", GROUPS)
def test_each_presets_bound_and_gradient_compile_to_one_graph(names):
    assert script("presets", "aot_eager", *names) == names


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_compiling_keeps_each_presets_bound_and_gradient(name):
    assert script("presets", "inductor", name) == [name]


@pytest.mark.parametrize(
    ("backend", "compile", "precision"),
    [
        pytest.param("aot_eager", "default", "32-true", marks=pytest.mark.slow),
        pytest.param("inductor", "default", "32-true", marks=pytest.mark.slow),
        pytest.param("inductor", "default", "bf16-mixed", marks=pytest.mark.slow),
        pytest.param("inductor", "reduce-overhead", "32-true", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_training_resumes_bit_for_bit(tmp_path, backend, compile, precision):
    """Across warm-up, a falling learning rate and a short last batch, killed in mid-epoch in another process."""
    said = script("resume", backend, tmp_path, compile, "cpu", precision)
    assert f"training.compile is {compile}" in said[-2]
    assert said[-1] == "bit for bit"
