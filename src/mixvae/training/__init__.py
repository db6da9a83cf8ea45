"""Training on Lightning Fabric: KL warm-up, early stopping, checkpoints, and resuming bit for bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric

from mixvae.bounds import Bound, elbo
from mixvae.datasets import Dataset
from mixvae.files import RunDirectory
from mixvae.gradients import Estimator, reparameterised
from mixvae.model import MixtureVAE
from mixvae.training.memory import keep_freed_memory
from mixvae.training.trainer import MakeOptimizer, MakeSchedule, Trainer, is_over

__all__ = ["Trainer", "default_device", "fit", "is_over", "keep_freed_memory", "launch"]

TESTED_STRATEGIES = ("auto", "ddp")
DEFAULT_OPTIMIZER: MakeOptimizer = partial(torch.optim.Adam, lr=5e-4, fused=True)


def launch(
    accelerator: str = "auto", devices: int | str = 1, strategy: str = "auto", precision: Any = "32-true"
) -> Fabric:
    """Start Lightning Fabric, with one process per device.

    Args:
        accelerator: `cpu`, `cuda`, … as Fabric knows them; `auto` is a CUDA GPU if there is one, else the CPU.
        devices: how many devices.
        strategy: `auto` or `ddp`.
        precision: `32-true`, `bf16-mixed`, … as Fabric knows them; densities are computed in full precision.

    Raises:
        ValueError: the strategy is not one that mixvae is tested with, or Fabric refuses a value.
    """
    if strategy not in TESTED_STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is not tested with mixvae: use {' or '.join(TESTED_STRATEGIES)}")
    if accelerator == "auto":
        accelerator = default_device()
    if strategy == "ddp":
        strategy = "ddp_find_unused_parameters_true"  # a step on some components leaves the others' encoders alone
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def default_device() -> str:
    """Device that work goes to unless told otherwise: a CUDA GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fit(
    model: MixtureVAE,
    data: Dataset,
    *,
    epochs: int = 100,
    batch: int = 100,
    draws: int = 1,
    bound: Bound = elbo,
    gradient: Estimator = reparameterised,
    active: int | None = None,
    score_all: bool = True,
    validation_components: int | None = None,
    optimizer: MakeOptimizer = DEFAULT_OPTIMIZER,
    schedule: MakeSchedule | None = None,
    warmup: int = 0,
    patience: int | None = None,
    clip: float | None = None,
    ema: float | None = None,
    seed: int = 0,
    directory: RunDirectory | None = None,
    fabric: Fabric | None = None,
    save_every: float = 30.0,
) -> list[dict[str, Any]]:
    """Train a model by maximising a bound, and leave it with the weights of the epoch best on validation.

    With a run directory the training can be killed at any instant: calling `fit` again goes on from the last
    checkpoint and ends with the same weights, bit for bit, at the same number of threads.

    Args:
        model: the model, as `MixtureVAE` or a module with its `forward`.
        data: training and validation examples.
        epochs: passes over the training examples at most.
        batch: examples per step, over all devices together.
        draws: draws L per component.
        bound: what is maximised, in nats per example.
        gradient: how it is differentiated: `reparameterised`, `sticking_the_landing` or `doubly_reparameterised`.
        active: components S to draw from at each step, chosen at random; all by default.
        score_all: score every draw under all components (S2A, unbiased for the bound of the whole mixture), or
            only under the active ones (S2S: cheaper, and a lower bound of it).
        validation_components: components to draw from in validation, the same at every epoch; all by default.
        optimizer: makes an optimiser from parameters.
        schedule: makes a learning-rate schedule from an optimiser; it steps once per epoch.
        warmup: epochs over which β rises linearly to 1.
        patience: epochs without a better validation MISELBO, after the warm-up, that end the training.
        clip: largest norm of the gradient.
        ema: decay of a running average of the weights, which is then what is validated and kept.
        seed: seed of shuffling, binarisation and draws.
        directory: where checkpoints and metrics go; nothing is written by default.
        fabric: device, precision and processes, as `launch` gives them; this process by default.
        save_every: seconds between checkpoints.

    Returns:
        One row per epoch: epoch, bound, validation, beta, learning_rate, best_epoch, seconds.

    Raises:
        ValueError: a number is out of range, or a checkpoint is damaged or of another architecture.
        FloatingPointError: the bound became NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    return Trainer(
        model, data, epochs=epochs, batch=batch, draws=draws, bound=bound, gradient=gradient, active=active,
        score_all=score_all, validation_components=validation_components, optimizer=optimizer, schedule=schedule,
        warmup=warmup, patience=patience, clip=clip, ema=ema, seed=seed, directory=directory, fabric=fabric or launch(),
        save_every=save_every,
    ).run()  # fmt: skip
