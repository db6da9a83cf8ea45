"""What a training records at every step without waiting for its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

EVERY = 16
"""Steps between two reads of what the device has accumulated."""
NEVER = -1


class Seen(NamedTuple):
    """What the steps since the beginning of an epoch have accumulated."""

    total: float
    """Sum of the bound."""
    broken: int | None
    """The first step, from 0, at which the bound was not finite."""
    signalled: bool
    """Whether some process received a signal."""
    stopping: bool
    """Whether a callback asked to stop."""
    norms: float
    """Sum of the gradient's norm, over the steps where it was finite."""
    normed: int
    """Number of those steps."""


class Watch:
    """Running totals on the device: the bound, the first step at which it was not finite, stops, gradient norms.

    Reading a value makes the host wait until the device has caught up, and a small model on a GPU then waits for the
    host at every step. So a step only adds to tensors on the device, and `read` is called now and then.

    Args:
        device: where the bounds are.
        total: the sum of the bound so far.
        norms: the sum of the gradient's norm so far.
        normed: the number of steps in it.
    """

    def __init__(self, device: torch.device, total: float = 0.0, norms: float = 0.0, normed: int = 0):
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        for i, value in enumerate((total, 0.0, 0.0, norms, normed)):
            self.sums[i].fill_(value)
        self.broken = torch.full((), NEVER, dtype=torch.int64, device=device)

    def note(self, step: int, over_all: Tensor, norm: Tensor) -> None:
        """Add a step without reading any of its values.

        Args:
            step: its number, from 0.
            over_all: sums over all processes, (3,): bound, signals received, requests to stop.
            norm: norm of the gradient; mixed precision leaves out steps where it is infinite, and so does the mean.
        """
        finite = norm.isfinite()
        of_norm = torch.stack([torch.where(finite, norm, 0.0).double(), finite.double()])
        self.sums += torch.cat([over_all.double(), of_norm])
        first = (self.broken == NEVER) & ~over_all[0].isfinite()
        self.broken = torch.where(first, torch.full_like(self.broken, step), self.broken)

    def read(self) -> Seen:
        """Everything at once. Waits for the device."""
        total, signals, stops, norms, normed, broken = torch.cat([self.sums, self.broken.double()[None]]).tolist()
        return Seen(total, None if broken == NEVER else int(broken), signals > 0, stops > 0, norms, int(normed))


def all_finite(state: Any) -> bool:
    """Whether every floating-point tensor within nested dictionaries and lists is finite: one read per device."""
    checks: dict[torch.device, list[Tensor]] = {}
    for tensor in _tensors(state):  # an optimiser counts its steps on the host, whatever the device
        checks.setdefault(tensor.device, []).append(tensor.isfinite().all())
    return all(bool(torch.stack(each).all()) for each in checks.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    """Floating-point tensors within nested dictionaries and lists."""
    if isinstance(state, Tensor) and state.is_floating_point():
        yield state
    for part in state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ():
        yield from _tensors(part)
