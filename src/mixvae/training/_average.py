"""Running averages of a model's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class RunningAverage(AveragedModel):
    """Exponential moving average of weights, w̄ ← ρ w̄ + (1 − ρ) w, that never makes the host wait for the device.

    torch's own update moves its step counter to the device each time, and waits for it.

    Args:
        model: the model; the average is kept in a copy of it.
        decay: ρ.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average by the model's weights, and copy its buffers."""
        average, new = ([p.detach() for p in each.parameters()] for each in (self.module, model))
        if self.begun and self.multi_avg_fn is not None:
            self.multi_avg_fn(average, new, self.n_averaged)
        else:
            for own, other in zip(average, new, strict=True):
                own.copy_(other)
        for own, other in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(other)
        self.n_averaged += 1
        self.begun = True

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Continue from a saved average."""
        missing = super().load_state_dict(*args, **options)
        self.begun = bool(self.n_averaged > 0)
        return missing
