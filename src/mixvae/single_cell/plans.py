"""scvi-tools' training plans with fused optimisers: S encoders have S times the weights to update."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scvi.train import SemiSupervisedTrainingPlan, TrainingPlan
from torch.optim import Adam, AdamW


class FusedTrainingPlan(TrainingPlan):
    """`scvi.train.TrainingPlan` whose Adam or AdamW updates each weight in one pass, equal up to rounding."""

    def _optimizer_creator_fn(self, optimizer_cls: type[Adam] | type[AdamW]) -> Callable[..., Adam | AdamW]:
        return partial(optimizer_cls, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True)


class FusedSemiSupervisedTrainingPlan(FusedTrainingPlan, SemiSupervisedTrainingPlan):
    """`scvi.train.SemiSupervisedTrainingPlan` with the same optimisers."""
