"""How priors of cells are compared: which priors and numbers of components, and the claims about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixvae import figures
from mixvae._tables import Row
from mixvae.evaluation import Evaluation, mismatch
from mixvae.progress import Progress
from mixvae.reports import Column, between_trainings, trust
from mixvae.reproduce.cells.names import MIXTURE
from mixvae.reproduce.cells.plan import _study
from mixvae.reproduce.findings import Changes, Findings, Gap, Verdict, judge
from mixvae.sweeps import Runner

STANDARD = MIXTURE
"""The kind of model with a standard normal prior, with which others are compared."""
PRIORS = {STANDARD: "standard normal", "gaussian_mixture": "Gaussian mixture", "vamp": "VampPrior"}
"""Names of the priors by the kind of model."""
BOUNDS = {"log_px": "log p(x)", "elbo": "ELBO"}
MARGIN = "half width of the 95 % interval between trainings, by Student's t with the variance pooled over all models"


@dataclass(frozen=True)
class Priors:
    """Train mixtures with several priors on cells, and compare held-out likelihoods with the error between trainings.

    Args:
        kinds: priors besides the standard normal one.
        sizes: numbers of components S.
        seeds: seeds of every model.
        settings: settings of training and evaluation, the arguments of `mixvae.reproduce.cells.study.Plan`.
        cells: use this many PBMC cells instead of CORTEX, for a trial.
        cost: how long it takes, in words.
    """

    kinds: Sequence[str] = ("gaussian_mixture", "vamp")
    sizes: Sequence[int] = (1, 3)
    seeds: Sequence[int] = (0, 1, 2)
    settings: Mapping[str, int] = field(default_factory=dict)
    cells: int | None = None
    cost: str = ""

    columns = (
        Column("prior", "prior"),
        Column("S", "size", digits=0),
        Column("seeds", "seeds", digits=0),
        *(Column(t, k, f"{k}_margin", 2, "nats per held-out cell", error_about=MARGIN, trust=k)
          for k, t in BOUNDS.items()),
        *(Column(f"Δ {t}", f"{k}_change", f"{k}_change_margin", 2,
                 "over the standard normal prior and as many components, nats", error_about=MARGIN, signed=True,
                 trust=f"{k}_change") for k, t in BOUNDS.items()),
        Column("k̂ unreliable", "unreliable", digits=3, about="share of cells whose log p(x) is not to be relied on"),
        Column("seconds", "seconds", digits=0, about="of one training, median"),
    )  # fmt: skip

    def changed(self, changes: Changes) -> Priors:
        """The same with other seeds, epochs or warm-up, or with only some of its priors.

        Raises:
            ValueError: there is no such prior, or a number is wrong.
        """
        settings = {**self.settings, **changes.named(epochs="epochs", warmup="warmup")}
        models = changes.models_of(PRIORS)
        kinds = [kind for kind in self.kinds if kind in models]
        return replace(self, settings=settings, kinds=kinds, **changes.named(seeds="seeds"))

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del runner
        study = _study()
        listed = [study.Job(k, s, seed) for seed in self.seeds for s in self.sizes for k in (STANDARD, *self.kinds)]
        data = None if self.cells is None else study.trial(self.cells)
        rows = prior_table(study.run(out, listed, **asdict(study.Plan(**self.settings)), data=data, progress=progress))
        compared = [row for row in rows if "log_px_change" in row]
        drawn: dict[str, Any] = {}
        if compared:
            named = [(_named(row), row["log_px_change"], row["log_px_change_margin"]) for row in compared]
            across = "log p(x) over the standard normal prior's (nats per held-out cell)"
            drawn["changes"] = figures.gains(named, across, "95 % intervals between trainings", decides=True)
        verdicts = [_judged(kind, compared) for kind in self.kinds]
        return Findings(self.columns, rows, verdicts, drawn, notes=["Beyond the paper."])


def prior_table(results: Sequence[Evaluation]) -> list[Row]:
    """One row per prior and S: means over trainings, and changes over the standard normal prior, with their margins.

    Raises:
        ValueError: the results are not all of the same cells.
    """
    made: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for result in results:
        if reason := mismatch(result.identity, results[0].identity):
            raise ValueError(f"one table needs the same cells; these results are of {reason}")
        job = result["job"]
        made.setdefault((job["kind"], job["components"]), []).append({**result.results, "log_px": -result["nll"]})
    rows = {key: _row(*key, own, made[STANDARD, key[1]]) for key, own in sorted(made.items(), key=_order)}
    for metric in BOUNDS:
        between = between_trainings({key: [one[metric] for one in own] for key, own in made.items()})
        for (kind, size), row in rows.items():
            row |= {metric: between.means[kind, size], f"{metric}_margin": between.margin((kind, size))}
            row[f"{metric}_homogeneity"] = between.homogeneity
            if kind != STANDARD:
                change = between.difference((kind, size), (STANDARD, size))
                row |= {f"{metric}_change": change.mean, f"{metric}_change_margin": change.margin}
    return list(rows.values())


def _order(item: tuple[tuple[str, int], Any]) -> tuple[int, int]:
    """By S, then by prior."""
    (kind, size), _ = item
    return size, list(PRIORS).index(kind)


def _row(kind: str, size: int, own: Sequence[Mapping[str, Any]], standard: Sequence[Mapping[str, Any]]) -> Row:
    """What a row contains besides its bounds."""
    both = [*own, *standard]
    row: Row = {"prior": PRIORS[kind], "kind": kind, "size": size, "seeds": len(own)}
    row["seconds"] = float(np.median([one["seconds"] for one in own]))
    known = [one["pareto_k_unreliable"] for one in own if one["pareto_k_unreliable"] is not None]
    if known:  # unknown with few draws
        row["unreliable"] = sum(known) / len(known)
    return row | trust(own, "log_px") | trust(both, "log_px_change")


def _named(row: Row) -> str:
    return f"{row['prior']}, S = {row['size']}"


def _judged(kind: str, compared: Sequence[Row]) -> Verdict:
    """The claim that a prior raises the likelihood, whatever S."""
    gaps = [
        Gap(_named(row), row["log_px_change"], row["log_px_change_margin"]) for row in compared if row["kind"] == kind
    ]
    return judge(f"A {PRIORS[kind]} raises log p(x) of held-out cells over a standard normal prior.", gaps)
