"""Errors between trainings: the variance over seeds, pooled over the configurations of an experiment."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

ONE_TRAINING = "one training: says nothing about the method"
"""What every table says of gains that have no error between trainings."""
K = TypeVar("K", bound=Hashable)


def student(degrees: int) -> float:
    """Half width of a 95 % interval in standard errors that have these degrees of freedom; NaN for none.

    Example:
        >>> from mixvae.reports import student
        >>> round(student(1), 2), round(student(8), 2), student(0)
        (12.71, 2.31, nan)
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975)) if degrees > 0 else math.nan


class Difference(NamedTuple):
    """Difference of two configurations' means, its standard error, and the half width of its 95 % interval."""

    mean: float
    se: float
    margin: float


@dataclass(frozen=True)
class BetweenTrainings(Generic[K]):
    """Means of configurations, and how much trainings of one configuration differ; made by `between_trainings`.

    Args:
        means: mean over the trainings of each configuration.
        counts: number of trainings of each.
        sd: pooled standard deviation s of single trainings; NaN without degrees of freedom.
        degrees: degrees of freedom of s.
    """

    means: Mapping[K, float]
    counts: Mapping[K, int]
    sd: float
    degrees: int

    def margin(self, of: K) -> float:
        """Half width of the 95 % interval of a configuration's mean, t·s/√n; NaN if unknown."""
        return student(self.degrees) * self.sd / math.sqrt(self.counts[of])

    def difference(self, new: K, old: K) -> Difference:
        """How far one configuration's mean exceeds another's, with the error s·√(1/n₁ + 1/n₂); NaN if unknown.

        Raises:
            ValueError: both are the same configuration.
        """
        if new == old:
            raise ValueError(f"a difference is of two configurations; got {new} twice")
        se = self.sd * math.sqrt(1 / self.counts[new] + 1 / self.counts[old])
        return Difference(self.means[new] - self.means[old], se, student(self.degrees) * se)


def between_trainings(values: Mapping[K, Sequence[float]]) -> BetweenTrainings[K]:
    """Analysis of variance of independent trainings: s² = Σ_c Σ_i (y_ci − ȳ_c)² / Σ_c (n_c − 1).

    Trainings are never paired, not even those of one seed: their initial weights depend on the configuration, so that
    one seed gives unrelated trainings. The variance is taken to be the same for all configurations.

    Args:
        values: one value per training, such as its mean bound in nats, by configuration; at least one each.

    Returns:
        Means, and the pooled standard deviation, in the unit of the values.

    Raises:
        ValueError: a configuration has no training.

    References:
        Fisher, Statistical Methods for Research Workers (1925), https://psychclassics.yorku.ca/Fisher/Methods/
        Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks (2021),
        https://arxiv.org/abs/2103.03098

    Example:
        >>> from mixvae.reports import between_trainings
        >>> between = between_trainings({"S = 1": [93.0, 93.5], "S = 2": [92.0, 92.5, 93.0]})
        >>> between.degrees, round(between.sd, 4)
        (3, 0.4564)
        >>> gain = between.difference("S = 2", "S = 1")
        >>> f"{gain.mean} ± {gain.margin:.2f}"
        '-0.75 ± 1.33'
    """
    arrays = {name: np.asarray(each, dtype=np.float64) for name, each in values.items()}
    if empty := [name for name, each in arrays.items() if not len(each)]:
        raise ValueError(f"every configuration needs at least one training; {empty[0]} has none: leave it out")
    degrees = sum(len(each) - 1 for each in arrays.values())
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in arrays.values())
    return BetweenTrainings(
        {name: float(each.mean()) for name, each in arrays.items()},
        {name: len(each) for name, each in arrays.items()},
        math.sqrt(squares / degrees) if degrees else math.nan,
        degrees,
    )
