"""What test_graphs.py runs in processes of its own: torch.compile fails under the hook that checks annotations.

python tests/graph_script.py presets BACKEND NAME …
python tests/graph_script.py resume BACKEND FOLDER [COMPILE [ACCELERATOR [PRECISION]]]
"""

import os
import signal
import subprocess
import sys
from functools import partial

import torch
from torch.optim.lr_scheduler import StepLR

import mixvae
from mixvae import MixtureVAE, MLPDecoder, SeparateEncoders, StandardNormal, config, datasets, fit
from mixvae.bounds import elbo
from mixvae.gradients import reparameterised
from mixvae.model import unread
from mixvae.networks import GatedEncoder
from mixvae.training import _objective as objective
from mixvae.training import launch

PRESETS = sorted(config.presets())
SHAPES = {"cifar10": (3, 8, 8), "cifar10_pixelcnn": (3, 8, 8), "tabular": (7,)}
ACTIVE = {"one_hot": 3}


SHALLOW = {
    "GatedEncoder": "--model.encoder.hidden=[8]", "TwoLevelDense": "--model.encoder.hidden=[8]",
    "GatedConvEncoder": "--model.encoder.layers=[[4, 3, 1], [4, 3, 2]]",
    "TwoLevelConv": "--model.encoder.layers=[[4, 3, 1], [4, 3, 2]]",
    "PixelCNNDecoder": "--model.decoder.layers=2", "MLPDecoder": "--model.decoder.hidden=[8]",
}  # fmt: skip
"""Fewer layers of the same kinds: more of them take longer to compile, and are no other graph."""


def preset(name, components=2, *, shallow=False):
    """Model of a preset on small data, and inputs of its objective."""
    torch.manual_seed(0)
    shape = SHAPES.get(name, (1, 8, 8))
    flags = [] if name in ACTIVE else [f"--model.components={components}"]
    if shallow:
        wanted = config.read(name, []).model
        parts = [part if isinstance(part, str) else part["class_path"] for part in (wanted.encoder, wanted.decoder)]
        flags += [SHALLOW[part] for part in parts if part in SHALLOW]
    model = config.build(config.read(name, flags).model, shape, torch.rand(500, *shape))
    x = torch.zeros(4, *shape)
    q = model.posterior(x[:1])
    active = torch.randperm(q.batch_shape[0])[: ACTIVE[name]] if name in ACTIVE else None
    drawn = q.batch_shape[0] if active is None else len(active)
    noise = torch.randn(1, drawn, 4, q.event_shape[0])
    return model, x, noise, active


def gradients(model, value):
    """Bound and gradients of a model."""
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return [value, *(g for g in found if g is not None)]


def presets(backend, *names):
    """Compare bound and gradients of every preset, compiled whole, with eager ones."""
    for name in names:
        model, *inputs = preset(name, shallow=backend == "aot_eager")
        step = objective.Objective(model, elbo, reparameterised, score_all=True)
        step.beta.fill_(0.3)

        def bound(*inputs, step=step):
            return step.each(*inputs).sum()

        compiled = torch.compile(bound, fullgraph=True, dynamic=False, backend=backend)
        with unread(model):
            eager, found = gradients(model, bound(*inputs)), gradients(model, compiled(*inputs))
        assert len(eager) == len(found)
        for one, other in zip(eager, found, strict=True):
            error = (one - other).norm() / one.norm().clamp(min=1e-6)
            assert error < 1e-4, f"{name}: {float(error)}"
        torch.compiler.reset()
        print(name, flush=True)


def fitted(backend, folder, name, compile, accelerator="cpu", precision="32-true", stop=0):
    """Train a small model across warm-up with a short last batch; `stop` ends this process by SIGKILL at that step."""
    original, steps = torch.compile, [0]

    class Killed(torch.optim.Adam):
        def step(self, closure=None):
            steps[0] += 1
            if steps[0] == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(closure)

    def with_backend(function, **options):
        return original(function, backend=backend, **{k: v for k, v in options.items() if k != "mode"})

    torch.manual_seed(0)
    posterior = SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 3, (12,)), 2)
    model = MixtureVAE(posterior, StandardNormal(3), MLPDecoder(3, (1, 8, 8), (12,)))
    torch.compile = original if backend == "inductor" else with_backend
    rows = fit(
        model, datasets.load_dataset("digits", limit=70, limit_validation=20),
        epochs=4, batch=16, warmup=3, compile=compile,
        run=f"{folder}/{name}", save_every=0.0, optimizer=partial(Killed, lr=3e-3),
        schedule=partial(StepLR, step_size=1, gamma=0.5), fabric=launch(accelerator, precision=precision),
    )  # fmt: skip
    torch.compile = original
    return rows, {name: value.cpu() for name, value in model.state_dict().items()}


def killed(backend, folder, *words):
    """Train until a kill in the second of four epochs, which have five steps each."""
    fitted(backend, folder, "cut", *words, stop=9)


def resume(backend, folder, compile="default", *words):
    """Train, train until a kill in another process, go on, and compare bit for bit."""
    rows, whole = fitted(backend, folder, "whole", compile, *words)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == (compile != "none"), f"{graphs} graphs for one training: something changes that should be a tensor"
    command = [sys.executable, __file__, "killed", backend, folder, compile, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert mixvae.open_run(f"{folder}/cut").epoch == 1
    again, resumed = fitted(backend, folder, "cut", compile, *words)
    assert [row["bound"] for row in rows] == [row["bound"] for row in again]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    try:
        fitted(backend, folder, "cut", "default" if compile == "none" else "none", *words)
        raise AssertionError("another setting went on with the run")
    except ValueError as error:
        print(error)
    _, eager = fitted(backend, folder, "eager", "none", *words)
    far = max(float((whole[name] - eager[name]).abs().max()) for name in whole)
    assert far < (1e-3 if "bf16-mixed" not in words else 0.02), far
    assert mixvae.open_run(f"{folder}/whole").recipe.identity["training"].get("compile", "none") == compile
    print("bit for bit")


def script(*words, timeout=900):
    """Run this file in a process of its own, and return what it says."""
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


if __name__ == "__main__":
    {"presets": presets, "resume": resume, "killed": killed}[sys.argv[1]](*sys.argv[2:])
