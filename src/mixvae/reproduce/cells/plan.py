"""How the single-cell experiments are carried out: which models, and the claims about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mixvae import figures
from mixvae._tables import Row
from mixvae.progress import Progress
from mixvae.reports import Column
from mixvae.reproduce.findings import Changes, Findings, Gap, judge, margin, unknown

KINDS = ("scvi", "mixture", "frozen", "nobatchnorm")
"""Kinds of models."""
INTEGRATION = ("Total", "Bio conservation", "Batch correction")
"""The scores of scib-metrics that are shown first; the higher the better."""


@dataclass(frozen=True)
class Cells:
    """Train SCVI, mixtures and their rivals on cells, and compare them seed by seed.

    Args:
        sizes: numbers of components S of mixtures.
        frozen: numbers of components of mixtures with SCVI's decoder, frozen.
        unnormalised: numbers of components of mixtures without BatchNorm.
        seeds: seeds of every model.
        more_seeds: further seeds of SCVI and of mixtures of one and three.
        settings: settings of training and evaluation, the arguments of `mixvae.reproduce.cells.study.Plan`.
        cells: use this many PBMC cells instead of CORTEX, for a trial.
        cost: how long it takes, in words.
    """

    sizes: Sequence[int] = (1, 2, 3, 4, 5)
    frozen: Sequence[int] = (2, 3, 4, 5)
    unnormalised: Sequence[int] = ()
    seeds: Sequence[int] = (0, 1, 2)
    more_seeds: Sequence[int] = ()
    settings: Mapping[str, int] = field(default_factory=dict)
    cells: int | None = None
    cost: str = ""

    scores = {"ari": "ARI", "nmi": "NMI", "asw": "ASW", "svm": "SVM, types", "svm_precise": "SVM, finer types"}
    columns = (
        Column("model", "model"),
        Column("S", "size", digits=0),
        Column("seeds", "seeds", digits=0),
        *(Column(t, k, f"{k}_se", 1, "nats per held-out cell") for t, k in
          (("ELBO", "elbo"), ("MISELBO", "miselbo"), ("pooled", "pooled"))),
        *(Column(f"gain of {t}", f"{k}_gain", f"{k}_gain_se", 1, "over SCVI of the same seed, nats", signed=True)
          for t, k in (("the ELBO", "elbo"), ("MISELBO", "miselbo"), ("pooled", "pooled"))),
        Column("effective S", "effective", "effective_se"),
        *(Column(title, key, f"{key}_se", 3) for key, title in scores.items()),
        Column("gain, finer types", "svm_precise_gain", "svm_precise_gain_se", 3, "of the SVM over SCVI", signed=True),
    )  # fmt: skip

    def changed(self, changes: Changes) -> Cells:
        """The same with other seeds of every model, epochs or warm-up, or with only some kinds of its models.

        Raises:
            ValueError: there is no such kind, or a number is wrong.
        """
        plan = replace(self, settings={**self.settings, **changes.named(epochs="epochs", warmup="warmup")})
        if changes.seeds is not None:
            plan = replace(plan, seeds=changes.seeds, more_seeds=())
        if changes.models is None:
            return plan
        for model in changes.models:
            if model not in KINDS:
                raise unknown("model", model, KINDS)
        kept = {"sizes": "mixture", "frozen": "frozen", "unnormalised": "nobatchnorm"}
        return replace(plan, **{name: () for name, kind in kept.items() if kind not in changes.models})

    def carry_out(self, out: Path, *, jobs: int, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del jobs
        study = _study()
        from mixvae.reproduce.cells.results import table

        plan = asdict(study.Plan(**self.settings))
        data = None if self.cells is None else study.trial(self.cells)
        listed = study.jobs(
            self.seeds, self.more_seeds, sizes=self.sizes, frozen=self.frozen, unnormalised=self.unnormalised
        )
        results = study.run(out, listed, **plan, data=data, progress=progress)
        rows = [_flat(row) for row in table(results)]
        named = [
            (f"{row['model']}, S = {row['size']}", row["elbo_gain"], row["elbo_gain_se"])
            for row in rows if "elbo_gain" in row and row["model"] != study.SCVI_NAME
        ]  # fmt: skip
        drawn: dict[str, Any] = {}
        if named:
            drawn["gains"] = figures.gains(named, "gain of the ELBO over SCVI (nats per held-out cell)")
        notes = [f"{len(self.seeds)} seeds: standard errors have {len(self.seeds) - 1} degrees of freedom."]
        if results[0].identity.legacy:
            notes.append(f"The results in {out} are legacy: there is no record of the data they were made from.")
        return Findings(self.columns, rows, self._verdicts(rows), drawn, notes=notes)

    def _verdicts(self, rows: Sequence[Row]) -> list[Any]:
        """The claims about mixtures of several components, if there are any."""
        by_key = {(row["model"], row["size"]): row for row in rows}
        several = [s for s in self.sizes if s > 1]
        mixtures = [by_key["mixture", s] for s in several]
        rivals = [by_key["samples", s] for s in several]
        return [
            judge("The ELBO of held-out cells gains over SCVI.", [_gain(row, "elbo") for row in mixtures]),
            judge("Clusters agree better with the types (ARI).", [_gain(row, "ari") for row in mixtures]),
            judge(
                "Types are classified better by all components than by samples of one encoder side by side.",
                [_difference(row, other, "svm_precise") for row, other in zip(mixtures, rivals, strict=True)],
            ),
        ]  # fmt: skip


@dataclass(frozen=True)
class Integration:
    """Train SCVI and mixtures on cells in two batches, one of them simulated, and score how well latents mix them.

    Args:
        sizes: numbers of components S of mixtures.
        seeds: seeds of every model.
        epochs: epochs of every training.
        warmup: epochs of KL warm-up.
        cells: use this many PBMC cells instead of CORTEX, for a trial.
        cost: how long it takes, in words.
    """

    sizes: Sequence[int] = (1, 3)
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int = 100
    warmup: int = 50
    cells: int | None = None
    cost: str = ""

    def changed(self, changes: Changes) -> Integration:
        """The same with other seeds, epochs or warm-up.

        Raises:
            ValueError: a number is wrong, or models are given.
        """
        if changes.models is not None:
            raise ValueError("this experiment compares SCVI and mixtures: leave out models")
        return replace(self, **changes.named(seeds="seeds", epochs="epochs", warmup="warmup"))

    def carry_out(self, out: Path, *, jobs: int, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del jobs
        study = _study()
        from mixvae.reproduce.cells.integration import integrate
        from mixvae.reproduce.cells.results import integration_table, mean_and_error

        results = integrate(
            out, self.sizes, self.seeds, epochs=self.epochs, warmup=self.warmup,
            data=None if self.cells is None else study.trial(self.cells),
            progress=progress,
        )  # fmt: skip
        rows = [_flat(row) for row in integration_table(results)]
        first = [name for name in INTEGRATION if name in rows[0]]
        scores = first + [key for key in rows[0] if f"{key}_se" in rows[0] and key not in first]
        columns = (
            Column("model", "model"),
            Column("S", "size", digits=0),
            Column("seeds", "seeds", digits=0),
            *(Column(name, name, f"{name}_se", 3, "of scib-metrics; the higher the better") for name in scores),
        )
        totals = {(r["kind"], r["components"], r["seed"]): r["scores"]["Total"] for r in results}
        gaps = []
        for size in self.sizes:
            gain, error = mean_and_error([totals["mixture", size, s] - totals["scvi", 1, s] for s in self.seeds])
            gaps.append(Gap(f"S = {size} over SCVI (Total)", gain, margin(error, len(self.seeds))))
        claim = "Mixtures integrate two batches better than SCVI (Total of scib-metrics)."
        notes = ["Beyond the paper. One of the two batches is simulated."]
        return Findings(columns, rows, [judge(claim, gaps)], notes=notes)


def _study() -> Any:
    """The module that trains cells, which needs scvi-tools.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from mixvae.reproduce.cells import study
    except ImportError:
        raise ValueError("single cells need the extra scvi: pip install 'mixvae[scvi]'") from None
    return study


def _flat(row: Row) -> Row:
    """A row with each pair of mean and standard error as two values."""
    flat: Row = {"model": row["model"], "size": row["S"], "seeds": row["seeds"]}
    for key, value in row.items():
        if isinstance(value, tuple):
            flat |= {key: value[0], f"{key}_se": value[1]}
    return flat


def _gain(row: Row, metric: str) -> Gap:
    half = margin(row[f"{metric}_gain_se"], row["seeds"])
    return Gap(f"S = {row['size']} over SCVI ({metric})", row[f"{metric}_gain"], half)


def _difference(row: Row, other: Row, metric: str) -> Gap:
    gain, error = f"{metric}_gain", f"{metric}_gain_se"
    half = margin(math.hypot(row[error], other[error]), min(row["seeds"], other["seeds"]))
    return Gap(f"S = {row['size']} over {other['size']} samples ({metric})", row[gain] - other[gain], half)
