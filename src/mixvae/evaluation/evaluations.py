"""Evaluations that know what they were made from, and the one place where two of them are paired."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mixvae.evaluation.estimate import Estimate, standard_error

PROPOSAL = "posterior"
"""What evaluation draws from."""


@dataclass(frozen=True)
class Identity:
    """What an evaluation was made from; None is unknown.

    Args:
        data: checksum of the data set.
        split: train, validation or test.
        examples: number of examples, the first ones of the split.
        observations: checksum of exactly what was scored.
        components: number of components S.
        draws_per_component: draws L of each.
        seed: seed of the draws.
        proposal: what draws come from.
        weights: checksum of the weights.
        recipe: hash of the recipe that the weights were trained by.
        legacy: whether it comes from before evaluations had an identity.
    """

    data: str | None
    split: str | None
    examples: int
    observations: str | None
    components: int
    draws_per_component: int
    seed: int
    proposal: str = PROPOSAL
    weights: str | None = None
    recipe: str | None = None
    legacy: bool = False

    @property
    def draws(self) -> int:
        """Draws per example, L·S."""
        return self.components * self.draws_per_component

    @property
    def key(self) -> str:
        """Name of its file: split, examples, draws, seed and proposal."""
        return f"{self.split}-{self.examples}-draws{self.draws}-seed{self.seed}-{self.proposal}"


@dataclass(frozen=True)
class Evaluation:
    """Bounds of every example under one model, and what they were made from.

    Args:
        identity: what it was made from.
        bounds: values of every example by name, (N,) each: elbo, miselbo, pooled and more, in nats.
        results: means, errors and everything else that `results.json` holds.
    """

    identity: Identity
    bounds: Mapping[str, np.ndarray] = field(repr=False)
    results: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        """One of the results by its name."""
        return self.results[name]


def identity_of(estimate: Estimate) -> Identity:
    """What is known of an estimate that was not made from a run."""
    return Identity(
        None,
        None,
        len(estimate.elbo),
        estimate.observations,
        estimate.components,
        estimate.draws_per_component,
        estimate.seed,
    )


class Gain(NamedTuple):
    """A paired gain in nats and its standard error over examples."""

    mean: float
    se: float


def differences(
    new: Evaluation | Estimate, old: Evaluation | Estimate, bound: str = "pooled", *, quiet: bool = False
) -> np.ndarray:
    """Gain of one model over another on every example of the same data, (N,), in nats.

    Args:
        new: evaluation of the one.
        old: evaluation of the other.
        bound: elbo, miselbo or pooled.
        quiet: do not warn of different draws or proposals.

    Raises:
        ValueError: they are of different data, splits or examples, or only one of them knows what it was made from.
    """
    (one, values), (other, others) = _parts(new, bound), _parts(old, bound)
    if refused := mismatch(one, other):
        raise ValueError(f"a paired gain needs the same examples; these evaluations are of {refused}")
    for name in ("draws", "proposal"):
        if not quiet and getattr(one, name) != getattr(other, name):
            pair = f"{getattr(one, name)} and {getattr(other, name)}"
            warnings.warn(f"the evaluations differ in {name}, {pair}: part of the gain may be theirs", stacklevel=3)
    return values - others


def paired_gain(
    new: Evaluation | Estimate, old: Evaluation | Estimate, bound: str = "pooled", *, quiet: bool = False
) -> Gain:
    """Mean gain in nats of one model over another on the same examples, and its standard error over examples.

    The error says how much the gain would vary with other examples, not with another training.

    Args:
        new: evaluation of the one.
        old: evaluation of the other.
        bound: elbo, miselbo or pooled.
        quiet: do not warn of different draws or proposals.

    Raises:
        ValueError: they are of different data, splits or examples, or only one of them knows what it was made from.
    """
    gain = differences(new, old, bound, quiet=quiet)
    return Gain(float(gain.mean()), standard_error(gain))


def mismatch(one: Identity, other: Identity) -> str:
    """Why two evaluations are not of the same examples, in words; empty if they are."""
    if one.legacy != other.legacy:
        return (
            "which one is legacy, without a record of what it was made from: legacy results pair with each other only"
        )
    words = {"data": "data sets", "split": "splits", "examples": "numbers of examples", "observations": "observations"}
    for name, what in words.items():
        pair = getattr(one, name), getattr(other, name)
        if None not in pair and pair[0] != pair[1]:
            return f"different {what} ({_short(pair[0])} and {_short(pair[1])})"
    unknown = (one.data is None or other.data is None) and (one.observations is None or other.observations is None)
    return "unknown examples" if unknown and not one.legacy else ""


def _parts(of: Evaluation | Estimate, bound: str) -> tuple[Identity, np.ndarray]:
    """Identity of an evaluation, and a bound of every example."""
    if isinstance(of, Estimate):
        return identity_of(of), getattr(of, bound)
    return of.identity, of.bounds[bound]


def _short(value: object) -> str:
    """The beginning of a checksum, other values whole."""
    text = str(value)
    return text[:8] if len(text) == 64 else text


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for NaN, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def to_json(identity: Identity) -> dict[str, Any]:
    """An identity as JSON holds it."""
    return asdict(identity)
