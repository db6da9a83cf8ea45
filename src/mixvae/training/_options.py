"""How a model is trained: one set of options for YAML, the command line and Python, with its checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_type_hints

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mixvae._failures import at_least
from mixvae.bounds import Bound, elbo
from mixvae.gradients import Estimator, reparameterised
from mixvae.training._kinds import check_kinds, plain_number

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Makes an optimiser from parameters, such as `partial(torch.optim.Adam, lr=1e-3)`."""
MakeSchedule = Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau]
"""Makes a learning-rate schedule from an optimiser."""
Compile = Literal["none", "default", "reduce-overhead"]
"""How a step is compiled: not at all, or by one of torch.compile's modes."""
Keep = Literal["best", "last"]
"""The epoch whose weights are kept."""
ValidationBound = Literal["miselbo", "pooled"]
"""The bound by which epochs are compared."""
Every = Literal["epoch", "step"]
"""When a schedule steps."""
DEFAULT_OPTIMIZER: MakeOptimizer = partial(torch.optim.Adam, lr=5e-4, fused=True)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a model is trained.

    Bounds, gradients, optimisers and schedules are functions or classes here; only a configuration names them.

    Args:
        epochs: maximum number of passes over the training examples.
        batch: examples per step, over all devices together.
        draws_per_component: draws L per component.
        bound: what is maximised, in nats per example.
        gradient: how it is differentiated: `reparameterised`, `sticking_the_landing`, `doubly_reparameterised` or
            `proportional`; the last two draw L·S times from the whole mixture.
        active: components S to draw from at each step, chosen at random; all by default.
        score_all: score every draw under all components (S2A: unbiased for the ELBO and the MISELBO of the whole
            mixture, while `pooled` becomes a looser bound, with fewer draws), or only under the active ones (S2S:
            cheaper, and a lower bound on it).
        validation_components: components to validate, as a mixture of their own with the weights that they have
            relative to each other, the same at every epoch; all by default.
        validation_bound: bound by which epochs are compared: `miselbo`, or `pooled`, which is tighter with several
            draws and is of the same kind for any number of components.
        validation_draws: draws per validation example over all validated components together, the same at every epoch;
            one of each component by default. Use the same number for models that are compared by their best epochs.
        keep: whether the weights of the `best` epoch by validation are kept, or those of the `last`.
        optimizer: makes an optimiser from parameters; Adam at a rate of 5·10⁻⁴ by default.
        schedule: makes a learning-rate schedule from an optimiser.
        schedule_every: whether the schedule steps after every `epoch` or every `step`. A OneCycleLR over all steps has
            total_steps = epochs · ⌈examples / batch⌉. ReduceLROnPlateau, which follows the validation, needs `epoch`.
        beta: weight β of the KL part after the warm-up; 1 maximises a bound on log p(x). Validation always uses 1.
        warmup: epochs over which β rises linearly to `beta`.
        cycles: divide the warm-up into this many cycles of equal length, at least 2 epochs each; β rises over the first
            half of each, and stays at `beta` for the second. One rise over the whole warm-up by default.
        free_bits: λ, nats per example of the KL that are free: while the mean of log q(z|x) − log p(z) over a batch
            is below λ, the gradient leaves them out; it is thus the gradient of max(λ, KL). 0 turns it off.
        patience: stop after this many epochs without a better validation bound, counted after the warm-up.
        clip: largest norm of the gradient.
        accumulate: parts in which a batch is computed, one after another, before one step of the optimiser: the memory
            of one part, and the gradient of the whole batch up to rounding. Where others accumulate k batches of n,
            give batch = k·n and accumulate = k; steps and schedules count whole batches. Dropout, and estimators that
            choose components, draw afresh for each part. BatchNorm, which would see parts, is refused.
        ema: decay of a running average of the weights, which is then validated and kept instead of them.
        compile: `none`, `default` or `reduce-overhead`: whether the bound and its gradient become one graph of
            `torch.compile`, with CUDA graphs where they reduce overhead. It takes a minute or so before the first step.
            A run can be resumed only with the setting it was begun with.
        save_every: seconds between checkpoints.

    Raises:
        ValueError: an option does not match its annotation, is out of range, or contradicts another.

    References:
        Cyclical annealing: Fu et al., Cyclical Annealing Schedule (2019), https://arxiv.org/abs/1903.10145
        Free bits: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016),
        https://arxiv.org/abs/1606.04934
        β: Higgins et al., β-VAE (2017), https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> from mixvae import TrainingOptions
        >>> options = TrainingOptions(epochs=500, warmup=100, patience=100)  # for fit(model, data, options)
        >>> options.batch, options.draws_per_component
        (100, 1)
        >>> cyclical = TrainingOptions(warmup=8, cycles=2, beta=0.5)
        >>> [cyclical.beta_at(epoch) for epoch in range(1, 10)]
        [0.25, 0.5, 0.5, 0.5, 0.25, 0.5, 0.5, 0.5, 0.5]
    """

    epochs: int = 100
    batch: int = 100
    draws_per_component: int = 1
    bound: Bound = elbo
    gradient: Estimator = reparameterised
    active: int | None = None
    score_all: bool = True
    validation_components: int | None = None
    validation_bound: ValidationBound = "miselbo"
    validation_draws: int | None = None
    keep: Keep = "best"
    optimizer: MakeOptimizer = DEFAULT_OPTIMIZER
    schedule: MakeSchedule | None = None
    schedule_every: Every = "epoch"
    beta: float = 1.0
    warmup: int = 0
    cycles: int | None = None
    free_bits: float = 0.0
    patience: int | None = None
    clip: float | None = None
    accumulate: int = 1
    ema: float | None = None
    compile: Compile = "none"
    save_every: float = 30.0

    def __post_init__(self):
        check_kinds(_kinds(type(self)), **vars(self))
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain_number(value))  # as JSON holds it
        at_least(
            1,
            epochs=self.epochs,
            batch=self.batch,
            draws_per_component=self.draws_per_component,
            patience=self.patience,
            active=self.active,
            cycles=self.cycles,
            accumulate=self.accumulate,
        )
        at_least(1, validation_components=self.validation_components, validation_draws=self.validation_draws)
        at_least(0, warmup=self.warmup, save_every=self.save_every, beta=self.beta, free_bits=self.free_bits)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must lie between 0 and 1, such as 0.999; got {self.ema}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be a positive number; got {self.clip}")
        self._check_each_other()

    def _check_each_other(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            ValueError: two do.
        """
        if self.schedule_every == "step" and self.schedule is None:
            raise ValueError("schedule_every is step, but there is no schedule: give one, or leave schedule_every out")
        if self.cycles is not None and (self.warmup % self.cycles or self.warmup < 2 * self.cycles):
            raise ValueError(
                f"cycles must divide the warm-up into cycles of equal length, at least 2 epochs; got {self.cycles} "
                f"for a warmup of {self.warmup}"
            )
        if self.free_bits and self.accumulate > 1:
            raise ValueError(
                f"free_bits {self.free_bits:g} needs the mean KL of a whole batch, and accumulate {self.accumulate} "
                "computes it in parts: leave one of the two out"
            )

    def beta_at(self, epoch: int) -> float:
        """Weight β of the KL part in an epoch, counted from 1."""
        if epoch > self.warmup:
            return float(self.beta)
        length = self.warmup // (self.cycles or 1)
        rise = length if self.cycles is None else length / 2
        return self.beta * min(1.0, ((epoch - 1) % length + 1) / rise)


@cache
def _kinds(options: type) -> dict[str, Any]:
    """The annotations of a class of options."""
    return get_type_hints(options)
