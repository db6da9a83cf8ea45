"""How long an experiment takes on this machine, from a few steps of each of its models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mixvae import config, runs
from mixvae.datasets import Dataset, Split
from mixvae.evaluation import evaluate
from mixvae.files import canonical
from mixvae.reproduce.trainings import Trainings
from mixvae.training import TrainingOptions

SIZES = {
    "mnist": ((1, 28, 28), 50_000, 10_000, 10_000),
    "fashion_mnist": ((1, 28, 28), 50_000, 10_000, 10_000),
    "cifar10": ((3, 32, 32), 40_000, 10_000, 10_000),
}
"""Shape, and numbers of training, validation and test examples, of data that may have to be downloaded first."""
EVALUATED = 4
"""Number of examples that are evaluated."""
PSEUDO_INPUTS = 1000
"""Number of random examples from which a prior may take pseudo-inputs."""
VALIDATING = 1 / 3
"""Cost of validating a draw relative to training on it: there is no gradient."""
_known: dict[str, tuple[float, float]] = {}


def core_hours(plan: Trainings, progress: Callable[[str], object] = lambda text: None) -> float:
    """Estimated core-hours of training and evaluating all of a plan on the CPU, whatever else the machine does.

    Every model takes two steps with the batch of its training, and evaluates four examples, with random weights; on
    random images of the right size where the data may have to be downloaded. Patience is assumed never to end a
    training. Starting the processes, classifying by latents and drawing are left out. Results are cached for the
    lifetime of the process.

    Args:
        plan: the trainings.
        progress: where to report which model is being tried.
    """
    one = replace(plan, seeds=plan.seeds[:1])
    seconds = 0.0
    for variant, (name, cell) in zip(plan.variants, one.grid(Path()).cells.items(), strict=True):
        key = canonical([asdict(cell), plan.total_draws, plan.draws_per_component])
        if key not in _known:
            progress(f"trying {name}")
            _known[key] = _measured(cell, plan)
        training, evaluating = _known[key]
        examples = plan.examples or _sizes(cell)[3]
        seconds += len(plan.seeds_of(variant)) * (training + evaluating * examples)
    return seconds / 3600


def _sizes(cell: config.Config) -> tuple[tuple[int, ...], int, int, int]:
    """Shape of an example, and numbers of training, validation and test examples."""
    asked = cell.data
    if asked.name not in SIZES:
        data = runs.open_data(asked)
        return data.shape, len(data.train), len(data.validation), len(data.test)
    (channels, *size), train, validation, test = SIZES[asked.name]
    if asked.resize is not None:
        size = [asked.resize] * 2 if isinstance(asked.resize, int) else asked.resize
    train = min(train, asked.limit or train)
    return (channels, *size), train, min(validation, asked.limit_validation or validation), test


def _few(cell: config.Config, batch: int) -> Dataset:
    """Two batches to train on, and a few examples to validate and evaluate."""
    if cell.data.name not in SIZES:
        data = runs.open_data(cell.data)
        return replace(data, train=data.train.head(2 * batch), validation=data.validation.head(2))
    shape, levels = _sizes(cell)[0], 255 if cell.data.binarize == "none" else 1

    def split(examples: int) -> Split:
        return Split(torch.randint(0, levels + 1, (examples, *shape), dtype=torch.uint8), levels=levels)

    return Dataset("random", split(2 * batch), split(2), split(EVALUATED))


def _measured(cell: config.Config, plan: Trainings) -> tuple[float, float]:
    """Seconds of one core for one whole training, and for evaluating one example."""
    _, train, validation, _ = _sizes(cell)
    batch = min(cell.training.batch, train // 2)
    data, asked = _few(cell, batch), config.options(cell.training)
    model = config.build(cell.model, data.shape, torch.rand(PSEUDO_INPUTS, *data.shape))
    options: TrainingOptions = replace(asked, epochs=2, batch=batch, patience=None, warmup=0, cycles=None)
    ends: list[float] = []
    with torch.random.fork_rng():
        runs.fit(model, data, options, callbacks=[lambda _: ends.append(time.process_time())])
    step = (ends[1] - ends[0]) / 2
    drawn = asked.validation_draws or asked.validation_components or cell.model.components
    validating = VALIDATING * validation * drawn / (train * cell.draws_per_step)
    training = asked.epochs * (train / batch) * step * (1 + validating)
    began = time.process_time()
    evaluate(
        model, data.test.head(EVALUATED), plan.total_draws, draws_per_component=plan.draws_per_component
    )  # fmt: skip
    return training, (time.process_time() - began) / EVALUATED
