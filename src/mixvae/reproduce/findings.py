"""What an experiment found: numbers, pictures, and whether the paper's claims hold on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from mixvae import config
from mixvae._failures import at_least
from mixvae._tables import Row, Tabular
from mixvae.evaluation import Evaluation
from mixvae.progress import Progress
from mixvae.reports import NOT_TIGHT, ONE_TRAINING, UNKNOWN, Column, is_decided
from mixvae.sweeps import Runner

PRIMARY, EXPLORATORY = "primary", "exploratory"
"""Kinds of claims: written into the plan beforehand and corrected for their number, or any other."""


def unknown(what: str, name: str, known: Sequence[str] | dict[str, Any]) -> ValueError:
    """Error for a mistyped name, with the closest known one, or all of them if none is close."""
    near = config.nearest(name, known)
    hint = f"did you mean {near}?" if near else f"choose {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}: {hint}")


@dataclass(frozen=True)
class Changes:
    """What a user changes in a scale of an experiment; None leaves a setting as it is.

    Args:
        seeds: seeds of every training.
        epochs: epochs of every training.
        warmup: epochs of warm-up.
        models: only these models, or kinds of them.

    Raises:
        ValueError: a number is out of range, or nothing is left.
    """

    seeds: Sequence[int] | None = None
    epochs: int | None = None
    warmup: int | None = None
    models: Sequence[str] | None = None

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)
        at_least(0, warmup=self.warmup)
        for seed in self.seeds or ():
            at_least(0, seeds=seed)
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            listed = ",".join(map(str, self.seeds)) or "none"
            raise ValueError(f"seeds must be different numbers, at least one; got {listed}")
        if self.models is not None and not self.models:
            raise ValueError("models must name at least one model")

    def named(self, **names: str) -> dict[str, Any]:
        """What is changed, by the names that a plan uses for it: `named(epochs="training.epochs")`."""
        values = {new: getattr(self, name) for name, new in names.items()}
        return {name: value for name, value in values.items() if value is not None}

    def models_of(self, known: Iterable[str]) -> list[str]:
        """Those of a plan's models that are named, in its order; all of them if none is.

        Args:
            known: names of the plan's models.

        Raises:
            ValueError: there is no such model.
        """
        there = list(dict.fromkeys(known))
        for model in self.models or ():
            if model not in there:
                raise unknown("model", model, there)
        return [model for model in there if self.models is None or model in self.models]


@dataclass(frozen=True)
class Gap:
    """One difference that should be positive according to a claim.

    Args:
        name: what is compared with what.
        gain: the difference.
        margin: half width of its 95 % interval between trainings; NaN if there is one training of each.
        p: p value that decides instead of the margin, corrected for the number of claims; None to use the margin.
        is_tight: whether both sides are tight; where one is merely a bound on what is compared, a difference may be due
            to the bounds. None if that is unknown.
    """

    name: str
    gain: float
    margin: float
    p: float | None = None
    is_tight: bool | None = True

    @property
    def is_decided(self) -> bool:
        """Whether the difference is not zero, whatever its sign; never if it has no error or is not tight."""
        return is_decided(self.gain, self.margin, p=self.p, is_tight=self.is_tight)

    def __str__(self) -> str:
        if math.isnan(self.gain):
            return f"{self.name}: not measured"
        if math.isnan(self.margin):
            return f"{self.name}: {self.gain:+.3g} ({ONE_TRAINING})"
        corrected = "" if self.p is None else f", Holm p = {self.p:.2g}"
        loose = {True: "", False: f", {NOT_TIGHT}", None: f", {UNKNOWN}"}[self.is_tight]
        return f"{self.name}: {self.gain:+.3g} ± {self.margin:.2g}{corrected}{loose}"


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds on our numbers.

    Args:
        claim: the claim.
        holds: True or False, or None if the numbers do not decide it.
        evidence: the differences that decide it.
        primary: whether the claim was written into the plan beforehand, and is corrected for the number of these.
    """

    claim: str
    holds: bool | None
    evidence: str
    primary: bool = False

    @property
    def word(self) -> str:
        """The verdict in words."""
        return {True: "holds", False: "does not hold", None: "not decided"}[self.holds]

    @property
    def kind(self) -> str:
        """Primary or exploratory, in a word."""
        return PRIMARY if self.primary else EXPLORATORY


def judge(claim: str, gaps: Sequence[Gap], *, primary: bool = False) -> Verdict:
    """Judge a claim by the differences that should be positive according to it.

    It holds if every difference is significantly positive, and does not hold if one is significantly negative. A
    difference is significant if it exceeds its margin or, where it has a corrected p value, if that is below 5 %.
    Anything else leaves the claim undecided: for example one training of each model, which gives neither margin nor p
    value, or a log p(x) that is not tight, so that a difference may be due to the bounds.

    Args:
        claim: the claim.
        gaps: the differences.
        primary: whether the claim was written into the plan beforehand.

    Example:
        >>> from mixvae.reproduce import Gap, judge
        >>> verdict = judge("S = 2 beats S = 1.", [Gap("S = 2 over S = 1", gain=0.5, margin=0.1)])
        >>> verdict.word, verdict.kind, verdict.evidence
        ('holds', 'exploratory', 'S = 2 over S = 1: +0.5 ± 0.1')
        >>> judge("S = 2 beats S = 1.", [Gap("S = 2 over S = 1", gain=0.5, margin=0.6)]).word
        'not decided'
        >>> judge("S = 2 beats S = 1.", [Gap("S = 2 over S = 1", 0.5, 0.4, p=0.06)], primary=True).word
        'not decided'
        >>> judge("S = 2 beats S = 1.", [Gap("S = 2 over S = 1", gain=0.5, margin=0.1, is_tight=False)]).evidence
        'S = 2 over S = 1: +0.5 ± 0.1, not tight'
        >>> judge("S = 2 beats S = 1.", [Gap("S = 2 over S = 1", gain=0.5, margin=float("nan"))]).evidence
        'S = 2 over S = 1: +0.5 (one training: says nothing about the method)'
    """
    if any(gap.is_decided and gap.gain < 0 for gap in gaps):
        holds = False
    else:
        holds = True if gaps and all(gap.is_decided and gap.gain > 0 for gap in gaps) else None
    return Verdict(claim, holds, "; ".join(map(str, gaps)) or "nothing was measured", primary)


@dataclass(frozen=True, repr=False)
class Findings(Tabular):
    """What an experiment found.

    Args:
        columns: columns of the table.
        table: its rows.
        verdicts: the paper's claims, judged.
        draws: decoder evaluations per example and step S·L of both sides of every comparison, by its name; None if
            unknown. A note says where they are unequal.
        figures: pictures by name, as figures or PNG.
        commands: the commands of its individual steps.
        notes: caveats on the numbers.
        contrasts: the differences by which the claims are judged, one row each.
    """

    columns: Sequence[Column]
    table: list[Row]
    verdicts: list[Verdict]
    draws: Mapping[str, tuple[float | None, float | None]]
    figures: dict[str, Figure | bytes] = field(default_factory=dict, repr=False)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    contrasts: list[Row] = field(default_factory=list)

    @property
    def figure(self) -> Figure | bytes:
        """The first picture."""
        return next(iter(self.figures.values()))


def refuse_copies(trainings: Mapping[str, Evaluation]) -> None:
    """Check that trainings of one model with different seeds are different trainings.

    Args:
        trainings: evaluation of every training, by its name.

    Raises:
        ValueError: two have the same weights.
    """
    seen: dict[str, str] = {}
    for name, evaluation in trainings.items():
        weights = evaluation.identity.weights
        if weights is not None and (other := seen.setdefault(weights, name)) != name:
            raise ValueError(
                f"{name} has the weights of {other}, which was trained with another seed: delete the copy, and run "
                "the command again"
            )


class Plan(Protocol):
    """How one scale of an experiment is carried out."""

    @property
    def cost(self) -> str:
        """How long it takes, in words."""
        ...

    def changed(self, changes: Changes) -> Plan:
        """The same with other seeds, epochs or epochs of warm-up, or with only some of its models.

        Raises:
            ValueError: the experiment has no such setting, or a value is wrong.
        """
        ...

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each training."""
        ...

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Do what has not been done yet in a folder, and return the findings."""
        ...


@dataclass(frozen=True)
class Experiment:
    """One row of the paper's table of experiments.

    Args:
        name: its name on the command line.
        title: its heading.
        claim: what the paper claims.
        scales: how it is carried out, by scale.
    """

    name: str
    title: str
    claim: str
    scales: dict[str, Plan]
