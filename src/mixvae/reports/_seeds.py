"""Differences within seeds, where trainings of one seed are alike: a randomised block design with seeds as blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from mixvae.reports._between import Difference, K, between_trainings, difference_of

Trained = Mapping[int, float]
"""One value per training, by seed."""


@dataclass(frozen=True)
class WithinSeeds(Generic[K]):
    """Configurations compared within seeds; made by `within_seeds`.

    Args:
        values: one value per training, by configuration and seed.
        alike: p value of the F test that seeds do not matter; NaN if it cannot be tested.
        is_pooled: whether one variance is used for all configurations.
        effects: effect of each configuration, up to a common constant; and of each seed.
        covariance: of the effects, in units of the residual variance.
        projection: onto what the trainings determine of the effects.
        residual: residual variance.
        degrees: its degrees of freedom.
    """

    values: Mapping[K, Trained]
    alike: float
    is_pooled: bool
    effects: np.ndarray
    covariance: np.ndarray
    projection: np.ndarray
    residual: float
    degrees: int

    def difference(self, new: K, old: K) -> Difference:
        """How far one configuration exceeds another on the same seeds, with its error; NaN if unknown.

        By least squares with the residual variance of all configurations, or as the mean of the differences on the
        seeds that both have, with their own variance, where variances differ.
        """
        if not self.is_pooled:
            common = self.values[new].keys() & self.values[old].keys()
            return _paired([self.values[new][seed] - self.values[old][seed] for seed in common])
        contrast = np.zeros(len(self.effects))
        names = list(self.values)
        contrast[names.index(new)], contrast[names.index(old)] = 1, -1
        if not np.allclose(self.projection @ contrast, contrast):  # no seeds connect the two
            return difference_of(math.nan, math.nan, 0)
        squared = float(contrast @ self.covariance @ contrast) * self.residual
        return difference_of(float(contrast @ self.effects), math.sqrt(squared), self.degrees)


def _paired(differences: Sequence[float]) -> Difference:
    """Mean of differences on the same seeds."""
    count = len(differences)
    if count < 2:
        return difference_of(float(np.mean(differences)) if count else math.nan, math.nan, 0)
    return difference_of(float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(count), count - 1)


def within_seeds(values: Mapping[K, Trained]) -> WithinSeeds[K]:
    """Analysis of variance of a randomised block design: y_cs = μ_c + b_s + ε_cs, c a configuration and s a seed.

    One seed orders the examples alike, and may make trainings alike, whatever the configuration. What they share
    cancels from a difference within seeds, whose error is then smaller than that of unrelated trainings by
    `between_trainings`; if they share nothing, it is much the same, with fewer degrees of freedom. The F test of all
    b_s = 0 tells whether they do. Configurations need not all have the same seeds. Variances are tested as
    `between_trainings` does; where they differ, each difference is that of a paired t test.

    Args:
        values: one value per training, by configuration and seed.

    Returns:
        Differences within seeds in the unit of the values, and the p value of the F test.

    Raises:
        ValueError: a configuration has no training.

    References:
        Fisher, The Design of Experiments (1935), https://archive.org/details/in.ernet.dli.2015.502684

    Example:
        >>> from mixvae.reports import within_seeds
        >>> within = within_seeds({"S = 1": {0: 93.0, 1: 95.0, 2: 91.0}, "S = 2": {0: 92.6, 1: 94.5, 2: 90.3}})
        >>> gain = within.difference("S = 2", "S = 1")
        >>> f"{gain.mean:+.2f} ± {gain.margin:.2f}", within.alike < 0.05
        ('-0.53 ± 0.38', True)
    """
    is_pooled = between_trainings({key: list(own.values()) for key, own in values.items()}).is_pooled
    seeds = sorted({seed for own in values.values() for seed in own})
    trainings = [(i, seeds.index(seed), y) for i, own in enumerate(values.values()) for seed, y in own.items()]
    design = np.zeros((len(trainings), len(values) + len(seeds)))
    for row, (configuration, seed, _) in enumerate(trainings):
        design[row, [configuration, len(values) + seed]] = 1
    observed = np.array([y for *_, y in trainings], dtype=np.float64)
    shift = observed.mean()  # a constant that all share leaves differences as they are
    inverse, rank = np.linalg.pinv(design), int(np.linalg.matrix_rank(design))
    effects = inverse @ (observed - shift)
    left = float(np.sum((observed - shift - design @ effects) ** 2))
    alone = math.fsum(float(np.sum((each - each.mean()) ** 2)) for each in map(_array, values.values()))
    degrees, blocks = len(trainings) - rank, rank - len(values)
    residual = left / degrees if degrees else math.nan
    return WithinSeeds(
        values, _f_test(alone - left, blocks, left, degrees), is_pooled, effects, inverse @ inverse.T,
        inverse @ design, residual, degrees,
    )  # fmt: skip


def _array(own: Trained) -> np.ndarray:
    return np.array(list(own.values()), dtype=np.float64)


def _f_test(explained: float, more: int, left: float, degrees: int) -> float:
    """The p value of an F test from two sums of squares; NaN if nothing is left to test with."""
    from scipy.special import fdtrc

    if more < 1 or degrees < 1 or not left > 0:
        return math.nan
    return float(fdtrc(more, degrees, max(explained, 0.0) / more / (left / degrees)))
