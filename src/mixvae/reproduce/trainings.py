"""Experiments that train models with several seeds, and compare their means with the error between trainings."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixvae import config, reports, runs, sweeps
from mixvae._failures import Failed, typed
from mixvae._tables import Row
from mixvae.analysis import Representation
from mixvae.evaluation import Evaluation, standard_error
from mixvae.progress import Progress
from mixvae.reports import ONE_TRAINING, PARTS, BetweenTrainings, Column, parts
from mixvae.reproduce.clock import add_clock, at_equal_seconds, disturbed, elsewhere, least, unconfirmed
from mixvae.reproduce.contrasts import (
    KIND,
    Key,
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
from mixvae.reproduce.findings import EXPLORATORY, PRIMARY, Changes, Findings, refuse_copies
from mixvae.reproduce.measured import ALL, Cell, Measured, average, between, by_example, mean, scores_of, worst
from mixvae.reproduce.pictures import draw
from mixvae.reproduce.variants import Variant, refuse_other_starts

MODEL = (
    Column("model", "model"),
    Column("S", "size", digits=0, about="mixture components, or the size compared with them"),
    Column("seeds", "seeds", digits=0, about="trainings"),
    Column("parameters", "parameters", digits=0, page_only=True),
    reports.DRAWS,
)
SECONDS = "training time of one model, with what it starts from, at the seconds per epoch of the quickest"
COOPERATION = (
    Column("JSD", "jsd", digits=3, about="nats"),
    Column("effective S", "effective_components"),
    Column("k̂ unreliable", "pareto_k_unreliable", about="largest share of test examples whose NLL is not tight"),
    replace(reports.SECONDS, about=SECONDS),
)
KINDS = (
    Column("p", "gain_p", digits=4, positive=True, about="of the gain, two-sided, uncorrected"),
    Column("contrast", "kind", about=KIND),
)
BITS = Column("bits/dim", "bits_per_dim", digits=3, about="of the NLL", trust="nll")
EACH = ("elbo", "nll", "nll_miselbo", "nll_pooled", "jsd")
"""Per-training results that a row holds."""


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
        clock: also read the validation bound of every training at the time when the quickest one ended.
        family: number of primary contrasts of the whole plan, if models are left out.
        samples: number of examples to draw from the prior of one training of each model, to look at.
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
    clock: bool = False
    samples: int = 0
    family: int = 0
    cost: str = ""

    def changed(self, changes: Changes) -> Trainings:
        """The same with other seeds, epochs or epochs of warm-up, or with only some of its models.

        Raises:
            ValueError: there is no such model, or it is compared with one that is left out.
        """
        options = {**self.options, **changes.named(epochs="training.epochs", warmup="training.warmup")}
        changed = replace(self, options=options, **changes.named(seeds="seeds"))
        return changed if changes.models is None else changed._of(changes.models_of(v.model for v in self.variants))

    def _of(self, models: Sequence[str]) -> Trainings:
        """The same with some models, and the claims about them."""
        variants = [variant for variant in self.variants if variant.model in models]
        keys = {variant.key for variant in variants}
        for variant in variants:
            if (baseline := self.baseline(variant)) not in keys:
                raise ValueError(f"{variant.model} is compared with {baseline[0]}: name both")
            if variant.start is not None and variant.start not in keys:
                raise ValueError(f"{variant.model} starts from {variant.start[0]}: name both")
        family = self.family or primary_contrasts(self.questions)
        return replace(self, variants=variants, questions=about(self.questions, keys), family=family)

    def seeds_of(self, variant: Variant) -> Sequence[int]:
        """Seeds with which a variant is trained."""
        return self.seeds[: variant.trainings]

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each training."""
        return [name for name, _, _ in self._each(Path())]

    def _each(self, out: Path) -> list[tuple[str, Variant, dict[str, Any]]]:
        """Every training: name of its folder, its variant, and its changes to the preset; all variants seed by seed."""
        names = {variant.key: variant.name for variant in self.variants}
        each = []
        for seed in self.seeds:
            for variant in self.variants:
                if seed not in self.seeds_of(variant):
                    continue
                options = {**self.options, **variant.options, "seed": seed}
                if variant.share != 1:
                    options["training.epochs"] = self._part(variant, options["training.epochs"])
                if variant.start is not None:
                    options["start.run"] = str(out / f"{names[variant.start]}-seed{seed}")
                each.append((f"{variant.name}-seed{seed}", variant, options))
        return each

    def _part(self, variant: Variant, epochs: int) -> int:
        """Epochs of a variant that trains for a share of them.

        Raises:
            ValueError: they cannot be divided so.
        """
        part = variant.share * epochs
        if not part.is_integer() or not part:
            raise ValueError(
                f"{variant.model} trains for {variant.share:g} of the epochs, which must be whole; got {epochs}: give "
                f"a multiple of {1 / variant.share:g}"
            )
        return int(part)

    def grid(self, out: Path) -> sweeps.Grid:
        """Configuration of every training; what does not depend on the seed is read once."""
        read: dict[Key, config.Config] = {}
        cells = {}
        for name, variant, options in self._each(out):
            if variant.key not in read:
                read[variant.key] = config.read(variant.preset, config.flags(options))
            cell = copy.deepcopy(read[variant.key])
            cell.seed, cell.start.run = options["seed"], options.get("start.run")
            cells[name] = cell
        return sweeps.Grid(out, cells, self.total_draws, self.examples, self.draws_per_component)

    def carry_out(self, out: Path, *, runner: sweeps.Runner, progress: Progress) -> Findings:
        """Train and evaluate what has not been done yet, and compare.

        Raises:
            Failed: a training failed; finished ones are kept.
        """
        grid, done = self.grid(out), dict[Path, Evaluation]()
        refuse_other_starts(grid)
        for starts in (False, True):  # trainings that others start from come first
            cells = {name: cell for name, cell in grid.cells.items() if (cell.start.run is not None) is starts}
            result = sweeps.run_cells(replace(grid, cells=cells), runner=runner, progress=progress)
            if result.failed:
                raise Failed("; ".join(f"{name}: {error}" for name, error in result.failed.items()))
            done |= result.done
        refuse_copies({path.name: evaluation for path, evaluation in done.items()})
        if self.represent:
            progress.announce("classifying by the latents where that is not done")
        cells = {
            run.path: Cell(run, done[run.path], scores_of(run) if self.represent else {})
            for run in runs.open_runs(done)
        }
        measured = {v.key: [cells[out / f"{v.name}-seed{seed}"] for seed in self.seeds_of(v)] for v in self.variants}
        return self._found(at_equal_seconds(measured) if self.clock else measured, grid, progress)

    def _draws(self, grid: sweeps.Grid) -> dict[Key, int]:
        """Decoder evaluations per example and step S·L of every variant."""
        return {v.key: grid.cells[f"{v.name}-seed{self.seeds[0]}"].draws_per_step for v in self.variants}

    def _found(self, measured: Measured, grid: sweeps.Grid, progress: Progress) -> Findings:
        """Compare what was measured."""
        draws, likelihood = self._draws(grid), between(measured, "log_px")
        metrics = dict.fromkeys(question.metric for question in self.questions)
        values = {metric: self._by_seed(measured, metric) for metric in metrics}
        results = {key: [cell.evaluation.results for cell in cells] for key, cells in measured.items()}
        contrasts = contrast_rows(self.questions, values, draws, self.family, results)
        primary = corrected(contrasts, "log_px")
        rows = [
            {**self._row(variant, measured, likelihood, primary), "draws_per_step": draws[variant.key]}
            for variant in self.variants
        ]
        scores = self._scores(measured) if self.represent else {}
        discrete = all(cell.data.binarize == "none" for cell in grid.cells.values())
        columns = [*self._columns(discrete=discrete), *self._add_scores(rows, scores, measured)]
        if self.clock:
            columns += add_clock(rows, measured)
        listed = [row for each in contrasts for row in each]
        pictures = draw(measured, rows, scores, progress, several=self.has_several, samples=self.samples)
        return Findings(
            columns,
            rows,
            verdicts(self.questions, contrasts),
            drawn_by(self._pairs, draws),
            pictures,
            self._commands(grid.out),
            self._notes(rows, measured),
            listed,
        )

    def _by_seed(self, measured: Measured, metric: str) -> dict[Key, dict[int, float]]:
        """A metric of every training, by variant and seed."""
        return {
            v.key: {s: cell.value(metric) for s, cell in zip(self.seeds_of(v), measured[v.key], strict=True)}
            for v in self.variants
        }

    def _columns(self, *, discrete: bool) -> list[Column]:
        """Columns of the table, except scores of the latents."""
        nll, gain = (reports.NLL_BETWEEN, reports.GAIN_BETWEEN) if self.has_several else (reports.NLL, reports.GAIN)
        split = reports.SPLIT_BETWEEN if self.has_several else reports.SPLIT
        bits = [BITS] if discrete else []
        bounds = (reports.ELBO, reports.MISELBO, reports.POOLED)
        return [*MODEL, nll, *bits, gain, *KINDS, *split, *bounds, *COOPERATION]

    def _add_scores(
        self, rows: Sequence[Row], scores: Mapping[str, dict[str, list[float]]], measured: Measured
    ) -> list[Column]:
        """Put scores of the latents, with their errors between trainings, into the rows; returns their columns."""
        for row in rows if scores else ():
            averages = Representation({ALL: scores[named((row["model"], row["size"]))]}).table[0]
            row.update({key: value for key, value in averages.items() if key not in ("features", "repetitions")})
            row.update({key: None for key in row if key.endswith("_std") and len(self.seeds) == 1})
        columns = []
        for metric in next(iter(scores.values()), ()):
            trainings = between(measured, metric)
            for row in rows:
                row[f"{metric}_margin"] = trainings.margin((row["model"], row["size"]))
                row[f"{metric}_homogeneity"] = trainings.homogeneity
            about = "on [mean, std] of all components; ± half width of its 95 % interval between trainings"
            columns.append(Column(metric.upper(), metric, f"{metric}_margin", 3, about))
        return columns

    @property
    def has_several(self) -> bool:
        """Whether every model is trained with several seeds, without which nothing is known about the method."""
        return len(self.seeds) > 1

    def baseline(self, variant: Variant) -> Key:
        """Model and size of the baseline of a variant's gain."""
        return variant.against or next(v.key for v in self.variants if v.model == variant.model)

    @property
    def _pairs(self) -> list[tuple[Key, Key]]:
        """The variants that are compared."""
        pairs = [pair for question in self.questions for pair in question.pairs]
        return pairs + [(v.key, self.baseline(v)) for v in self.variants if self.baseline(v) != v.key]

    def _row(
        self, variant: Variant, measured: Measured, likelihood: BetweenTrainings[Key], primary: Mapping[str, float]
    ) -> Row:
        """Means over trainings, and the gain over the baseline: its errors between trainings and over examples.

        Args:
            variant: the model.
            measured: what was measured on every training.
            likelihood: trainings of all models by log p(x).
            primary: Holm-corrected p values of the primary contrasts of log p(x), by contrast.
        """
        cells = measured[variant.key]
        results = [cell.evaluation.results for cell in cells]
        bits = [result["bits_per_dim"] for result in results]
        row: Row = {
            "model": variant.model, "size": variant.size, "seeds": len(cells),
            "elbo": mean(results, "elbo"), "nll_miselbo": mean(results, "nll_miselbo"), "nll": mean(results, "nll"),
            "nll_se": standard_error(average(cells, lambda of: of.bounds["log_px"])),
            "nll_margin": likelihood.margin(variant.key), **reports.trust(results, "nll"),
            "nll_pooled": mean(results, "nll_pooled"), "kl_posterior": mean(results, "kl_posterior"),
            "jsd": mean(results, "jsd"), "effective_components": mean(results, "effective_components"),
            "parameters": results[0]["parameters"],
            "train_seconds": sum(
                least([cell.evaluation.results for cell in measured[key]])
                for key in (variant.key, variant.start) if key is not None
            ),
            "log_px_homogeneity": likelihood.homogeneity,
            "bits_per_dim": None if None in bits else float(np.mean(bits)),
            "pareto_k_unreliable": worst(results, "pareto_k_unreliable"), "nll_bias": worst(results, "nll_bias"),
            "each": [{name: result[name] for name in EACH} for result in results],
            "proposal": min(cell.evaluation.identity.proposal for cell in cells),  # posterior, if any of them is
            "total_draws": results[0]["total_draws"],
            "examples": results[0]["examples"], "data_sha256": results[0]["data_sha256"],
        }  # fmt: skip
        baseline = self.baseline(variant)
        if baseline != variant.key:
            old = measured[baseline]
            gain, contrast = likelihood.difference(variant.key, baseline), over(variant.key, baseline)
            row |= {"gain": gain.mean, "gain_between_se": gain.se, "gain_margin": gain.margin, "gain_p": gain.p}
            row["gain_p_holm"] = primary.get(contrast)
            if len(cells) > 1 or len(old) > 1:
                row["kind"] = PRIMARY if contrast in primary else EXPLORATORY
            row |= {"gain_se": standard_error(by_example(cells, old, lambda of: of.bounds["log_px"]))}
            row |= {"degrees_of_freedom": gain.degrees, "over": named(baseline)}
            row |= reports.trust([*results, *(cell.evaluation.results for cell in old)], "gain")
            row |= self._split(variant.key, baseline, measured, likelihood)
        return row

    def _split(self, new: Key, old: Key, measured: Measured, likelihood: BetweenTrainings[Key]) -> Row:
        """The gain in the ELBO and its parts, if both models were trained with the same bound.

        Errors of the ELBO are of the variants trained with that bound; the model's part is the gain in log p(x).
        """
        trained = measured[old][0].objective
        alike = {
            key: cells
            for key, cells in measured.items()
            if all(cell.objective == trained and parts(cell.evaluation) for cell in cells)
        }
        if trained is None or not {new, old} <= alike.keys():
            return {}
        row: Row = {}
        for part in PARTS:
            trainings = likelihood if part == reports.MODEL else between(alike, part)
            gain = trainings.difference(new, old)
            row |= {f"gain_{part}": gain.mean, f"gain_{part}_margin": gain.margin}
            row[f"{part}_homogeneity"] = trainings.homogeneity
            each = by_example(alike[new], alike[old], lambda of, part=part: parts(of)[part])
            row |= {f"gain_{part}_se": standard_error(each)}
        return row

    def _scores(self, measured: Measured) -> dict[str, dict[str, list[float]]]:
        """Scores on [mean, std] of every variant, over seeds and repetitions."""
        scores: dict[str, dict[str, list[float]]] = {}
        for (model, size), cells in measured.items():
            for cell in cells:
                for metric, values in cell.scores[ALL].items():
                    scores.setdefault(named((model, size)), {}).setdefault(metric, []).append(float(np.mean(values)))
        return scores

    def _commands(self, out: Path) -> list[str]:
        """Commands that train and evaluate each model on its own."""
        each = self.draws_per_component
        draws = f"--total-draws {self.total_draws}" if each is None else f"--draws-per-component {each}"
        limit = f" --examples {self.examples}" if self.examples else ""
        represent = " --representation" if self.represent else ""
        lines = []
        for name, variant, options in self._each(out):
            lines.append(typed("train", variant.preset, *config.flags(options), "--out", out / name))
            lines.append(f"{typed('evaluate', out / name)} {draws}{limit}{represent}")
        return lines

    def _notes(self, rows: list[Row], measured: Measured) -> list[str]:
        """Caveats on the numbers."""
        notes = [*(disturbed if self.clock else elsewhere)(measured), *left_out(self.family, self.questions)]
        if any(cell.evaluation.identity.legacy for cells in measured.values() for cell in cells):
            notes.append(
                "Legacy results, from before results recorded the weights and data that they were made from: they pair "
                "with each other only."
            )
        if not self.has_several:
            notes.append(f"Each gain is of {ONE_TRAINING}. Its error is over test examples: give several --seeds.")
        models = {named((row["model"], row["size"])): row for row in rows}
        if amortised := [name for name, row in models.items() if row["proposal"] == "posterior"]:
            notes.append(reports.AMORTISED.format(", ".join(amortised)))
        if any("gain" in row and "gain_elbo" not in row for row in rows):
            notes.append("Gains over a training of another bound are in log p(x) only.")
        notes += unconfirmed({named(key): [one.evaluation.results for one in cells] for key, cells in measured.items()})
        evaluated = {key: cells[0].evaluation.identity.total_draws for key, cells in measured.items()}
        if unequal := {name: both for name, both in drawn_by(self._pairs, evaluated).items() if both[0] != both[1]}:
            listed = "; ".join(f"{name} ({new}, {old})" for name, (new, old) in unequal.items())
            notes.append(f"Evaluated with unequal total draws: {listed}: a gain may be that of the evaluation.")
        drawn = [cells[0].run for cells in measured.values()] if self.represent or self.samples else []
        return [*notes, *reports.looseness(models), *reports.without_weights(drawn)]
