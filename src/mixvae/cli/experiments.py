"""The commands that train many models: just arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mixvae import config
from mixvae._failures import is_whole
from mixvae.cli.output import fail, folder, names, quiet, show, show_comparison, show_rows
from mixvae.progress import Terminal

if TYPE_CHECKING:
    from mixvae.reproduce import Experiment


def demo(out: str = "runs/demo", total_draws: int = 2000, seed: int = 0) -> None:
    """Train S = 1, 2, 4 on the embedded digits, print their likelihoods and write a report.

    Args:
        out: folder of the three runs and of report.html.
        total_draws: total draws per test example.
        seed: seed of every training.
    """
    from mixvae import sweeps

    with Terminal() as progress:
        comparison, path = sweeps.demo(folder(out), total_draws=total_draws, seed=seed, progress=progress)
    show_comparison(comparison)
    show(f"wrote {path}")


def sweep(grid: str, on: str = "local", jobs: int | None = None, address: str | None = None) -> None:
    """Train and evaluate every cell of a grid, skip finished ones, resume interrupted ones, and write one report.

    Args:
        grid: a YAML file with a base, options to set, and axes; docs/sweeps.md has an example.
        on: where to train: local, or ray, on the machines of a Ray cluster.
        jobs: number of cells to run in parallel; 1 by default, and on Ray as many as there is room for.
        address: HOST:PORT of the Ray cluster; $RAY_ADDRESS by default, or else Ray is started on this machine.
    """
    from mixvae import reports, sweeps

    runner = sweeps.choose_runner(on, jobs=jobs, address=address)

    cells = sweeps.read_grid(grid)
    with Terminal() as progress:
        result = sweeps.sweep(cells, runner=runner, progress=progress)
    if result.done:
        show_comparison(reports.compare(list(result.done), list(result.done.values())))
        show(f"wrote {cells.out / 'report.html'}")
    if result.failed:
        errors = "; ".join(f"{name}: {error}" for name, error in result.failed.items())
        fail(f"{len(result.failed)} of {len(cells.cells)} cells failed: {errors}", 1)


def grow(
    run: str,
    out: str | None = None,
    errors: float = 2.0,
    most: int = 16,
    epochs: int | None = None,
    total_draws: int = 1000,
    examples: int | None = None,
    freeze: str = "",
    data_name: str | None = None,
) -> None:
    """Add components to a trained run until one gains too little on validation data.

    Args:
        run: the trained run.
        out: folder of the new runs, of growth.json and growth.png; RUN-grown by default.
        errors: keep a component if its gain exceeds this many standard errors over validation examples.
        most: stop at this many components.
        epochs: epochs of each training; the run's own setting by default.
        total_draws: total draws per example.
        examples: evaluate only the first N validation examples.
        freeze: parts to hold fixed, such as decoder,prior.
        data_name: new location of the run's data, if they were moved.
    """
    from rich.table import Table

    from mixvae import sweeps
    from mixvae.reports import ONE_TRAINING
    from mixvae.runs import open_run

    place = folder(out or f"{Path(run)}-grown")
    with Terminal() as progress:
        growth = sweeps.grow(
            open_run(run, data=data_name), place, errors=errors, most=most, epochs=epochs, total_draws=total_draws,
            examples=examples, freeze=names(freeze), progress=progress,
        )  # fmt: skip
    heads = ("S", "gain (nats) ± over examples", "NLL, pooled", "JSD", "effective S", "")
    table = Table(*heads, title="validation examples, one training continued with and without the component")
    for row in growth.table:
        numbers = [f"{row['nll_pooled']:.3f}", f"{row['jsd']:.3f}", f"{row['effective_components']:.2f}"]
        gain = f"{row['gain']:.3f} ± {row['gain_se']:.3f}"
        table.add_row(str(row["components"]), gain, *numbers, "kept" if row["accepted"] else "gains too little")
    show(table)
    show(f"note: each gain is of {ONE_TRAINING}; it decides whether this model grows further")
    show(f"wrote {place / 'growth.json'} and {place / 'growth.png'}")


def toy(
    target: str,
    components: str = "1,2,5,30",
    steps: int = 5000,
    span: float = 3.0,
    seed: int = 0,
    out: str | None = None,
    *,
    rival: bool = True,
) -> None:
    """Watch components divide up a density on the plane: a table, a picture and an animation.

    Args:
        target: ring, bigaussian, or the import path of your own log-density, from points (N, 2) to (N,).
        components: numbers of components, separated by commas.
        steps: steps of each optimisation.
        span: the density is measured between -span and span.
        seed: seed of each optimisation.
        out: folder for toy.png, toy.gif and results.json; runs/toy-TARGET by default.
        rival: whether to include one component with an inverse autoregressive flow.
    """
    from rich.table import Table

    from mixvae.reproduce.toys import toy as approximate

    sizes = names(components)
    if not sizes or not all(is_whole(size) and int(size) for size in sizes):
        raise ValueError(f"--components takes positive numbers separated by commas, such as 1,2,5; got {components!r}")
    place = folder(out or f"runs/toy-{target}")
    if "." in target:
        config.look_in_working_folder()  # a typed name is trusted
    with Terminal() as progress:
        result = approximate(
            target, place, components=[int(size) for size in sizes], steps=steps, rival=rival, span=span, seed=seed,
            progress=progress,
        )  # fmt: skip
    title = f"{target}, log Z = {result.target.log_z:.3f} nats by quadrature"
    table = Table("approximation", "bound (nats)", "short of log Z", "mass covered", title=title)
    for row in result.table:
        bound = f"{row['bound']:.3f} ± {row['bound_se']:.3f}"
        table.add_row(row["name"], bound, f"{row['gap']:.3f}", f"{row['covered']:.0%}")
    show(table)
    show(f"wrote {place / 'toy.png'}, {place / 'toy.gif'} and {place / 'results.json'}")


def _probe(experiments: Iterable[Experiment]) -> None:
    """Show how long experiments take on this machine; those that do not train a grid are only described."""
    from rich.table import Table

    from mixvae.reproduce.probing import core_hours
    from mixvae.reproduce.trainings import Trainings

    scales = ("smoke", "small")
    table = Table("experiment", *scales, title="estimated core-hours of training and evaluating")
    with quiet(), Terminal() as progress:
        for experiment in experiments:
            plans = [experiment.scales[scale] for scale in scales]
            hours = [
                f"{core_hours(plan, progress.announce):.2f}" if isinstance(plan, Trainings) else plan.cost
                for plan in plans
            ]
            table.add_row(experiment.name, *hours)
    show(table)


def reproduce(
    name: str | None = None,
    scale: Literal["smoke", "small", "paper"] = "small",
    out: str | None = None,
    seeds: str | None = None,
    epochs: int | None = None,
    warmup: int | None = None,
    models: str | None = None,
    on: str = "local",
    jobs: int | None = None,
    address: str | None = None,
    *,
    list: bool = False,
    probe: bool = False,
) -> None:
    """Carry out an experiment of the paper by name; the same command again resumes it.

    Args:
        name: the experiment; --list shows all.
        scale: smoke on digits in minutes, small on two cores in an hour or two, or paper on a GPU.
        out: folder of runs, results.json, figures and report.html; runs/reproduce/NAME-SCALE by default.
        seeds: seeds of every training, separated by commas, instead of the scale's.
        epochs: epochs of every training, instead of the scale's.
        warmup: epochs of warm-up, instead of the scale's.
        models: only these of its models, or kinds of them, separated by commas.
        on: where to train: local, or ray, on the machines of a Ray cluster.
        jobs: number of trainings to run in parallel; 1 by default, and on Ray as many as there is room for.
        address: HOST:PORT of the Ray cluster; $RAY_ADDRESS by default, or else Ray is started on this machine.
        list: list the experiments, and how long each scale takes.
        probe: with --list, estimate from a few steps of each model how long smoke and small take on this machine, for
            all experiments or the one that is named; takes minutes.
    """
    from rich.table import Table

    from mixvae.reproduce import EXPERIMENTS, find
    from mixvae.reproduce import reproduce as carry_out
    from mixvae.sweeps import choose_runner

    if probe:
        _probe([find(name)] if name is not None else EXPERIMENTS.values())
        return
    if list or name is None:
        table = Table("experiment", "what it is", *(f"{scale}" for scale in ("smoke", "small", "paper")))
        for experiment in EXPERIMENTS.values():
            costs = [plan.cost for plan in experiment.scales.values()]
            table.add_row(experiment.name, experiment.title, *costs)
        show(table)
        return
    chosen = None if seeds is None else names(seeds)
    if not all(map(is_whole, chosen or ())):
        raise ValueError(f"--seeds takes numbers separated by commas, such as 0,1,2; got {seeds!r}")
    runner = choose_runner(on, jobs=jobs, address=address)
    numbers = None if chosen is None else [int(seed) for seed in chosen]
    if out is not None:
        folder(out)
    with quiet(), Terminal() as progress:
        findings = carry_out(
            name, scale, out, seeds=numbers, epochs=epochs, warmup=warmup,
            models=None if models is None else names(models), runner=runner, progress=progress,
        )  # fmt: skip
    show_rows(findings.columns, findings.table, find(name).title)
    for verdict in findings.verdicts:
        show(f"{verdict.kind}, {verdict.word}: {verdict.claim} ({verdict.evidence})")
    for note in findings.notes:
        show(f"note: {note}")
    show(f"wrote {Path(out or f'runs/reproduce/{name}-{scale}') / 'report.html'}")
