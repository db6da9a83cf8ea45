"""What was measured on the trainings of an experiment, by variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixvae import runs
from mixvae.evaluation import Evaluation, differences
from mixvae.reports import BetweenTrainings, between_trainings, objective, parts
from mixvae.reproduce.contrasts import Key

ALL = "mean and std"
"""The features whose scores are compared."""
Scores = Mapping[str, Mapping[str, list[float]]]
"""Scores by features and metric, over repetitions."""


@dataclass(frozen=True)
class Cell:
    """Measurements of one training.

    Args:
        run: the training.
        evaluation: its evaluation.
        scores: how well classes are found in its latents, if measured.
        more: other measurements by name.
    """

    run: runs.Run
    evaluation: Evaluation
    scores: Scores = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> tuple[Any, ...] | None:
        """What the training maximised; None if unknown."""
        return objective(self.run, self.evaluation)

    def value(self, metric: str) -> float:
        """Mean of a bound or part of the ELBO over test examples, of a score over repetitions, or another value."""
        if metric in self.more:
            return self.more[metric]
        bounds = {**self.evaluation.bounds, **parts(self.evaluation)}
        values = bounds[metric] if metric in bounds else self.scores[ALL][metric]
        return float(np.mean(values, dtype=np.float64))  # published values are in float32


Measured = Mapping[Key, Sequence[Cell]]
"""Measurements of every training, by variant."""


def between(measured: Measured, metric: str) -> BetweenTrainings[Key]:
    """Trainings of every model by a bound, or by a score, as averages over test examples or repetitions."""
    return between_trainings({key: [cell.value(metric) for cell in cells] for key, cells in measured.items()})


def by_example(new: Sequence[Cell], old: Sequence[Cell], values: Callable[[Evaluation], np.ndarray]) -> np.ndarray:
    """Difference of the means of two models' trainings on every test example, (N,).

    Raises:
        ValueError: they were not evaluated on the same examples.
    """
    for cell in (*new, *old):
        differences(cell.evaluation, old[0].evaluation, quiet=True)  # refuses other examples
    return average(new, values) - average(old, values)


def average(cells: Sequence[Cell], values: Callable[[Evaluation], np.ndarray]) -> np.ndarray:
    """Mean over trainings of a bound of every test example, (N,)."""
    return np.asarray([values(cell.evaluation) for cell in cells], dtype=np.float64).mean(0)


def scores_of(run: runs.Run) -> Scores:
    """Scores by features and metric on the test split; for a legacy run, those that it came with."""
    if not run.is_legacy:
        return runs.representation(run, split="test").scores
    stored = runs.representations(run)
    if not stored:
        raise ValueError(f"{run.path} is legacy and has no representation.json: choose another folder")
    return stored[0][1].scores


def worst(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The largest of the known values; None if there are none."""
    return max((result[key] for result in results if result.get(key) is not None), default=None)


def mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean of a result over trainings."""
    return float(np.mean([result[key] for result in results]))
