"""Learning rates and weight decay, and how a training continues with different ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from mixvae.progress import Progress
from mixvae.training._options import TrainingOptions

MUCH = 2
"""How many times as long as its training a schedule is that was meant to step more often."""


def base_rates(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Learning rate and weight decay of every group of parameters."""
    return [
        {"lr": float(group["lr"]), "weight_decay": float(group.get("weight_decay", 0))}
        for group in optimizer.param_groups
    ]


def amend(
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | ReduceLROnPlateau | None,
    old: Sequence[dict[str, float]],
    new: Sequence[dict[str, float]],
) -> None:
    """Apply the learning rate and weight decay requested now, where they differ from the checkpoint's.

    A schedule's progress is kept: the current rate is scaled by the ratio of the new base rate to the old one.

    Args:
        optimizer: the optimiser, in the state of the checkpoint.
        schedule: its schedule, likewise.
        old: base rates of the checkpoint.
        new: base rates requested now.

    Raises:
        ValueError: the schedule sets its own rates, so that changing the optimiser's would have no effect.
    """
    schedules = list(_nested(schedule))
    own = [type(each).__name__ for each in schedules if isinstance(each, OneCycleLR | CyclicLR)]
    if own and [now["lr"] for now in new] != [before["lr"] for before in old]:
        raise ValueError(f"{own[0]} sets its own learning rates: changing the optimiser's has no effect")
    for i, (group, before, now) in enumerate(zip(optimizer.param_groups, old, new, strict=True)):
        if now["lr"] != before["lr"]:
            group["lr"] = group["lr"] * (now["lr"] / before["lr"]) if before["lr"] else now["lr"]
            if not schedule:
                group["lr"] = now["lr"]
            if "initial_lr" in group:
                group["initial_lr"] = now["lr"]
            for each in schedules:
                each.base_lrs[i] = now["lr"]
        if "weight_decay" in group:
            group["weight_decay"] = now["weight_decay"]


def check_schedule(
    schedule: LRScheduler | ReduceLROnPlateau | None, options: TrainingOptions, steps: int, progress: Progress
) -> None:
    """Refuse a schedule that ends before its training, and tell of one that was meant to step more often.

    Args:
        schedule: the schedule.
        options: how many epochs, and when it steps.
        steps: steps of an epoch.
        progress: where it is told.

    Raises:
        ValueError: a OneCycleLR would be asked for more steps than it has, in a training that patience cannot end.
    """
    taken = options.epochs * (steps if options.schedule_every == "step" else 1)
    for each in _nested(schedule):
        if not isinstance(each, OneCycleLR | CyclicLR):
            continue
        name = type(each).__name__
        length = int(each.total_steps if isinstance(each, OneCycleLR) else each.total_size)
        if isinstance(each, OneCycleLR) and each is schedule and length < taken and options.patience is None:
            raise ValueError(
                f"{name} has {length} steps, and {options.epochs} epochs take {taken} of it: give total_steps {taken}"
            )
        if options.schedule_every == "epoch" and length > MUCH * taken:
            progress.announce(
                f"note: {name} takes {length} steps, but one per epoch, and there are {options.epochs} epochs: give "
                f"schedule_every step, under which they take {options.epochs * steps}"
            )


def _nested(schedule: LRScheduler | ReduceLROnPlateau | None) -> Iterator[LRScheduler]:
    """A schedule and those that it is made of, which have their own base rates."""
    if isinstance(schedule, LRScheduler) and hasattr(schedule, "base_lrs"):
        yield schedule
    for inner in getattr(schedule, "_schedulers", []):
        yield from _nested(inner)
