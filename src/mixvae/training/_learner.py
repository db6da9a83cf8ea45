"""What learns: one batch is one step of the optimiser."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mixvae.files import load_tensors
from mixvae.model import MixtureVAE
from mixvae.posteriors import Posterior
from mixvae.training._average import RunningAverage
from mixvae.training._estimates import check_training
from mixvae.training._free_bits import check_free_bits
from mixvae.training._objective import Inputs, Objective, check_compile
from mixvae.training._options import TrainingOptions
from mixvae.training._rates import amend, base_rates
from mixvae.training._state import Checkpoint
from mixvae.training._trial import check_clipping, try_steps
from mixvae.training._watch import all_finite

NAMED = {"model": "a weight", "ema": "a weight's average", "optimizer": "the optimiser's state"}
"""Parts of the state that must be finite, and what to call a value in them that is not."""


class Learner:
    """A model with its objective, optimiser, schedule and running average.

    Args:
        model: the model.
        options: how it is trained.
        fabric: device, precision and processes.
        batch: examples in a whole batch, over all processes.

    Raises:
        ValueError: the options do not fit the model, the optimiser, the precision or the number of processes.
    """

    def __init__(self, model: MixtureVAE, options: TrainingOptions, fabric: Fabric, batch: int):
        self.model, self.options, self.fabric = model, options, fabric
        self.trained = [p for p in model.parameters() if p.requires_grad]
        check_training(model, self.trained, options.optimizer, fabric.device, averaged=options.ema is not None)
        try_steps(self.trained, options.optimizer, options.schedule, options.schedule_every)
        made = options.optimizer(self.trained)
        check_clipping(made, fabric, options.clip)
        check_free_bits(options.free_bits, options.gradient, model, fabric.world_size)
        _check_parts(model, options.accumulate, batch, fabric.world_size)
        self.on_device = isinstance(model.posterior, Posterior) and bool(model.posterior.gathers)
        changing = None if options.active is None or self.on_device else model.posterior
        check_compile(options.compile, options.gradient, changing)
        whole = len(range(fabric.global_rank, batch, fabric.world_size))
        self.whole = -(-whole // options.accumulate)
        """Number of this process's examples in one part of a whole batch."""
        self.least = 1
        """Minimum number of examples that can be computed at once."""
        self.bare = Objective(
            model, options.bound, options.gradient, score_all=options.score_all, compile=options.compile,
            whole=self.whole, device=fabric.device, nats=options.free_bits,
        )  # fmt: skip
        self.objective, self.optimizer = fabric.setup(self.bare, made)
        self.base = base_rates(made)  # before a schedule changes them
        self.schedule = options.schedule(made) if options.schedule else None
        self.ema = RunningAverage(model, options.ema) if options.ema else None

    @property
    def kept(self) -> MixtureVAE:
        """The model that is validated and kept: the running average if there is one."""
        return cast(MixtureVAE, self.ema.module) if self.ema else self.model

    @property
    def rate(self) -> float | Tensor:
        """Learning rate of the first group of parameters; some optimisers hold it as a tensor."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, x: Tensor, noise: Tensor, active: Tensor | None, examples: int) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            x: this process's examples of the batch.
            noise: standard normal noise for them, (L, S, B, D).
            active: components to draw from; all by default.
            examples: examples of the batch over all processes.

        Returns:
            The sum of these examples' bounds, and the norm of the batch's gradient before clipping, on the device.
        """
        self.optimizer.zero_grad()
        count = max(1, min(self.options.accumulate, len(x) // self.least))
        parts = list(zip(x.tensor_split(count), noise.tensor_split(count, dim=2), strict=True))
        total = None
        for i, (some, its_noise) in enumerate(parts):
            with self.fabric.no_backward_sync(self.objective, enabled=i < count - 1):
                value = self.objective(Inputs(some, its_noise.contiguous(), active))  # with the strides of the trial
                self.fabric.backward(-value * (self.fabric.world_size / examples))
            total = value.detach().clone() if total is None else total + value.detach()
        norm = self._norm()
        self.optimizer.step()
        if self.ema:
            self.ema.update_parameters(self.model)
        if self.schedule is not None and self.options.schedule_every == "step":
            self.schedule.step()  # pyright: ignore[reportCallIssue]  (no ReduceLROnPlateau, which `try_steps` refuses)
        return cast(Tensor, total), norm

    def _norm(self) -> Tensor:
        """Norm of the gradient, which is clipped afterwards."""
        if self.options.clip is not None:
            clipped = self.fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
            )
            return cast(Tensor, clipped)
        gradients = [
            p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self.trained if p.grad is not None
        ]
        if not gradients:
            return torch.zeros((), device=self.fabric.device)
        norm = torch.nn.utils.get_total_norm(gradients)
        scaler: Any = getattr(self.fabric._precision, "scaler", None)  # noqa: SLF001  (Fabric shows it nowhere else)
        return norm if scaler is None else norm / scaler._scale  # noqa: SLF001  (`get_scale` would wait)

    def end_epoch(self, validation: float) -> float:
        """Let the schedule step if it does so once per epoch; returns the epoch's learning rate."""
        rate = float(self.rate)
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(-validation)
        elif self.schedule is not None and self.options.schedule_every == "epoch":
            self.schedule.step()
        return rate

    def state(self) -> Checkpoint:
        """Everything that a step changes."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "base": self.base,
        }

    def restore(self, saved: Checkpoint, where: str) -> None:
        """Go back to a saved state; `where` says where it is from, for messages."""
        load_tensors(self.model, saved["model"], where)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.schedule is not None and saved["schedule"] is not None:
            self.schedule.load_state_dict(saved["schedule"])
        amend(self.optimizer, self.schedule, saved["base"], self.base)
        if self.ema is not None and saved["ema"] is not None:
            self.ema.load_state_dict(saved["ema"])


def broken_part(state: Checkpoint) -> str | None:
    """What is NaN or infinite in a state, in words, if anything is."""
    return next((name for part, name in NAMED.items() if not all_finite(state[part])), None)


def _check_parts(model: MixtureVAE, accumulate: int, batch: int, world: int) -> None:
    """Refuse to compute a batch in parts if it has too few examples, or if its gradient would differ.

    Raises:
        ValueError: either is the case.
    """
    if accumulate == 1:
        return
    if accumulate > batch // world:
        raise ValueError(
            f"accumulate must be at most the examples of a batch on each device, {batch // world}; got {accumulate}"
        )
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise ValueError(
            f"accumulate {accumulate} would give BatchNorm the statistics of parts of a batch: use LayerNorm or "
            "GroupNorm, or leave accumulate at 1"
        )
