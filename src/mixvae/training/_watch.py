"""What a training learns at every step without waiting for its device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

EVERY = 16
"""Steps between two reads of what the device has accumulated."""
NEVER = -1


class Watch:
    """Running totals on the device: the sum of the bound, the first step at which it was not finite, and stops.

    Reading a value makes the host wait until the device has caught up, and a small model on a GPU then waits for the
    host at every step. So a step only adds to tensors on the device, and `read` is called now and then.

    Args:
        device: where the bounds are.
        total: the sum of the bound so far.
    """

    def __init__(self, device: torch.device, total: float = 0.0):
        self.total = torch.full((), total, dtype=torch.float64, device=device)
        self.broken = torch.full((), NEVER, dtype=torch.int64, device=device)
        self.stops = torch.zeros((), dtype=torch.float64, device=device)

    def note(self, step: int, value: Tensor, stop: Tensor) -> None:
        """Add the bound of a step, and whether a process is to stop, without reading either."""
        self.total += value
        here = torch.full_like(self.broken, step)
        first = (self.broken == NEVER) & ~value.isfinite()
        self.broken = torch.where(first, here, self.broken)
        self.stops += stop

    def read(self) -> tuple[float, int | None, bool]:
        """Sum of the bound, the first step that broke it or None, and whether to stop. Waits for the device."""
        total, broken, stops = torch.stack([self.total, self.broken.double(), self.stops]).tolist()
        return total, None if broken == NEVER else int(broken), stops > 0


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
