"""Evaluated runs side by side: gains between configurations, or between single trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixvae import figures, runs
from mixvae._tables import Row, Tabular
from mixvae.evaluation import Evaluation, mismatch, paired_gain, split_gain
from mixvae.reports._between import ONE_TRAINING, is_decided, unequal_variances
from mixvae.reports._columns import COLUMNS, GAIN, SPLIT
from mixvae.reports._configurations import (
    PARTS,
    Member,
    by_configuration,
    configurations,
    draws_per_step,
    slack,
    splits,
    trust,
    unequal_draws,
)
from mixvae.reports._pages import NOT_TIGHT, UNKNOWN, Column, filled
from mixvae.runs import Run

POSTERIOR = "posterior"
"""The proposal whose NLL is the pooled one."""
AMORTISED = "{}: proposal posterior: the NLL is the pooled one."
"""What every table says about evaluations without refined proposals."""


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Evaluated runs side by side.

    Args:
        table: results of each run, ordered by data and number of components, with the paired gain in log p(x) over the
            first run on the same examples as `gain`, and its standard error over examples as `gain_se`: a gain of one
            training over another, which says nothing about the method. If both maximised the same bound, the gain in
            the ELBO is split as `gain_elbo` = `gain_model` + `gain_posterior`, each with its `_se`. `slack` is how far
            the bound that was trained lies below log p(x). `nll_tight` and `gain_tight` are False where log p(x) is not
            tight, `nll_reliable` and `gain_reliable` where the error is not to be relied on.
        evaluations: the evaluation behind each row.
        configurations: means over trainings that differ only in their seed, in the same order, with the gain over the
            first configuration on the same examples as `gain`, its standard error between trainings as `gain_se` and
            the half width of its 95 % interval as `gain_margin`, NaN if every configuration has one training; the split
            likewise.
        copies: runs that are copies of one training, with one seed, and count once.
    """

    table: list[Row]
    evaluations: list[Evaluation] = field(repr=False)
    configurations: list[Row] = field(default_factory=list, repr=False)
    copies: list[list[str]] = field(default_factory=list, repr=False)

    @property
    def title(self) -> str:
        """What is compared, and what the errors of gains mean."""
        gains = any("gain" in row for row in self.table)
        return f"Comparison; gain_se is over examples of {ONE_TRAINING}" if gains else "Comparison"

    @property
    def _shown(self) -> list[Row]:
        """What the command line shows for each run; the table has more."""
        shown = [column for column in filled(self.columns, self.table) if not column.page_only]
        return [{column.title: column.text(row) for column in shown} for row in self.table]

    @property
    def has_several(self) -> bool:
        """Whether a configuration was trained with several seeds, so that configurations can be compared."""
        return any(row["trainings"] > 1 for row in self.configurations)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the table of runs: without gains of single trainings if configurations have gains."""
        return tuple(column for column in COLUMNS if not (self.has_several and column in (GAIN, *SPLIT)))

    @property
    def has_gains(self) -> bool:
        """Whether there is a gain to show: of one configuration over another, or of one training over another."""
        return bool(self._gains)

    @property
    def _gains(self) -> list[Row]:
        """The rows whose gains are shown."""
        return [row for row in (self.configurations if self.has_several else self.table) if "gain" in row]

    @property
    def has_splits(self) -> bool:
        """Whether a gain can be split into a part of the model and one of the posterior."""
        return any("gain_elbo" in row for row in self._gains)

    @property
    def warnings(self) -> list[str]:
        """Reasons why the comparison is unfair, or says little."""
        rows, identities, notes = self.table, [e.identity for e in self.evaluations], []
        if any(math.isnan(row.get("gain_margin", math.nan)) for row in self._gains):
            notes.append(
                f"Each gain is of {ONE_TRAINING}. Its error is over examples, and another seed may change it by "
                "several times that: train every configuration with several seeds."
            )
        counts = {row["configuration"]: row["trainings"] for row in self.configurations}
        if self.has_several and (alone := [name for name, count in counts.items() if count == 1]):
            notes.append(
                f"One training of {', '.join(alone)}: its error is that of the other configurations. Trainings that "
                "start from different weights are of different configurations."
            )
        for names in self.copies:
            notes.append(f"{', '.join(names)}: the same recipe and seed, which is one training; the first counts.")
        if any(mismatch(identity, identities[0]) for identity in identities):
            kinds = {"data checksums": "data", "splits": "split", "numbers of examples": "examples"}
            differing = [name for name, key in kinds.items() if len({getattr(i, key) for i in identities}) > 1]
            if len({identity.legacy for identity in identities}) > 1:
                differing.append("records (legacy results have none)")
            notes.append(
                f"The runs were evaluated on different examples, by their {' and '.join(differing)}: their numbers are "
                "not comparable, and gains are given only within the same examples."
            )
        drawn = [identity.total_draws for identity in identities]  # rounded up to multiples of each S
        if max(drawn) - min(drawn) >= max(identity.components for identity in identities):
            drawn = ", ".join(f"{row['run']} {row['total_draws']}" for row in rows)
            notes.append(f"The runs were evaluated with different numbers of draws per example ({drawn}).")
        if legacy := [row["run"] for row in rows if row["legacy"]]:
            notes.append(
                f"{', '.join(legacy)}: legacy, from before results recorded the weights and data that they were made "
                "from; they pair with each other only."
            )
        if len({identity.proposal for identity in identities}) > 1:
            drawn = ", ".join(
                f"{row['run']} {identity.proposal}" for row, identity in zip(rows, identities, strict=True)
            )
            notes.append(f"The NLLs are by different proposals ({drawn}): part of the gain may be theirs.")
        if amortised := [r["run"] for r, i in zip(rows, identities, strict=True) if i.proposal == POSTERIOR]:
            notes.append(AMORTISED.format(", ".join(amortised)))
        if any("gain" in row and "gain_elbo" not in row for row in self._gains):
            notes.append(
                "Gains over a training of another bound are in log p(x) only: a training of another bound does not "
                "minimise KL(q(z|x) ‖ p(z|x)), so that its ELBO says little about its posterior."
            )
        drawn = {self._named(row): (row.get("draws_per_step"), row.get("draws_of_baseline")) for row in self._gains}
        notes += unequal_draws(drawn)
        if self.has_several:
            notes += unequal_variances(self.configurations)
        return [*notes, *looseness({row["run"]: row for row in rows})]

    @property
    def figure(self) -> Figure:
        """Gains with their errors: between trainings, or over examples if every configuration has one training."""
        rows = [(self._label(row), row["gain"], row[self._error("gain")]) for row in self._gains]
        decided = None
        if self.has_several:
            decided = [is_decided(row["gain"], row["gain_margin"], is_tight=row["gain_tight"]) for row in self._gains]
        return figures.gains(rows, "gain in log p(x) (nats)", self._bars, decided=decided)

    @property
    def splits(self) -> Figure:
        """Gains in the ELBO, split into the model's part and the posterior's."""
        rows = {
            self._label(row): [(row[f"gain_{part}"], row[self._error(f"gain_{part}")]) for part in PARTS]
            for row in self._gains
            if "gain_elbo" in row
        }
        return figures.splits(rows, self._bars)

    @property
    def _bars(self) -> str:
        """What the bars of figures are."""
        return (
            "95 % intervals between trainings"
            if self.has_several
            else f"standard error over examples of {ONE_TRAINING}"
        )

    def _error(self, name: str) -> str:
        """Key of the displayed error."""
        return f"{name}_margin" if self.has_several else f"{name}_se"

    def _label(self, row: Row) -> str:
        """Label of a gain in figures."""
        return self._named(row) + marked(row)

    def _named(self, row: Row) -> str:
        """Shortest name of a run, or of a configuration."""
        return label(row, *((self.configurations, "configuration") if self.has_several else (self.table, "run")))


def marked(row: Row, name: str = "gain") -> str:
    """What a figure says about a gain that is not known to be tight.

    Example:
        >>> from mixvae.reports import marked
        >>> marked({"gain_tight": False, "gain_reliable": True}), marked({"gain_tight": True}), marked({}, "elbo_gain")
        (' (not tight)', '', '')
    """
    tight = row.get(f"{name}_tight", True)
    if tight is True:
        return ""
    loose = NOT_TIGHT if tight is False else UNKNOWN
    return f" ({loose})" if row[f"{name}_reliable"] else f" ({loose};\nbar unreliable)"


def looseness(rows: Mapping[str, Row]) -> list[str]:
    """A note on the NLLs that are not tight and what to do about it, or none.

    Example:
        >>> from mixvae.reports import looseness
        >>> row = {"nll_tight": False, "nll_reliable": True, "nll_bias": 0.02, "pareto_k_unreliable": 0.03}
        >>> looseness({"S1": row})
        ['S1: not tight: estimated bias 0.020 nats, k̂ unreliable for 3% of the examples: use more draws.']
    """
    loose = {name: row for name, row in rows.items() if row["nll_tight"] is False}
    if not loose:
        return []
    up_to = "up to " if len(loose) > 1 else ""
    biases, shares = (
        [row[key] for row in loose.values() if row.get(key) is not None] for key in ("nll_bias", "pareto_k_unreliable")
    )
    why = [f"estimated bias {up_to}{max(biases):.3f} nats"] if biases else []
    why += [f"k̂ unreliable for {up_to}{max(shares):.0%} of the examples"] if shares else []
    reliable = all(row["nll_reliable"] for row in loose.values())
    errors = "" if reliable else ", so that errors marked ? are not to be relied on"
    refine = " or the refined proposal" if any(row.get("proposal") == POSTERIOR for row in loose.values()) else ""
    return [f"{', '.join(loose)}: not tight: {', '.join(why)}{errors}: use more draws{refine}."]


def compare(paths: Sequence[str | Path | Run], evaluations: Sequence[Evaluation] | None = None) -> Comparison:
    """Put evaluated runs side by side, ordered by data and number of components.

    Runs that differ only in their seed are trainings of one configuration; configurations are compared with the error
    between trainings, by `between_trainings`.

    Args:
        paths: the runs.
        evaluations: an evaluation of each; by default the one that `runs.evaluation_of` returns.

    Raises:
        FileNotFoundError: a run has not been evaluated yet.
        ValueError: the runs are on different data.

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
    members: list[Member] = []
    own: Row
    for run, name, evaluation in zip(opened, _names([run.path for run in opened]), evaluations, strict=True):
        own = {"run": name, "path": str(run.path), "legacy": evaluation.identity.legacy}
        own["draws_per_step"] = draws_per_step(run, evaluation.identity.components)
        own |= {"slack": slack(run, evaluation), **trust([evaluation.results], "nll")}
        members.append((run, evaluation, {**evaluation.results, **own}))
    by_data = dict(zip(data_sets(evaluations), (row["run"] for _, _, row in members), strict=True))
    if len(by_data) > 1:
        named = ", ".join(f"{data} ({run})" for data, run in by_data.items())
        raise ValueError(f"runs on different data cannot be compared: {named}; report each data set separately")
    members.sort(key=lambda member: (*_examples(member[1]), member[1].identity.components))
    groups: list[list[Member]] = []  # of the same examples
    for member in members:
        of = member[1].identity
        group = next((group for group in groups if not mismatch(group[0][1].identity, of)), None)
        if group is None:
            groups.append([member])
        else:
            _add_gain(member, group[0])
            group.append(member)
    grouped = [by_configuration(group) for group in groups]
    copies = [
        [row["run"] for _, _, row in same]
        for configuration in grouped for seeds in configuration.values() for same in seeds.values() if len(same) > 1
    ]  # fmt: skip
    return Comparison(
        [row for _, _, row in members],
        [evaluation for _, evaluation, _ in members],
        [row for configuration in grouped for row in configurations(configuration)],
        copies,
    )


def data_sets(evaluations: Sequence[Evaluation]) -> list[str]:
    """Name of each evaluation's data set: equal data have the name under which they are first met."""
    names: dict[Any, str] = {}
    return [names.setdefault(one.identity.data or one["data"], one["data"]) for one in evaluations]


def _add_gain(new: Member, old: Member) -> None:
    """Put the gain of a training over another into its row, and the split if both maximised the same bound."""
    row = new[2]
    row["gain"], row["gain_se"] = paired_gain(new[1], old[1], quiet=True)
    row["draws_of_baseline"] = old[2]["draws_per_step"]
    row |= trust([new[2], old[2]], "gain")
    if splits(new, old):
        parts = split_gain(new[1], old[1], quiet=True)
        for part in PARTS:
            row[f"gain_{part}"], row[f"gain_{part}_se"] = getattr(parts, part)


def _examples(evaluation: Evaluation) -> tuple[Any, ...]:
    """Sorting key: what was evaluated."""
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


def label(row: Row, rows: Sequence[Row], name: str = "run") -> str:
    """Shortest label that distinguishes a run, or a configuration, from the others."""
    alone = sum(other["components"] == row["components"] for other in rows) == 1
    return f"S = {row['components']}" if alone else row[name]
