"""Densities on the plane: one target by name, and the paper's experiment on two."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mixvae import config, figures, toys
from mixvae._tables import Row
from mixvae.files import commit, read_part, write_bytes, write_json
from mixvae.progress import SILENT, Progress
from mixvae.reports import BETWEEN, BetweenTrainings, Column, between_trainings
from mixvae.reproduce.findings import Changes, Findings, Gap, judge
from mixvae.sweeps import Runner

TARGETS = ("ring", "bigaussian")
SPAN = 3.0
"""The toys' densities are measured between −span and span."""
MARGIN = f"± {BETWEEN.format('those of a target').replace('trainings', 'optimisations')}"
MEANS = ("bound", "log_z", "gap", "covered")
"""What is averaged over seeds."""
VERSION = 1
"""Version of what toys compute; raising it causes earlier results to be recomputed."""


@dataclass(frozen=True)
class Toys:
    """Approximate both targets by mixtures and by a flow.

    Args:
        components: the sizes S.
        steps: steps of each optimisation.
        seeds: seeds of each optimisation.
        cost: how long it takes, in words.
    """

    components: Sequence[int] = (1, 2, 5, 30)
    steps: int = 5000
    seeds: Sequence[int] = (0, 1, 2)
    cost: str = ""

    columns = (
        Column("target", "target"),
        Column("approximation", "name"),
        Column("seeds", "seeds", digits=0),
        Column("bound", "bound", "bound_margin", 3, f"ELBO of the mixture, nats; {MARGIN}"),
        Column("log Z", "log_z", digits=3, about="by quadrature, nats"),
        Column("short of log Z", "gap", digits=3, about="KL(q ‖ p), nats"),
        Column("mass covered", "covered", about="∫ min(p, q)"),
    )  # fmt: skip

    def changed(self, changes: Changes) -> Toys:
        """The same with other seeds.

        Raises:
            ValueError: something else is given, or a seed is given twice.
        """
        if changes.epochs is not None or changes.warmup is not None or changes.models is not None:
            raise ValueError("toys trains no models of data: leave out epochs, warm-up and models")
        return replace(self, **changes.named(seeds="seeds"))

    @property
    def names(self) -> list[str]:
        """Names of the results that it makes in its folder, one of each target and seed."""
        return [f"{target}-seed{seed}" for target in TARGETS for seed in self.seeds]

    def carry_out(self, out: Path, *, runner: Runner, progress: Progress) -> Findings:
        """Train what is missing, and compare."""
        del runner
        rows: list[Row] = []
        drawn: dict[str, Any] = {}
        gaps: list[Gap] = []
        rival: list[Gap] = []
        draws: dict[str, tuple[float, float]] = {}
        pairs = [(target, seed) for target in TARGETS for seed in self.seeds]
        folders = {pair: out / name for pair, name in zip(pairs, self.names, strict=True)}
        for target in TARGETS:
            fits: dict[str, list[Row]] = {}
            for seed in self.seeds:
                table, picture = self._approximation(target, seed, folders[target, seed], progress)
                drawn.setdefault(target, picture)
                for row in table:
                    fits.setdefault(row["name"], []).append(row)
            between = between_trainings({name: [fit["bound"] for fit in own] for name, own in fits.items()})
            for name, own in fits.items():
                row: Row = {"target": target, "name": name, "seeds": len(own), "bound_margin": between.margin(name)}
                row["bound_homogeneity"] = between.homogeneity
                rows.append(row | {key: float(np.mean([fit[key] for fit in own])) for key in MEANS})
            *mixtures, flow = fits
            steps = [*((new, old) for old, new in pairwise(mixtures)), (mixtures[-1], flow)]
            each = {name: toys.SAMPLES * size for name, size in zip(fits, (*self.components, 1), strict=True)}
            found = [_gap(target, between, new, old) for new, old in steps]
            draws |= {gap.name: (each[new], each[old]) for gap, (new, old) in zip(found, steps, strict=True)}
            gaps += found[:-1]
            rival += found[-1:]
        verdicts = [
            judge("The bound rises with every step in S.", gaps),
            judge(f"S = {self.components[-1]} has a higher bound than one Gaussian with a flow (IAF).", rival),
        ]
        sizes = ",".join(map(str, self.components))
        commands = [
            f"mixvae toy {target} --components {sizes} --steps {self.steps} --span {SPAN:g} --seed {seed} "
            f"--out {shlex.quote(str(folder))}"
            for (target, seed), folder in folders.items()
        ]
        return Findings(self.columns, rows, verdicts, draws, drawn, commands)

    def _approximation(self, target: str, seed: int, folder: Path, progress: Progress) -> tuple[list[Row], bytes]:
        """Table and picture of a target, from an earlier call if no setting and no file has changed."""
        settings: dict[str, Any] = {
            "version": VERSION, "target": target, "components": list(self.components), "steps": self.steps,
            "seed": seed, "rival": True, "span": SPAN,
        }  # fmt: skip
        manifest = folder / "reproduced.json"
        try:
            content, picture = read_part(manifest, "picture")
            read_part(manifest, "animation")
            if content["settings"] == settings:
                return content["rows"], picture
        except (OSError, ValueError, KeyError):  # missing, damaged or changed: it is made again
            pass
        result = toy(
            target,
            folder,
            components=self.components,
            steps=self.steps,
            seed=seed,
            rival=True,
            span=SPAN,
            progress=progress,
        )
        parts = {"picture": "toy.png", "animation": "toy.gif"}
        whole = {name: (file, (folder / file).read_bytes()) for name, file in parts.items()}
        content = commit(manifest, {"settings": settings, "rows": result.table}, whole)
        return content["rows"], whole["picture"][1]


def _gap(target: str, between: BetweenTrainings[str], new: str, old: str) -> Gap:
    """How far one approximation's bound exceeds another's."""
    gain = between.difference(new, old)
    return Gap(f"{target}, {new} over {old}", gain.mean, gain.margin)


def toy(
    target: str,
    out: str | Path,
    *,
    components: Sequence[int] = (1, 2, 5, 30),
    steps: int = 5000,
    rival: bool = True,
    span: float = 3.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> toys.Comparison:
    """Approximate a log-density on the plane by mixtures, and write `results.json`, `toy.png` and `toy.gif`.

    Args:
        target: `ring`, `bigaussian`, or the import path of a function from points (N, 2) to log-densities (N,).
        out: output folder.
        components: the sizes S.
        steps: steps of each optimisation.
        rival: whether to include one component with an inverse autoregressive flow.
        span: the density is measured between −span and span.
        seed: seed of each optimisation.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: there is no such target, or it is not a log-density on the plane.
    """
    if "." not in target and target not in toys.TARGETS:
        near = config.nearest(target, toys.TARGETS)
        hint = f"did you mean {near}?" if near else f"choose {', '.join(toys.TARGETS)}, or the import path of your own"
        raise ValueError(f"unknown target {target!r}: {hint}")
    measured = toys.quadrature(config.resolve(target, "mixvae.toys"), target, span)
    result = toys.compare(
        measured, components, steps=steps, rival=rival, seed=seed, progress=progress
    )  # fmt: skip
    folder = Path(out).expanduser()
    write_bytes(folder / "toy.png", figures.png(result.figure))
    write_bytes(folder / "toy.gif", result.animation())
    settings = {"target": target, "components": list(components), "steps": steps, "seed": seed}
    write_json(folder / "results.json", settings | {"rows": result.table})
    return result
