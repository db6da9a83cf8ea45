"""How the single-cell experiments are carried out: which models, and the claims about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from mixvae._tables import Row
from mixvae.evaluation import Gain
from mixvae.progress import Progress
from mixvae.reports import BETWEEN, LEVEL, Column
from mixvae.reproduce.cells.names import BASELINE, FROZEN, KINDS, MIXTURE, RIVAL, UNNORMALISED
from mixvae.reproduce.clock import unconfirmed
from mixvae.reproduce.contrasts import (
    Question,
    about,
    contrast_rows,
    corrected,
    drawn_by,
    left_out,
    named,
    over,
    primary_contrasts,
    verdicts,
)
from mixvae.reproduce.findings import Changes, Findings, Gap, Verdict, judge
from mixvae.reproduce.pictures import decided_gains, gap_of
from mixvae.sweeps import Runner

INTEGRATION = ("Total", "Bio conservation", "Batch correction")
"""The scores of scib-metrics that are shown first; higher is better."""
SAME = 0.5
"""Change of log p(x) in nats per cell that counts as none: a quarter of what learned priors gain on CORTEX."""
MARGIN = BETWEEN.format("all models")


@dataclass(frozen=True)
class Cells:
    """Train SCVI, mixtures and their rivals on cells, and compare them with the error between trainings.

    Args:
        sizes: numbers of components S of mixtures.
        frozen: numbers of components of mixtures with SCVI's decoder, frozen.
        unnormalised: numbers of components of mixtures without BatchNorm.
        seeds: seeds of every model.
        more_seeds: further seeds of SCVI and of mixtures of one and three.
        drawn: numbers of draws per step of one encoder, by kind of model, for mixtures of as many components.
        questions: claims that are decided by contrasts; those of the paper by default.
        settings: settings of training and evaluation, the arguments of `mixvae.reproduce.cells.study.Plan`.
        cells: use this many PBMC cells instead of CORTEX, for a trial.
        cost: how long it takes, in words.
    """

    sizes: Sequence[int] = (1, 2, 3, 4, 5)
    frozen: Sequence[int] = (2, 3, 4, 5)
    unnormalised: Sequence[int] = ()
    seeds: Sequence[int] = (0, 1, 2)
    more_seeds: Sequence[int] = ()
    drawn: Mapping[str, Sequence[int]] = field(default_factory=dict)
    questions: Sequence[Question] = ()
    settings: Mapping[str, int] = field(default_factory=dict)
    cells: int | None = None
    cost: str = ""

    scores = {"ari": "ARI", "nmi": "NMI", "asw": "ASW", "svm": "SVM, types", "svm_precise": "SVM, finer types"}
    likelihoods = {"log_px": "log p(x)", "elbo": "ELBO", "miselbo": "MISELBO", "pooled": "pooled"}
    columns = (
        Column("model", "model"),
        Column("S", "size", digits=0),
        Column("seeds", "seeds", digits=0),
        Column("draws per step", "draws_per_step", digits=0, about="decoder evaluations per cell and step S·L"),
        *(Column(t, k, f"{k}_margin", 1, "nats per held-out cell", error_about=MARGIN, trust=k)
          for k, t in likelihoods.items()),
        Column("marginal_ll", "marginal_ll", "marginal_ll_margin", 1,
               "of scvi-tools' own method, by as many draws, nats per held-out cell", error_about=MARGIN),
        *(Column(f"gain of {t}", f"{k}_gain", f"{k}_gain_margin", 1, "over SCVI, nats", error_about=MARGIN, signed=True,
                 trust=f"{k}_gain") for k, t in likelihoods.items()),
        Column("of which posterior", "posterior_gain", "posterior_gain_margin", 1,
               "gain of the ELBO less that of log p(x), −ΔKL(q(z|x) ‖ p(z|x)), nats", error_about=MARGIN, signed=True,
               trust="log_px_gain"),
        Column("k̂ unreliable", "unreliable", digits=3,
               about="largest share of cells whose log p(x) is not to be relied on"),
        Column("effective S", "effective"),
        *(Column(title, key, f"{key}_margin", 3, error_about=MARGIN) for key, title in scores.items()),
        Column("gain, finer types", "svm_precise_gain", "svm_precise_gain_margin", 3, "of the SVM over SCVI",
               error_about=MARGIN, signed=True),
        Column("seconds", "seconds", digits=0, about="of one training, at the quickest one's seconds per epoch"),
    )  # fmt: skip

    def changed(self, changes: Changes) -> Cells:
        """The same with other seeds of every model, epochs or warm-up, or with only some kinds of its models.

        Raises:
            ValueError: there is no such kind, or a number is wrong.
        """
        plan = replace(self, settings={**self.settings, **changes.named(epochs="epochs", warmup="warmup")})
        if changes.seeds is not None:
            plan = replace(plan, seeds=changes.seeds, more_seeds=())
        models = changes.models_of(KINDS)
        kept = {"sizes": MIXTURE, "frozen": FROZEN, "unnormalised": UNNORMALISED}
        plan = replace(plan, **{name: () for name, kind in kept.items() if kind not in models})
        return replace(plan, drawn={kind: n for kind, n in self.drawn.items() if kind in models})

    def _jobs(self) -> list[Any]:
        """The models to train."""
        return _study().jobs(
            self.seeds, self.more_seeds, sizes=self.sizes, frozen=self.frozen, unnormalised=self.unnormalised,
            drawn=self.drawn,
        )  # fmt: skip

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
        from mixvae.reproduce.cells.results import by_model, by_seed, table, unchanged

        plan = asdict(study.Plan(**self.settings))
        data = None if self.cells is None else study.trial(self.cells)
        results = study.run(out, self._jobs(), **plan, data=data, progress=progress)
        rows, made = table(results), by_model(results)
        draws = {(row["model"], row["size"]): row["draws_per_step"] for row in rows if "draws_per_step" in row}
        asked = about(self.questions, draws)
        contrasts = contrast_rows(asked, by_seed(results), draws, primary_contrasts(self.questions), made)
        judged = [*verdicts(asked, contrasts), *still(unchanged(results))] if self.questions else self._verdicts(rows)
        shown, what = ("log_px", "log p(x)") if any("log_px_gain" in row for row in rows) else ("elbo", "the ELBO")
        primary = corrected(contrasts, shown)
        gaps = [
            gap_of(
                row, f"{shown}_gain", f"{row['model']}, S = {row['size']}",
                primary.get(over((row["model"], row["size"]), BASELINE)),
            )
            for row in rows if f"{shown}_gain" in row
        ]  # fmt: skip
        drawn: dict[str, Any] = {}
        if gaps:
            drawn["gains"] = decided_gains(gaps, f"gain of {what} over SCVI (nats per held-out cell)")
        notes = left_out(primary_contrasts(self.questions), asked)
        notes += unconfirmed({named(key): own for key, own in made.items()}, "seconds")
        if results[0].identity.legacy:
            notes.append(f"The results in {out} are legacy: there is no record of the data they were made from.")
        pairs = [pair for question in asked for pair in question.pairs]
        pairs += [(key, BASELINE) for key in draws if key != BASELINE]
        listed = [row for each in contrasts for row in each]
        return Findings(self.columns, rows, judged, drawn_by(pairs, draws), drawn, notes=notes, contrasts=listed)

    def _verdicts(self, rows: Sequence[Row]) -> list[Any]:
        """The claims about mixtures of several components, if there are any."""
        by_key = {(row["model"], row["size"]): row for row in rows}
        several = [s for s in self.sizes if s > 1]
        mixtures = [by_key[MIXTURE, s] for s in several]
        rivals = [by_key[RIVAL, s] for s in several]
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

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each training."""
        _study()
        from mixvae.reproduce.cells.results import with_scvi

        return [job.name for job in with_scvi(self.sizes, self.seeds)]

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Train what is missing, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del runner
        study = _study()
        from mixvae.reproduce.cells.integration import integrate
        from mixvae.reproduce.cells.results import integration_table

        results = integrate(
            out, self.sizes, self.seeds, epochs=self.epochs, warmup=self.warmup,
            data=None if self.cells is None else study.trial(self.cells),
            progress=progress,
        )  # fmt: skip
        rows = integration_table(results)
        names = list(results[0]["scores"])
        first = [name for name in INTEGRATION if name in names]
        scores = first + [name for name in names if name not in first]
        columns = (
            Column("model", "model"),
            Column("S", "size", digits=0),
            Column("seeds", "seeds", digits=0),
            *(Column(name, name, f"{name}_margin", 3, "of scib-metrics, the higher the better", error_about=MARGIN)
              for name in scores),
            Column("gain of Total", "Total_gain", "Total_gain_margin", 3, "over SCVI", error_about=MARGIN, signed=True),
        )  # fmt: skip
        gained = [row for row in rows if "Total_gain" in row]
        gaps = [_gain(row, "Total") for row in gained]
        claim = "Mixtures integrate two batches better than SCVI (Total of scib-metrics)."
        notes = ["Beyond the paper. One of the two batches is simulated."]
        draws = {f"{gap.name}": (float(row["size"]), 1.0) for gap, row in zip(gaps, gained, strict=True)}
        return Findings(columns, rows, [judge(claim, gaps)], draws, notes=notes)


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


def still(changes: Sequence[tuple[int, Gain]]) -> list[Verdict]:
    """The null test: a frozen decoder leaves log p(x) as it is, whatever the encoders, so that a change is an error.

    These claims are about the estimates, which are tested here whether they are tight or not. Whether the intervals of
    all changes lie within `SAME` is one claim, as large errors would hide any change; whether one exceeds its
    Monte-Carlo margin, at 5 % with Bonferroni's correction, is another.

    Args:
        changes: changes of log p(x) by S, with their Monte-Carlo standard errors.
    """
    if not changes:
        return []
    margin = NormalDist().inv_cdf(1 - LEVEL / (2 * len(changes)))
    listed = "; ".join(f"S = {size}: {change.mean:+.3f} ± {margin * change.se:.3f}" for size, change in changes)
    far = [(abs(change.mean), margin * change.se) for _, change in changes]
    within, beyond = all(mean + half < SAME for mean, half in far), any(mean - half > SAME for mean, half in far)
    claim = (
        f"Under a frozen decoder, where log p(x) cannot change, its estimates change by less than {SAME} nats per cell."
    )
    hidden = "No such change exceeds its Monte-Carlo error."
    return [
        Verdict(claim, True if within else False if beyond else None, listed),
        Verdict(hidden, all(mean <= half for mean, half in far), listed),
    ]


def _gain(row: Row, metric: str) -> Gap:
    """How far a model exceeds SCVI."""
    return Gap(f"S = {row['size']} over SCVI ({metric})", row[f"{metric}_gain"], row[f"{metric}_gain_margin"])


def _difference(row: Row, other: Row, metric: str) -> Gap:
    """How far a mixture exceeds samples of SCVI's encoder, which are of other trainings."""
    margin = math.hypot(row[f"{metric}_margin"], other[f"{metric}_margin"])
    return Gap(f"S = {row['size']} over {other['size']} samples ({metric})", row[metric] - other[metric], margin)
