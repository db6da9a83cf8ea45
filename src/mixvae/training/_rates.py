"""Learning rates and weight decay, and how a training continues with different ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau


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


def _nested(schedule: LRScheduler | ReduceLROnPlateau | None) -> Iterator[LRScheduler]:
    """A schedule and the schedules it is made of, which have their own base rates."""
    if isinstance(schedule, LRScheduler) and hasattr(schedule, "base_lrs"):
        yield schedule
    for inner in getattr(schedule, "_schedulers", []):
        yield from _nested(inner)
