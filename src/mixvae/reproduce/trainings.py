"""Experiments that train models and compare them pair by pair on the same test examples."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixvae import config, figures, runs, sweeps
from mixvae._failures import Failed
from mixvae._tables import Row
from mixvae.analysis import Representation
from mixvae.evaluation import Evaluation, differences, standard_error
from mixvae.progress import Progress
from mixvae.reports import Column
from mixvae.reproduce.findings import Changes, Findings, Gap, judge, margin, unknown
from mixvae.reproduce.latents import latent_pictures

LIKELIHOODS = (
    Column("model", "model"),
    Column("S", "size", digits=0, about="mixture components, or the size compared with them"),
    Column("seeds", "seeds", digits=0),
    Column("parameters", "parameters", digits=0),
    Column("−ELBO", "elbo", about="negative evidence lower bound, nats", negated=True),
    Column("MISELBO NLL", "nll_miselbo", about="nats"),
    Column("pooled NLL", "nll_pooled", "nll_pooled_se", about="nats; ± standard error over test examples"),
    Column("gain", "gain", "gain_se", 3, "paired gain in pooled nats over the row's baseline", signed=True),
    Column("between seeds", "gain_seed_se", digits=3, about="standard error of the gain over seeds, nats"),
    Column("JSD", "jsd", digits=3, about="nats"),
    Column("effective S", "effective_components"),
    Column("k̂ > 0.7 (%)", "unreliable", digits=0, about="share of test examples whose pooled bound is not tight"),
    Column("hours", "hours", digits=2, about="training time of one model"),
)
BITS = Column("bits/dim", "bits_per_dim", digits=3, about="of the pooled bound")
ALL = "mean and std"


@dataclass(frozen=True)
class Variant:
    """One model of an experiment.

    Args:
        model: its name.
        size: number of components S, or the size that it is compared with.
        preset: the configuration that it starts from.
        options: its changes to the preset.
        against: model and size of its baseline; the same model at the experiment's first size by default.
    """

    model: str
    size: int
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    against: tuple[str, int] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Model and size."""
        return self.model, self.size

    @property
    def name(self) -> str:
        """Name for files and folders."""
        return f"{re.sub(r'[^a-zA-Z0-9_]+', '-', self.model)}-S{self.size}"


@dataclass(frozen=True)
class Question:
    """A claim about pairs of variants.

    Args:
        claim: the claim.
        pairs: (better, worse) by model and size.
        metric: what is compared: a bound (pooled, miselbo, elbo), or a score of `mixvae.analysis` on [mean, std].
    """

    claim: str
    pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]]
    metric: str = "pooled"


@dataclass(frozen=True)
class Trainings:
    """Train and evaluate variants with several seeds, and compare them.

    Args:
        variants: the models.
        questions: claims about them.
        options: changes to the presets of all of them.
        seeds: seeds of every model.
        draws_per_component: draws of each component in the evaluation.
        total_draws: total draws instead, if `draws_per_component` is None.
        examples: evaluate only the first N test examples.
        represent: also classify and cluster by the latents.
        cost: how long it takes, in words.
    """

    variants: Sequence[Variant]
    questions: Sequence[Question]
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    draws_per_component: int | None = None
    total_draws: int = 1000
    examples: int | None = None
    represent: bool = False
    cost: str = ""

    def changed(self, changes: Changes) -> Trainings:
        """The same with other seeds, epochs or epochs of warm-up, or with only some of its models.

        Raises:
            ValueError: there is no such model, or it is compared with one that is left out.
        """
        options = {**self.options, **changes.named(epochs="training.epochs", warmup="training.warmup")}
        changed = replace(self, options=options, **changes.named(seeds="seeds"))
        return changed if changes.models is None else changed._of(changes.models)

    def _of(self, models: Sequence[str]) -> Trainings:
        """The same with some models, and the claims about them."""
        there = dict.fromkeys(variant.model for variant in self.variants)
        for model in models:
            if model not in there:
                raise unknown("model", model, there)
        variants = [variant for variant in self.variants if variant.model in models]
        keys = {variant.key for variant in variants}
        for variant in variants:
            if (baseline := self.baseline(variant)) not in keys:
                raise ValueError(f"{variant.model} is compared with {baseline[0]}: name both")
        pairs = [[pair for pair in question.pairs if keys.issuperset(pair)] for question in self.questions]
        questions = [replace(q, pairs=kept) for q, kept in zip(self.questions, pairs, strict=True) if kept]
        return replace(self, variants=variants, questions=questions)

    def grid(self, out: Path) -> sweeps.Grid:
        """Configuration of every training."""
        cells = {}
        for seed in self.seeds:
            for variant in self.variants:
                options = {**self.options, **variant.options, "seed": seed}
                cells[f"{variant.name}-seed{seed}"] = config.read(variant.preset, config.flags(options))
        return sweeps.Grid(out, cells, self.total_draws, self.examples, self.draws_per_component)

    def carry_out(self, out: Path, *, jobs: int, progress: Progress) -> Findings:
        """Train and evaluate what has not been done yet, and compare.

        Raises:
            Failed: a training failed; finished ones are kept.
        """
        grid = self.grid(out)
        result = sweeps.run_cells(grid, jobs=jobs, progress=progress)
        if result.failed:
            raise Failed("; ".join(f"{name}: {error}" for name, error in result.failed.items()))
        if self.represent:
            progress.announce("classifying by the latents where that is not done")
        cells = {
            run.path: _Cell(run, result.done[run.path], _represent(run) if self.represent else {})
            for run in runs.open_runs(result.done)
        }
        measured = {v.key: [cells[out / f"{v.name}-seed{seed}"] for seed in self.seeds] for v in self.variants}
        rows = [self._row(variant, measured) for variant in self.variants]
        verdicts = [judge(question.claim, self._gaps(question, measured)) for question in self.questions]
        discrete = all(cell.data.binarize == "none" for cell in grid.cells.values())
        scores = self._scores(measured) if self.represent else {}
        columns = [*LIKELIHOODS[:7], *([BITS] if discrete else []), *LIKELIHOODS[7:]]
        for row in rows if scores else []:
            averages = Representation({ALL: scores[f"{row['model']}, S = {row['size']}"]}).table[0]
            row |= {key: value for key, value in averages.items() if key not in ("features", "repetitions")}
            row |= {key: None for key in row if key.endswith("_std") and len(self.seeds) == 1}
        if scores:
            metrics = [key.removesuffix("_std") for key in rows[0] if key.endswith("_std")]
            columns += [
                Column(m.upper(), m, f"{m}_std", 3, "on [mean, std] of all components; ± standard deviation over runs")
                for m in metrics
            ]  # fmt: skip
        return Findings(
            columns,
            rows,
            verdicts,
            self._figures(measured, rows, scores, progress),
            self._commands(grid, out),
            self._notes(rows, list(cells.values())),
        )

    def baseline(self, variant: Variant) -> tuple[str, int]:
        """Model and size of the baseline of a variant's gain."""
        return variant.against or next(v.key for v in self.variants if v.model == variant.model)

    def _row(self, variant: Variant, measured: Measured) -> Row:
        """Means over seeds, and the paired gain over the baseline."""
        cells = measured[variant.key]
        results = [cell.evaluation.results for cell in cells]
        bits = [result["bits_per_dim"] for result in results]
        row: Row = {
            "model": variant.model, "size": variant.size, "seeds": len(cells),
            "elbo": _mean(results, "elbo"), "nll_miselbo": _mean(results, "nll_miselbo"),
            "nll_pooled": _mean(results, "nll_pooled"),
            "nll_pooled_se": standard_error(np.mean([cell.evaluation.bounds["pooled"] for cell in cells], 0)),
            "jsd": _mean(results, "jsd"), "effective_components": _mean(results, "effective_components"),
            "parameters": results[0]["parameters"], "hours": _mean(results, "train_seconds") / 3600,
            "bits_per_dim": None if None in bits else float(np.mean(bits)),
            "unreliable": 100 * float(np.mean([result["pareto_k_unreliable"] or 0.0 for result in results])),
            "each": [{name: r[name] for name in ("elbo", "nll_miselbo", "nll_pooled", "jsd")} for r in results],
            "total_draws": results[0]["total_draws"],
            "examples": results[0]["examples"], "data_sha256": results[0]["data_sha256"],
        }  # fmt: skip
        baseline = self.baseline(variant)
        if baseline != variant.key:
            gain = _gain(measured[variant.key], measured[baseline], "pooled")
            row |= {"gain": gain.mean, "gain_se": gain.se, "gain_seed_se": gain.seed_se}
            row |= {"gain_by_seed": gain.by_seed.tolist(), "over": f"{baseline[0]} S = {baseline[1]}"}
        return row

    def _gaps(self, question: Question, measured: Measured) -> list[Gap]:
        """The differences of a claim, with margins over test examples, or over seeds for scores without any."""
        gaps = []
        for better, worse in question.pairs:
            gain = _gain(measured[better], measured[worse], question.metric)
            name = f"{better[0]} S = {better[1]} over {worse[0]} S = {worse[1]} ({question.metric})"
            half = margin(gain.seed_se, len(self.seeds)) if math.isnan(gain.se) else 1.96 * gain.se
            gaps.append(Gap(name, gain.mean, half, bool((np.sign(gain.by_seed) == np.sign(gain.mean)).all())))
        return gaps

    def _scores(self, measured: Measured) -> dict[str, dict[str, list[float]]]:
        """Scores on [mean, std] of every variant, over seeds and repetitions."""
        scores: dict[str, dict[str, list[float]]] = {}
        for (model, size), cells in measured.items():
            for cell in cells:
                for metric, values in cell.representation[ALL].items():
                    scores.setdefault(f"{model}, S = {size}", {}).setdefault(metric, []).append(float(np.mean(values)))
        return scores

    def _figures(
        self,
        measured: Measured,
        rows: list[Row],
        scores: dict[str, dict[str, list[float]]],
        progress: Progress,
    ) -> dict[str, Figure | bytes]:
        """Gains, scores, learning curves, and pictures of the latents."""
        named = [
            (f"{row['model']} S = {row['size']} over {row['over']}", row["gain"], row["gain_se"])
            for row in rows if "gain" in row
        ]  # fmt: skip
        drawn: dict[str, Figure | bytes] = {}
        if named:
            drawn["gains"] = figures.gains(named, "paired gain over the baseline (nats)")
        if scores:
            drawn["scores"] = figures.scores(scores, "accuracy, ARI, NMI or ASW")
        first = {f"{model}, S = {size}": cells[0].run for (model, size), cells in measured.items()}
        drawn["learning curves"] = figures.learning_curves({name: run.metrics for name, run in first.items()})
        if self.represent:
            for name, run in first.items():
                drawn |= {f"{name}: {what}": picture for what, picture in latent_pictures(run, progress).items()}
        return drawn

    def _commands(self, grid: sweeps.Grid, out: Path) -> list[str]:
        """Commands that train and evaluate each model on its own."""
        lines = []
        each = self.draws_per_component
        draws = f"--total-draws {self.total_draws}" if each is None else f"--draws-per-component {each}"
        limit = f" --examples {self.examples}" if self.examples else ""
        for seed in self.seeds:
            for variant in self.variants:
                path = out / f"{variant.name}-seed{seed}"
                words = config.flags({**self.options, **variant.options, "seed": seed})
                lines.append(f"mixvae train {variant.preset} {shlex.join(words)} --out {path}")
                lines.append(f"mixvae evaluate {path} {draws}{limit}{' --representation' if self.represent else ''}")
        return lines

    def _notes(self, rows: list[Row], cells: Sequence[_Cell]) -> list[str]:
        """Caveats on the numbers."""
        notes = []
        if any(cell.evaluation.identity.legacy for cell in cells):
            notes.append(
                "Legacy results, from before results recorded the weights and data that they were made from: they pair "
                "with each other only."
            )
        if len(self.seeds) < 3:
            notes.append(f"Seeds: {len(self.seeds)}. That says little about what another training would give.")
        if (worst := max(row["unreliable"] for row in rows)) > 5:
            notes.append(
                f"Pareto k̂ exceeds 0.7 for up to {worst:.0f} % of the test examples: the pooled bound is valid but not "
                "tight there."
            )
        return notes


Measured = dict[tuple[str, int], list["_Cell"]]


@dataclass(frozen=True)
class _Cell:
    """Measurements of one training."""

    run: runs.Run
    evaluation: Evaluation
    representation: Mapping[str, Mapping[str, list[float]]]


def _represent(run: runs.Run) -> Mapping[str, Mapping[str, list[float]]]:
    """Scores by features and metric on the test split; for a legacy run, those that it came with."""
    if not run.is_legacy:
        return runs.representation(run, split="test").scores
    stored = runs.representations(run)
    if not stored:
        raise ValueError(f"{run.path} is legacy and has no representation.json: choose another folder")
    return stored[0][1].scores


@dataclass(frozen=True)
class _Gain:
    """Mean paired difference, also by seed, with standard errors over test examples and over seeds; NaN if unknown."""

    mean: float
    by_seed: np.ndarray
    se: float
    seed_se: float


def _gain(new: list[_Cell], old: list[_Cell], metric: str) -> _Gain:
    """Paired difference between trainings of the same seeds: of a bound on the same test examples, or of a score."""
    if metric in ("pooled", "miselbo", "elbo"):
        pairs = zip(new, old, strict=True)
        each = np.array([differences(a.evaluation, b.evaluation, metric, quiet=True) for a, b in pairs])
        return _Gain(float(each.mean()), each.mean(1), standard_error(each.mean(0)), standard_error(each.mean(1)))
    scores = [(a.representation[ALL][metric], b.representation[ALL][metric]) for a, b in zip(new, old, strict=True)]
    gains = np.array([np.mean(a) - np.mean(b) for a, b in scores])
    return _Gain(float(gains.mean()), gains, math.nan, standard_error(gains))


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([result[key] for result in results]))
