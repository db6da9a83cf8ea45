"""scvi-tools' training plans with fused optimisers, as S encoders have S times the weights, and with several draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan
from torch.optim import Adam, AdamW

from mixvae._failures import at_least


class FusedTrainingPlan(TrainingPlan):
    """`scvi.train.TrainingPlan` whose Adam or AdamW updates each weight in one pass, equal up to rounding."""

    def _optimizer_creator_fn(self, optimizer_cls: type[Adam] | type[AdamW]) -> Callable[..., Adam | AdamW]:
        return partial(optimizer_cls, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True)


class MixtureTrainingPlan(FusedTrainingPlan):
    """The plan of `MixtureSCVI`, whose loss averages over several draws from every component if requested.

    Args:
        *args: what `scvi.train.TrainingPlan` takes.
        draws_per_component: draws L from each component per cell and step, so that the decoder is evaluated S·L times.
        **kwargs: what `scvi.train.TrainingPlan` takes.

    Raises:
        ValueError: the number of draws is below one.
    """

    def __init__(self, *args: Any, draws_per_component: int = 1, **kwargs: Any):
        at_least(1, draws_per_component=draws_per_component)
        super().__init__(*args, **kwargs)
        self.draws_per_component = draws_per_component

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Pass cells through the module."""
        return super().forward(*args, inference_kwargs={"n_samples": self.draws_per_component}, **kwargs)


class FusedSemiSupervisedTrainingPlan(FusedTrainingPlan, SemiSupervisedTrainingPlan):
    """`scvi.train.SemiSupervisedTrainingPlan` with the same optimisers."""
