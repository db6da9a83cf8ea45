"""On a GPU, where there is one: the same numbers as on the CPU, no waiting in a step, and runs that resume."""

import os
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import graph_script
from graph_script import PRESETS, script
from mixvae import datasets, runs
from mixvae._precision import exact_products
from mixvae.bounds import elbo
from mixvae.decoders import MLPDecoder
from mixvae.evaluation import evaluate
from mixvae.gradients import reparameterised
from mixvae.model import MixtureVAE, unread
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import StandardNormal
from mixvae.training import launch
from mixvae.training._objective import Inputs, Objective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def refusing():
    """What makes the host wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def small(components=2):
    """A model of the digits."""
    torch.manual_seed(0)
    posterior = SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 3, (12,)), components)
    return MixtureVAE(posterior, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_gives_the_cpu_values_and_never_waits(name, refusing):
    model, *inputs = graph_script.preset(name)
    found = {}
    for device in ("cpu", "cuda"):
        model.to(device)
        moved = [None if value is None else value.to(device) for value in inputs]
        step = Objective(model, elbo, reparameterised, score_all=True, device=device)
        with unread(model), exact_products():  # which rounded convolutions miss by 2 %
            step(Inputs(*moved)).backward()  # once before, since libraries wait while they start
            model.zero_grad()
            if device == "cuda":
                refusing()
            value = step(Inputs(*moved))
            value.backward()
            torch.cuda.set_sync_debug_mode("default")
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found[device] = [each.detach().cpu().clone() for each in (value, *gradients)]
        model.zero_grad()
    assert len(found["cpu"]) == len(found["cuda"])
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        assert float((one - other).norm() / one.norm().clamp(min=1e-4)) < 2e-3


def test_the_number_of_waits_does_not_grow_with_the_steps():
    """5 and 15 steps an epoch, both fewer than the steps between two looks."""
    waits = []
    for examples in (50, 150):
        data = datasets.load_dataset("digits", limit=examples, limit_validation=20)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            runs.fit(small(), data, epochs=2, batch=10, clip=1.0, ema=0.9, fabric=launch("cuda"))
            torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchronizing CUDA operation" in str(one.message) for one in told))
    assert waits[0] == waits[1] > 0


@pytest.mark.parametrize("compile", ["none", "default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_resumes_bit_for_bit(tmp_path, compile, precision):
    said = script("resume", "inductor", tmp_path, compile, "cuda", precision)
    assert said[-1] == "bit for bit"


@pytest.mark.parametrize("name", ["digits", "conv", "cifar10_pixelcnn"])
def test_an_evaluation_gives_the_cpu_values(name):
    """Whose convolutions are exact, though those of a training are not."""
    model, x, *_ = graph_script.preset(name)
    here = evaluate(model, x, 40, seed=3)
    there = evaluate(model.to("cuda"), x.to("cuda"), 40, seed=3)
    for bound, values in here.arrays().items():
        np.testing.assert_allclose(there.arrays()[bound], values, rtol=1e-5, atol=2e-3, err_msg=bound)


def test_a_run_of_the_gpu_opens_where_there_is_none(tmp_path):
    """In another process, which sees no device."""
    data = datasets.load_dataset("digits", limit=100, limit_validation=20)
    model = small()
    runs.fit(model, data, epochs=1, batch=50, run=tmp_path / "run", fabric=launch("cuda"))
    opened = runs.open_run(tmp_path / "run").model
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(opened.parameters(), model.parameters(), strict=True))
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "mixvae", "encode", str(tmp_path / "run"), "--data.name=digits"]
    done = subprocess.run(line, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["digits", "one_hot"])
@pytest.mark.parametrize("compile", ["none", "default", "reduce-overhead"])
def test_the_commands_train_and_evaluate_there(tmp_path, name, compile):
    """In processes of their own: nothing compiles under the hook that checks annotations."""
    words = ["--data.limit=100", "--training.epochs=2", "--training.accelerator=cuda", f"--training.compile={compile}"]
    if name == "one_hot":
        words += ["--data.name=digits", "--model.components=10", "--training.active=2", "--model.latent=4"]
    for command in (
        ["train", name, *words, "--out", tmp_path / "run"],
        ["evaluate", tmp_path / "run", "--total-draws", 40],
    ):
        line = [sys.executable, "-m", "mixvae", *map(str, command)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "MISELBO" in done.stdout
