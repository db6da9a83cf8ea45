"""Claims about pairs of variants, and their contrasts: primary ones by Holm's correction, all others exploratory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixvae._tables import Row
from mixvae.reports import Column, Trained, between_trainings, holm, trust, within_seeds
from mixvae.reproduce.findings import EXPLORATORY, PRIMARY, Gap, Verdict, judge

Key = tuple[str, int]
"""Model and size of a variant."""
ESTIMATED = ("log_px", "posterior")
"""Metrics that are estimates, tight or not: log p(x), and the ELBO less it. Bounds are compared as bounds."""
KIND = (
    f"{PRIMARY}: written into the plan beforehand, and decided by p Holm; {EXPLORATORY}: any other, whose p is "
    "uncorrected and decides nothing by itself"
)
CONTRASTS = (
    Column("contrast", "contrast"),
    Column("of", "metric"),
    Column("kind", "kind", about=KIND),
    Column(
        "difference ± between trainings", "difference", "margin", 3, signed=True, trust="difference",
        error_about="half width of the 95 % interval between trainings, uncorrected",
    ),
    Column("df", "degrees_of_freedom", digits=1,
           about="degrees of freedom of the error; trainings that repeat another model's count once"),
    Column("p", "p", digits=4, positive=True, about="two-sided p value of Student's t between trainings"),
    Column("p Holm", "p_holm", digits=4, positive=True,
           about="the same, Holm-corrected over the experiment's primary contrasts"),
    Column("p Welch", "p_welch", digits=4, positive=True,
           about="uncorrected, by the variances of the two configurations alone"),
    Column("Levene p", "homogeneity", digits=3, positive=True,
           about="of equal variances; below 0.1 the error is Welch's"),
    Column(
        "within seeds ± between trainings", "within", "within_margin", 3, signed=True, trust="difference",
        about="difference on the seeds that both have; exploratory",
        error_about="half width of the 95 % interval by a paired t test, uncorrected",
    ),
    Column("p within seeds", "within_p", digits=4, positive=True, about="of that difference, two-sided, uncorrected"),
    Column("r of seeds", "seeds_alike", signed=True, about="correlation of both over seeds: how alike those are"),
    Column("draws per step", "draws_per_step", about="decoder evaluations per example and step S·L of both"),
)  # fmt: skip
"""Columns of the table of contrasts."""


@dataclass(frozen=True)
class Question:
    """A claim about pairs of variants.

    Args:
        claim: the claim.
        pairs: (better, worse) by model and size.
        metric: log_px, a bound (pooled, miselbo, elbo), a score of `mixvae.analysis` on [mean, std], or anything else
            that the plan measures.
        primary: whether the experiment was made to decide it, so that its contrasts are Holm-corrected; otherwise it is
            exploratory.
    """

    claim: str
    pairs: Sequence[tuple[Key, Key]]
    metric: str = "log_px"
    primary: bool = False

    @property
    def kind(self) -> str:
        """Primary or exploratory, in a word."""
        return PRIMARY if self.primary else EXPLORATORY


def about(questions: Sequence[Question], variants: Collection[Key]) -> list[Question]:
    """The claims about some of a plan's variants; a claim that loses contrasts says how many are left.

    Example:
        >>> from mixvae.reproduce.contrasts import Question, about
        >>> steps = [(("m", 2), ("m", 1)), (("m", 3), ("m", 2))]
        >>> about([Question("Every step gains.", steps)], {("m", 1), ("m", 2)})[0].claim
        'Every step gains. (1 of its 2 contrasts)'
    """
    kept = []
    for question in questions:
        pairs = [(new, old) for new, old in question.pairs if new in variants and old in variants]
        part = f" ({len(pairs)} of its {len(question.pairs)} contrasts)" if len(pairs) < len(question.pairs) else ""
        kept += [replace(question, pairs=pairs, claim=question.claim + part)] if pairs else []
    return kept


def primary_contrasts(questions: Sequence[Question]) -> int:
    """Number of contrasts that are corrected together."""
    return sum(len(question.pairs) for question in questions if question.primary)


def left_out(family: int, questions: Sequence[Question]) -> list[str]:
    """A note on primary contrasts that count in Holm's correction and are not among these claims, or none."""
    missing = family - primary_contrasts(questions)
    return [f"p Holm counts {missing} primary contrasts of models that were left out."] if missing > 0 else []


def contrast_rows(
    questions: Sequence[Question],
    values: Mapping[str, Mapping[Key, Trained]],
    draws: Mapping[Key, int],
    family: int = 0,
    results: Mapping[Key, Sequence[Mapping[str, Any]]] | None = None,
) -> list[list[Row]]:
    """The contrasts of every claim, one row per pair.

    Args:
        questions: the claims of an experiment.
        values: value of every training by the metrics of the claims, by variant, and by seed.
        draws: decoder evaluations per example and step, by variant.
        family: number of primary contrasts of the whole plan, by which p values are corrected though some are left out.
        results: results of the evaluations of every variant, which say whether log p(x) is tight.
    """
    compared = {metric: _Compared(metric, each, results or {}) for metric, each in values.items()}
    found = [
        [
            {**compared[question.metric].row(new, old), "kind": question.kind,
             "draws_per_step": f"{draws[new]}, {draws[old]}"}
            for new, old in question.pairs
        ]
        for question in questions
    ]  # fmt: skip
    primary = [row for rows in found for row in rows if row["kind"] == PRIMARY]
    left_out = [math.nan] * (family - len(primary))
    for row, corrected in zip(primary, holm([*(row["p"] for row in primary), *left_out]), strict=False):
        row["p_holm"] = corrected
    return found


class _Compared:
    """All trainings of an experiment by one metric, compared between trainings and within seeds."""

    def __init__(self, metric: str, values: Mapping[Key, Trained], results: Mapping[Key, Sequence[Mapping[str, Any]]]):
        self.metric, self.results = metric, results if metric in ESTIMATED else {}
        self.values = values
        self.between = between_trainings({key: list(own.values()) for key, own in values.items()})

    def row(self, new: Key, old: Key) -> Row:
        """One contrast, not yet corrected."""
        gain, welch = self.between.difference(new, old), self.between.difference(new, old, pooled=False)
        within, alike = within_seeds(self.values[new], self.values[old])
        row: Row = {
            "contrast": over(new, old), "metric": self.metric,
            "difference": gain.mean, "margin": gain.margin, "se": gain.se, "degrees_of_freedom": gain.degrees,
            "p": gain.p, "p_welch": welch.p,
            "homogeneity": self.between.homogeneity, "within": within.mean, "within_margin": within.margin,
            "within_p": within.p, "seeds_alike": alike,
        }  # fmt: skip
        if self.results:
            row |= trust([*self.results[new], *self.results[old]], "difference")
        return row


def verdicts(questions: Sequence[Question], contrasts: Sequence[Sequence[Row]]) -> list[Verdict]:
    """The claims, judged by their contrasts."""
    return [
        judge(question.claim, [_gap(row) for row in rows], primary=question.primary)
        for question, rows in zip(questions, contrasts, strict=True)
    ]


def _gap(row: Row) -> Gap:
    """A contrast as a difference that should be positive according to its claim."""
    what = f"{row['contrast']} ({row['metric']})"
    is_tight = row.get("difference_tight", True)
    return Gap(what, row["difference"], row["margin"], row.get("p_holm"), is_tight=is_tight)


def corrected(contrasts: Sequence[Sequence[Row]], metric: str) -> dict[str, float]:
    """Holm-corrected p values of the primary contrasts of a metric, by contrast."""
    return {
        row["contrast"]: row["p_holm"]
        for rows in contrasts
        for row in rows
        if row["metric"] == metric and "p_holm" in row
    }


def drawn_by(pairs: Sequence[tuple[Key, Key]], draws: Mapping[Key, int]) -> dict[str, tuple[int, int]]:
    """Draws per step of both sides of every comparison, by its name.

    Example:
        >>> from mixvae.reproduce.contrasts import drawn_by
        >>> drawn_by([(("m", 2), ("m", 1))], {("m", 1): 1, ("m", 2): 2})
        {'m S = 2 over m S = 1': (2, 1)}
    """
    return {over(new, old): (draws[new], draws[old]) for new, old in pairs}


def over(new: Key, old: Key) -> str:
    """A comparison in words."""
    return f"{named(new)} over {named(old)}"


def named(key: Key) -> str:
    """A variant in words."""
    return f"{key[0]} S = {key[1]}"
