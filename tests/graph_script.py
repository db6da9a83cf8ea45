"""What test_graphs.py runs in processes of its own: torch.compile fails under the hook that checks annotations.

python tests/graph_script.py presets BACKEND NAME …
python tests/graph_script.py resume BACKEND FOLDER
"""

import sys
from functools import partial

import torch
from torch.optim.lr_scheduler import StepLR

import mixvae
from mixvae import MLP, GatedEncoder, MixtureVAE, SeparateEncoders, StandardNormal, config, datasets, elbo, fit
from mixvae.gradients import reparameterised
from mixvae.model import unread
from mixvae.training import objective

SHAPES = {"cifar10": (3, 8, 8), "cifar10_pixelcnn": (3, 8, 8), "tabular": (7,)}
ACTIVE = {"one_hot": 3}


SHALLOW = {
    "GatedEncoder": "--model.encoder.hidden=[8]", "TwoLevelDense": "--model.encoder.hidden=[8]",
    "GatedConvEncoder": "--model.encoder.layers=[[4, 3, 1], [4, 3, 2]]",
    "TwoLevelConv": "--model.encoder.layers=[[4, 3, 1], [4, 3, 2]]",
    "PixelCNNDecoder": "--model.decoder.layers=2", "MLP": "--model.decoder.hidden=[8]",
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
        compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
        with unread(model):
            eager, found = gradients(model, step(*inputs)), gradients(model, compiled(*inputs))
        assert len(eager) == len(found)
        for one, other in zip(eager, found, strict=True):
            error = (one - other).norm() / one.norm().clamp(min=1e-6)
            assert error < 1e-4, f"{name}: {float(error)}"
        torch.compiler.reset()
        print(name, flush=True)


def resume(backend, folder):
    """Train across warm-up with a short last batch, stop in mid-epoch, go on, and compare bit for bit."""
    original = torch.compile
    if backend != "inductor":
        torch.compile = lambda function, **options: original(
            function, backend=backend, **{k: v for k, v in options.items() if k != "mode"}
        )
    data = datasets.load("digits", limit=70, limit_validation=20)
    calls, stop_at = [0], [0]

    class Stopping(torch.optim.Adam):
        def step(self, closure=None):
            calls[0] += 1
            if calls[0] == stop_at[0]:
                raise KeyboardInterrupt
            return super().step(closure)

    def train(name, compile, stop=0):
        calls[0], stop_at[0] = 0, stop
        torch.manual_seed(0)
        posterior = SeparateEncoders(partial(GatedEncoder, (1, 8, 8), 3, (12,)), 2)
        model = MixtureVAE(posterior, StandardNormal(3), MLP(3, (1, 8, 8), (12,)))
        rows = fit(
            model, data, epochs=4, batch=16, warmup=3, compile=compile, run=f"{folder}/{name}", save_every=0.0,
            optimizer=partial(Stopping, lr=3e-3), schedule=partial(StepLR, step_size=1, gamma=0.5),
        )  # fmt: skip
        return rows, model.state_dict()

    rows, whole = train("whole", "default")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 1, f"{graphs} graphs for one training: something changes that should be a tensor"
    try:
        train("cut", "default", stop=9)  # in the second of four epochs, which have five steps each
        raise AssertionError("it was not stopped")
    except KeyboardInterrupt:
        pass
    again, resumed = train("cut", "default")
    assert [row["bound"] for row in rows] == [row["bound"] for row in again]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    try:
        train("cut", "none")
        raise AssertionError("another setting went on with the run")
    except ValueError as error:
        print(error)
    _, eager = train("eager", "none")
    far = max(float((whole[name] - eager[name]).abs().max()) for name in whole)
    assert far < 1e-3, far
    assert mixvae.open_run(f"{folder}/whole").recipe.identity["training"]["compile"] == "default"
    print("bit for bit")


if __name__ == "__main__":
    {"presets": presets, "resume": resume}[sys.argv[1]](*sys.argv[2:])
