"""Shapes and types of every call are checked while the tests run."""

import gc
import os
from pathlib import Path

from jaxtyping import install_import_hook

ROOMS = (
    "bounds",
    "distributions",
    "networks",
    "priors",
    "decoders",
    "posteriors",
    "flows",
    "model",
    "joint",
    "proposals",
    "annealing",
    "gradients",
    "evaluation",
    "analysis",
    "toys",
    "single_cell",
    "training",
)
install_import_hook([f"mixvae.{room}" for room in ROOMS], "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

from mixvae.decoders import MLPDecoder  # noqa: E402
from mixvae.model import MixtureVAE  # noqa: E402
from mixvae.networks import GatedEncoder  # noqa: E402
from mixvae.posteriors import SeparateEncoders  # noqa: E402
from mixvae.priors import StandardNormal  # noqa: E402


def tiny_model(components=3, shape=(1, 2, 2), latent=2, prior=None, dtype=torch.float64, seed=0, **posterior):
    """A model small enough for exact answers."""
    torch.manual_seed(seed)
    q = SeparateEncoders(lambda: GatedEncoder(shape, latent, (5,)), components, **posterior)
    for encoder in q.encoders:  # apart from each other, so that their order and weights matter
        torch.nn.init.normal_(encoder.head.weight, std=1.0)
        torch.nn.init.normal_(encoder.head.bias, std=0.7)
    p = StandardNormal(latent) if prior is None else prior(q, shape, latent)
    return MixtureVAE(q, p, MLPDecoder(latent, shape, (5,))).to(dtype)


def binary(n, shape=(1, 2, 2), seed=1, dtype=torch.float64):
    """Random binary images."""
    return (torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) < 0.5).to(dtype)


USER_MODULE = """
from torch import nn

class MyEncoder(nn.Module):
    def __init__(self, latent, width=7):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Tanh(), nn.Linear(width, 2 * latent))

    def forward(self, x):
        return self.net(x).chunk(2, -1)
"""
"""Source of a module of a user's, with an encoder."""


def pytest_collection_finish():
    """Let the collector of garbage pass over what was imported: it is a tenth of some tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _as_if_alone():
    """The same seed and number of threads for every test: numba, which scanpy uses, changes those of torch."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def as_users_run():
    """No checks of shapes by annotation: what a user without test dependencies sees."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def cells_here(monkeypatch):
    """Cells of grids are trained in this process, without the seconds that another one takes to start."""
    from contextlib import redirect_stderr
    from io import StringIO

    from mixvae import sweeps

    def run_child(words, log, environment=None, children=None):
        assert words[0] == "-c"
        said, status = StringIO(), 0
        with redirect_stderr(said):
            try:
                sweeps.run_cell(*words[2:])
            except SystemExit as end:
                status = end.code
        Path(log).write_text(said.getvalue())
        return status, said.getvalue().splitlines()[-3:]

    monkeypatch.setattr("mixvae.sweeps._runners.run_child", run_child)
    monkeypatch.setattr("mixvae.training._lives.stop_with_parent", lambda: None)


class Recorded:
    """A progress that keeps what is announced, and how much was done of how much."""

    def __init__(self):
        self.lines, self.seen = [], []

    def announce(self, text):
        self.lines.append(text)

    def update(self, done, total, text=""):
        self.seen.append((done, total, text))


def refused(capsys, *words):
    """What the command line says on standard error, when it ends with status 2 and one line."""
    from mixvae.cli import main

    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("mixvae: error: ")
    assert err.count("\n") == 1
    return err


def forge(path, change):
    """Change a JSON file of ours, and make its checksum right."""
    from mixvae.files import canonical, checksum, read_json, write_json

    content = read_json(path)
    content.pop("checksum")
    change(content)
    write_json(path, content | {"checksum": checksum(canonical(content))})


def fork(function):
    """Start a process that calls a function and ends with status 0, or 1 if it raises."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)
