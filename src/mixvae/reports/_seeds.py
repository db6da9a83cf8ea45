"""Differences within seeds, beside those between unrelated trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mixvae.reports._between import Difference, difference_of

Trained = Mapping[int, float]
"""One value per training, by seed."""
ROUNDING = 1e-13
"""Differences are the same if they differ by no more than this share of the values."""


def within_seeds(new: Trained, old: Trained) -> tuple[Difference, float]:
    """How far one configuration exceeds another on the seeds that both have, and how alike trainings of a seed are.

    One seed orders the examples alike, and may make trainings alike, whatever the configuration. What they share
    cancels from a difference within seeds, whose error is then smaller than that of `between_trainings`, which takes
    trainings to be unrelated. This is the paired t test; no variance is pooled, as those of differences vary.

    Args:
        new: a value of every training of one configuration, by seed.
        old: the same of the configuration that is subtracted from it.

    Returns:
        The difference in the unit of the values, with its error from n seeds and n − 1 degrees of freedom, and the
        correlation of the two configurations over seeds; NaN where fewer than two seeds, or no variation, leave one
        unknown.

    References:
        Student, The Probable Error of a Mean (1908), https://doi.org/10.1093/biomet/6.1.1

    Example:
        >>> from mixvae.reports import within_seeds
        >>> gain, alike = within_seeds({0: 92.6, 1: 94.5, 2: 90.3}, {0: 93.0, 1: 95.0, 2: 91.0})
        >>> f"{gain.mean:+.2f} ± {gain.margin:.2f}", f"{alike:.2f}"
        ('-0.53 ± 0.38', '1.00')
    """
    seeds = sorted(new.keys() & old.keys())
    pair = np.array([[values[seed] for seed in seeds] for values in (new, old)], dtype=np.float64)
    differences, count = pair[0] - pair[1], len(seeds)
    if not count:
        return difference_of(math.nan, math.nan, 0), math.nan
    if np.ptp(differences) <= ROUNDING * abs(pair).max():
        differences = np.full(count, differences[0])
    deviations = differences - differences[0]
    mean = float(differences[0] + deviations.mean())
    if count < 2:
        return difference_of(mean, math.nan, 0), math.nan
    varies = np.ptp(pair, axis=1).min() > ROUNDING * abs(pair).max()
    alike = float(np.asarray(np.corrcoef(pair))[0, 1]) if varies else math.nan
    return difference_of(mean, float(deviations.std(ddof=1)) / math.sqrt(count), count - 1), alike
