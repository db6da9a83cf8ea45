"""Evaluated runs side by side, with paired gains where possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixvae import figures, runs
from mixvae._tables import Row, Tabular
from mixvae.evaluation import Evaluation, mismatch, paired_gain
from mixvae.reports._pages import Column
from mixvae.runs import Run

COLUMNS = (
    Column("run", "run"),
    Column("S", "components", digits=0, about="mixture components"),
    Column("parameters", "parameters", digits=0),
    Column("−ELBO", "elbo", about="negative evidence lower bound, nats", negated=True),
    Column("MISELBO NLL", "nll_miselbo", about="negative log-likelihood bound by MISELBO, nats"),
    Column(
        "pooled NLL",
        "nll_pooled",
        "nll_pooled_se",
        about="tightest bound, nats; ± standard error over examples",
    ),
    Column(
        "gain", "gain", "gain_se", 3, "paired gain in pooled nats over the first row; ± standard error", signed=True
    ),
    Column("JSD", "jsd", digits=3, about="Jensen–Shannon divergence of the components, nats"),
    Column("effective S", "effective_components", digits=2, about="exp of the mean JSD"),
    Column("seconds", "train_seconds", digits=0, about="training time"),
)


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Evaluated runs side by side.

    Args:
        table: results of each run, ordered by data and number of components, with the paired gain in pooled nats over
            the first run on the same examples as `gain` and `gain_se`.
        evaluations: the evaluation behind each row.
    """

    table: list[Row]
    evaluations: list[Evaluation] = field(repr=False)

    @property
    def warnings(self) -> list[str]:
        """Reasons why the comparison is unfair."""
        rows, identities, notes = self.table, [e.identity for e in self.evaluations], []
        if any(mismatch(identity, identities[0]) for identity in identities):
            kinds = {"data checksums": "data", "splits": "split", "numbers of examples": "examples"}
            differing = [name for name, key in kinds.items() if len({getattr(i, key) for i in identities}) > 1]
            if len({identity.legacy for identity in identities}) > 1:
                differing.append("records (legacy results have none)")
            notes.append(
                f"The runs were evaluated on different examples, by their {' and '.join(differing)}: their numbers are "
                "not comparable, and gains are given only within the same examples."
            )
        if len({identity.total_draws for identity in identities}) > 1:
            drawn = ", ".join(f"{row['run']} {row['total_draws']}" for row in rows)
            notes.append(f"The runs were evaluated with different numbers of draws per example ({drawn}).")
        if legacy := [row["run"] for row in rows if row["legacy"]]:
            notes.append(
                f"{', '.join(legacy)}: legacy, from before results recorded the weights and data that they were made "
                "from; they pair with each other only."
            )
        for row in rows:
            if (row["pareto_k_unreliable"] or 0) > 0.05:
                notes.append(
                    f"{row['run']}: Pareto k̂ exceeds 0.7 for {row['pareto_k_unreliable']:.0%} of the examples; "
                    "its pooled bound is valid but not tight. Use more draws."
                )
        return notes

    @property
    def figure(self) -> Figure:
        """Paired gains with their standard errors."""
        return figures.gains(
            [(label(row, self.table), row["gain"], row["gain_se"]) for row in self.table if "gain" in row],
            "paired gain in pooled log-likelihood (nats)",
        )


def compare(paths: Sequence[str | Path | Run], evaluations: Sequence[Evaluation] | None = None) -> Comparison:
    """Put evaluated runs side by side, ordered by data and number of components.

    Args:
        paths: the runs.
        evaluations: an evaluation of each; by default the one that `runs.evaluation_of` returns.

    Raises:
        FileNotFoundError: a run has not been evaluated yet.
        ValueError: the runs are of different data.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.reports import compare
        >>> from mixvae.runs import train
        >>> flags = ["--data.limit=40", "--training.epochs=1"]
        >>> runs = [train(read("digits", [*flags, f"--model.components={s}"]), f"runs/S{s}") for s in (1, 2)]
        >>> evaluations = [run.evaluate(total_draws=10, examples=20) for run in runs]
        >>> [(row["run"], "gain" in row) for row in compare(runs, evaluations).table]
        [('S1', False), ('S2', True)]
    """
    opened = runs.open_runs(paths)
    evaluations = [runs.evaluation_of(run) for run in opened] if evaluations is None else evaluations
    rows = []
    for run, name, evaluation in zip(opened, _names([run.path for run in opened]), evaluations, strict=True):
        own = {"run": name, "path": str(run.path), "legacy": evaluation.identity.legacy}
        rows.append((evaluation, {**evaluation.results, **own}))
    by_data = {row["data"]: row["run"] for _, row in rows}
    if len(by_data) > 1:
        named = ", ".join(f"{data} ({run})" for data, run in by_data.items())
        raise ValueError(f"runs on different data cannot be compared: {named}; report each data set separately")
    rows.sort(key=lambda pair: (*_examples(pair[0]), pair[0].identity.components))
    firsts: list[Evaluation] = []
    for evaluation, row in rows:
        first = next((e for e in firsts if not mismatch(e.identity, evaluation.identity)), None)
        if first is None:
            firsts.append(evaluation)
        else:
            row["gain"], row["gain_se"] = paired_gain(evaluation, first, quiet=True)
    return Comparison([row for _, row in rows], [evaluation for evaluation, _ in rows])


def _examples(evaluation: Evaluation) -> tuple[Any, ...]:
    """Sorting key: what an evaluation is of."""
    identity = evaluation.identity
    return identity.legacy, identity.data or "", identity.split or "", identity.examples


def _names(paths: Sequence[Path]) -> list[str]:
    """Shortest distinct endings of paths: S2, or a/S2 and b/S2."""
    whole = [path.resolve().parts for path in paths]
    names = []
    for parts in whole:
        others = [other for other in whole if other != parts]
        enough = (n for n in range(1, len(parts)) if not any(other[-n:] == parts[-n:] for other in others))
        names.append("/".join(parts[-next(enough, len(parts)) :]))
    return names


def label(row: Row, rows: Sequence[Row]) -> str:
    """Shortest label that distinguishes a run from the others."""
    alone = sum(other["components"] == row["components"] for other in rows) == 1
    return f"S = {row['components']}" if alone else row["run"]
