"""How a model is trained: one set of options for YAML, the command line and Python, with its checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mixvae._failures import at_least
from mixvae.bounds import Bound, elbo
from mixvae.gradients import Estimator, reparameterised

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Makes an optimiser from parameters, such as `partial(torch.optim.Adam, lr=1e-3)`."""
MakeSchedule = Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau]
"""Makes a learning-rate schedule from an optimiser."""
Compile = Literal["none", "default", "reduce-overhead"]
"""How a step is compiled: not at all, or by one of torch.compile's modes."""
DEFAULT_OPTIMIZER: MakeOptimizer = partial(torch.optim.Adam, lr=5e-4, fused=True)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a model is trained.

    Args:
        epochs: most passes over the training examples.
        batch: examples per step, over all devices together.
        draws_per_component: draws L per component.
        bound: what is maximised, in nats per example.
        gradient: how it is differentiated: `reparameterised`, `sticking_the_landing`, `doubly_reparameterised` or
            `proportional`; the last two draw L·S times from the whole mixture.
        active: components S to draw from at each step, chosen at random; all by default.
        score_all: score every draw under all components (S2A: unbiased for the ELBO and the MISELBO of the whole
            mixture, while `pooled` becomes a looser bound, of fewer draws), or only under the active ones (S2S:
            cheaper, and a lower bound of it).
        validation_components: components to validate, as a mixture of their own with the weights that they have
            relative to each other, the same at every epoch; all by default.
        optimizer: makes an optimiser from parameters; Adam at a rate of 5·10⁻⁴ by default.
        schedule: makes a learning-rate schedule from an optimiser; it steps once per epoch.
        warmup: epochs over which β rises linearly to 1.
        patience: stop after this many epochs without a better validation MISELBO, counted after the warm-up.
        clip: largest norm of the gradient.
        ema: decay of a running average of the weights, which is then validated and kept in their place.
        compile: `none`, `default` or `reduce-overhead`: whether the bound and its gradient become one graph of
            `torch.compile`, with CUDA graphs where they reduce overhead. It takes a minute or so before the first step.
            A run can only be resumed with the setting that it was begun with.
        save_every: seconds between checkpoints.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> from mixvae import TrainingOptions
        >>> options = TrainingOptions(epochs=500, warmup=100, patience=100)  # for fit(model, data, options)
        >>> options.batch, options.draws_per_component
        (100, 1)
    """

    epochs: int = 100
    batch: int = 100
    draws_per_component: int = 1
    bound: Bound = elbo
    gradient: Estimator = reparameterised
    active: int | None = None
    score_all: bool = True
    validation_components: int | None = None
    optimizer: MakeOptimizer = DEFAULT_OPTIMIZER
    schedule: MakeSchedule | None = None
    warmup: int = 0
    patience: int | None = None
    clip: float | None = None
    ema: float | None = None
    compile: Compile = "none"
    save_every: float = 30.0

    def __post_init__(self):
        at_least(
            1,
            epochs=self.epochs,
            batch=self.batch,
            draws_per_component=self.draws_per_component,
            patience=self.patience,
            active=self.active,
        )
        at_least(1, validation_components=self.validation_components)
        at_least(0, warmup=self.warmup, save_every=self.save_every)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, such as 0.999; got {self.ema}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be a positive number; got {self.clip}")
