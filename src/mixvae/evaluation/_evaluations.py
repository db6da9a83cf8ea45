"""Evaluations that know what they were made from, and the only place where two of them are paired."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mixvae._tables import Row, Tabular, counted
from mixvae.evaluation._estimate import Estimate, standard_error

POSTERIOR = "posterior"
"""The proposal of evaluations that draw from the posterior only."""
BOUNDS = ("log_px", "pooled", "miselbo", "elbo")
"""Bounds on log p(x) whose gain can be computed."""


@dataclass(frozen=True)
class Identity:
    """What an evaluation was made from; None is unknown.

    Args:
        data: checksum of the data set.
        split: train, validation or test.
        examples: number of examples, the first ones of the split.
        observations: checksum of exactly what was scored.
        components: number of components S.
        draws_per_component: draws L per component.
        seed: seed of the draws.
        proposal: where the draws of the headline come from, refined or posterior.
        weights: checksum of the weights.
        recipe: hash of the recipe that the weights were trained with.
        legacy: whether it predates the identities of evaluations.
        source: checksum of the code of the user's own classes in the model, if there are any.

    Example:
        >>> from mixvae.evaluation import Identity
        >>> identity = Identity("3f…", "test", 400, None, components=4, draws_per_component=25, seed=0)
        >>> identity.total_draws, identity.key
        (100, 'test-400-draws100-seed0-posterior')
    """

    data: str | None
    split: str | None
    examples: int
    observations: str | None
    components: int
    draws_per_component: int
    seed: int
    proposal: str = POSTERIOR
    weights: str | None = None
    recipe: str | None = None
    legacy: bool = False
    source: str | None = None

    def record(self) -> dict[str, Any]:
        """What is stored; earlier versions knew no source."""
        return {name: value for name, value in asdict(self).items() if name != "source" or value is not None}

    @property
    def total_draws(self) -> int:
        """Draws per example, L·S."""
        return self.components * self.draws_per_component

    @property
    def key(self) -> str:
        """Name of its file: split, examples, draws, seed and proposal."""
        return f"{self.split}-{self.examples}-draws{self.total_draws}-seed{self.seed}-{self.proposal}"


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """Bounds of every example under one model, and what they were made from.

    Args:
        identity: what it was made from.
        bounds: values of every example by name, (N,) each: log_px, elbo, miselbo, pooled and more, in nats.
        results: means, errors and everything else that `results.json` holds.

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> evaluation = Evaluation(identity, {"log_px": np.array([-2.0, -4.0])}, {"nll": 3.0})
        >>> evaluation["nll"]
        3.0
        >>> evaluation.table
        [{'bound': 'log_px', 'nats': -3.0, 'se': 1.0}]
    """

    identity: Identity
    bounds: Mapping[str, np.ndarray] = field(repr=False)
    results: Mapping[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """Which examples, and how many draws."""
        of = self.identity
        return (
            f"{type(self).__name__} of {counted(of.examples, f'{of.split or str()} example'.strip())} in nats: "
            f"{counted(of.components, 'component')}, {counted(of.draws_per_component, 'draw')} of each, seed {of.seed}"
        )

    @property
    def table(self) -> list[Row]:
        """One row per bound on log p(x): its mean over examples and its standard error."""
        return [
            {"bound": name, "nats": float(self.bounds[name].mean()), "se": standard_error(self.bounds[name])}
            for name in BOUNDS
            if name in self.bounds
        ]

    def __getitem__(self, name: str) -> Any:
        """One of the results by name."""
        return self.results[name]


def identity_of(estimate: Estimate) -> Identity:
    """What is known about an estimate that was not made from a run."""
    return Identity(
        None,
        None,
        len(estimate.elbo),
        estimate.observations,
        estimate.components,
        estimate.draws_per_component,
        estimate.seed,
        proposal=estimate.proposal,
    )


class Gain(NamedTuple):
    """A paired gain in nats and its standard error over examples."""

    mean: float
    se: float


class SplitGain(NamedTuple):
    """A paired gain of the ELBO in nats, and its two parts, each with its own standard error over examples.

    Args:
        elbo: Δ ELBO, the sum of the parts.
        model: Δ log p(x), of a better model.
        posterior: −Δ KL(q(z|x) ‖ p(z|x)), of a better posterior.
    """

    elbo: Gain
    model: Gain
    posterior: Gain


def differences(
    new: Evaluation | Estimate, old: Evaluation | Estimate, bound: str = "log_px", *, quiet: bool = False
) -> np.ndarray:
    """Gain of one model over another on every example of the same data, (N,), in nats.

    Args:
        new: evaluation of the new model.
        old: evaluation of the old model.
        bound: log_px, pooled, miselbo or elbo.
        quiet: do not warn about different draws or proposals.

    Raises:
        ValueError: they are not known to cover the same data, split and examples, only one of them is legacy, or one
            has no such bound.

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity, differences
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> old = Evaluation(identity, {"log_px": np.array([-2.0, -4.0])}, {})
        >>> new = Evaluation(identity, {"log_px": np.array([-1.0, -3.5])}, {})
        >>> differences(new, old).tolist()
        [1.0, 0.5]
    """
    return _differences(new, old, bound, quiet=quiet)


def paired_gain(
    new: Evaluation | Estimate, old: Evaluation | Estimate, bound: str = "log_px", *, quiet: bool = False
) -> Gain:
    """Mean gain in nats of one model over another on the same examples, and its standard error over examples.

    The error reflects the choice of examples, not the randomness of training.

    Args:
        new: evaluation of the new model.
        old: evaluation of the old model.
        bound: log_px, pooled, miselbo or elbo.
        quiet: do not warn about different draws or proposals.

    Raises:
        ValueError: they are not known to cover the same data, split and examples, only one of them is legacy, or one
            has no such bound.

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity, paired_gain
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> old = Evaluation(identity, {"log_px": np.array([-2.0, -4.0])}, {})
        >>> new = Evaluation(identity, {"log_px": np.array([-1.0, -3.5])}, {})
        >>> paired_gain(new, old)
        Gain(mean=0.75, se=0.25)
    """
    return _gain(_differences(new, old, bound, quiet=quiet))


def split_gain(new: Evaluation | Estimate, old: Evaluation | Estimate, *, quiet: bool = False) -> SplitGain:
    """Split the gain in the ELBO into the model's gain and the posterior's.

    ELBO = log p(x) − KL(q(z|x) ‖ p(z|x)), so Δ ELBO = Δ log p(x) + (−Δ KL) on every example. The parts are correlated,
    so each of the three errors is computed from its own differences; the sum's error does not follow from the parts'
    errors.

    The split is meaningful for two trainings that maximised the same bound. Training on an importance-weighted bound
    does not minimise this KL: compare it with others only by `paired_gain`. Where `log_px` is not tight, its slack
    moves from one part to the other, and a warning says so.

    Args:
        new: evaluation of the new model.
        old: evaluation of the old model.
        quiet: do not warn about different draws or proposals, or about a `log_px` that is not tight.

    Returns:
        The three gains, in nats.

    Raises:
        ValueError: they are not known to cover the same data, split and examples, only one of them is legacy, or one
            has no `log_px` or no `elbo`.

    References:
        Cremer et al., Inference Suboptimality in Variational Autoencoders (2018), https://arxiv.org/abs/1801.03558

    Example:
        >>> import numpy as np
        >>> from mixvae.evaluation import Evaluation, Identity, split_gain
        >>> identity = Identity("3f…", "test", 2, None, components=4, draws_per_component=25, seed=0)
        >>> old = Evaluation(identity, {"log_px": np.array([-2.0, -4.0]), "elbo": np.array([-3.0, -5.0])}, {})
        >>> new = Evaluation(identity, {"log_px": np.array([-1.0, -3.5]), "elbo": np.array([-1.5, -4.0])}, {})
        >>> gain = split_gain(new, old)
        >>> gain.elbo, gain.model, gain.posterior
        (Gain(mean=1.25, se=0.25), Gain(mean=0.75, se=0.25), Gain(mean=0.5, se=0.0))
    """
    model = _differences(new, old, "log_px", quiet=quiet)
    elbo = _differences(new, old, "elbo", quiet=True)
    loose = [name for name, of in (("new", new), ("old", old)) if _summary(of).get("tight") is False]
    if loose and not quiet:
        warnings.warn(
            f"log_px of the {' and the '.join(loose)} evaluation is not tight, so that the model's gain may pass for "
            "the posterior's, or the reverse: evaluate with more draws",
            stacklevel=2,
        )
    return SplitGain(_gain(elbo), _gain(model), _gain(elbo - model))


def _summary(of: Evaluation | Estimate) -> Mapping[str, Any]:
    return of.summary() if isinstance(of, Estimate) else of.results


def _gain(each: np.ndarray) -> Gain:
    return Gain(float(each.mean()), standard_error(each))


def _differences(
    new: Evaluation | Estimate, old: Evaluation | Estimate, bound: str, *, quiet: bool = False
) -> np.ndarray:
    (one, values), (other, others) = _parts(new, bound), _parts(old, bound)
    if refused := mismatch(one, other):
        raise ValueError(f"a paired gain needs the same examples; these evaluations are of {refused}")
    rounding = max(one.components, other.components) - 1  # equal budgets, rounded up to a multiple of each S
    differing = {
        "total_draws": abs(one.total_draws - other.total_draws) > rounding,
        "proposal": one.proposal != other.proposal,
    }
    for name in (name for name, differs in differing.items() if differs and not quiet):
        pair = f"{getattr(one, name)} and {getattr(other, name)}"
        warnings.warn(f"the evaluations differ in {name}, {pair}: part of the gain may be theirs", stacklevel=3)
    return values - others


def mismatch(one: Identity, other: Identity) -> str:
    """Why two evaluations are not known to cover the same examples, in words; empty if they do.

    Examples are the same if their observations have the same checksum, or if they are the same number of first examples
    of the same split of the same data. Legacy evaluations, whose record has gaps, pair with each other where nothing on
    record differs.

    Example:
        >>> from mixvae.evaluation import Identity, mismatch
        >>> one = Identity("3f…", "test", 400, None, components=4, draws_per_component=25, seed=0)
        >>> other = Identity("3f…", "validation", 400, None, components=4, draws_per_component=25, seed=0)
        >>> mismatch(one, other)
        'different splits (test and validation)'
    """
    if one.legacy != other.legacy:
        return (
            "different kinds: one is legacy, without a record of what it was made from, and legacy results pair with "
            "each other only"
        )
    words = {"data": "data sets", "split": "splits", "examples": "numbers of examples", "observations": "observations"}
    for name, what in words.items():
        pair = getattr(one, name), getattr(other, name)
        if None not in pair and pair[0] != pair[1]:
            return f"different {what} ({_short(pair[0])} and {_short(pair[1])})"
    observed = None not in (one.observations, other.observations)
    placed = None not in (one.data, other.data, one.split, other.split)
    return "" if observed or placed or one.legacy else "unknown examples"


def _parts(of: Evaluation | Estimate, bound: str) -> tuple[Identity, np.ndarray]:
    """Identity of an evaluation, and one of its bounds for every example."""
    if not isinstance(of, Evaluation | Estimate):
        raise TypeError(f"a paired gain needs what `evaluate` returns; got {type(of).__name__}")
    identity, bounds = (identity_of(of), of.arrays()) if isinstance(of, Estimate) else (of.identity, of.bounds)
    known = [name for name in BOUNDS if name in bounds]
    if bound not in known:
        raise ValueError(f"bound must be one that the evaluation holds: {', '.join(known)}; got {bound}")
    if bounds[bound].shape != (identity.examples,):
        raise ValueError(
            f"{bound} has the shape {bounds[bound].shape}, not one value for each of {identity.examples} examples: "
            "evaluate again"
        )
    return identity, bounds[bound]


def _short(value: object) -> str:
    """The beginning of a checksum, other values whole."""
    text = str(value)
    return text[:8] if len(text) == 64 else text
