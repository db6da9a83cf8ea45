"""Errors between trainings: analysis of variance, or Welch's where the variances differ; Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

LEVEL = 0.05
"""p value below which a difference between two configurations counts as different from zero."""
UNEQUAL = 0.1
"""p value below which variances count as different: the larger level, as a miss costs more than a needless Welch."""
FEWEST = 3
"""Trainings that a configuration needs for its variance to be compared, as two deviate equally from their mean."""
ALIKE = 0.14
"""Trainings repeat others if their deviations from the mean are the same up to this share: √(2 − 2r) for r = 0.99."""
MANY = 5
"""Trainings that are needed to tell a repetition from chance, which has r ≥ 0.99 with probability 0.0006 at most."""
ONE_TRAINING = "one training: says nothing about the method"
"""What every table says about gains without an error between trainings."""
K = TypeVar("K", bound=Hashable)


def student(degrees: float) -> float:
    """Half width of a 95 % interval in standard errors with these degrees of freedom; NaN for none.

    Example:
        >>> from mixvae.reports import student
        >>> round(student(1), 2), round(student(8), 2), student(0)
        (12.71, 2.31, nan)
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - LEVEL / 2)) if degrees > 0 else math.nan


class Difference(NamedTuple):
    """Difference between two configurations' means, and its error; NaN where there is none.

    Args:
        mean: the difference.
        se: its standard error.
        margin: half width of its 95 % interval.
        degrees: degrees of freedom of the error.
        p: two-sided p value of Student's t, for a difference of zero.
    """

    mean: float
    se: float
    margin: float
    degrees: float
    p: float


@dataclass(frozen=True)
class BetweenTrainings(Generic[K]):
    """Means of configurations, and how much trainings of one configuration differ; made by `between_trainings`.

    Args:
        means: mean over the trainings of each configuration.
        counts: number of trainings of each.
        variances: variance s_c² of the trainings of each; NaN for a single training.
        homogeneity: p value of Levene's test that the variances are equal; NaN if it cannot be tested.
        repeated: configurations whose trainings repeat those of an earlier one, so that they say nothing new about how
            much trainings differ, and count in no pooled variance.
    """

    means: Mapping[K, float]
    counts: Mapping[K, int]
    variances: Mapping[K, float]
    homogeneity: float
    repeated: Collection[K] = ()

    @property
    def is_pooled(self) -> bool:
        """Whether one variance is used for all configurations: equality was not rejected, or cannot be tested."""
        return not self.homogeneity < UNEQUAL

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the pooled variance."""
        return sum(count - 1 for key, count in self.counts.items() if key not in self.repeated)

    @property
    def sd(self) -> float:
        """Pooled standard deviation s of single trainings; NaN without degrees of freedom."""
        own = {key: n - 1 for key, n in self.counts.items() if n > 1 and key not in self.repeated}
        squares = math.fsum(n * self.variances[key] for key, n in own.items())
        return math.sqrt(squares / self.degrees) if self.degrees else math.nan

    def margin(self, of: K) -> float:
        """Half width of the 95 % interval of a configuration's mean, t·s/√n; NaN if unknown."""
        se, degrees = self._error(of, pooled=self.is_pooled)
        return student(degrees) * se

    def difference(self, new: K, old: K, *, pooled: bool | None = None) -> Difference:
        """How far one configuration's mean exceeds another's, with its error; NaN if unknown.

        The error is s·√(1/n₁ + 1/n₂) with the pooled degrees of freedom, or Welch's √(s₁²/n₁ + s₂²/n₂) with
        Satterthwaite's.

        Args:
            new: a configuration.
            old: the configuration that is subtracted from it.
            pooled: whether one variance is used for all configurations; by default decided by the test of equal
                variances.

        Raises:
            ValueError: both are the same configuration.
        """
        if new == old:
            raise ValueError(f"a difference needs two configurations; got {new} twice")
        se, degrees = self._error(new, old, pooled=self.is_pooled if pooled is None else pooled)
        return difference_of(self.means[new] - self.means[old], se, degrees)

    def _error(self, *of: K, pooled: bool) -> tuple[float, float]:
        """Standard error of the sum or difference of means, and its degrees of freedom."""
        if pooled:
            return self.sd * math.sqrt(math.fsum(1 / self.counts[key] for key in of)), self.degrees
        squares = [self.variances[key] / self.counts[key] for key in of]
        total = math.fsum(squares)
        if not total > 0:  # trainings that never differ, or a single one without a variance
            return math.sqrt(total), self.degrees
        return math.sqrt(total), total**2 / math.fsum(
            square**2 / (self.counts[key] - 1) for square, key in zip(squares, of, strict=True)
        )


def difference_of(mean: float, se: float, degrees: float) -> Difference:
    """A difference with its standard error, by Student's t."""
    return Difference(mean, se, student(degrees) * se, degrees, _p_value(mean, se, degrees))


def _p_value(mean: float, se: float, degrees: float) -> float:
    """Two-sided p value of Student's t; NaN without an error, also where no two trainings of a configuration differ."""
    from scipy.special import stdtr

    if not se > 0 or not degrees > 0:
        return math.nan
    return float(2 * stdtr(degrees, -abs(mean) / se))


def is_decided(gain: float, margin: float, *, p: float | None = None, is_tight: bool | None = True) -> bool:
    """Whether a difference is not zero, whatever its sign; never if it has no error or is not tight.

    Args:
        gain: the difference.
        margin: half width of its 95 % interval between trainings; NaN if there is one training of each.
        p: p value that decides instead of the margin, corrected for the number of claims; None to use the margin.
        is_tight: whether both sides are tight; where one is merely a bound on what is compared, a difference may be due
            to the bounds. None if that is unknown.

    Example:
        >>> from mixvae.reports import is_decided
        >>> is_decided(0.5, 0.4), is_decided(0.5, 0.4, p=0.06), is_decided(0.5, 0.4, is_tight=None)
        (True, False, False)
    """
    if is_tight is not True or not margin > 0:
        return False
    return abs(gain) > margin if p is None else p < LEVEL


def between_trainings(values: Mapping[K, Sequence[float]]) -> BetweenTrainings[K]:
    """Analysis of variance of independent trainings: s² = Σ_c Σ_i (y_ci − ȳ_c)² / Σ_c (n_c − 1).

    Trainings are never paired, not even those of one seed. One seed orders the examples alike, gives networks of the
    same shape the same initial weights, and may make trainings alike: the error of a difference is then too large, and
    `within_seeds` has another.

    The variance is assumed to be the same for all configurations unless Levene's test rejects that at 10 %; then each
    difference is Welch's, from its two configurations alone. Deviations are from the mean: with those from the median
    (Brown and Forsythe), five trainings of each reject almost nothing. Few trainings have little power in any case: if
    one of four configurations has three times the standard deviation of the others, five trainings of each detect it in
    two of three experiments, and the resulting 95 % intervals cover in 91 %; with twenty, both are right.

    Configurations that share what decides a value, such as a frozen decoder, repeat each other's trainings: they would
    count as independent ones, and errors would be too small. One whose trainings, at least five in the same order of
    seeds, deviate from their mean as those of an earlier one (r = 0.99, the same spread) counts neither in the variance
    nor in the test.

    Args:
        values: one value per training, such as its mean bound in nats, by configuration; at least one each.

    Returns:
        Means, variances, and the p value of equal variances, in the unit of the values.

    Raises:
        ValueError: a configuration has no training.

    References:
        Fisher, Statistical Methods for Research Workers (1925), https://psychclassics.yorku.ca/Fisher/Methods/
            Welch, The generalization of 'Student's' problem (1947), https://doi.org/10.2307/2332510
        Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks (2021),
        https://arxiv.org/abs/2103.03098

    Example:
        >>> from mixvae.reports import between_trainings
        >>> between = between_trainings({"S = 1": [93.0, 93.5], "S = 2": [92.0, 92.5, 93.0]})
        >>> between.degrees, round(between.sd, 4), between.is_pooled
        (3, 0.4564, True)
        >>> gain = between.difference("S = 2", "S = 1")
        >>> f"{gain.mean} ± {gain.margin:.2f}"
        '-0.75 ± 1.33'
    """
    arrays = {name: np.asarray(each, dtype=np.float64) for name, each in values.items()}
    if empty := [name for name, each in arrays.items() if not len(each)]:
        raise ValueError(f"every configuration needs at least one training; {empty[0]} has none: leave it out")
    shifted = {name: each - each[0] for name, each in arrays.items()}  # exactly zero where none differs
    repeated = _repeated(shifted)
    return BetweenTrainings(
        {name: float(arrays[name][0] + each.mean()) for name, each in shifted.items()},
        {name: len(each) for name, each in shifted.items()},
        {name: float(each.var(ddof=1)) if len(each) > 1 else math.nan for name, each in shifted.items()},
        _homogeneity([each for name, each in shifted.items() if name not in repeated]),
        repeated,
    )


def _repeated(values: Mapping[K, np.ndarray]) -> frozenset[K]:
    """The configurations whose trainings repeat those of an earlier one."""
    first: list[np.ndarray] = []
    repeated = set[K]()
    for name, each in values.items():
        if len(each) < MANY:
            continue
        far = each - each.mean()
        if any(len(a) == len(far) and np.linalg.norm(a - far) < ALIKE * np.linalg.norm(a) for a in first):
            repeated.add(name)
        else:
            first.append(far)
    return frozenset(repeated)


def _homogeneity(groups: Sequence[np.ndarray]) -> float:
    """The p value of Levene's test over configurations with enough trainings; NaN if there are fewer than two.

    It is the F test of an analysis of variance of |y_ci − ȳ_c|. Also NaN if no two trainings differ.
    """
    from scipy.special import fdtrc

    far = [abs(each - each.mean()) for each in groups if len(each) >= FEWEST]
    if len(far) < 2 or not any(each.any() for each in far):
        return math.nan
    means, grand = [each.mean() for each in far], np.concatenate(far).mean()
    between, within = len(far) - 1, sum(map(len, far)) - len(far)
    effect = sum(len(each) * (mean - grand) ** 2 for each, mean in zip(far, means, strict=True)) / between
    rest = sum(((each - mean) ** 2).sum() for each, mean in zip(far, means, strict=True)) / within
    return float(fdtrc(between, within, effect / rest)) if rest else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of a family of m p values: max over i ≤ j of min(1, (m − i + 1)·p_(i)), in ascending order.

    The chance that any true null hypothesis of the family has a corrected value below α is at most α, however the
    tests depend on each other.

    Args:
        p_values: the p values of the family; NaN, for a contrast that could not be tested, counts in m and stays NaN.

    References:
        Holm, A simple sequentially rejective multiple test procedure (1979), https://www.jstor.org/stable/4615733

    Example:
        >>> from mixvae.reports import holm
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [math.nan] * len(p_values), 0.0
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def unequal_variances(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What to say about a table's errors if variances differ between configurations: a note or none.

    Args:
        rows: rows that hold the p values of equal variances, as NAME_homogeneity.

    Example:
        >>> from mixvae.reports import unequal_variances
        >>> unequal_variances([{"nll_homogeneity": 0.6, "elbo_homogeneity": 0.001}])
        ["Variances differ between configurations (Levene's test: elbo p = 0.001): their errors are Welch's."]
    """
    suffix = "_homogeneity"
    found: dict[str, float] = {}
    for row in rows:
        for key, p in row.items():
            if key.endswith(suffix) and p is not None and p < UNEQUAL:
                name = key.removesuffix(suffix)
                found[name] = min(p, found.get(name, p))
    named = ", ".join(f"{name} p = {p:.2g}" for name, p in found.items())
    note = f"Variances differ between configurations (Levene's test: {named}): their errors are Welch's."
    return [note] if found else []
