"""Densities on the plane: one target by name, and the paper's experiment on two."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixvae import config, figures, toys
from mixvae._tables import Row
from mixvae.files import commit, read_part, write_bytes, write_json
from mixvae.progress import SILENT, Progress
from mixvae.reports import Column
from mixvae.reproduce.findings import Changes, Findings, Gap, judge

TARGETS = ("ring", "bigaussian")
SPAN = 3.0
"""The toys' densities are measured between −span and span."""
VERSION = 1
"""Version of what toys compute; raising it makes earlier results be recomputed."""


@dataclass(frozen=True)
class Toys:
    """Approximate both targets by mixtures and by a flow.

    Args:
        components: the sizes S.
        steps: steps of each optimisation.
        seed: seed of each optimisation.
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

    def changed(self, changes: Changes) -> Toys:
        """Toys have nothing that can be changed.

        Raises:
            ValueError: always.
        """
        del changes
        raise ValueError("toys trains no models of data: leave out seeds, epochs, warm-up and models")

    def carry_out(self, out: Path, *, jobs: int, progress: Progress) -> Findings:
        """Train what is missing, and compare."""
        del jobs
        rows: list[Row] = []
        drawn: dict[str, Any] = {}
        gaps: list[Gap] = []
        rival: list[Gap] = []
        for target in TARGETS:
            table, drawn[target] = self._approximation(target, out / target, progress)
            labelled = [{"target": target} | row for row in table]
            *mixtures, flow = labelled
            rows += labelled
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

    def _approximation(self, target: str, folder: Path, progress: Progress) -> tuple[list[Row], bytes]:
        """Table and picture of a target: those of an earlier call, if no setting and no file has changed."""
        settings: dict[str, Any] = {
            "version": VERSION, "target": target, "components": list(self.components), "steps": self.steps,
            "seed": self.seed, "rival": True, "span": SPAN,
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
            seed=self.seed,
            rival=True,
            span=SPAN,
            progress=progress,
        )
        parts = {"picture": "toy.png", "animation": "toy.gif"}
        whole = {name: (file, (folder / file).read_bytes()) for name, file in parts.items()}
        content = commit(manifest, {"settings": settings, "rows": result.table}, whole)
        return content["rows"], whole["picture"][1]


def _gap(new: Row, old: Row) -> Gap:
    """How far one approximation's bound exceeds another's, by independent draws."""
    half = 1.96 * math.hypot(new["bound_se"], old["bound_se"])
    return Gap(f"{new['target']}, {new['name']} over {old['name']}", new["bound"] - old["bound"], half)


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
    folder = Path(out)
    write_bytes(folder / "toy.png", figures.png(result.figure))
    write_bytes(folder / "toy.gif", result.animation())
    settings = {"target": target, "components": list(components), "steps": steps, "seed": seed}
    write_json(folder / "results.json", settings | {"rows": result.table})
    return result
