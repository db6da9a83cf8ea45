"""Trainings of one configuration with several seeds: their means, and gains with the error between trainings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixvae._tables import Row
from mixvae.evaluation import MOST_UNRELIABLE, Evaluation
from mixvae.files import canonical, checksum
from mixvae.reports._between import between_trainings
from mixvae.runs import Run

ELBO, POOLED = "mixvae.bounds.elbo", "mixvae.bounds.pooled"
"""Names of these bounds in recipes."""
MODEL = "model"
"""The part of a gain that is the gain in log p(x), whose error is of all configurations."""
PARTS = ("elbo", MODEL, "posterior")
"""The gain in the ELBO and its parts."""
AVERAGED = (
    "parameters", "elbo", "nll", "nll_miselbo", "nll_pooled", "kl_posterior", "slack", "jsd", "effective_components",
    "train_seconds", "draws_per_step",
)  # fmt: skip
"""Results that are averaged over trainings."""

Member = tuple[Run, Evaluation, Row]
"""A training: its run, its evaluation, and its row of the table of runs."""


def configuration_of(run: Run) -> str:
    """Checksum of everything that a training was made from except its seed, and of how long it was to train."""
    recipe = run.recipe
    identity = {name: value for name, value in recipe.identity.items() if name != "seed"}
    ended = None if run.is_done else run.epoch
    goal = run.manifest["goal"]
    return checksum(canonical({"identity": identity, "journal": recipe.journal, "goal": goal, "ended": ended}))


def objective(run: Run, evaluation: Evaluation) -> tuple[Any, ...] | None:
    """What a training maximised, in a form that can be compared; None if unknown.

    The number of draws is part of it, unless it is the ELBO, whose value neither draws nor random subsets change. For
    the pooled bound, the logarithm of a mean over all draws, it is the number over all components together. So are the
    final weight of the KL part and its free nats.
    """
    made = run.recipe.identity.get("training", {})
    if (bound := made.get("bound")) is None:
        return None
    kl = _kl(run)
    if bound == ELBO and (made["score_all"] or made["active"] is None):
        return bound, None, *kl
    if bound == POOLED:
        return bound, draws_per_step(run, evaluation.identity.components), made["score_all"], *kl
    return bound, made["draws_per_component"], made["active"], made["score_all"], *kl


def _kl(run: Run) -> tuple[tuple[str, float], ...]:
    """Settings under which a training maximised something other than its bound."""
    made = run.recipe.identity.get("training", {})
    return tuple((name, made[name]) for name in ("beta", "free_bits") if name in made)


def slack(run: Run, evaluation: Evaluation) -> float | None:
    """How far the bound that was trained lies below log p(x), in nats; None if it was not evaluated.

    Bounds with importance weights depend on the number of draws: they count only if it equals that of the training.
    With another weight of the KL part, or free nats of it, no bound was trained.
    """
    trained = objective(run, evaluation)
    if trained is None or _kl(run) or not isinstance(trained[0], str):
        return None
    room, _, name = trained[0].rpartition(".")
    held = room == "mixvae.bounds" and name in evaluation.bounds and "log_px" in evaluation.bounds
    each = evaluation.identity.draws_per_component
    if not held or trained[1] not in (None, evaluation.identity.total_draws if trained[0] == POOLED else each):
        return None
    return float((evaluation.bounds["log_px"] - evaluation.bounds[name]).mean())


def draws_per_step(run: Run, components: int) -> int | None:
    """Decoder evaluations per example and step of a training of S components, S·L; None if unknown."""
    made = run.recipe.identity.get("training", {})
    each = made.get("draws_per_component")
    return None if each is None else each * (made["active"] or components)


def unequal_draws(draws: Mapping[str, tuple[float | None, float | None]]) -> list[str]:
    """A note on gains at unequal draws per step, or none.

    Args:
        draws: draws per step of both, by what is compared; None if unknown.

    Example:
        >>> from mixvae.reports import unequal_draws
        >>> unequal_draws({"S = 2 over S = 1": (2, 1), "S = 1 with two draws over S = 1": (2, 2)})
        ['Compared at unequal draws per step (S·L): S = 2 over S = 1 (2, 1): a gain may be that of the draws.']
    """
    unequal = [
        f"{name} ({new:g}, {old:g})"
        for name, (new, old) in draws.items()
        if new is not None and old is not None and new != old
    ]
    note = f"Compared at unequal draws per step (S·L): {'; '.join(unequal)}: a gain may be that of the draws."
    return [note] if unequal else []


def splits(new: Member, old: Member) -> bool:
    """Whether the gain of a training over another can be split: they maximised the same bound, and have its parts."""
    kinds = [objective(run, evaluation) for run, evaluation, _ in (new, old)]
    return all(parts(evaluation) for _, evaluation, _ in (new, old)) and kinds[0] is not None and kinds[0] == kinds[1]


def parts(of: Evaluation) -> dict[str, np.ndarray]:
    """ELBO, log p(x) (the model) and −KL(q(z|x) ‖ p(z|x)) (the posterior) of every example; empty if one is unknown."""
    if not {"elbo", "log_px"} <= of.bounds.keys():
        return {}
    elbo, log_px = of.bounds["elbo"], of.bounds["log_px"]
    return dict(zip(PARTS, (elbo, log_px, elbo - log_px), strict=True))


def trust(results: Sequence[Mapping[str, Any]], name: str) -> Row:
    """Whether a value computed from these results is tight, and whether its error can be relied on.

    Example:
        >>> from mixvae.reports import trust
        >>> trust([{"tight": True}, {"tight": False, "pareto_k_unreliable": 0.3}], "gain")
        {'gain_tight': False, 'gain_reliable': False}
    """
    tight = [result.get("tight") for result in results]
    unreliable = max((result.get("pareto_k_unreliable") or 0 for result in results), default=0)
    known = False if False in tight else None if None in tight else True
    return {f"{name}_tight": known, f"{name}_reliable": unreliable <= MOST_UNRELIABLE}


def by_configuration(members: Sequence[Member]) -> dict[str, dict[int, list[Member]]]:
    """Trainings by configuration and seed; copies of a training have the same seed."""
    grouped: dict[str, dict[int, list[Member]]] = {}
    for member in members:
        run = member[0]
        grouped.setdefault(configuration_of(run), {}).setdefault(run.recipe.identity["seed"], []).append(member)
    return grouped


def configurations(grouped: Mapping[str, Mapping[int, Sequence[Member]]]) -> Iterator[Row]:
    """One row per configuration of one set of examples: means over trainings, and gains over the first one.

    Args:
        grouped: trainings by configuration and seed; of several with the same seed, the first counts.
    """
    trainings = {name: [copies[0] for copies in seeds.values()] for name, seeds in grouped.items()}
    between = between_trainings(
        {
            name: [float(e.bounds["log_px"].mean(dtype=np.float64)) for _, e, _ in each]
            for name, each in trainings.items()
        }
    )
    first = next(iter(trainings))
    alike = {name: each for name, each in trainings.items() if all(splits(one, trainings[first][0]) for one in each)}
    split = {
        part: between
        if part == MODEL
        else between_trainings(
            {key: [float(parts(e)[part].mean(dtype=np.float64)) for _, e, _ in each] for key, each in alike.items()}
        )
        for part in PARTS
    }
    for name, each in trainings.items():
        rows = [row for _, _, row in each]
        row: Row = {
            "configuration": rows[0]["run"] + (f" and {len(rows) - 1} more" if len(rows) > 1 else ""),
            "components": each[0][1].identity.components,
            "trainings": len(rows),
            "seeds": list(grouped[name]),
            "runs": [row["run"] for row in rows],
            **{key: _mean([row.get(key) for row in rows]) for key in AVERAGED},
            "nll_margin": between.margin(name),
            "degrees_of_freedom": between.degrees,
            "log_px_homogeneity": between.homogeneity,
            **trust(rows, "nll"),
        }
        if name != first:
            gain = between.difference(name, first)
            row |= {"gain": gain.mean, "gain_se": gain.se, "gain_margin": gain.margin, "gain_p": gain.p}
            row["degrees_of_freedom"] = gain.degrees
            row["draws_of_baseline"] = trainings[first][0][2].get("draws_per_step")
            row |= trust([*rows, *(row for _, _, row in trainings[first])], "gain")
        if name != first and name in alike and first in alike:
            for part, values in split.items():
                gain = values.difference(name, first)
                row |= {f"gain_{part}": gain.mean, f"gain_{part}_se": gain.se, f"gain_{part}_margin": gain.margin}
                row[f"{part}_homogeneity"] = values.homogeneity
        yield row


def _mean(values: Sequence[Any]) -> float | None:
    """Mean, or None if a value is unknown."""
    return None if None in values else math.fsum(values) / len(values)
