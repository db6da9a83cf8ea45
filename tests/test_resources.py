"""What cannot fit into memory is refused with the number of bytes, before any of it is taken."""

import re
import time
from functools import partial, wraps

import numpy as np
import pytest
import torch
from torch import nn

from conftest import binary, refused, tiny_model
from mixvae import _resources as resources
from mixvae import config, runs, sweeps, toys
from mixvae._resources import check, gib, guarding, make, memory, short, size_of, together
from mixvae.analysis import draw_latents, overlap
from mixvae.config import ModelConfig
from mixvae.evaluation import evaluate
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders

MIB = 2**20
SHAPE = (1, 8, 8)


@pytest.fixture
def small(monkeypatch):
    """A machine of 64 MiB."""
    monkeypatch.setattr(resources, "memory", lambda: 64 * MIB)


def test_memory_is_that_of_the_machine_or_less():
    assert MIB < memory() < 2**50


@pytest.mark.parametrize(
    ("line", "file", "text", "found"),
    [
        ("0::/a/b", "a/b/memory.max", "1000", [1000]),
        ("0::/a/b", "a/memory.max", "2000", [2000]),
        ("0::/a/b", "memory.max", "3000", [3000]),
        ("0::/a/b", "a/b/memory.max", "max", []),
        ("5:cpu,memory:/a", "memory/a/memory.limit_in_bytes", "4000", [4000]),
        ("5:cpu:/a", "memory/a/memory.limit_in_bytes", "4000", []),
        ("nonsense", "memory.max", "5000", [5000]),
    ],
)
def test_limits_of_control_groups_are_found(tmp_path, line, file, text, found):
    (tmp_path / "process").write_text(line + "\n")
    path = tmp_path / "root" / file
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n")
    assert list(resources._cgroups(tmp_path / "process", tmp_path / "root")) == found


def test_the_limit_of_the_shell_is_respected():
    import subprocess
    import sys

    script = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**31, 2**31)); from mixvae._resources import memory; "
    done = subprocess.run([sys.executable, "-c", script + "print(memory())"], capture_output=True, text=True)
    assert int(done.stdout) == 2**31, done.stderr


@pytest.mark.parametrize("digits", [0, 1, 9, 20, 400, 5000])
def test_any_number_of_bytes_can_be_said(digits):
    number = 10**digits
    assert gib(number).endswith("GiB")
    assert len(short(number)) < 90
    if number > 10**15:
        with pytest.raises(ValueError, match="GiB of memory, but only .* GiB is available: give less") as caught:
            check(number, "it", "give less")
        assert "\n" not in str(caught.value)


HUGE = 10**12
SIZES = {
    "latent": ModelConfig(latent=HUGE),
    "latent that overflows": ModelConfig(latent=10**26),
    "components": ModelConfig(components=10**9),
    "components of small encoders": ModelConfig(components=10**7, latent=1),
    "one-hot components": ModelConfig(components=10**9, posterior="OneHotPosterior", encoder="GatedTrunk"),
    "components with flows": ModelConfig(components=10**7, latent=2, flow="CouplingFlow", flow_per_component=True),
    "encoder": ModelConfig(encoder={"class_path": "GatedEncoder", "hidden": [HUGE]}),
    "deep encoder": ModelConfig(encoder={"class_path": "GatedEncoder", "hidden": [2**15] * 6}),
    "decoder": ModelConfig(decoder={"class_path": "MLPDecoder", "hidden": [HUGE]}),
    "conv": ModelConfig(decoder={"class_path": "ConvDecoder", "width": 10**9}),
    "pixelcnn": ModelConfig(decoder={"class_path": "PixelCNNDecoder", "width": 10**9}),
    "layers": ModelConfig(decoder={"class_path": "PixelCNNDecoder", "layers": 10**9}),
    "transforms": ModelConfig(flow={"class_path": "InverseAutoregressiveFlow", "transforms": 10**9}),
    "prior": ModelConfig(prior={"class_path": "GaussianMixturePrior", "clusters": HUGE}),
    "pseudo-inputs": ModelConfig(prior={"class_path": "VampPrior", "pseudo_inputs": HUGE}),
    "two levels": ModelConfig(
        posterior="TwoLevelPosterior",
        encoder={"class_path": "TwoLevelDense", "hidden": [HUGE]},
        lower="GaussianNetwork",
    ),
    "layer of torch": ModelConfig(encoder={"class_path": "GatedEncoder", "hidden": [4]}, latent=HUGE // 100),
}


@pytest.mark.parametrize("kind", SIZES)
def test_a_model_that_cannot_fit_is_refused_before_it_is_built(kind):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"needs at least [\d.e+]+ GiB of memory, but only") as caught:
        config.build(SIZES[kind], SHAPE)
    assert time.monotonic() - started < 20
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_fit_is_refused():
    with pytest.raises(ValueError, match=r"data of shape \(3, 1000000, 1000000\) needs at least 11175.9 GiB"):
        config.build(ModelConfig(), (3, 10**6, 10**6))


def test_the_estimate_of_a_preset_is_no_cliff(small):
    """The same model is refused on a small machine, and by the bytes that its weights have."""
    wide = ModelConfig(encoder={"class_path": "GatedEncoder", "hidden": [1500, 1500]}, components=4)
    with pytest.raises(ValueError, match="a model of 4 encoders needs at least") as caught:
        config.build(wide, SHAPE)
    told = float(re.search(r"at least ([\d.]+) GiB", str(caught.value))[1])
    one = GatedEncoder(SHAPE, wide.latent, (1500, 1500))
    assert told == pytest.approx(2 * 4 * size_of(one) / 2**30, abs=0.006)
    config.build(ModelConfig(components=4), SHAPE)


def test_live_parameters_are_summed_and_freed_ones_are_not(small):
    with guarding("it", "less"):
        for _ in range(20):
            nn.Linear(1000, 1000)  # 4 MB each, gone at once
        kept = [nn.Linear(1000, 1000) for _ in range(7)]
        assert len(kept) == 7
        with pytest.raises(ValueError, match="it needs at least"):
            kept += [nn.Linear(1000, 1000) for _ in range(3)]
    with guarding("it", "less"), together(20), pytest.raises(ValueError, match="it needs at least"):
        nn.Linear(1000, 1000)
    nn.Linear(5000, 5000)  # outside nothing is counted


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(HUGE), lambda: torch.zeros(10**6, 10**6), lambda: torch.ones((10**6, 10**6)),
        lambda: torch.randn(size=(HUGE,)), lambda: torch.full((HUGE,), 1.0), lambda: torch.eye(10**6),
        lambda: torch.zeros(1).new_zeros(HUGE), lambda: torch.rand(10**30, 2), lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(HUGE, 2), lambda: nn.Conv2d(10**5, 10**5, 3), lambda: nn.Parameter(torch.zeros(HUGE)),
    ],
)  # fmt: skip
def test_whatever_allocates_in_a_constructor_is_looked_at(allocate):
    with guarding("it", "less"), pytest.raises(ValueError, match="it needs at least .* less"):
        allocate()


def test_lazy_tied_and_missing_parameters_are_no_matter():
    with guarding("it", "less"):
        net = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
        net[2].weight = net[1].weight
        net(torch.zeros(1, 2))
    assert size_of(net) == 4 * (2 * 3 + 3 + 9 + 3) + 4 * resources.OBJECT


def test_weights_do_not_depend_on_the_guard():
    def weights(guard):
        torch.manual_seed(0)
        with guard:
            return nn.Linear(5, 5).weight.tolist()

    assert weights(guarding("it", "less")) == weights(torch.enable_grad())


def test_a_large_model_is_looked_at_first_and_built_as_ever(monkeypatch):
    """The look without memory leaves no trace: weights come from the same random numbers."""
    wanted = ModelConfig(components=2, latent=3)
    seen = []

    def weights():
        torch.manual_seed(0)
        return {name: t.clone() for name, t in config.build(wanted, SHAPE).state_dict().items()}

    plain = weights()
    monkeypatch.setattr(resources, "LARGE", 200_000)  # within the first encoder, after some weights were drawn
    monkeypatch.setattr(GatedEncoder, "__init__", noting(GatedEncoder.__init__, seen))
    for name, tensor in weights().items():
        assert torch.equal(tensor, plain[name])
    assert [device for device in seen if device == "meta"] == ["meta", "meta"]
    assert seen[-2:] == ["cpu", "cpu"]


def noting(init, seen):
    @wraps(init)
    def wrapped(self, *args, **kwargs):
        seen.append(torch.empty(0).device.type)
        init(self, *args, **kwargs)

    return wrapped


def test_a_class_that_needs_values_is_built_without_the_look(monkeypatch):
    monkeypatch.setattr(resources, "LARGE", 0)

    def build():
        net = nn.Linear(3, 3)
        assert float(net.weight.sum()) < 100
        return net

    assert resources.built(build, "a layer", "give less").weight.device.type == "cpu"


def test_so_many_modules_are_refused_at_the_first():
    made = []

    def build():
        made.append(nn.Linear(10, 10))
        return made[-1]

    with pytest.raises(ValueError, match="a model of 100000000 encoders needs at least"):
        SeparateEncoders(build, 10**9 // 10)
    with pytest.raises(ValueError, match="encoders needs at least"):
        make(build, 10**9, "encoders")
    assert len(made) == 2
    assert len(make(build, 3, "encoders")) == 3


def trained(tmp_path, *flags):
    words = ["--data.limit=60", "--model.latent=2", "--training.epochs=1", "--model.decoder.hidden=[4]", *flags]
    return runs.train(config.read("digits", words), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--training.draws_per_component=1000000000000"],
            "a step of 1000000000000 draws from 1 components for each of 60 examples",
        ),
        (["--training.draws_per_component=100000", "--model.components=30"], "scored by 30, needs at least"),
        (["--model.latent=5000000000"], "latent size 5000000000 .* needs at least"),
        (["--data.limit=60", "--model.prior={class_path: VampPrior, pseudo_inputs: 1000000000000}"], "GiB|pseudo"),
    ],
)
def test_training_exceeding_memory_is_refused_before_writing(tmp_path, flags, told):
    with pytest.raises(ValueError, match=told) as caught:
        trained(tmp_path, *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_weights_gradients_and_states_count_in_a_training(tmp_path, monkeypatch):
    """Adam keeps five copies of the weights with the best epoch's, plain descent three."""
    wide = "--model.encoder={class_path: GatedEncoder, hidden: [700, 700]}"
    size = size_of(config.build(config.read("digits", [wide]).model, SHAPE))
    monkeypatch.setattr(resources, "memory", lambda: 4 * size)
    with pytest.raises(ValueError, match="needs at least"):
        trained(tmp_path, wide)
    monkeypatch.setattr("mixvae.runs._starting.together", lambda copies: together(1))
    with pytest.raises(ValueError, match="training .* weights by Adam needs at least"):
        trained(tmp_path, wide)
    trained(tmp_path, wide, "--training.optimizer={class_path: SGD, lr: 0.001}")


def test_a_batch_is_no_larger_than_the_data(tmp_path):
    assert trained(tmp_path, "--training.batch=1000000000000").epoch == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("resources")).path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("evaluate RUN --total-draws 1000000000000", "Pareto k̂ of 1000000000000 draws needs at least 29802.3 GiB"),
        ("evaluate RUN --total-draws 200000000", "draws per example are at most 100,000,000, which already take long"),
        ("evaluate RUN --draws-per-component 1000000000000", "Pareto k̂ of 1000000000000 draws needs at least"),
        ("evaluate RUN --total-draws 100000000 --chunk 1000000000000", "latents at once needs at least"),
        ("evaluate RUN --representation --samples 1000000000000", "1000000000000 draws of the latents"),
        (
            "components RUN --draws-per-component 1000000000000",
            "1000000000000 draws of each of 1 components needs at least",
        ),
        ("sample RUN --n 1000000000000", "1000000000000 samples of 66 numbers needs at least"),
        ("demo --total-draws 1000000000000 --out OUT", "Pareto k̂ of 1000000000000 draws needs at least 29802.3 GiB"),
        ("toy ring --steps 1000000000000 --no-rival --out OUT", "steps are at most 10,000,000"),
        ("toy ring --components 1000000000000 --out OUT", "the density of 1000000000000 components needs at least"),
        ("toy ring --components 10000 --out OUT", "the density of 10000 components needs at least 3725.3 GiB"),
    ],
)
def test_numbers_without_bound_are_refused_with_a_number(tmp_path, run, capsys, words, told):
    started = time.monotonic()
    words = words.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")).split()
    assert told in refused(capsys, *words)
    assert time.monotonic() - started < 20
    assert not (tmp_path / "out").exists()


def test_a_chunk_is_no_larger_than_the_draws():
    model, x = tiny_model(), binary(3)
    usual, large = (evaluate(model, x, 30, chunk=chunk) for chunk in (1024, 10**12))
    np.testing.assert_allclose(usual.pooled, large.pooled)


def test_functions_of_python_refuse_them_too():
    model, x = tiny_model(), binary(3)
    for call in (
        partial(evaluate, model, x, HUGE), partial(draw_latents, model, x, HUGE), partial(overlap, model, x, HUGE),
        partial(toys.approximate, toys.quadrature(toys.ring), HUGE),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="needs at least"):
            call()


def test_a_grid_of_too_many_cells_is_refused_before_one_is_read(tmp_path):
    values = ", ".join(f"v{i}: {{seed: {i}}}" for i in range(100))
    axes = "".join(f"  a{i}: {{{values}}}\n" for i in range(6))
    (tmp_path / "g.yaml").write_text(f"axes:\n{axes}")
    with pytest.raises(ValueError, match="the cells of .*g.yaml are at most 10,000, .* got 1000000000000"):
        sweeps.read_grid(tmp_path / "g.yaml")
