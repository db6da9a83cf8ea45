"""The commands that are killed, their data, and how each is gone on with."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


def resumed(begin: Sequence[str], run: str = "run") -> Callable[[Path], Sequence[str]]:
    """`train --resume` where a checkpoint is, else the same command again."""

    def again(folder: Path) -> Sequence[str]:
        return ["train", "--resume", run] if (folder / run / "run.json").exists() else begin

    return again


@dataclass(frozen=True)
class Scenario:
    """One command.

    Args:
        name: what it is called.
        begin: its words; `python` and a script for Python.
        run: the run that `train --resume` goes on with; the command itself goes on by default.
        after: the scenario whose result it begins with.
        real: whether it needs fresh processes.
        starts_others: whether it starts processes of its own.
        own: whether its run has a class of the user's own, which only its own commands can import.
        weight: how often it is played, compared with others.
    """

    name: str
    begin: Sequence[str]
    run: str | None = None
    after: str | None = None
    real: bool = False
    starts_others: bool = False
    own: bool = False
    weight: float = 1.0
    needs: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "needs", () if self.after is None else (self.after,))

    def again(self, folder: Path) -> Sequence[str]:
        """The words that go on with it as documented, from what stands in its folder."""
        return self.begin if self.run is None else resumed(self.begin, self.run)(folder)


COMMON = ["--training.epochs=3", "--training.warmup=1", "--training.batch=10", "--training.save_every=0"]
DIGITS = ["--data.name=digits", "--data.limit=40", "--data.limit_validation=20", "--model.latent=4"]
GATED = [
    "--model.encoder={class_path: GatedEncoder, hidden: [16]}",
    "--model.decoder={class_path: MLPDecoder, hidden: [16]}",
]
PIXELCNN = ["--model.decoder={class_path: PixelCNNDecoder, layers: 2, width: 8}"]
VAMP = ["--model.prior={class_path: VampPrior, pseudo_inputs: 10}"]
LEVELS = ["--model.lower={class_path: GaussianNetwork, hidden: [16]}"]
DENSE_LEVELS = ["--model.encoder={class_path: TwoLevelDense, hidden: [16]}", *LEVELS, GATED[1]]
FLOW = ["--model.flow={class_path: InverseAutoregressiveFlow, transforms: 2, hidden: [16]}"]
LATE = ["--data.limit=200", "--training.batch=50", "--training.save_every=1e9"]
S2, S4 = ["--model.components=2"], ["--model.components=4"]

PRESETS: dict[str, list[str]] = {
    "digits": [*DIGITS, *S2],
    "vanilla": [*DIGITS, *GATED, *S2],
    "vamp": [*DIGITS, *GATED, *VAMP, *S2],
    "gaussian_mixture": [*DIGITS, *GATED, "--model.prior={class_path: GaussianMixturePrior, clusters: 5}", *S2],
    "flow": [*DIGITS, *GATED, *FLOW, *S2],
    "two_level": [*DIGITS, *DENSE_LEVELS, *S2],
    "two_level_vamp": [*DIGITS, *DENSE_LEVELS, *VAMP, *S2],
    "conv": [*DIGITS, *PIXELCNN, *S2],
    "conv_vamp": [*DIGITS, *PIXELCNN, *VAMP, *S2],
    "composite": [*DIGITS, *PIXELCNN, *VAMP, *FLOW, *LEVELS, *S2],
    "one_hot": [*DIGITS, "--model.components=30", "--model.encoder={class_path: GatedTrunk, hidden: [16]}", GATED[1]],
    "tabular": ["--data.name=../data/table.npy", *S2],
    "cifar10": ["--data.limit=20", "--model.decoder.width=8", "--model.latent=8", *S2],
    "cifar10_pixelcnn": [
        "--data.limit=10", "--model.decoder={class_path: PixelCNNDecoder, layers: 2, width: 8, maps: 3}",
        "--model.latent=8", "--training.epochs=2",
    ],
}  # fmt: skip
"""What makes every preset a matter of seconds."""

MNIST = ["--data.limit=60", "--data.limit_validation=20", "--training.batch=20", "--model.prior.pseudo_inputs=50"]


def _train(preset: str, *flags: str) -> list[str]:
    return ["train", preset, *COMMON, *flags, "--out", "run"]


FIT = """
from functools import partial
import torch
from mixvae import MixtureVAE, datasets, fit
from mixvae.decoders import MLPDecoder
from mixvae.networks import GatedEncoder
from mixvae.posteriors import SeparateEncoders
from mixvae.priors import VampPrior
torch.manual_seed(0)
data = datasets.load_dataset("digits", limit=60, limit_validation=20)
posterior = SeparateEncoders(partial(GatedEncoder, data.shape, 3, (16,)), 4)
prior = VampPrior(posterior, data.shape, 8)
model = MixtureVAE(posterior, prior, MLPDecoder(3, data.shape, (16,)))
fit(model, data, epochs=4, batch=20, ema=0.9, clip=1.0, run="run", save_every=0.0)
"""
DEMO = "from mixvae.sweeps import demo; demo('demo', components=(1, 2), total_draws=20, epochs=2)"
OWN = """
from pathlib import Path
from mixvae.cli import main
Path("mine.py").write_text("from mixvae.networks import GatedEncoder\\nclass Mine(GatedEncoder):\\n    pass\\n")
begin = ["digits", "--model.encoder={class_path: mine.Mine, hidden: [8]}", *FLAGS, "--out", "run"]
main(["train", *(["--resume", "run"] if Path("run/run.json").exists() else begin)])
main(["evaluate", "run", "--total-draws=20"])
""".replace("FLAGS", repr([*COMMON, *DIGITS]))
GRID = """base: digits
set: {data.limit: 60, data.limit_validation: 20, model.latent: 2, training.epochs: 3, training.save_every: 0,
      model.encoder.hidden: [8], model.decoder.hidden: [8]}
axes:
  size: {S1: {model.components: 1}, S2: {model.components: 2}}
out: swept
total_draws: 20
examples: 30
"""
SWEEP = f"""
from pathlib import Path
from mixvae.cli import main
Path("grid.yaml").write_text({GRID!r})
main(["sweep", "grid.yaml"])
"""


def _reproduce(name: str, *more: str) -> list[str]:
    return ["reproduce", name, "--scale", "smoke", "--out", "reproduced", *more]


_ALL = [
    *(Scenario(name, _train(name, *flags), run="run") for name, flags in PRESETS.items()),
    Scenario("S4", _train("digits", *DIGITS, *S4), run="run", weight=2),
    Scenario("S4 vamp", _train("vamp", *DIGITS, *GATED, *VAMP, *S4), run="run", weight=2),
    Scenario("S4 composite", _train("composite", *DIGITS, *PIXELCNN, *VAMP, *FLOW, *LEVELS, *S4), run="run", weight=2),
    Scenario(
        "S4 vamp, full size", _train("vamp", *MNIST, *S4), run="run"
    ),
    Scenario(
        "everything in the state",
        _train(
            "digits", *DIGITS, *S2, "--training.ema=0.9", "--training.clip=1", "--training.active=1",
            "--training.schedule={class_path: CosineAnnealingLR, T_max: 3}", "--training.draws_per_component=2",
            "--model.learn_weights=true",
        ), run="run",
    ),
    Scenario("saved at the end only", [*_train("digits", *DIGITS, *S2), *LATE], run="run"),
    Scenario("fit in Python", ["python", FIT], weight=2),
    Scenario(
        "two processes",
        _train("digits", *DIGITS, *S2, "--training.devices=2", "--training.accelerator=cpu"),
        run="run", real=True, starts_others=True,
    ),
    Scenario("evaluate", ["evaluate", "run", "--total-draws=400"], after="S4 vamp", weight=2),
    Scenario(
        "evaluate, representation",
        ["evaluate", "run", "--total-draws=40", "--representation", "--per_example=each.npz"],
        after="saved at the end only",
    ),
    Scenario("report", ["report", "run"], after="evaluate", weight=2),
    Scenario("extend", ["extend", "run", "--out=more", "--epochs=2"], run="more", after="S4 vamp", weight=2),
    Scenario(
        "grow",
        ["grow", "run", "--out=grown", "--most=4", "--epochs=2", "--total-draws=20", "--examples=20", "--errors=0"],
        after="digits", weight=2,
    ),
    Scenario("more epochs", ["train", "--resume", "run", "--training.epochs=5"], after="evaluate"),
    Scenario("a class of one's own", ["python", OWN], own=True),
    Scenario("demo", ["python", DEMO]),
    Scenario("sweep", ["python", SWEEP], starts_others=True),
    Scenario("reproduce toys", _reproduce("toys")),
    Scenario("reproduce mnist", _reproduce("mnist", "--models=vamp", "--epochs=2"), starts_others=True),
    Scenario("reproduce latents", _reproduce("latents"), starts_others=True),
]  # fmt: skip
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


def must_go(path: Path) -> bool:
    """Whether a hidden file that is left in a run is a fault at once: what only the holder of the lease writes."""
    from mixvae.runs._store import WRITTEN

    stem = path.name.lstrip(".").split(".")[0]
    return path.name.startswith(".lease") or (stem in WRITTEN and path.parent.name not in ("cells", "figures"))


def warm() -> None:
    """Import all that the commands need, before this process is forked."""
    import importlib

    import torch

    for name in (
        "mixvae.cli", "mixvae.sweeps", "mixvae.reports", "mixvae.reproduce", "mixvae.runs._training",
        "mixvae.training._trainer", "mixvae.figures", "lightning_fabric.loggers.tensorboard", "matplotlib.figure",
        "sklearn.datasets", "zuko",
    ):  # fmt: skip
        importlib.import_module(name)
    torch.set_num_threads(1)


def make_data(folder: Path) -> Path:
    """Write small data sets in their standard formats: MNIST, CIFAR-10 and a table of numbers."""
    import numpy as np

    rng = np.random.default_rng(0)
    (folder / "mnist").mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 120), ("t10k", 20)):
        images = (rng.random((n, 28, 28)) * np.linspace(0, 255, 28)).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / "mnist" / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    batches = folder / "cifar10" / "cifar-10-batches-bin"
    batches.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (12, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (batches / f"{name}.bin").write_bytes(records.tobytes())
    with tarfile.open(folder / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)
    np.save(folder / "table.npy", rng.normal(size=(60, 6)).astype(np.float32))
    return folder
