"""Pictures of an experiment: gains, scores, learning curves, latents and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mixvae import figures, reports, runs
from mixvae._tables import Row
from mixvae.progress import Progress
from mixvae.reports import ONE_TRAINING, PARTS
from mixvae.reproduce.contrasts import named
from mixvae.reproduce.findings import Gap
from mixvae.reproduce.latents import latent_pictures
from mixvae.reproduce.measured import Measured

BARS = "95 % intervals between trainings"
Scores = Mapping[str, Mapping[str, list[float]]]
"""Scores by variant and metric."""


def draw(
    measured: Measured, rows: Sequence[Row], scores: Scores, progress: Progress, *, several: bool, samples: int = 0
) -> dict[str, Figure | bytes]:
    """Gains, scores, learning curves, samples, and pictures of the latents.

    Args:
        measured: what was measured on every training.
        rows: the experiment's table.
        scores: scores of the latents, if they were measured; then the latents are drawn too.
        progress: where to report progress.
        several: whether there is more than one training of each variant.
        samples: how many examples to draw from the prior of the first training of each variant.
    """
    drawn = _gains(rows, several=several)
    if scores:
        drawn["scores"] = figures.scores(scores, "accuracy, ARI, NMI or ASW")
    first = {named(key): cells[0].run for key, cells in measured.items()}
    drawn["learning curves"] = figures.learning_curves({name: run.metrics for name, run in first.items()})
    first = {name: run for name, run in first.items() if run.has_weights}
    for name, run in first.items() if samples else ():
        drawn[f"{name}: samples"] = figures.images(runs.sample(run, samples, progress=progress), title=name)
    for name, run in first.items() if scores else ():
        drawn |= {f"{name}: {what}": picture for what, picture in latent_pictures(run, progress).items()}
    return drawn


def gap_of(row: Row, key: str, name: str, p: float | None = None) -> Gap:
    """A difference in a row, with its margin under KEY_margin; its name says where it is not known to be tight."""
    margin, is_tight = row[f"{key}_margin"], row.get(f"{key}_tight", True)
    return Gap(name + reports.marked(row, key), row[key], margin, p, is_tight=is_tight)


def decided_gains(gaps: Sequence[Gap], across: str) -> Figure:
    """Differences with their intervals between trainings, those that are decided in colour."""
    rows = [(gap.name, gap.gain, gap.margin) for gap in gaps]
    return figures.gains(rows, across, BARS, decided=[gap.is_decided for gap in gaps])


def _gains(rows: Sequence[Row], *, several: bool) -> dict[str, Figure | bytes]:
    """Gains over the baseline, and their split."""
    error = "margin" if several else "se"
    over = f"standard error over test examples of {ONE_TRAINING}"
    bars = BARS if several else over
    gains = [(_label(row), row["gain"], row[f"gain_{error}"]) for row in rows if "gain" in row]
    split = {
        _label(row): [(row[f"gain_{part}"], row[f"gain_{part}_{error}"]) for part in PARTS]
        for row in rows if "gain_elbo" in row
    }  # fmt: skip
    drawn: dict[str, Figure | bytes] = {}
    if gains:
        across = "gain in log p(x) over the baseline (nats)"
        decided = [
            reports.is_decided(row["gain"], row["gain_margin"], p=row["gain_p_holm"], is_tight=row["gain_tight"])
            for row in rows if "gain" in row
        ]  # fmt: skip
        drawn["gains"] = figures.gains(gains, across, bars, decided=decided if several else None)
    if split:
        drawn["a better model or a better posterior"] = figures.splits(split, bars)
    return drawn


def _label(row: Row) -> str:
    """Name of a gain in figures."""
    return f"{row['model']} S = {row['size']} over {row['over']}" + reports.marked(row)
