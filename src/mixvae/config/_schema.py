"""The settings of a configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

Spec = str | dict[str, Any]
"""A class by name or import path, or `{class_path: …, argument: value, …}`."""


FILES = "files"
"""Name of data whose parts come from files of their own."""


@dataclass
class DataConfig:
    """Which data.

    Args:
        name: digits, rotated_digits, occluded_digits, mnist, fashion_mnist, cifar10, static_mnist, omniglot,
            caltech101_silhouettes, or the path of your own file or folder of images; "files" if train and test each
            name one.
        train: file or folder of the training examples, instead of a name.
        validation: file or folder of the validation examples; else a tenth of the training ones, chosen by the seed.
        test: file or folder of the test examples.
        root: folder of the standard data sets; else $MIXVAE_DATA, the cache, the system's folder, a download.
        binarize: stochastic (training examples afresh at every step, the rest once), fixed (once), threshold, or none;
            auto, the default, is stochastic under a Bernoulli likelihood and none under any other.
        seed: seed of the split and of the binarisation, not of the training.
        limit: use at most this many training examples.
        limit_validation: use at most this many validation examples, if validating on all would take too long.
        flip: mirror training images left to right with probability one half.
        resize: height and width that images are scaled to, as [28, 28], or one number for both.
        stream: reread training examples in every epoch, of a .npy file or a folder of images, instead of holding
            them in memory; the result is the same.
        workers: processes that read streamed examples ahead.
    """

    name: str | None = "digits"
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    root: str | None = None
    binarize: Literal["auto", "stochastic", "fixed", "threshold", "none"] = "auto"
    seed: int = 0
    limit: int | None = None
    limit_validation: int | None = None
    flip: bool = False
    resize: int | list[int] | None = None
    stream: bool = False
    workers: int = 0

    def __post_init__(self):
        files = {part: path for part in ("train", "validation", "test") if (path := getattr(self, part)) is not None}
        if not files:
            return
        if empty := [part for part, path in files.items() if not path]:
            raise ValueError(f"data.{empty[0]} is empty: name a file or a folder")
        own = Path(self.name or FILES).expanduser()  # a preset's data set gives way to files
        if (own.suffix or len(own.parts) > 1) and own.exists():
            moved = {part: own / Path(path).name for part, path in files.items()}
            gone = not any(Path(path).expanduser().exists() for path in files.values())
            if not (gone and all(path.exists() for path in moved.values())):  # where a run's files were moved
                raise ValueError(
                    f"data.name is {self.name} and data.{next(iter(files))} is given too: leave one of them out"
                )
            for part, path in moved.items():
                setattr(self, part, str(path))
        self.name = FILES

    def arguments(self) -> dict[str, Any]:
        """Arguments of `mixvae.load_dataset`."""
        return {**asdict(self), "name": None if self.name == FILES and self.train is not None else self.name}


@dataclass
class ModelConfig:
    """Which model. Classes are named by import path, or by bare name within mixvae.

    Args:
        components: number of mixture components S.
        latent: latent size D.
        posterior: class of the posterior.
        encoder: class of an encoder; any module that returns mean and log-variance.
        flow: class of a flow on the latents (z1 of two levels), such as InverseAutoregressiveFlow; none by default.
        flow_per_component: give every component its own flow; use one with a fast inverse, such as CouplingFlow.
        prior: class of the prior, such as StandardNormal, GaussianMixturePrior or VampPrior;
            the prior of z2 if there are two levels.
        lower: class of the network from z2 to z1, such as GaussianNetwork, for a posterior of two levels.
        decoder: class of the decoder.
        likelihood: Bernoulli, ContinuousBernoulli, GaussianLikelihood or LogisticMixture.
        weights: mixture weights, one per component; uniform by default.
        learn_weights: train the mixture weights.
        shape: event shape of the data; filled in from the data in training.
    """

    components: int = 1
    latent: int = 40
    posterior: Spec = "SeparateEncoders"
    encoder: Spec = "GatedEncoder"
    flow: Spec | None = None
    flow_per_component: bool = False
    prior: Spec = "StandardNormal"
    lower: Spec | None = None
    decoder: Spec = "MLPDecoder"
    likelihood: Spec = "Bernoulli"
    weights: list[float] | None = None
    learn_weights: bool = False
    shape: list[int] | None = None


@dataclass
class TrainingConfig:
    """How to train.

    Args:
        epochs: maximum number of passes over the training examples.
        batch: examples per step, over all devices together.
        draws_per_component: draws per component and example.
        bound: bound to maximise: elbo, miselbo, pooled or iwelbo, or an import path.
        gradient: how to differentiate it: reparameterised, sticking_the_landing (for the elbo),
            doubly_reparameterised (for pooled and iwelbo) or proportional (draws in proportion to the mixture weights,
            for elbo and pooled), or an import path.
        active: components to draw from at each step, chosen at random; all by default. Unbiased for elbo and miselbo
            if scored is all; pooled becomes a looser bound, with fewer draws.
        scored: components that score every draw: all (S2A) or only the active ones (S2S).
        validation_components: components to validate, as a mixture of their own; all by default.
        validation_bound: bound by which epochs are compared, miselbo or pooled.
        validation_draws: draws per validation example over all validated components together; one of each by default.
        keep: which epoch's weights are kept: the best by the validation bound, or the last.
        freeze: parts of the model to hold fixed, among decoder, prior and posterior.
        optimizer: class of the optimiser.
        schedule: class of the learning-rate schedule.
        schedule_every: whether the schedule steps after every epoch or every step.
        beta: weight β of the KL part after the warm-up; validation always uses 1.
        warmup: epochs over which β rises linearly to beta.
        cycles: divide the warm-up into this many cycles, in each of which β rises over the first half and then stays.
        free_bits: nats per example of the KL that are free; 0 turns it off.
        patience: epochs without a better validation bound after which training stops.
        clip: largest norm of the gradient.
        accumulate: compute each batch in this many parts, one after another, with one step of the optimiser.
        ema: decay of a running average of the weights, which is then validated and kept instead of them.
        save_every: seconds between checkpoints.
        accelerator: auto, cpu, cuda, gpu, mps or tpu, as in Lightning Fabric.
        devices: number of devices on each node; by default one per process that torchrun or srun started, else one.
        nodes: number of nodes; by default the number on which torchrun or srun started processes, else one.
        strategy: auto or ddp.
        precision: 32-true, 64-true, bf16-mixed or 16-mixed, as in Lightning Fabric.
        compile: none, default or reduce-overhead: whether torch.compile makes one graph of the bound and its gradient,
            with CUDA graphs if they reduce overhead. Compiling takes about a minute before the first step.
        threads: CPU threads; torch's own choice by default.
        loggers: classes of loggers that also receive the metrics, such as CSVLogger of lightning_fabric.loggers.
    """

    epochs: int = 100
    batch: int = 100
    draws_per_component: int = 1
    bound: str = "elbo"
    gradient: str = "reparameterised"
    active: int | None = None
    scored: Literal["all", "active"] = "all"
    validation_components: int | None = None
    validation_bound: Literal["miselbo", "pooled"] = "miselbo"
    validation_draws: int | None = None
    keep: Literal["best", "last"] = "best"
    freeze: list[str] = field(default_factory=list)
    optimizer: Spec = field(default_factory=lambda: {"class_path": "torch.optim.Adam", "lr": 5e-4, "fused": True})
    schedule: Spec | None = None
    schedule_every: Literal["epoch", "step"] = "epoch"
    beta: float = 1.0
    warmup: int = 0
    cycles: int | None = None
    free_bits: float = 0.0
    patience: int | None = None
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    save_every: float = 30.0
    accelerator: str = "auto"
    devices: int | str | None = None
    nodes: int | None = None
    strategy: str = "auto"
    precision: str = "32-true"
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    threads: int | None = None
    loggers: list[Spec] = field(default_factory=list)


@dataclass
class StartConfig:
    """What a training starts from instead of random weights.

    Args:
        run: a trained run of the same model with as many components or fewer; random weights by default.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        fresh: start the added components from random weights instead of copies.
    """

    run: str | None = None
    noise: float = 0.01
    fresh: bool = False


@dataclass
class Config:
    """Everything that determines a run.

    Args:
        data: which data.
        model: which model.
        training: how to train.
        seed: seed of initial weights, shuffling and draws.
        start: what to start from.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    start: StartConfig = field(default_factory=StartConfig)

    @property
    def draws_per_step(self) -> int:
        """Draws per example and step, each decoded once: L times the number of components drawn from."""
        return self.training.draws_per_component * (self.training.active or self.model.components)

    def __post_init__(self):
        if self.data.binarize == "auto":  # so that the record says what was done
            spec = self.model.likelihood
            kind = str(spec.get("class_path") if isinstance(spec, dict) else spec)
            is_binary = kind.rpartition(".")[2] == "Bernoulli"
            self.data = replace(self.data, binarize="stochastic" if is_binary else "none")


def check_nulls(content: Mapping[str, Any], kind: type = Config, prefix: str = "") -> None:
    """Refuse a setting that is null but must not be.

    Args:
        content: the settings as plain values.
        kind: the dataclass that holds them.
        prefix: prefix of their names.

    Raises:
        ValueError: a setting is null, or one that holds others is not a mapping.
    """
    for name, hint in get_type_hints(kind).items():
        if name not in content and not is_dataclass(hint):
            continue  # a run older than the setting has its default
        value, where = content[name], f"{prefix}{name}"
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where} must map settings to values; got {value!r}: leave it out for its defaults")
            check_nulls(value, hint, f"{where}.")  # pyright: ignore[reportArgumentType]
        elif value is None and NoneType not in get_args(hint):
            raise ValueError(f"{where} is null: give it a value, or leave it out for its default")
