"""Experiments without a run directory: densities on the plane, and single cells."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixvae import experiments, figures
from mixvae.files import commit, read_part
from mixvae.pages import Column
from mixvae.reproduce.findings import Findings, Gap, Say, judge, margin

TARGETS = ("ring", "bigaussian")
SPAN = 3.0
"""The toys' densities are measured between −span and span."""
VERSION = 1
"""Version of what toys compute; a change makes earlier results be computed again."""


@dataclass(frozen=True)
class Toys:
    """Approximate both targets by mixtures and by the flow.

    Args:
        components: the sizes S.
        steps: steps of each optimisation.
        seed: seed of each.
        cost: how long it takes, in words.
    """

    components: Sequence[int] = (1, 2, 5, 30)
    steps: int = 5000
    seed: int = 0
    cost: str = ""

    columns = (
        Column("target", "target"),
        Column("approximation", "name"),
        Column("bound", "bound", "bound_se", 3, "ELBO of the mixture, nats"),
        Column("log Z", "log_z", digits=3, about="by quadrature, nats"),
        Column("short of log Z", "gap", digits=3, about="KL(q ‖ p), nats"),
        Column("mass covered", "covered", about="∫ min(p, q)"),
    )

    def carry_out(self, out: Path, *, jobs: int, say: Say) -> Findings:
        """Train what is not there yet, and compare."""
        del jobs
        rows: list[dict[str, Any]] = []
        drawn: dict[str, Any] = {}
        gaps: list[Gap] = []
        rival: list[Gap] = []
        for target in TARGETS:
            table, drawn[target] = self._approximation(target, out / target, say)
            found = [{"target": target} | row for row in table]
            *mixtures, flow = found
            rows += found
            gaps += [_gap(new, old) for old, new in zip(mixtures, mixtures[1:], strict=False)]
            rival.append(_gap(mixtures[-1], flow))
        verdicts = [
            judge("The bound rises with every step in S.", gaps),
            judge(f"S = {self.components[-1]} has a higher bound than one Gaussian with a flow (IAF).", rival),
        ]
        sizes = ",".join(map(str, self.components))
        commands = [
            f"mixvae toy {target} --components {sizes} --steps {self.steps} --span {SPAN:g} --seed {self.seed} "
            f"--out {shlex.quote(str(out / target))}"
            for target in TARGETS
        ]
        return Findings(self.columns, rows, verdicts, drawn, commands)

    def _approximation(self, target: str, folder: Path, say: Say) -> tuple[list[dict[str, Any]], bytes]:
        """Table and picture of a target: those of an earlier call if all settings are the same and no file changed."""
        wanted: dict[str, Any] = {
            "version": VERSION, "target": target, "components": list(self.components), "steps": self.steps,
            "seed": self.seed, "rival": True, "span": SPAN,
        }  # fmt: skip
        manifest = folder / "reproduced.json"
        try:
            content, picture = read_part(manifest, "picture")
            read_part(manifest, "animation")
            if content["settings"] == wanted:
                return content["rows"], picture
        except (OSError, ValueError, KeyError):  # nothing is there, or not what was left: it is made again
            pass
        result = experiments.toy(
            target, folder, components=self.components, steps=self.steps, seed=self.seed, rival=True, span=SPAN, say=say
        )
        parts = {"picture": "toy.png", "animation": "toy.gif"}
        whole = {name: (file, (folder / file).read_bytes()) for name, file in parts.items()}
        content = commit(manifest, {"settings": wanted, "rows": result.table}, whole)
        return content["rows"], whole["picture"][1]


def _gap(new: dict[str, Any], old: dict[str, Any]) -> Gap:
    """How much one approximation's bound is above another's, independent draws."""
    half = 1.96 * math.hypot(new["bound_se"], old["bound_se"])
    return Gap(f"{new['target']}, {new['name']} over {old['name']}", new["bound"] - old["bound"], half)


@dataclass(frozen=True)
class Cells:
    """Train SCVI, mixtures and their rivals on cells, as `mixvae sc study` does.

    Args:
        sizes: numbers of components S of mixtures.
        frozen: sizes whose decoder is SCVI's, frozen.
        seeds: seeds of every model.
        settings: settings of the training, as `mixvae.single_cell.study.run` takes them.
        cells: use so many PBMC cells instead of CORTEX, for a trial.
        cost: how long it takes, in words.
    """

    sizes: Sequence[int] = (1, 2, 3, 4, 5)
    frozen: Sequence[int] = (2, 3, 4, 5)
    seeds: Sequence[int] = (0, 1, 2)
    settings: dict[str, int] = field(default_factory=dict)
    cells: int | None = None
    cost: str = ""

    scores = {"ari": "ARI", "nmi": "NMI", "asw": "ASW", "svm": "SVM, types", "svm_precise": "SVM, finer types"}
    columns = (
        Column("model", "model"),
        Column("S", "size", digits=0),
        Column("seeds", "seeds", digits=0),
        *(Column(t, k, f"{k}_se", 1, "nats per held-out cell") for t, k in
          (("ELBO", "elbo"), ("MISELBO", "miselbo"), ("pooled", "pooled"))),
        Column("gain of the ELBO", "elbo_gain", "elbo_gain_se", 1, "over SCVI of the same seed, nats", signed=True),
        Column("gain of pooled", "pooled_gain", "pooled_gain_se", 1, "over SCVI of the same seed, nats", signed=True),
        Column("effective S", "effective", "effective_se"),
        *(Column(title, key, f"{key}_se", 3) for key, title in scores.items()),
    )  # fmt: skip

    def carry_out(self, out: Path, *, jobs: int, say: Say) -> Findings:
        """Train what is not there yet, and compare.

        Raises:
            ValueError: scvi-tools is not installed.
        """
        del jobs
        try:
            from mixvae.single_cell import study
        except ImportError:
            raise ValueError("single cells need the extra scvi: pip install 'mixvae[scvi]'") from None
        plan = asdict(study.Plan(**self.settings))
        data = None if self.cells is None else study.trial(self.cells)
        listed = [
            job
            for seed in self.seeds
            for job in (
                study.Job(study.SCVI_NAME, 1, seed),
                *(study.Job(study.MIXTURE, s, seed) for s in self.sizes),
                *(study.Job(study.FROZEN, s, seed) for s in self.frozen),
            )
        ]  # fmt: skip
        results = study.run(out, listed, **plan, data=data, progress=lambda job, _: say(f"{job.name}: done"))
        rows = [_flat(row) for row in study.table(results)]
        by_key = {(row["model"], row["size"]): row for row in rows}
        mixtures = [by_key[study.MIXTURE, s] for s in self.sizes if s > 1]
        rivals = [by_key[study.RIVAL, s] for s in self.sizes if s > 1]
        verdicts = [
            judge("The ELBO of held-out cells gains over SCVI.", [_gain(row, "elbo") for row in mixtures]),
            judge("Clusters agree better with the types (ARI).", [_gain(row, "ari") for row in mixtures]),
            judge(
                "Types are classified better by all components than by samples of one encoder side by side.",
                [_difference(row, other, "svm_precise") for row, other in zip(mixtures, rivals, strict=True)],
            ),
        ]  # fmt: skip
        named = [
            (f"{row['model']}, S = {row['size']}", row["elbo_gain"], row["elbo_gain_se"])
            for row in rows if "elbo_gain" in row and row["model"] != study.SCVI_NAME
        ]  # fmt: skip
        drawn: dict[str, Any] = {"gains": figures.gains(named, "gain of the ELBO over SCVI (nats per held-out cell)")}
        notes = [f"{len(self.seeds)} seeds: standard errors have {len(self.seeds) - 1} degrees of freedom."]
        if results[0].identity.legacy:
            notes.append(f"The results in {out} are legacy: there is no record of the data that they were made from.")
        options = {"out": out, "models": ",".join(job.name for job in listed), **plan, "cells": self.cells}
        words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        command = shlex.join(["mixvae", "sc", "study", *words, "--integration-seeds", "0"])
        return Findings(self.columns, rows, verdicts, drawn, [command], notes)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose pairs of mean and standard error are two values."""
    flat: dict[str, Any] = {"model": row["model"], "size": row["S"], "seeds": row["seeds"]}
    for key, value in row.items():
        if isinstance(value, tuple):
            flat |= {key: value[0], f"{key}_se": value[1]}
    return flat


def _gain(row: dict[str, Any], metric: str) -> Gap:
    half = margin(row[f"{metric}_gain_se"], row["seeds"])
    return Gap(f"S = {row['size']} over SCVI ({metric})", row[f"{metric}_gain"], half)


def _difference(row: dict[str, Any], other: dict[str, Any], metric: str) -> Gap:
    gain, error = f"{metric}_gain", f"{metric}_gain_se"
    half = margin(math.hypot(row[error], other[error]), min(row["seeds"], other["seeds"]))
    return Gap(f"S = {row['size']} over {other['size']} samples ({metric})", row[gain] - other[gain], half)
