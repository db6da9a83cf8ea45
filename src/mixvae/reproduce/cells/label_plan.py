"""How the transfer of labels is carried out: which data sets, shares and models, and the claims about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mixvae._tables import Row
from mixvae.evaluation import Evaluation
from mixvae.progress import Progress
from mixvae.reports import BETWEEN, Column, between_trainings, within_seeds
from mixvae.reproduce.cells.names import SCVI_NAME
from mixvae.reproduce.cells.plan import _study
from mixvae.reproduce.findings import Changes, Findings, Gap, Verdict, judge
from mixvae.reproduce.pictures import decided_gains
from mixvae.sweeps import Runner

SCANVI = (SCVI_NAME, 1)
"""The model with which others are compared: it starts from SCVI."""
MARGIN = BETWEEN.format("the models of one setting")
PAIRED = "half width of the 95 % interval between seeds, of pairs of trainings that share their hidden cells"


class Score(NamedTuple):
    """A score of predictions.

    Args:
        title: its heading.
        sign: 1 if higher is better, −1 if lower is.
        about: what it is.
    """

    title: str
    sign: int
    about: str


SCORES = {
    "accuracy": Score("accuracy", 1, "share of hidden cells that are predicted right"),
    "f1": Score("macro F1", 1, "mean over types"),
    "ece": Score("ECE", -1, "expected calibration error, 15 bins of equal width"),
    "log_loss": Score("log loss", -1, "nats per hidden cell"),
    "brier": Score("Brier", -1, "squared distance of probabilities from the truth, 0 to 2"),
}
"""Scores of `label_scores`, in the order of the table."""


@dataclass(frozen=True)
class Labels:
    """Hide labels, predict them by scANVI and by mixtures of it, and compare the two with the error between trainings.

    Args:
        data: names of the data sets.
        hidden: shares of the labels that are hidden.
        sizes: numbers of components S of mixtures.
        seeds: seeds of every model and of the choice of hidden labels.
        settings: how models are trained, the arguments of `mixvae.reproduce.cells.labels.Settings`.
        cost: how long it takes, in words.
    """

    data: Sequence[str] = ("pbmc68k",)
    hidden: Sequence[float] = (0.1, 0.5)
    sizes: Sequence[int] = (3,)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    settings: Mapping[str, int] = field(default_factory=dict)
    cost: str = ""

    columns = (
        Column("setting", "setting", about="the data set, and the share of every type's labels that are hidden"),
        Column("model", "model"),
        Column("seeds", "seeds", digits=0),
        Column("cells", "cells", digits=0, about="with hidden labels, on which all scores are computed"),
        *(Column(score.title, key, f"{key}_margin", 3, score.about, error_about=MARGIN)
          for key, score in SCORES.items()),
        *(Column(f"Δ {score.title}", f"{key}_change", f"{key}_change_margin", 3, "mixture − scANVI", signed=True,
                 error_about=MARGIN) for key, score in SCORES.items()),
        *(Column(f"Δ {score.title}, paired", f"{key}_change", f"{key}_paired_margin", 3, "mixture − scANVI",
                 signed=True, page_only=True, error_about=PAIRED) for key, score in SCORES.items()),
    )  # fmt: skip

    def changed(self, changes: Changes) -> Labels:
        """The same with other seeds, or another number of epochs or of epochs of warm-up before labels are shown.

        Raises:
            ValueError: a number is wrong, or models are given.
        """
        if changes.models is not None:
            raise ValueError("this experiment compares scANVI and mixtures of it: leave out models")
        settings = {**self.settings, **changes.named(epochs="epochs", warmup="warmup")}
        return replace(self, settings=settings, **changes.named(seeds="seeds"))

    def _transfers(self) -> list[Any]:
        """The transfers to make."""
        _study()
        from mixvae.reproduce.cells import labels

        return labels.transfers(self.data, self.hidden, self.sizes, self.seeds)

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each transfer."""
        return [one.name for one in self._transfers()]

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del runner
        listed = self._transfers()
        from mixvae.reproduce.cells import labels

        settings = labels.Settings(**self.settings)
        rows = label_table(labels.transfer(out, listed, settings, progress=progress))
        compared = [row for row in rows if "accuracy_change" in row]
        drawn: dict[str, Any] = {}
        for key, score in SCORES.items():
            across = f"how much better the mixture's {score.title} is than scANVI's"
            drawn[score.title] = decided_gains([_gap(row, key, _named(row)) for row in compared], across)
        verdicts = [
            _judged("Hidden labels are predicted better by a mixture (accuracy).", "accuracy", compared),
            _judged("The mixture's probabilities are better (log loss).", "log_loss", compared),
            _judged("The mixture's probabilities are better calibrated (ECE).", "ece", compared),
        ]
        notes = [
            "Beyond the paper. Hidden cells are trained on, without their labels, as scANVI does.",
            "The calibration error of few cells is biased upwards; the log loss and the Brier score are not.",
        ]
        draws = {_named(row): (float(row["size"]), 1.0) for row in compared}
        return Findings(self.columns, rows, verdicts, draws, drawn, notes=notes)


def label_table(results: Sequence[Evaluation]) -> list[Row]:
    """One row per data set, share, model and S: means over trainings, and changes over scANVI, with their margins.

    Variances are pooled over the models of one data set and share: scores of few hidden cells vary more than those of
    many, so scores of different settings have no common variance.

    Raises:
        ValueError: results of one data set are of different cells or labels.
    """
    settings: dict[tuple[str, float], dict[tuple[str, int], dict[int, Evaluation]]] = {}
    first: dict[str, Evaluation] = {}
    for result in results:
        known = first.setdefault(result["data"], result)
        for name in ("observations", "labels_sha256"):
            if result[name] != known[name]:
                raise ValueError(f"one table needs the same cells; some results of {result['data']} are of others")
        job = result["job"]
        of = settings.setdefault((result["data"], result["hidden"]), {})
        of.setdefault((job["kind"], job["components"]), {})[job["seed"]] = result
    return [row for key, models in settings.items() for row in _rows(*key, models)]


def _rows(data: str, hidden: float, models: Mapping[tuple[str, int], Mapping[int, Evaluation]]) -> list[Row]:
    """Rows of one data set and share."""
    rows: list[Row] = [
        {"setting": f"{data}, {100 * hidden:g} %", "data": data, "hidden": hidden, "kind": kind, "size": size,
         "model": "scANVI" if (kind, size) == SCANVI else f"{kind}, S = {size}",
         "seeds": len(made), "cells": next(iter(made.values()))["examples"]}
        for (kind, size), made in models.items()
    ]  # fmt: skip
    for metric in SCORES:
        between = between_trainings({key: [one[metric] for one in made.values()] for key, made in models.items()})
        for row, key in zip(rows, models, strict=True):
            row |= {metric: between.means[key], f"{metric}_margin": between.margin(key)}
            row[f"{metric}_homogeneity"] = between.homogeneity
            if key == SCANVI:
                continue
            change = between.difference(key, SCANVI)
            new, old = ({seed: one[metric] for seed, one in models[k].items()} for k in (key, SCANVI))
            row |= {f"{metric}_change": change.mean, f"{metric}_change_margin": change.margin}
            row[f"{metric}_paired_margin"] = within_seeds(new, old)[0].margin
    return rows


def _named(row: Row) -> str:
    return f"{row['setting']} hidden, S = {row['size']}"


def _judged(claim: str, metric: str, compared: Sequence[Row]) -> Verdict:
    """A claim that the mixture's score is better than scANVI's, in every setting."""
    return judge(claim, [_gap(row, metric, f"{_named(row)} ({metric})") for row in compared])


def _gap(row: Row, metric: str, name: str) -> Gap:
    """How much better the mixture's score is than scANVI's."""
    return Gap(name, SCORES[metric].sign * row[f"{metric}_change"], row[f"{metric}_change_margin"])
