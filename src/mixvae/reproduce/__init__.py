"""Every experiment of the paper by name: models, numbers, pictures, and whether the claim holds."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch

from mixvae import figures, reports
from mixvae._resources import machine
from mixvae.files import read_json, write_bytes, write_json
from mixvae.progress import SILENT, Progress
from mixvae.reproduce.catalogue import EXPERIMENTS
from mixvae.reproduce.contrasts import CONTRASTS
from mixvae.reproduce.findings import Changes, Experiment, Findings, Gap, Verdict, judge, unknown
from mixvae.reproduce.trainings import Trainings
from mixvae.sweeps import LOCAL, Runner

__all__ = ["EXPERIMENTS", "Experiment", "Findings", "Gap", "Scale", "Verdict", "find", "judge", "reproduce"]

Scale = Literal["smoke", "small", "paper"]


def find(name: str) -> Experiment:
    """The experiment with this name.

    Raises:
        ValueError: there is none; the closest name is suggested.

    Example:
        >>> from mixvae.reproduce import find
        >>> find("ablation").title
        'Ablation: components × flow × levels × VampPrior'
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


def reproduce(
    name: str,
    scale: Scale = "small",
    out: str | Path | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    warmup: int | None = None,
    models: Sequence[str] | None = None,
    runner: Runner = LOCAL,
    progress: Progress = SILENT,
) -> Findings:
    """Carry out an experiment of the paper; write results.json, figures and a report page. Resumes if interrupted.

    Args:
        name: the experiment, a key of `EXPERIMENTS`.
        scale: smoke (minutes, digits), small (two cores, an hour or two) or paper (the paper's sizes, a GPU).
        out: output folder; `runs/reproduce/NAME-SCALE` by default.
        seeds: seeds of every training, instead of the scale's.
        epochs: epochs of every training, instead of the scale's.
        warmup: epochs of warm-up, instead of the scale's.
        models: only these of its models.
        runner: where trainings are run, as `mixvae.sweeps.choose_runner` returns it; one after another by default.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: there is no such experiment, a number is wrong, it cannot run there, or the folder has results of
            something else.
        Failed: a training failed; finished ones are kept.

    References:
        Kviman et al., Cooperation in the Latent Space (2023), https://arxiv.org/abs/2209.15514
    """
    experiment = find(name)
    plan = experiment.scales[scale]
    changes = Changes(seeds, epochs, warmup, models)
    given = changes.named(seeds="seeds", epochs="epochs", warmup="warmup", models="models")
    if given:
        plan = plan.changed(changes)
    if not isinstance(plan, Trainings) and runner != LOCAL:
        raise ValueError(f"{name} trains its models one after the other in this process: leave out --on and --jobs")
    folder = Path(out).expanduser() if out is not None else Path("runs") / "reproduce" / f"{name}-{scale}"
    start, before = time.perf_counter(), _seconds(folder, name, scale)
    findings = plan.carry_out(folder, runner=runner, progress=progress)
    tested = [*findings.table, *({f"{row['metric']}_homogeneity": row["homogeneity"]} for row in findings.contrasts)]
    notes = [*reports.unequal_variances(tested), *reports.unequal_draws(findings.draws), *findings.notes]
    findings = replace(findings, notes=notes)
    if scale == "smoke":
        undecided = [replace(verdict, holds=None) for verdict in findings.verdicts]
        notes = ["A smoke run: it shows that everything works, and says nothing about the claims.", *findings.notes]
        findings = replace(findings, verdicts=undecided, notes=notes)
    pictures = {
        title: picture if isinstance(picture, bytes) else figures.png(picture)
        for title, picture in findings.figures.items()
    }
    for title, picture in pictures.items():
        write_bytes(folder / "figures" / f"{re.sub(r'[^a-zA-Z0-9=]+', '_', title)}.png", picture)
    options = "".join(f" --{flag} {shlex.quote(_word(value))}" for flag, value in given.items())
    command = f"mixvae reproduce {name} --scale {scale}{options} --out {shlex.quote(str(folder))}"
    results: dict[str, Any] = {
        "experiment": name,
        "scale": scale,
        "claim": experiment.claim,
        "verdicts": [
            {"claim": v.claim, "verdict": v.word, "kind": v.kind, "evidence": v.evidence} for v in findings.verdicts
        ],
        "contrasts": findings.contrasts,
        "table": findings.table,
        "notes": findings.notes,
        "command": command,
        "commands": findings.commands,
        "seconds": before + time.perf_counter() - start,
        "machine": f"{machine()}, {torch.get_num_threads()} threads",
        "versions": {package: version(package) for package in ("mixvae", "torch", "numpy")},
    }
    write_json(folder / "results.json", _finite(results))
    contrasts = reports.filled(CONTRASTS, findings.contrasts)
    reports.render(
        "experiment.html",
        folder / "report.html",
        experiment=experiment,
        results=results,
        columns=findings.columns,
        rows=reports.table(findings.columns, findings.table),
        verdicts=findings.verdicts,
        contrasts=contrasts,
        contrast_rows=reports.table(contrasts, findings.contrasts),
        pictures={title: reports.embed(picture) for title, picture in pictures.items()},
    )
    return findings


def _word(value: object) -> str:
    """A value in the form that the command line takes: lists with commas."""
    return str(value) if isinstance(value, int) else ",".join(map(str, cast("Sequence[object]", value)))


def _finite(value: Any) -> Any:
    """The same with None in place of NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _seconds(folder: Path, name: str, scale: str) -> float:
    """Seconds taken by earlier calls of this experiment at this scale.

    Raises:
        ValueError: the folder has results of something else, which would be overwritten.
    """
    path = folder / "results.json"
    if not path.exists():
        return 0.0
    old = read_json(path)
    there = old.get("experiment") if isinstance(old, dict) else None
    if there != name:
        what = f"results of the experiment {there}" if isinstance(there, str) else "results of something else"
        raise ValueError(f"{path} has {what}, not of {name}: choose another --out, or move it away")
    seconds = old.get("seconds") if old.get("scale") == scale else None
    return float(seconds) if isinstance(seconds, int | float) else 0.0
