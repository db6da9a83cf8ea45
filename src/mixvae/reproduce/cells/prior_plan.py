"""How priors of cells are compared: which priors and numbers of components, and the claims about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mixvae._tables import Row
from mixvae.evaluation import Evaluation, mismatch
from mixvae.progress import Progress
from mixvae.reports import BETWEEN, Column, between_trainings, trust
from mixvae.reproduce.cells.names import MIXTURE
from mixvae.reproduce.cells.plan import _study
from mixvae.reproduce.clock import least, unconfirmed
from mixvae.reproduce.contrasts import Key, Question, contrast_rows, drawn_by, named, verdicts
from mixvae.reproduce.findings import Changes, Findings
from mixvae.reproduce.measured import worst
from mixvae.reproduce.pictures import decided_gains, gap_of
from mixvae.sweeps import Runner

STANDARD = MIXTURE
"""The kind of model with a standard normal prior, with which others are compared."""
PRIORS = {STANDARD: "standard normal", "gaussian_mixture": "Gaussian mixture", "vamp": "VampPrior"}
"""Names of the priors by the kind of model."""
BOUNDS = {"log_px": "log p(x)", "elbo": "ELBO"}
MARGIN = BETWEEN.format("all models")


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
        Column("draws per step", "draws_per_step", digits=0, about="decoder evaluations per cell and step S·L"),
        *(Column(t, k, f"{k}_margin", 2, "nats per held-out cell", error_about=MARGIN, trust=k)
          for k, t in BOUNDS.items()),
        *(Column(f"Δ {t}", f"{k}_change", f"{k}_change_margin", 2,
                 "over the standard normal prior and as many components, nats", error_about=MARGIN, signed=True,
                 trust=f"{k}_change") for k, t in BOUNDS.items()),
        Column("k̂ unreliable", "unreliable", digits=3,
               about="largest share of cells whose log p(x) is not to be relied on"),
        Column("seconds", "seconds", digits=0, about="of one training, at the quickest one's seconds per epoch"),
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

    def _jobs(self) -> list[Any]:
        """The models to train."""
        kinds = (STANDARD, *self.kinds)
        return [_study().Job(kind, size, seed) for seed in self.seeds for size in self.sizes for kind in kinds]

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each training."""
        return [job.name for job in self._jobs()]

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del runner
        study = _study()
        data = None if self.cells is None else study.trial(self.cells)
        results = study.run(out, self._jobs(), **asdict(study.Plan(**self.settings)), data=data, progress=progress)
        rows = prior_table(results)
        compared = [row for row in rows if "log_px_change" in row]
        drawn: dict[str, Any] = {}
        if compared:
            gaps = [gap_of(row, "log_px_change", f"{row['prior']}, S = {row['size']}") for row in compared]
            across = "log p(x) over the standard normal prior's (nats per held-out cell)"
            drawn["changes"] = decided_gains(gaps, across)
        made = _made(results)
        values = {"log_px": {key: {one["job"]["seed"]: one["log_px"] for one in own} for key, own in made.items()}}
        asked = [
            Question(
                f"A {PRIORS[kind]} raises log p(x) of held-out cells over a standard normal prior.",
                [((PRIORS[kind], size), (PRIORS[STANDARD], size)) for size in self.sizes],
            )
            for kind in self.kinds
        ]
        draws = {key: key[1] for key in made}
        contrasts = contrast_rows(asked, values, draws, results=made)
        listed_contrasts = [row for each in contrasts for row in each]
        notes = ["Beyond the paper.", *unconfirmed({named(key): own for key, own in made.items()}, "seconds")]
        each = drawn_by([pair for question in asked for pair in question.pairs], draws)
        judged = verdicts(asked, contrasts)
        return Findings(self.columns, rows, judged, each, drawn, notes=notes, contrasts=listed_contrasts)


def prior_table(results: Sequence[Evaluation]) -> list[Row]:
    """One row per prior and S: means over trainings, and changes over the standard normal prior, with their margins.

    Raises:
        ValueError: the results are not all of the same cells.
    """
    made = _made(results)
    rows = {key: _row(*key, own, made[PRIORS[STANDARD], key[1]]) for key, own in made.items()}
    for metric in BOUNDS:
        between = between_trainings({key: [one[metric] for one in own] for key, own in made.items()})
        for (prior, size), row in rows.items():
            row |= {metric: between.means[prior, size], f"{metric}_margin": between.margin((prior, size))}
            row[f"{metric}_homogeneity"] = between.homogeneity
            if prior != PRIORS[STANDARD]:
                change = between.difference((prior, size), (PRIORS[STANDARD], size))
                row |= {f"{metric}_change": change.mean, f"{metric}_change_margin": change.margin}
    return list(rows.values())


def _made(results: Sequence[Evaluation]) -> dict[Key, list[Mapping[str, Any]]]:
    """Results of all trainings by prior and S, in the order of S, then of priors.

    Raises:
        ValueError: the results are not all of the same cells.
    """
    made: dict[Key, list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=_order):
        if reason := mismatch(result.identity, results[0].identity):
            raise ValueError(f"one table needs the same cells; these results are of {reason}")
        job = result["job"]
        key = PRIORS[job["kind"]], job["components"]
        made.setdefault(key, []).append({**result.results, "log_px": -result["nll"]})
    return made


def _order(result: Evaluation) -> tuple[int, int]:
    return result["job"]["components"], list(PRIORS).index(result["job"]["kind"])


def _row(prior: str, size: int, own: Sequence[Mapping[str, Any]], standard: Sequence[Mapping[str, Any]]) -> Row:
    """What a row contains besides its bounds."""
    both = [*own, *standard]
    row: Row = {"prior": prior, "size": size, "seeds": len(own), "draws_per_step": size}
    row["seconds"], row["unreliable"] = least(own, "seconds"), worst(own, "pareto_k_unreliable")
    return row | trust(own, "log_px") | trust(both, "log_px_change")
