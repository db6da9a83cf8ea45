"""What a run was made from, and how to reproduce it, in words for the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mixvae import config
from mixvae._tables import Row, counted
from mixvae.config import Config
from mixvae.evaluation import Evaluation
from mixvae.reports._pages import MISSING
from mixvae.runs import Run

WHERE = ("device", "processes", "threads", "strategy", "save_every")
"""Settings that change no result beyond rounding."""
FOLLOWING = "model.tensors."
"""Settings that follow from others: shown in full, but never as a difference."""
WRAPPERS = ("init_args", "object", "partial", "tuple")
"""Keys with which a model's description gives the kind of a value."""
UNRECORDED = "not recorded"
"""Placeholder for a fact that a run or an evaluation does not record."""
TIGHT = {True: "tight", False: "not tight", None: "tightness unknown: too few draws, or not recorded"}


def settings(run: Run) -> dict[str, str]:
    """All settings of a run by dotted name, as text: those of its recipe and its data, and where it was trained.

    Learning rate, weight decay and clipping appear once more for every epoch from which they were changed.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.reports import settings
        >>> from mixvae.runs import train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/S1")
        >>> {name: text for name, text in settings(run).items() if name in ("seed", "model.prior.class", "data.limit")}
        {'data.limit': '40', 'model.prior.class': 'mixvae.StandardNormal', 'seed': '0'}
    """
    identity, recorded = run.recipe.identity, run.manifest
    runtime = recorded.get("runtime", {})
    data = runtime.get("data", {})
    held: dict[str, Any] = {"data": {**(data.get("origin") or {"name": data.get("name")}), **identity.get("data", {})}}
    held |= {name: part for name, part in identity.items() if name != "data"}
    held["training"] = {**held.get("training", {}), **recorded["goal"]}
    found = dict(_flat(held))
    for entry in run.recipe.journal:
        later = f" from epoch {entry['epoch'] + 1} on" if entry["epoch"] else ""
        changed = {f"training.{name}": value for name, value in entry.items() if name not in ("epoch", "step")}
        found |= {f"{name}{later}": value for name, value in changed.items()}
    found |= {f"training.{name}": runtime[name] for name in WHERE if name in runtime}
    return {name: _text(value) for name, value in found.items()}


def differing(each: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Settings in which runs differ, one row each: its name, and its text in every run.

    Args:
        each: settings by run.

    Example:
        >>> from mixvae.reports import differing
        >>> differing({"S1": {"seed": "0", "model.components": "1"}, "S2": {"seed": "0", "model.components": "2"}})
        [['model.components', '1', '2']]
    """
    names = dict.fromkeys(name for held in each.values() for name in held if not name.startswith(FOLLOWING))
    rows = ([name, *(held.get(name, MISSING) for held in each.values())] for name in names)
    return [row for row in rows if len(set(row[1:])) > 1]


def reproduction(run: Run, evaluation: Evaluation, row: Row) -> dict[str, Any]:
    """Commands that train and evaluate a run again, notes on them, and what identifies the result."""
    recorded = run.manifest
    runtime, path = recorded.get("runtime", {}), str(run.path)
    commands, note = (
        [],
        "With the same kind of CPU, the same versions and number of threads, it gives the same weights bit for bit.",
    )
    if recorded.get("config") is None:
        unnamed = (recorded.get("model") or {}).get("unnamed")
        built = f" ({unnamed})" if unnamed else ": `mixvae.load` builds the model again"
        note = (
            "Built in Python, so no command trains it again: call `mixvae.fit(model, data, …, run=…)` with the model "
            f"and the settings below{built}."
        )
    else:
        commands.append(shlex.join(["mixvae", "train", *_flags(run), "--out", path]))
    if len(run.recipe.journal) > 1:
        note += " It was resumed with some settings changed: its settings say from which epoch on."
    of = evaluation.identity
    if not of.legacy and of.split is not None:
        whole = runtime.get("data", {}).get("sizes", {}).get(of.split) == of.examples
        words = ["mixvae", "evaluate", path, "--draws-per-component", of.draws_per_component, "--split", of.split]
        words += [] if whole else ["--examples", of.examples]
        commands.append(shlex.join(map(str, [*words, "--seed", of.seed, "--proposal", of.proposal])))
    commands.append(shlex.join(["mixvae", "report", path]))
    facts = {
        "trained with": _versions(runtime.get("versions", {}), runtime.get("git_commit")),
        "evaluated with": _versions(row["versions"], row.get("git_commit")),
        "machine": runtime.get("machine"),
        "recipe SHA-256": run.recipe.sha256,
        "data SHA-256": row.get("data_sha256"),
        "weights SHA-256": of.weights,
        "observations SHA-256": of.observations,
    }
    return {"commands": commands, "note": note, "facts": {name: text or UNRECORDED for name, text in facts.items()}}


def facts(run: Run, row: Row) -> dict[str, str]:
    """How reliable a run's results are, and how its training ended."""
    proposal = "posterior" if row.get("proposal") == "posterior" else "refined proposal"
    bias = f"; estimated bias {row['nll_bias']:.4f} nats" if row.get("nll_bias") is not None else ""
    found = {"NLL": f"{TIGHT[row.get('nll_tight')]}, by draws from the {proposal}{bias}"}
    if (error := row.get("nll_mc_se")) is None:
        error = MISSING
    elif row["nll_reliable"]:
        error = f"{error:.4f} nats (NLL)"
    else:
        error = f"{error:.4f}? nats (NLL; not to be relied on, since k̂ is unreliable)"
    found["Monte-Carlo standard error"] = error
    if (kl := row.get("kl_posterior")) is not None:
        se = f" ± {row['kl_posterior_se']:.3f}" if row.get("kl_posterior_se") is not None else ""
        found["KL(q(z|x) ‖ p(z|x))"] = f"{kl:.3f}{se} nats, log p(x) − ELBO"
    found["effective sample size"] = f"{row['ess']:.0f} of {counted(row['total_draws'], 'draw')}"
    mean = MISSING if row["pareto_k"] is None else f"{row['pareto_k']:.2f} on average"
    share = row.get("pareto_k_unreliable")
    found["Pareto k̂, the weights' tail"] = mean + (
        "" if share is None else f", unreliable for {100 * share:.0f} % of the examples"
    )
    found["active units"] = f"{row['active_units']}, latents whose posterior mean varies over the examples"
    last = run.recipe.identity.get("training", {}).get("keep") == "last"
    found["best epoch"] = f"{row['best_epoch']} of {row['epochs']}" + ("; the last one's weights are kept" * last)
    goal = run.manifest["goal"]
    if run.epoch < goal["epochs"]:
        early = f"stopped early, after {counted(goal['patience'], 'epoch')} without a better one"
        ended = early if run.is_done else "not finished"
        found["best epoch"] += f"; {ended} of at most {goal['epochs']}"
    return found | {"evaluation seed": str(row["seed"])}


def _flags(run: Run) -> list[str]:
    """Flags that configure a run: what differs from the defaults."""
    content, defaults = run.manifest["config"], asdict(Config())
    content = {**content, "training": {**content["training"], **run.manifest["goal"]}}
    options: dict[str, Any] = {}
    for group, value in content.items():
        if isinstance(value, dict):
            options |= {f"{group}.{n}": v for n, v in value.items() if v != defaults.get(group, {}).get(n, v)}
        elif value != defaults.get(group):
            options[group] = value
    options.pop("model.shape", None)  # taken from the data
    return config.flags(options)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted name; names that say only how a value is written are left out."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        value = value[0] if len(value) == 1 else dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, name if key in WRAPPERS else f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _text(value: Any) -> str:
    """A setting in readable form."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _text(value[0]) if len(value) == 1 else f"[{', '.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, Mapping):
        return ", ".join(_text(part) for part in value.values()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _versions(versions: Mapping[str, str], commit: str | None) -> str:
    """Versions of packages, and the commit."""
    named = [f"{name} {version}" for name, version in versions.items()]
    return ", ".join([*(named or [f"versions {UNRECORDED}"]), f"commit {commit or UNRECORDED}"])
