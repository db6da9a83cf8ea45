"""The least memory that a step and a validation need, checked before the first one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, NAdam, RAdam

from mixvae._resources import check, device_memory, short, size_of
from mixvae.datasets import Dataset
from mixvae.training._options import TrainingOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STATES = 2
"""Number of tensors of a parameter's size that Adam and its like keep."""


def check_training(
    model: nn.Module, trained: Sequence[Tensor], make: Callable[..., Any], device: torch.device, *, averaged: bool
) -> None:
    """Refuse a model whose weights, gradients and optimiser's state do not fit into memory together.

    Args:
        model: the model.
        trained: the parameters that are trained.
        make: makes the optimiser from parameters.
        device: device that it is trained on.
        averaged: whether a running average of the weights is kept.

    Raises:
        ValueError: they do not fit.
    """
    made: Any = None
    with suppress(Exception), torch.random.fork_rng():  # `try_steps` reports what it refuses
        made = make([nn.Parameter(torch.zeros(1))])
    states = STATES if isinstance(made, Adam | NAdam | RAdam) else 0
    weights = sum(p.numel() * p.element_size() for p in trained)
    needed = (2 + averaged) * size_of(model) + (1 + states) * weights  # the best epoch's weights are kept too
    what = f"training {sum(p.numel() for p in trained):,} weights by {type(made).__name__}"
    check(needed, what, "give fewer components or smaller layers", device_memory(device))


def check_steps(
    fabric: Fabric, data: Dataset, options: TrainingOptions, components: int, latent: int, validated: int
) -> None:
    """Refuse options under which a step or a validation does not fit into memory.

    Args:
        fabric: device, precision and processes.
        data: the training data.
        options: how it is trained.
        components: components of the model.
        latent: its latent size.
        validated: number of examples validated at once.

    Raises:
        ValueError: either does not fit.
    """
    drawn, each = options.active or components, options.validation_components or components
    part = -(-(min(options.batch, len(data.train)) // fabric.world_size) // options.accumulate)
    for draws, own, scored, batch in (
        (options.draws_per_component, drawn, components if options.score_all else drawn, part),
        (-(-(options.validation_draws or each) // each), each, each, min(validated, len(data.validation))),
    ):
        check_step(
            fabric.device, data.shape, draws_per_component=draws, drawn=own, scored=scored, batch=batch, latent=latent,
            half="16" in str(fabric._precision.precision),  # noqa: SLF001  (Fabric shows it nowhere else)
        )  # fmt: skip


def check_step(
    device: torch.device,
    shape: Sequence[int],
    *,
    draws_per_component: int,
    drawn: int,
    scored: int,
    batch: int,
    latent: int,
    half: bool,
) -> None:
    """Refuse a step whose draws, densities and decoded means do not fit into memory.

    Args:
        device: device of the step.
        shape: event shape of the data.
        draws_per_component: draws L of each component.
        drawn: number of components S drawn from.
        scored: number of components J under which every draw is scored.
        batch: examples B.
        latent: latent size D.
        half: whether the model computes in 16 bits.

    Raises:
        ValueError: they do not fit.
    """
    values = math.prod(shape)
    noise, computed = (
        draws_per_component * drawn * latent,
        draws_per_component * drawn * (latent + scored + values),
    )  # draws, log q, p(x|z)
    needed = batch * (4 * (values + noise) + (2 if half else 4) * computed)
    what = (
        f"a step of {short(draws_per_component)} draws from {drawn} components "
        f"for each of {batch} examples of {values} values, "
        f"scored by {scored},"
    )
    check(
        needed,
        what,
        "give fewer training.draws_per_component, a smaller training.batch, a larger training.accumulate or fewer "
        "components",
        device_memory(device),
    )
