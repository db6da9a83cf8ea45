"""Experiments that train models with several seeds, and compare their means with the error between trainings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixvae import config, figures, reports, runs, sweeps
from mixvae._failures import Failed
from mixvae._tables import Row
from mixvae.analysis import Representation
from mixvae.evaluation import Evaluation, differences, standard_error
from mixvae.progress import Progress
from mixvae.reports import ONE_TRAINING, PARTS, BetweenTrainings, Column, between_trainings, parts
from mixvae.reproduce.findings import Changes, Findings, Gap, judge, unknown
from mixvae.reproduce.latents import latent_pictures

MODEL = (
    Column("model", "model"),
    Column("S", "size", digits=0, about="mixture components, or the size compared with them"),
    Column("seeds", "seeds", digits=0, about="trainings"),
    Column("parameters", "parameters", digits=0, page_only=True),
)
COOPERATION = (
    Column("JSD", "jsd", digits=3, about="nats"),
    Column("effective S", "effective_components"),
    Column("k̂ unreliable", "pareto_k_unreliable", about="largest share of test examples whose NLL is not tight"),
    Column("hours", "hours", digits=2, about="training time of one model", page_only=True),
)
BITS = Column("bits/dim", "bits_per_dim", digits=3, about="of the NLL")
ALL = "mean and std"
EACH = ("elbo", "nll", "nll_miselbo", "nll_pooled", "jsd")
"""Results of every training that a row holds."""


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
        metric: log_px, a bound (pooled, miselbo, elbo), or a score of `mixvae.analysis` on [mean, std].
    """

    claim: str
    pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]]
    metric: str = "log_px"


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

    def carry_out(self, out: Path, *, runner: sweeps.Runner, progress: Progress) -> Findings:
        """Train and evaluate what has not been done yet, and compare.

        Raises:
            Failed: a training failed; finished ones are kept.
        """
        grid = self.grid(out)
        result = sweeps.run_cells(grid, runner=runner, progress=progress)
        if result.failed:
            raise Failed("; ".join(f"{name}: {error}" for name, error in result.failed.items()))
        if self.represent:
            progress.announce("classifying by the latents where that is not done")
        cells = {
            run.path: _Cell(run, result.done[run.path], _represent(run) if self.represent else {})
            for run in runs.open_runs(result.done)
        }
        measured = {v.key: [cells[out / f"{v.name}-seed{seed}"] for seed in self.seeds] for v in self.variants}
        likelihood = _between(measured, "log_px")
        rows = [self._row(variant, measured, likelihood) for variant in self.variants]
        verdicts = [judge(question.claim, self._gaps(question, measured)) for question in self.questions]
        discrete = all(cell.data.binarize == "none" for cell in grid.cells.values())
        scores = self._scores(measured) if self.represent else {}
        nll, gain = (reports.NLL_BETWEEN, reports.GAIN_BETWEEN) if self.has_several else (reports.NLL, reports.GAIN)
        split = reports.SPLIT_BETWEEN if self.has_several else reports.SPLIT
        columns = [
            *MODEL,
            nll,
            *([BITS] if discrete else []),
            gain,
            *split,
            reports.ELBO,
            reports.MISELBO,
            reports.POOLED,
            *COOPERATION,
        ]
        for row in rows if scores else []:
            averages = Representation({ALL: scores[f"{row['model']}, S = {row['size']}"]}).table[0]
            row |= {key: value for key, value in averages.items() if key not in ("features", "repetitions")}
            row |= {key: None for key in row if key.endswith("_std") and len(self.seeds) == 1}
        for metric in next(iter(scores.values()), ()):
            between = _between(measured, metric)
            for row in rows:
                row[f"{metric}_margin"] = between.margin((row["model"], row["size"]))
            about = "on [mean, std] of all components; ± half width of its 95 % interval between trainings"
            columns.append(Column(metric.upper(), metric, f"{metric}_margin", 3, about))
        return Findings(
            columns,
            rows,
            verdicts,
            self._figures(measured, rows, scores, progress),
            self._commands(grid, out),
            self._notes(rows, list(cells.values())),
        )

    @property
    def has_several(self) -> bool:
        """Whether every model is trained with several seeds, without which nothing is known of the method."""
        return len(self.seeds) > 1

    def baseline(self, variant: Variant) -> tuple[str, int]:
        """Model and size of the baseline of a variant's gain."""
        return variant.against or next(v.key for v in self.variants if v.model == variant.model)

    def _row(self, variant: Variant, measured: Measured, likelihood: BetweenTrainings[tuple[str, int]]) -> Row:
        """Means over trainings, and the gain over the baseline: its errors between trainings and over examples."""
        cells = measured[variant.key]
        results = [cell.evaluation.results for cell in cells]
        bits = [result["bits_per_dim"] for result in results]
        row: Row = {
            "model": variant.model, "size": variant.size, "seeds": len(cells),
            "elbo": _mean(results, "elbo"), "nll_miselbo": _mean(results, "nll_miselbo"), "nll": _mean(results, "nll"),
            "nll_se": standard_error(np.mean([cell.evaluation.bounds["log_px"] for cell in cells], 0)),
            "nll_margin": likelihood.margin(variant.key), **reports.trust(results, "nll"),
            "nll_pooled": _mean(results, "nll_pooled"), "kl_posterior": _mean(results, "kl_posterior"),
            "jsd": _mean(results, "jsd"), "effective_components": _mean(results, "effective_components"),
            "parameters": results[0]["parameters"], "hours": _mean(results, "train_seconds") / 3600,
            "bits_per_dim": None if None in bits else float(np.mean(bits)),
            "pareto_k_unreliable": _worst(results, "pareto_k_unreliable"), "nll_bias": _worst(results, "nll_bias"),
            "each": [{name: result[name] for name in EACH} for result in results],
            "proposal": min(cell.evaluation.identity.proposal for cell in cells),  # posterior, if any of them is
            "total_draws": results[0]["total_draws"],
            "examples": results[0]["examples"], "data_sha256": results[0]["data_sha256"],
        }  # fmt: skip
        baseline = self.baseline(variant)
        if baseline != variant.key:
            old = measured[baseline]
            gain = likelihood.difference(variant.key, baseline)
            row |= {"gain": gain.mean, "gain_between_se": gain.se, "gain_margin": gain.margin}
            row |= {"gain_se": standard_error(_by_example(cells, old, lambda of: of.bounds["log_px"]))}
            row |= {"degrees_of_freedom": likelihood.degrees, "over": f"{baseline[0]} S = {baseline[1]}"}
            row |= reports.trust([*results, *(cell.evaluation.results for cell in old)], "gain")
            row |= self._split(variant.key, baseline, measured)
        return row

    def _split(self, new: tuple[str, int], old: tuple[str, int], measured: Measured) -> Row:
        """The gain of the ELBO and its parts, if both models were trained by one bound."""
        trained = reports.objective(measured[old][0].run)
        alike = {
            key: cells
            for key, cells in measured.items()
            if all(reports.objective(cell.run) == trained and parts(cell.evaluation) for cell in cells)
        }
        if trained is None or not {new, old} <= alike.keys():
            return {}
        row: Row = {}
        for part in PARTS:
            gain = _between(alike, part).difference(new, old)
            row |= {f"gain_{part}": gain.mean, f"gain_{part}_margin": gain.margin}
            each = _by_example(alike[new], alike[old], lambda of, part=part: parts(of)[part])
            row |= {f"gain_{part}_se": standard_error(each)}
        return row

    def _gaps(self, question: Question, measured: Measured) -> list[Gap]:
        """The differences of a claim, with margins between trainings."""
        between, gaps = _between(measured, question.metric), []
        for better, worse in question.pairs:
            gain = between.difference(better, worse)
            name = f"{better[0]} S = {better[1]} over {worse[0]} S = {worse[1]} ({question.metric})"
            gaps.append(Gap(name, gain.mean, gain.margin))
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
        error = "gain_margin" if self.has_several else "gain_se"
        named = [
            (_label(row), row["gain"], row[error])
            for row in rows if "gain" in row
        ]  # fmt: skip
        drawn: dict[str, Figure | bytes] = {}
        if named:
            over = f"standard error over test examples of {ONE_TRAINING}"
            bars = "95 % intervals between trainings" if self.has_several else over
            across = "gain in log p(x) over the baseline (nats)"
            drawn["gains"] = figures.gains(named, across, bars, decides=self.has_several)
            end = error.removeprefix("gain_")
            split = {
                _label(row): [(row[f"gain_{part}"], row[f"gain_{part}_{end}"]) for part in PARTS]
                for row in rows if "gain_elbo" in row
            }  # fmt: skip
            drawn |= {"a better model or a better posterior": figures.splits(split, bars)} if split else {}
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
        if not self.has_several:
            notes.append(f"Each gain is of {ONE_TRAINING}. Its error is over test examples: give several --seeds.")
        named = {f"{row['model']} S = {row['size']}": row for row in rows}
        if amortised := [name for name, row in named.items() if row["proposal"] == "posterior"]:
            notes.append(reports.AMORTISED.format(", ".join(amortised)))
        if any("gain" in row and "gain_elbo" not in row for row in rows):
            notes.append("Gains over a training of another bound are in log p(x) only.")
        return [*notes, *reports.looseness(named)]


Measured = dict[tuple[str, int], list["_Cell"]]


@dataclass(frozen=True)
class _Cell:
    """Measurements of one training."""

    run: runs.Run
    evaluation: Evaluation
    representation: Mapping[str, Mapping[str, list[float]]]

    def value(self, metric: str) -> float:
        """Mean of a bound or part of the ELBO over test examples, or of a score over repetitions."""
        bounds = {**self.evaluation.bounds, **parts(self.evaluation)}
        return float(np.mean(bounds[metric] if metric in bounds else self.representation[ALL][metric]))


def _represent(run: runs.Run) -> Mapping[str, Mapping[str, list[float]]]:
    """Scores by features and metric on the test split; for a legacy run, those that it came with."""
    if not run.is_legacy:
        return runs.representation(run, split="test").scores
    stored = runs.representations(run)
    if not stored:
        raise ValueError(f"{run.path} is legacy and has no representation.json: choose another folder")
    return stored[0][1].scores


def _between(measured: Measured, metric: str) -> BetweenTrainings[tuple[str, int]]:
    """Trainings of every model by a bound, or by a score, as averages over test examples or repetitions."""
    return between_trainings({key: [cell.value(metric) for cell in cells] for key, cells in measured.items()})


def _by_example(new: Sequence[_Cell], old: Sequence[_Cell], values: Callable[[Evaluation], np.ndarray]) -> np.ndarray:
    """Difference of the means of two models' trainings on every test example, (N,).

    Raises:
        ValueError: they were not evaluated on the same examples.
    """
    for cell in (*new, *old):
        differences(cell.evaluation, old[0].evaluation, quiet=True)  # refuses other examples
    means = [np.mean([values(cell.evaluation) for cell in cells], 0) for cells in (new, old)]
    return means[0] - means[1]


def _label(row: Row) -> str:
    """Name of a gain in figures."""
    return f"{row['model']} S = {row['size']} over {row['over']}" + reports.marked(row)


def _worst(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The largest of the values that are known; None if none is."""
    return max((result[key] for result in results if result.get(key) is not None), default=None)


def _mean(results: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([result[key] for result in results]))
