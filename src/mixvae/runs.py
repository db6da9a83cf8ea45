"""A run on disk: train, resume, evaluate, sample, reconstruct, encode, and load the model back."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import mixvae.config
from mixvae import datasets, figures
from mixvae.config import Config, DataConfig, StartConfig
from mixvae.datasets import Dataset, Split
from mixvae.diagnostics import Overlap, Plane, exact_posteriors, overlap
from mixvae.evaluation import active_units, draw_latents, encode, log_marginal
from mixvae.files import RunDirectory, atomic, load_tensors, load_weights, write_bytes, write_json, write_text
from mixvae.model import MixtureVAE, evaluating
from mixvae.representation import Latents, Representation, represent
from mixvae.training import Trainer, default_device, keep_freed_memory, launch

EXAMPLES = 10_000
"""Training examples that a prior may choose its pseudo-inputs from."""

REPRESENTED = 10_000
"""Training examples that classifiers are fitted to at most; the SVM's time grows with their square."""

SplitName = Literal["train", "validation", "test"]


def train(config: Config, out: str | Path, *, resume: bool = False) -> RunDirectory:
    """Train what a configuration describes, from the beginning or from where the run directory stands.

    Args:
        config: data, model and training.
        out: the run directory.
        resume: go on with a run that exists. Its data, model and seed must be those of `config`; the training
            may differ, to give it more epochs for example.

    Raises:
        ValueError: something in the configuration or the data is wrong, `out` exists and `resume` was not asked
            for, or it belongs to another configuration. Nothing is written then.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
    """
    run = RunDirectory(Path(out))
    config = replace(config, data=replace(config.data, name=datasets.absolute(config.data.name)))
    if resume:
        config = _same_run(run, config)
    elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise ValueError(f"{run.path} exists already: go on with it by --resume {run.path}, or choose another --out")
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    keep_freed_memory()
    training = mixvae.config.settings(config.training)
    data = open_data(config.data)
    model, config = _new_model(config, data, started=run.state.exists())
    wanted = config.training
    fabric = launch(wanted.accelerator, wanted.devices, wanted.strategy, wanted.precision)
    trainer = Trainer(model, data, seed=config.seed, directory=run, fabric=fabric, **training)
    if fabric.is_global_zero:  # all that could be refused has been
        write_text(run.config, mixvae.config.to_yaml(config))
    trainer.run()
    return run


def _same_run(run: RunDirectory, config: Config) -> Config:
    """Check that a configuration goes on with a run, apart from its training."""
    old = read_config(run)
    for name in ("seed", "data", "model"):
        given, expected = getattr(config, name), getattr(old, name)
        if name == "data":
            expected = replace(expected, root=None, name=datasets.absolute(expected.name))
            given = replace(given, root=None)
        if name == "model" and given.shape is None:
            given = replace(given, shape=expected.shape)
        if given != expected:
            raise ValueError(
                f"{run.path} was trained with {expected}, not with {given}: resume it unchanged, "
                "or train a new run in another --out"
            )
    return config


def _new_model(config: Config, data: Dataset, *, started: bool = False) -> tuple[MixtureVAE, Config]:
    """Build a model from its seed or its start, and try it on two examples, before anything is written."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:EXAMPLES]
    examples = data.train.batch(chosen, generator)
    model = mixvae.config.build(config.model, data.shape, examples)
    if config.start.run is not None and not started:
        start = _extended(config)
        load_tensors(model, start.state_dict(), f"the start {config.start.run}")
    prior = model.prior
    model.freeze(*config.training.freeze)
    if model.prior is not prior:
        raise ValueError("a prior that follows the encoders is frozen by `mixvae extend RUN --freeze prior` only")
    trial = data.train.batch(slice(0, 2), generator)
    state = torch.get_rng_state()
    with mixvae.config.plain_errors("the model cannot take the data"), torch.no_grad(), evaluating(model):
        model(trial)
        for part in (data.validation, data.test):
            for rows in torch.arange(len(part)).split(EXAMPLES):
                model.check(part.batch(rows))
    torch.set_rng_state(state)
    return model, replace(config, model=replace(config.model, shape=list(data.shape)))


def _extended(config: Config) -> MixtureVAE:
    """Model that a configuration starts from, with its components added and what it freezes frozen."""
    start = load(str(config.start.run))
    start.freeze(*config.training.freeze)  # first, so that a prior stays as the old components made it
    return start.extended(config.model.components, noise=config.start.noise, fresh=config.start.fresh)


def extension(
    run: str | Path,
    components: int | None = None,
    *,
    freeze: Sequence[str] = (),
    noise: float = 0.01,
    fresh: bool = False,
    epochs: int | None = None,
) -> Config:
    """Configuration of a run that goes on from a trained one with more components.

    Args:
        run: the trained run.
        components: number of components in all, one more by default; as many as the run has to train it on.
        freeze: parts held fixed, such as decoder and prior; a VampPrior becomes the Gaussians that it is now.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        fresh: start the added components from random weights instead of copies.
        epochs: epochs to train; as many as the run's by default. There is no warm-up.

    Raises:
        ValueError: the run has more components already, or a part cannot be frozen.
    """
    old = read_config(RunDirectory(Path(run)))
    if components is None:
        components = old.model.components + 1
    weights = old.model.weights
    if weights is not None:
        weights = [weights[i % len(weights)] for i in range(components)]
    config = replace(
        old,
        model=replace(old.model, components=components, weights=weights),
        training=replace(old.training, freeze=list(freeze), warmup=0, epochs=epochs or old.training.epochs),
        start=StartConfig(str(Path(run).absolute()), noise, fresh),
    )
    start = load(run)
    prior: Any = start.prior
    start.freeze(*freeze)
    start.extended(components)  # refuses fewer than there are
    if start.prior is not prior:  # a prior that followed the encoders became Gaussians of its own
        frozen: Any = getattr(start.prior, "top", start.prior)
        config.model.prior = {"class_path": type(frozen).__name__, "clusters": len(frozen.mean)}
    return config


def read_config(run: RunDirectory) -> Config:
    """Configuration of a run.

    Raises:
        FileNotFoundError: the directory is not a run.
    """
    if not run.config.exists():
        raise FileNotFoundError(f"{run.path} is not a run: it has no config.yaml")
    return mixvae.config.read(run.config)


def open_data(config: DataConfig) -> Dataset:
    """Load the data that a configuration names."""
    return datasets.load(**asdict(config))


def load(run: str | Path) -> MixtureVAE:
    """Load a trained model, with the weights of its best epoch, in evaluation mode.

        model = mixvae.load("runs/demo/S4")

    Raises:
        FileNotFoundError: the directory is not a run, or has not finished an epoch.
        ValueError: a file is damaged or of another architecture.
    """
    directory = RunDirectory(Path(run))
    model = mixvae.config.build(read_config(directory).model)
    load_tensors(model, load_weights(directory.weights), str(directory.weights))
    return model.eval()


def _open(run: str | Path, split: str) -> tuple[RunDirectory, MixtureVAE, Dataset, Split]:
    """Load a run's model and one split of its data."""
    keep_freed_memory()
    directory = RunDirectory(Path(run))
    model = load(run).to(default_device())
    data = open_data(read_config(directory).data)
    return directory, model, data, data.split(split).to(default_device())


def _prepared(split: Split, seed: int = 0) -> Tensor:
    """All examples of a split; training examples are binarised from a fixed seed, and not mirrored."""
    return replace(split, flip=False).batch(slice(None), torch.Generator(split.x.device).manual_seed(seed))


def evaluate(
    run: str | Path,
    draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    per_example: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Evaluate a run and write its `results.json` and per-example values.

    Args:
        run: the run directory.
        draws: total draws per example, L·S.
        draws_per_component: L itself, the paper's protocol; overrides `draws`.
        split: train, validation or test.
        examples: only so many examples.
        chunk: latents decoded at once.
        seed: seed of the draws.
        per_example: file for the per-example values besides the run's own.
        progress: called with the number of examples done and of all.

    Returns:
        What `results.json` holds.
    """
    if examples is not None and examples < 1:
        raise ValueError(f"examples must be at least 1; got {examples}")
    directory, model, data, part = _open(run, split)
    x = _prepared(part.head(examples))
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(x))

    estimate = log_marginal(
        model, x, draws, draws_per_component=draws_per_component, chunk=chunk, seed=seed, progress=advance
    )
    means, _ = encode(model, x)
    metrics = directory.read_metrics()
    results = estimate.summary() | {
        "active_units": active_units(means, model.posterior(x[:1]).log_pi.exp()) if len(means) > 1 else None,
        "bits_per_dim": _bits_per_dim(model, x, estimate.pooled),
        "parameters": sum(p.numel() for p in model.parameters()),
        "split": split,
        "data": data.name,
        "data_sha256": data.sha256(),
        "best_epoch": metrics[-1]["best_epoch"] if metrics else None,
        "epochs": metrics[-1]["epoch"] if metrics else None,
        "train_seconds": metrics[-1]["seconds"] if metrics else None,
        "versions": {name: version(name) for name in ("mixvae", "torch", "numpy")},
        "git_commit": _git_commit(),
    }
    for path in [directory.examples] + ([] if per_example is None else [Path(per_example)]):
        save_arrays(path, estimate.arrays())
    write_json(directory.results, results)
    return results


def _bits_per_dim(model: MixtureVAE, x: Tensor, pooled: np.ndarray) -> float | None:
    """−log₂ p(x) per value, where p(x) is a probability and not a density."""
    with torch.no_grad(), evaluating(model):
        support = model.decoder(model.prior().sample((1,))).support
    return float(-pooled.mean() / math.log(2) / x[0].numel()) if support.is_discrete else None


def _git_commit() -> str | None:
    """Commit of the checkout that mixvae runs from, if it does."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def components(run: str | Path, *, draws: int = 16, split: SplitName = "test", examples: int | None = 500) -> Overlap:
    """How the components of a run lie to each other, and what each one covers, on examples of a split."""
    _, model, _, part = _open(run, split)
    part = part.head(examples)
    return overlap(model, _prepared(part), draws, labels=None if part.y is None else part.y.cpu().numpy())


def posteriors(run: str | Path, n: int = 6, *, split: SplitName = "test") -> Plane:
    """The exact posteriors of some examples under a run with two latents, and the components over them."""
    _, model, _, part = _open(run, split)
    return exact_posteriors(model, _prepared(part.head(n)))


def cooperation(
    run: str | Path, *, draws: int = 16, split: SplitName = "test", examples: int | None = 500
) -> tuple[Overlap, dict[str, Figure]]:
    """How a run's components cooperate, with every picture of it that the run allows, by name.

    `components`: pairwise KL and shares. `spread`: JSD and KL to the prior over examples. `classes`: shares by label,
    if there are labels. `posteriors`: exact posteriors, if there are two latents.
    """
    found = components(run, draws=draws, split=split, examples=examples)
    drawn = {"components": found.figure, "spread": found.spread}
    if found.labels is not None:
        drawn["classes"] = found.classes
    if read_config(RunDirectory(Path(run))).model.latent == 2:
        drawn["posteriors"] = posteriors(run, split=split).figure
    return found, drawn


def sample(run: str | Path, n: int = 64, *, seed: int = 0) -> np.ndarray:
    """Means of p(x|z) for n latents drawn from the prior, (n, *shape)."""
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    model = load(run)
    torch.manual_seed(seed)
    return model.sample(n).numpy()


def reconstruct(run: str | Path, n: int = 10, *, split: SplitName = "test") -> tuple[np.ndarray, np.ndarray]:
    """Some examples (n, *shape), and their reconstructions by every component (S, n, *shape)."""
    _, model, _, part = _open(run, split)
    x = _prepared(part.head(n))
    return x.cpu().numpy(), model.reconstruct(x).cpu().numpy()


def encode_split(run: str | Path, *, split: SplitName = "test", examples: int | None = None) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every component, (N, S, D) each, and labels (N,) if there are any."""
    _, model, _, part = _open(run, split)
    part = part.head(examples)
    mean, std = encode(model, _prepared(part))
    features = {"mean": mean.numpy(), "std": std.numpy()}
    return features if part.y is None else features | {"labels": part.y.cpu().numpy()}


def representation(
    run: str | Path,
    *,
    split: SplitName = "test",
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = REPRESENTED,
    samples: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Representation:
    """Classify and cluster by the latents of a run, and write `representation.json` and its figure.

    Args:
        run: the run directory.
        split: what is scored; classifiers and clusters are fitted to training latents.
        seeds: one repetition for each.
        examples: at most so many training examples, chosen by the seed.
        samples: draws side by side in the features of the paper's rival; as many as components by default.
        progress: called with the number of repetitions and kinds of features done, and of all.

    Raises:
        ValueError: the data have no labels, fewer classes than two, or fewer examples than classes.
    """
    directory, model, data, part = _open(run, split)
    if part.y is None:
        raise ValueError(f"{directory.path} has data without labels ({data.name}): classification needs labels")
    train = data.split("train").to(default_device())
    draws = samples or model.posterior(_prepared(part.head(1))).batch_shape[0]

    def latents(of: Split, seed: int) -> Latents:
        assert of.y is not None
        x = _prepared(of)
        mean, std = encode(model, x)
        return Latents(mean.numpy(), std.numpy(), draw_latents(model, x, draws, seed=seed).numpy(), of.y.cpu().numpy())

    def both(seed: int) -> tuple[Latents, Latents]:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:examples]
        return latents(train.take(chosen.sort().values), seed), latents(part, seed)

    found = represent(both, seeds, progress)
    about = {"split": split, "fitted_to": min(examples, len(train)), "seeds": list(seeds), "scores": found.scores}
    write_json(directory.representation, about)
    write_bytes(directory.figures / "representation.png", figures.png(found.figure))
    return found


def save_arrays(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name as `.npz`, atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
