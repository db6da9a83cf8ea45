"""Experiments by name: runs, their results, and the report."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixvae import config, figures, report, runs, toys
from mixvae.datasets import Dataset
from mixvae.evaluation import Evaluation, check_draws
from mixvae.failures import at_least
from mixvae.files import canonical, write_bytes, write_json, write_text
from mixvae.resources import check_count
from mixvae.training import lives

MOST_CELLS = 10_000
"""Trainings of one grid."""
DOING = {"new": "training", "unfinished": "resuming", "trained": "evaluating"}
"""What a sweep does to a cell, by how it stands."""


def demo(
    out: str | Path = "runs/demo",
    *,
    components: Sequence[int] = (1, 2, 4),
    draws: int = 2000,
    seed: int = 0,
    epochs: int | None = None,
    say: Callable[[str], object] = print,
) -> tuple[report.Comparison, Path]:
    """Train S = 1, 2, 4 on the embedded digits, evaluate each, and write one report. What is done is not done again.

    Args:
        out: folder of the runs and of `report.html`.
        components: the numbers of components S.
        draws: total draws per test example.
        seed: seed of every training.
        epochs: passes over the training examples; the preset's 150 by default.
        say: takes a line on what happens now.

    Returns:
        The comparison, and the report's path.
    """
    cells = {f"S{s}": config.read("digits", [f"--model.components={s}", f"--seed={seed}"]) for s in components}
    for cell in cells.values():
        cell.training.epochs = epochs or cell.training.epochs
    grid = Grid(Path(out), cells, draws)
    grid.standing()
    done: dict[Path, Evaluation] = {}
    for name, cell in cells.items():
        path = grid.out / name
        say(f"training S = {cell.model.components} in {path}")
        run = runs.train(cell, path, resume=True, amend=False)
        say(f"evaluating S = {cell.model.components} with {draws} draws")
        done[path] = runs.evaluate(run, **grid.evaluation)
    evaluations = list(done.values())
    return report.compare(list(done), evaluations), report.write(list(done), grid.out / "report.html", evaluations)


def toy(
    target: str,
    out: str | Path,
    *,
    components: Sequence[int] = (1, 2, 5, 30),
    steps: int = 5000,
    rival: bool = True,
    span: float = 3.0,
    seed: int = 0,
    say: Callable[[str], object] = print,
    progress: Callable[[int, int], object] | None = None,
) -> toys.Comparison:
    """Approximate a log-density on the plane by mixtures, and write `results.json`, `toy.png` and `toy.gif`.

    Args:
        target: `ring`, `bigaussian`, or the import path of a function from points (N, 2) to log-densities (N,).
        out: folder of what is written.
        components: the sizes S.
        steps: steps of each optimisation.
        rival: whether one component with an inverse autoregressive flow takes part.
        span: the density is measured between −span and span.
        seed: seed of each optimisation.
        say: takes a line on each that is done.
        progress: called with the number of steps done and of all.

    Raises:
        ValueError: there is no such target, or it is not a log-density on the plane.
    """
    if "." not in target and target not in toys.TARGETS:
        near = config.nearest(target, toys.TARGETS)
        hint = f"did you mean {near}?" if near else f"choose {', '.join(toys.TARGETS)}, or the import path of your own"
        raise ValueError(f"unknown target {target!r}: {hint}")
    measured = toys.quadrature(config.resolve(target, "mixvae.toys"), target, span)
    result = toys.compare(
        measured, components, steps=steps, rival=rival, seed=seed, say=say, progress=progress
    )  # fmt: skip
    folder = Path(out)
    write_bytes(folder / "toy.png", figures.png(result.figure))
    write_bytes(folder / "toy.gif", result.animation())
    settings = {"target": target, "components": list(components), "steps": steps, "seed": seed}
    write_json(folder / "results.json", settings | {"rows": result.table})
    return result


def grow(
    run: str | Path | runs.Run,
    out: str | Path,
    *,
    errors: float = 2.0,
    most: int = 16,
    epochs: int | None = None,
    draws: int = 1000,
    examples: int | None = None,
    freeze: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Add components to a trained run one by one, until one gains too little on held-out data.

    Each step trains the model on twice, with one component more and with the same ones, for as many epochs: the gain
    is the paired difference of their pooled bounds on the validation split, at the same number of draws, so that it is
    the component's and not the further training's. Every training is a run directory; what is done is not done again.

    Args:
        run: the trained run.
        out: folder of the runs, of `growth.json` and of `growth.png`.
        errors: a component stays if it gains more than so many standard errors.
        most: stop at so many components.
        epochs: epochs of each training; as many as the run's by default.
        draws: total draws per example.
        examples: only so many validation examples.
        freeze: parts held fixed, such as decoder and prior.
        say: takes a line on what happens now.

    Returns:
        One row per step: components, gain, gain_se, accepted, nll_pooled, jsd, effective_components, path.
    """
    folder, base, rows = Path(out), runs.open_run(run), list[dict[str, Any]]()
    size = base.config.model.components
    at_least(size + 1, most=most)
    at_least(1, epochs=epochs, draws=draws)
    if not math.isfinite(errors):
        raise ValueError(f"errors must be a finite number of standard errors; got {errors}")
    if examples is not None and examples < 2:
        raise ValueError(f"examples must be at least 2, so that a gain has an error; got {examples}")
    _check_steps(
        base, folder, most, lambda base, components: runs.extension(base, components, freeze=freeze, epochs=epochs)
    )
    while size < most and (not rows or rows[-1]["accepted"]):
        size += 1
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        evaluations = []
        for path, components in ((same, size - 1), (more, size)):
            wanted = runs.extension(base, components, freeze=freeze, epochs=epochs)
            count = f"{components} component{'s' if components > 1 else ''}"
            say(f"training on from {base.path} with {count}, in {path}")
            runs.train(wanted, path, resume=True, amend=False)
            evaluations.append(runs.evaluate(path, draws, split="validation", examples=examples))
        result = report.compare([same, more], evaluations).table[1]
        kept = ("components", "gain", "gain_se", "nll_pooled", "jsd", "effective_components", "path")
        accepted = result["gain"] > errors * result["gain_se"]
        rows.append({name: result[name] for name in kept} | {"accepted": accepted})
        write_json(folder / "growth.json", rows)
        say(f"S = {size}: gain {result['gain']:.3f} ± {result['gain_se']:.3f} nats")
        base = runs.open_run(more)
    write_bytes(folder / "growth.png", figures.png(figures.growth(rows)))
    return rows


def _check_steps(base: runs.Run, folder: Path, most: int, wanted: Callable[[runs.Run, int], config.Config]) -> None:
    """Refuse a folder of other steps, before any of them is gone on with.

    Raises:
        ValueError: a step was made from something else, or would train on though a later one started from it.
    """
    for size in range(base.config.model.components + 1, most + 1):
        more, same = folder / f"S{size}", folder / f"S{size - 1}-on"
        runs.standing(wanted(base, size - 1), same)
        if runs.standing(wanted(base, size), more) != "trained":
            later = folder / f"S{size}-on"
            if (later / "run.json").exists():
                raise ValueError(f"{more} would train on, but {later} started from it: choose another --out")
            return
        base = runs.open_run(more)


@dataclass(frozen=True)
class Grid:
    """Configurations that differ along some axes.

    Args:
        out: folder of the cells' run directories.
        cells: the configuration of every cell, by its name.
        draws: total draws per test example.
        examples: evaluate only so many test examples.
        draws_per_component: draws of each component instead, the paper's protocol.
    """

    out: Path
    cells: dict[str, config.Config]
    draws: int = 1000
    examples: int | None = None
    draws_per_component: int | None = None

    @property
    def evaluation(self) -> dict[str, Any]:
        """Settings of every evaluation, as `runs.evaluate` takes them."""
        each = self.draws_per_component
        return {"total_draws": self.draws, "draws_per_component": each, "examples": self.examples}

    def standing(self) -> dict[str, str]:
        """How every cell's run directory stands to its configuration: new, unfinished or trained.

        Raises:
            ValueError: a directory holds something else, such as a run of another configuration.
        """
        check_draws(self.draws, self.draws_per_component)
        loaded: dict[str, Dataset] = {}
        found = {}
        for name, cell in self.cells.items():
            key = canonical(asdict(cell.data))
            if key not in loaded:
                loaded[key] = runs.open_data(cell.data)
            found[name] = runs.standing(cell, self.out / name, loaded[key])
        return found


@dataclass
class Sweep:
    """What a sweep has done.

    Args:
        done: evaluations of the cells that are trained, by run directory.
        failed: what each failing cell said, by its name.
    """

    done: dict[Path, Evaluation] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def read_grid(name: str | Path) -> Grid:
    """Read a grid from a YAML file, or one that comes with mixvae.

    The file names a `base` (preset or file), options to `set`, and `axes`: each maps the names of its values to the
    options that they set, in dotted form. Every combination is a cell.

    Raises:
        ValueError: the file is not such a grid, or a cell's options are wrong; nothing is run then.
    """
    path = config.locate(name, "grids")
    content = config.read_yaml(path)
    known = {"base", "set", "axes", "out", "draws", "examples"}
    for key in content if isinstance(content, dict) else ():
        if key not in known:
            near = config.nearest(str(key), sorted(known))
            raise ValueError(f"{path}: unknown key {key}" + (f": did you mean {near}?" if near else ""))
    if not isinstance(content, dict) or not isinstance(content.get("axes"), dict):
        raise ValueError(f"{path} must hold axes, and may hold {', '.join(sorted(known - {'axes'}))}; got {content}")
    named = all(
        isinstance(a, dict) and all(isinstance(v, dict | None) for v in a.values()) for a in content["axes"].values()
    )
    if not content["axes"] or not all(content["axes"].values()):
        raise ValueError(f"{path}: axes must name at least one axis, and every axis a value; got {content['axes']}")
    if not named or not isinstance(content.get("set") or {}, dict):
        raise ValueError(f"{path}: every axis must map names to options, as in `size: {{S1: {{model.components: 1}}}}`")
    for key in ("base", "out"):
        if key in content and not isinstance(content[key], str):
            raise ValueError(f"{path}: {key} must be a text; got {content[key]!r}")
    for key in ("draws", "examples"):
        number = content.get(key)
        if number is not None and not (isinstance(number, int) and number >= 1):
            raise ValueError(f"{path}: {key} must be a whole number, at least 1; got {number!r}")
    number = math.prod(map(len, content["axes"].values()))
    check_count(number, MOST_CELLS, f"the cells of {path}", "give fewer axes or values")
    cells = {}
    common = config.check_options(content.get("set") or {}, str(path))
    axes = [
        [(value, config.check_options(more or {}, str(path))) for value, more in axis.items()]
        for axis in content["axes"].values()
    ]
    for values in itertools.product(*axes):
        options = dict(common)
        for _, more in values:
            options |= more
        name = "-".join(str(value) for value, _ in values)
        if name in cells:
            raise ValueError(f"{path}: two cells are called {name}: name the values of the axes so that they differ")
        if not name or "/" in name or name.startswith(".") or name in ("cells", "report.html"):
            raise ValueError(f"{path}: {name!r} cannot be the name of a cell's folder: choose another value's name")
        cells[name] = config.read(content.get("base", "digits"), config.flags(options))
    return Grid(
        Path(content.get("out", f"runs/{path.stem}")), cells, content.get("draws", 1000), content.get("examples")
    )


def sweep(grid: Grid, *, jobs: int = 1, say: Callable[[str], object] = print) -> Sweep:
    """Run every cell of a grid as `run_cells` does, and write one report."""
    result = run_cells(grid, jobs=jobs, say=say)
    if result.done:
        report.write(list(result.done), grid.out / "report.html", list(result.done.values()))
    return result


def run_cells(grid: Grid, *, jobs: int = 1, say: Callable[[str], object] = print) -> Sweep:
    """Train and evaluate every cell of a grid, each in a process of its own.

    What is done is skipped, what was cut off is resumed, and a cell that fails is reported while the rest goes on. What
    was made from anything else than the grid says now is refused before anything runs.

    Args:
        grid: the cells.
        jobs: cells at the same time, which share the processor's cores.
        say: takes a line on what happens now.

    Raises:
        ValueError: jobs is not positive, or a cell's folder holds something else.
    """
    at_least(1, jobs=jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else None
    result, standing, children = Sweep(), grid.standing(), set[subprocess.Popen[str]]()
    trusted = sorted(config.granted().packages)  # here, since threads have grants of their own

    def run(name: str) -> tuple[str, str]:
        path = grid.out / name
        if standing[name] == "trained" and runs.find_evaluation(path, **grid.evaluation) is not None:
            say(f"{name}: done already")
            return name, ""
        file = grid.out / "cells" / f"{name}.yaml"
        write_text(file, config.to_yaml(grid.cells[name]))
        say(f"{name}: {DOING[standing[name]]}")
        words = [str(file), str(path), json.dumps(grid.evaluation), *trusted]
        script = "import sys; from mixvae.experiments import run_cell; run_cell(*sys.argv[1:])"
        status, said = _run_child([sys.executable, "-P", "-c", script, *words], environment, children)
        error = f"killed by {signal.Signals(-status).name}" if status < 0 else (said or f"ended with status {status}")
        say(f"{name}: {'done' if status == 0 else 'failed: ' + error}")
        return name, "" if status == 0 else error

    with ThreadPoolExecutor(jobs) as pool:
        try:
            ended = list(pool.map(run, grid.cells))
        except BaseException:  # the cells that have not begun are cancelled, the others save and stop
            for child in children:
                child.terminate()
            raise
    for name, error in ended:
        evaluation = None if error else runs.find_evaluation(grid.out / name, **grid.evaluation)
        if evaluation is None:
            result.failed[name] = error or "its evaluation is missing: give the command again"
        else:
            result.done[grid.out / name] = evaluation
    return result


def _run_child(
    command: Sequence[str], environment: dict[str, str] | None, children: set[subprocess.Popen[str]] | None = None
) -> tuple[int, str]:
    """Run a process that ends when this one does; returns its status and the last line of its errors.

    The child calls `lives.stop_with_parent`. While it runs it is among `children`.
    """
    running = set() if children is None else children
    with lives.start(command, environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        running.add(child)
        last = ""
        for line in child.stderr:
            last = line.strip() or last
        status = child.wait()
        running.discard(child)
        return status, last


def run_cell(file: str, out: str, evaluation: str, *trust: str) -> None:
    """Train and evaluate one cell of a sweep, from the beginning or from where it stands, as a child of `run_cells`."""
    lives.stop_with_parent()
    try:
        with config.granting(*trust, working_folder=True):
            run = runs.train(config.read(file), out, resume=True, amend=False)
            runs.evaluate(run, **json.loads(evaluation))
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(" ".join(str(error).split()))
