"""Schedules of the learning rate and of β, checked against the length of their training before its first step."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR

from mixvae.progress import Progress
from mixvae.training._options import TrainingOptions
from mixvae.training._shown import tell

MUCH = 2
"""A schedule this many times as long as its training must have been meant to step more often."""
SHORTEST_CYCLE = 3
"""Epochs of the shortest cycle in which β rises: the first half of two is one epoch, at its final value."""


def check_schedules(
    schedule: LRScheduler | ReduceLROnPlateau | None, options: TrainingOptions, steps: int, progress: Progress
) -> None:
    """Refuse a schedule that ends before its training; report one that outlasts it, and a β that never rises.

    Args:
        schedule: the schedule of the learning rate.
        options: number of epochs, when the schedule steps, and how β rises.
        steps: steps of an epoch.
        progress: where to report it.

    Raises:
        ValueError: a OneCycleLR would be asked for more steps than it has.
    """
    taken = options.epochs * (steps if options.schedule_every == "step" else 1)
    stepped = [(each, _length(each), count) for each, count in _stepped(schedule, taken)]
    for each, length, count in stepped:
        if length is not None and length < count and isinstance(each, OneCycleLR):
            raise ValueError(
                f"{type(each).__name__} has {length} steps, and {options.epochs} epochs take {count}: give "
                f"total_steps {count}"
            )
    _tell_beta(options, progress)
    for each, length, count in stepped:
        if length is not None:
            _tell_length(each, length, count, options, steps, progress)


def _length(schedule: LRScheduler) -> int | None:
    """Steps that a schedule has, or those of a cycle; None if it has no fixed number."""
    length = getattr(schedule, "total_size" if isinstance(schedule, CyclicLR) else "total_steps", None)
    return int(length) if isinstance(length, int | float) else None


def _tell_length(
    each: LRScheduler, length: int, count: int, options: TrainingOptions, steps: int, progress: Progress
) -> None:
    """Report a schedule whose length differs from the number of steps that it takes."""
    name = type(each).__name__
    if options.schedule_every == "epoch" and length > MUCH * count:
        tell(
            progress,
            f"{name} has {length} steps but takes one per epoch, and there are {options.epochs} epochs: give "
            f"schedule_every step, under which they take {options.epochs * steps}",
        )
    elif isinstance(each, CyclicLR):  # it starts over
        return
    elif length < count:
        tell(progress, f"{name} is over after {length} of {count} steps: give total_steps {count}")
    elif count < length - 1:
        tell(
            progress,
            f"{name} has {length} steps, of which {options.epochs} epochs take {count}, so that its learning rate does "
            f"not reach its final value: give total_steps {count}",
        )


def _stepped(schedule: LRScheduler | ReduceLROnPlateau | None, count: int) -> Iterator[tuple[LRScheduler, int]]:
    """A schedule and the schedules it is made of, each with the number of its last step, from 0."""
    if isinstance(schedule, LRScheduler):
        yield schedule, count
    inner = getattr(schedule, "_schedulers", [])
    if not isinstance(schedule, SequentialLR):
        for each in inner:
            yield from _stepped(each, count)
        return
    starts = [0, *schedule._milestones]  # noqa: SLF001  (torch shows it nowhere else)
    ends = [*(start - 1 for start in starts[1:]), count]  # each begins at 0 where the previous one stopped
    for each, start, end in zip(inner, starts, ends, strict=True):
        yield from _stepped(each, max(0, min(end, count) - start))


def _tell_beta(options: TrainingOptions, progress: Progress) -> None:
    """Report a β that does not reach its final value, or that has it from the beginning."""
    length = options.warmup // (options.cycles or 1)
    rise = length if options.cycles is None else -(-length // 2)
    if options.beta == 0:
        return
    if options.epochs < rise:
        last = options.beta_at(options.epochs)
        tell(
            progress,
            f"β rises to {options.beta:g} over {rise} epochs, but the training has {options.epochs} and ends at "
            f"{last:.3g}: give a warmup of {options.epochs if options.cycles is None else 'fewer'}, or more epochs",
        )
    elif options.cycles is not None and length < SHORTEST_CYCLE:
        tell(
            progress,
            f"{options.cycles} cycles in a warmup of {options.warmup} are {length} epochs each, in which β does not "
            f"rise but is {options.beta:g} throughout: give cycles of at least {SHORTEST_CYCLE} epochs",
        )
