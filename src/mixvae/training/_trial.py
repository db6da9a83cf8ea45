"""Trial steps, so that errors of the optimiser, the schedule or the bound appear before a training begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mixvae._failures import at_least, called, plain_errors, said
from mixvae._trying import INSTEAD, coupling
from mixvae.datasets import Dataset, Split
from mixvae.distributions import support_of
from mixvae.model import MixtureVAE, evaluating
from mixvae.progress import Progress
from mixvae.training._kinds import check_kinds, shown
from mixvae.training._options import Every, MakeOptimizer, MakeSchedule, TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MOST_THREADS = 1024
"""Maximum number of CPU threads: torch ends the process if it cannot start as many as requested."""
LOOKED_AT = 10_000
"""Number of examples checked at a time."""


def try_steps(
    parameters: Sequence[Tensor], make: MakeOptimizer, schedule: MakeSchedule | None, every: Every = "epoch"
) -> None:
    """Take one step of an optimiser and of its schedule on tensors of the parameters' shapes.

    Args:
        parameters: what will be trained.
        make: makes the optimiser from parameters.
        schedule: makes the schedule from the optimiser.
        every: when the schedule steps.

    Raises:
        ValueError: there is nothing to train, or one of them cannot be made or cannot take the steps of a training.
    """
    if not parameters:
        raise ValueError("every parameter of the model is frozen, so there is nothing to train")
    zeros = [nn.Parameter(torch.zeros_like(p)) for p in parameters]
    with torch.random.fork_rng():
        with plain_errors(f"the optimiser {called(make)} cannot be made"):
            optimizer: Any = make(zeros)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"the optimiser must be a torch.optim.Optimizer; it is of class {type(optimizer).__name__}"
            )
        made: Any = None
        if schedule is not None:
            with plain_errors(f"the learning-rate schedule {called(schedule)} cannot be made"):
                made = schedule(optimizer)
        for zero in zeros:
            zero.grad = torch.ones_like(zero)
        _step(optimizer)
        if not all(bool(zero.isfinite().all()) for zero in zeros):
            name = type(optimizer).__name__
            raise ValueError(
                f"a step of {name} gives NaN or infinity: its learning rate and options must be finite, and not beyond "
                "what float32 holds"
            )
        if isinstance(made, ReduceLROnPlateau):
            if every == "step":
                raise ValueError(
                    "ReduceLROnPlateau follows the validation of each epoch: leave schedule_every at epoch"
                )
            _step(made, 0.0)
        elif made is not None:
            _step(made)


def _step(taker: Any, *arguments: float) -> None:
    """Take one step.

    Raises:
        ValueError: the step raised, or there is no `step`.
    """
    try:
        taker.step(*arguments)
    except Exception as error:
        name = type(taker).__name__
        raise ValueError(f"{name} cannot take the steps of a training here: {said(error)}") from error


def check_request(
    data: Dataset, options: TrainingOptions, fabric: Fabric, seed: int, threads: int | None, progress: Progress
) -> None:
    """Refuse arguments of the wrong kind, and numbers that are out of range, whatever the model.

    Raises:
        ValueError: an argument is wrong.
    """
    check_kinds({"seed": int, "threads": int | None}, seed=seed, threads=threads)
    if not isinstance(progress, Progress) or isinstance(progress, type):
        raise ValueError(
            f"progress must have announce and update, as mixvae.progress.Terminal() has; got {shown(progress)}"
        )
    at_least(0, seed=seed)
    at_least(1, threads=threads)
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}; got {threads}")
    if min(options.batch, len(data.train)) < fabric.world_size:
        raise ValueError(f"batch must be at least the number of devices, {fabric.world_size}; got {options.batch}")


def check_clipping(optimizer: torch.optim.Optimizer, fabric: Fabric, clip: float | None) -> None:
    """Refuse to clip gradients that a fused optimiser would scale back itself.

    Raises:
        ValueError: gradients are scaled, as under 16-mixed, and the optimiser is fused.
    """
    scaled = getattr(fabric._precision, "scaler", None) is not None  # noqa: SLF001  (Fabric shows it nowhere else)
    if scaled and clip is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ValueError(
            f"clip {clip} under precision 16-mixed needs an optimiser that is not fused: give "
            f"{{class_path: {type(optimizer).__name__}, lr: …}} without fused, or precision bf16-mixed"
        )


def fewest(bounds: Callable[[int], Any], whole: int) -> int:
    """Compute the bounds of one and of two examples; returns the minimum for a training step, 1 or 2.

    Args:
        bounds: computes the bounds of the first n examples, given n.
        whole: examples in a whole batch.

    Raises:
        ValueError: it raises for two examples, or for one if batches have no more, or does not give one value per
            example.
    """
    try:
        _check_bounds(bounds(1), 1)
        alone: Exception | None = None
    except Exception as error:  # noqa: BLE001  (BatchNorm raises a ValueError, a user's layer may raise anything)
        alone = error
    if whole > 1:
        with plain_errors("the bound cannot be computed"):
            _check_bounds(bounds(2), 2)
    elif alone is not None:
        raise ValueError(
            f"the model cannot train on a single example, all that a batch has on each device ({said(alone)}): "
            "give a batch of 2 or more, and at least 2 examples"
        ) from alone
    return 1 if alone is None else 2


def _check_bounds(value: object, examples: int) -> None:
    """Check that there is one bound per example.

    Raises:
        ValueError: there is not.
    """
    if not isinstance(value, Tensor) or value.shape != (examples,) or not value.is_floating_point():
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"a bound must be one number per example; bound and gradient together gave {got} for {examples}"
        )


def joined(batches: Sequence[Tensor], least: int) -> list[Tensor]:
    """Batches, the last of which joins the one before if it has fewer than `least` examples.

    Example:
        >>> import torch
        >>> from mixvae.training._trial import joined
        >>> [len(rows) for rows in joined(torch.arange(7).split(3), 2)]
        [3, 4]
    """
    if len(batches) > 1 and len(batches[-1]) < least:
        return [*batches[:-2], torch.cat(list(batches[-2:]))]
    return list(batches)


def tell_coupling(model: MixtureVAE, x: Tensor, progress: Progress) -> None:
    """Warn of a decoder under which the training bound is not a bound, such as one with BatchNorm."""
    if what := coupling(model, x):
        warning = (
            f"{what} lets the likelihood of an example depend on its batch in training, so that what is maximised is "
            f"not a bound on log p(x), and changes with the batch size; evaluation is unaffected: {INSTEAD}"
        )
        progress.announce(f"warning: {warning}")
        warnings.warn(warning, stacklevel=5)  # where `fit` was called


@contextmanager
def rehearsing(model: nn.Module) -> Iterator[None]:
    """Restore random generators and the buffers of a model, such as a BatchNorm's statistics, afterwards."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


@torch.no_grad()
def check_values(model: MixtureVAE, *parts: Split) -> None:
    """Check all values of the data once, so that no step has to.

    Raises:
        ValueError: some lie outside the support of the model's likelihood, or are binarised at every step although it
            describes grey values.
    """
    dtype = next(model.parameters()).dtype
    with evaluating(model), torch.random.fork_rng():
        if any(part.resample for part in parts):
            check_binary(model)
        for part in parts:
            for x in part.probes(LOOKED_AT):
                model.check(x.to(dtype))


@torch.no_grad()
def check_binary(model: MixtureVAE) -> None:
    """Refuse a model of grey values for data that are binarised.

    Raises:
        ValueError: its likelihood's support holds one of the values 1/k, k = 2, …, 255, between those of binary data.
    """
    with evaluating(model), torch.random.fork_rng():
        likelihood = model.decoder(model.prior().sample((1,)))
    between = 1 / torch.arange(2.0, 256, device=next(model.parameters()).device)
    grey = between.view(-1, *[1] * len(likelihood.event_shape)).expand(-1, *likelihood.event_shape)
    support = support_of(likelihood)
    if support is not None and bool(support.check(grey).any()):
        base = getattr(likelihood, "base_dist", getattr(likelihood, "likelihood", likelihood))
        name = getattr(base, "__name__", type(base).__name__)
        raise ValueError(
            f"the data are binarised, but the likelihood, {name}, describes grey values: keep them with binarize none, "
            "or choose Bernoulli"
        )
