"""The commands: nothing but arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mixvae import config
from mixvae.cli.output import fail, names, progress_bar, show, show_comparison, show_rows, show_scores, suffix_of, write
from mixvae.cli.single_cell import SINGLE_CELL

Split = Literal["train", "validation", "test"]


def presets() -> None:
    """List the configurations that come with mixvae."""
    from rich.table import Table

    table = Table("preset", "what it is", "file")
    for name, path in config.presets().items():
        about = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        table.add_row(name, about, str(path))
    show(table)


def train(settings: config.Config, out: str, *, resume: bool) -> None:
    """Train a model and keep the epoch that is best on validation."""
    from mixvae import runs

    run = runs.train(settings, out, resume=resume)
    rows = run.read_metrics()
    best = next(row for row in rows if row["epoch"] == rows[-1]["best_epoch"])
    show(
        f"{run.path}: {rows[-1]['epoch']} epochs in {rows[-1]['seconds']:.0f} s; best epoch {best['epoch']}, "
        f"validation MISELBO {best['validation']:.3f} nats\nnext: mixvae evaluate {run.path}"
    )


def evaluate(
    run: str,
    draws: int = 5000,
    draws_per_component: int | None = None,
    split: Split = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    per_example: str | None = None,
    *,
    representation: bool = False,
    samples: int | None = None,
) -> None:
    """Estimate the likelihood of held-out data, write RUN/results.json and print a table.

    Args:
        run: the run directory.
        draws: total draws per example, over all components.
        draws_per_component: draws of each component instead, the paper's protocol.
        split: which examples.
        examples: only so many examples.
        chunk: latents decoded at once; memory depends on it alone.
        seed: seed of the draws.
        per_example: write the per-example values to this .npz file too.
        representation: classify and cluster by the latents first, fitted to training ones; RUN/representation.json.
        samples: draws side by side in the features of the paper's rival; as many as components by default.
    """
    from mixvae import report, runs

    if representation:
        with progress_bar("classifying by the latents") as (advance, _):
            found = runs.representation(run, split=split, samples=samples, progress=advance)
        show_scores(found.table)
    with progress_bar("evaluating") as (advance, _):
        runs.evaluate(
            run,
            draws,
            draws_per_component=draws_per_component,
            split=split,
            examples=examples,
            chunk=chunk,
            seed=seed,
            per_example=per_example,
            progress=advance,
        )
    show_comparison(report.compare([run]))


def sample(run: str, n: int = 64, out: str | None = None, seed: int = 0) -> None:
    """Draw from the prior and decode: a picture, or an array of means.

    Args:
        run: the run directory.
        n: how many samples.
        out: a .png or .npy file; RUN/figures/samples.png by default.
        seed: seed of the draws.
    """
    from mixvae import figures, runs

    path = Path(out or Path(run) / "figures" / "samples.png")
    suffix = suffix_of(path, ".png", ".npy")
    means = runs.sample(run, n, seed=seed)
    write(path, means, lambda: figures.images(means), as_array=suffix == ".npy")


def reconstruct(run: str, n: int = 10, out: str | None = None, split: Split = "test") -> None:
    """Show examples beside their reconstruction by every component.

    Args:
        run: the run directory.
        n: how many examples.
        out: a .png file, or .npy for the reconstructions; RUN/figures/reconstructions.png by default.
        split: which examples.
    """
    from mixvae import figures, runs

    path = Path(out or Path(run) / "figures" / "reconstructions.png")
    suffix = suffix_of(path, ".png", ".npy")
    originals, rebuilt = runs.reconstruct(run, n, split=split)
    write(path, rebuilt, lambda: figures.reconstructions(originals, rebuilt), as_array=suffix == ".npy")


def encode(run: str, out: str | None = None, split: Split = "test") -> None:
    """Write mean and standard deviation of every component, and labels, as .npz.

    Args:
        run: the run directory.
        out: a .npz file with mean and std, (N, S, D) each, and labels (N,); RUN/latents.npz by default.
        split: which examples.
    """
    from mixvae import runs

    path = Path(out or Path(run) / "latents.npz")
    suffix_of(path, ".npz")
    features = runs.encode_split(run, split=split)
    runs.save_arrays(path, features)
    shapes = ", ".join(f"{name} {value.shape}" for name, value in features.items())
    show(f"wrote {path}: {shapes}")


def report(runs: list[str], out: str | None = None) -> None:
    """Write one self-contained HTML page on one or more evaluated runs, and print their comparison.

    Args:
        runs: the run directories.
        out: the page; report.html in the first run by default.
    """
    from mixvae import report as pages

    path = pages.write(runs, out)
    show_comparison(pages.compare(runs))
    show(f"wrote {path}")


def demo(out: str = "runs/demo", draws: int = 2000, seed: int = 0) -> None:
    """Train S = 1, 2, 4 on the embedded digits, print their likelihoods and write a report.

    Args:
        out: folder of the three runs and of report.html.
        draws: total draws per test example.
        seed: seed of every training.
    """
    from mixvae import experiments

    comparison, path = experiments.demo(out, draws=draws, seed=seed, say=show)
    show_comparison(comparison)
    show(f"wrote {path}")


def sweep(grid: str, jobs: int = 1) -> None:
    """Train and evaluate every cell of a grid, skip what is done, resume what was cut off, and write one report.

    Args:
        grid: a YAML file, or the name of a grid that comes with mixvae: ablation or ablation_digits.
        jobs: cells at the same time.
    """
    from mixvae import experiments
    from mixvae import report as pages

    cells = experiments.read_grid(grid)
    result = experiments.sweep(cells, jobs=jobs, say=show)
    if result.done:
        show_comparison(pages.compare(result.done))
        show(f"wrote {cells.out / 'report.html'}")
    if result.failed:
        errors = "; ".join(f"{name}: {error}" for name, error in result.failed.items())
        fail(f"{len(result.failed)} of {len(cells.cells)} cells failed: {errors}", 1)


def extend(
    run: str,
    components: int | None = None,
    out: str | None = None,
    freeze: str = "",
    epochs: int | None = None,
    noise: float = 0.01,
    *,
    fresh: bool = False,
) -> None:
    """Add components to a trained run and go on training, in a run directory of its own.

    Args:
        run: the trained run.
        components: number of components in all; one more than the run has by default.
        out: the new run directory; RUN-S… by default.
        freeze: parts held fixed, such as decoder,prior.
        epochs: epochs to train; as many as the run's by default.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        fresh: start the added components from random weights instead of copies.
    """
    from mixvae import runs

    settings = runs.extension(run, components, freeze=names(freeze), epochs=epochs, noise=noise, fresh=fresh)
    train(settings, out or f"{Path(run)}-S{settings.model.components}", resume=False)


def grow(
    run: str,
    out: str | None = None,
    errors: float = 2.0,
    most: int = 16,
    epochs: int | None = None,
    draws: int = 1000,
    examples: int | None = None,
    freeze: str = "",
) -> None:
    """Add components to a trained run until one gains less than so many standard errors on validation data.

    Args:
        run: the trained run.
        out: folder of the runs that are trained, of growth.json and growth.png; RUN-grown by default.
        errors: a component stays if it gains more than so many standard errors.
        most: stop at so many components.
        epochs: epochs of each training; as many as the run's by default.
        draws: total draws per example.
        examples: only so many validation examples.
        freeze: parts held fixed, such as decoder,prior.
    """
    from rich.table import Table

    from mixvae import experiments

    folder = Path(out or f"{Path(run)}-grown")
    rows = experiments.grow(
        run, folder, errors=errors, most=most, epochs=epochs, draws=draws, examples=examples, freeze=names(freeze),
        say=show,
    )  # fmt: skip
    table = Table("S", "gain (nats)", "NLL, pooled", "JSD", "effective S", "", title="validation examples")
    for row in rows:
        numbers = [f"{row['nll_pooled']:.3f}", f"{row['jsd']:.3f}", f"{row['effective_components']:.2f}"]
        gain = f"{row['gain']:.3f} ± {row['gain_se']:.3f}"
        table.add_row(str(row["components"]), gain, *numbers, "stays" if row["accepted"] else "gains too little")
    show(table)
    show(f"wrote {folder / 'growth.json'} and {folder / 'growth.png'}")


def components(run: str, draws: int = 16, split: Split = "test", examples: int = 500, out: str | None = None) -> None:
    """Tell and draw what each component is for: how far apart they lie, what they cover, and which are redundant.

    Args:
        run: the run directory.
        draws: draws per component and example.
        split: which examples.
        examples: how many of them.
        out: folder of components.png, spread.png, classes.png (with labels) and posteriors.png (of 2 latents);
            RUN/figures by default.
    """
    from rich.table import Table

    from mixvae import figures, runs
    from mixvae.files import write_bytes

    folder = Path(out or Path(run) / "figures")
    found, drawn = runs.cooperation(run, draws=draws, split=split, examples=examples)
    table = Table("component", "share", "KL to the prior", "nearest", "KL both ways (nats)", "redundant?")
    for row in found.table:
        distances = f"{row['kl_prior']:.2f}", str(row["nearest"]), f"{row['kl_nearest']:.3g}"
        table.add_row(str(row["component"]), f"{row['share']:.2%}", *distances, row["redundant"])
    show(table)
    show(f"{len(found.redundant())} of {len(found.share)} components are redundant")
    for name, figure in drawn.items():
        write_bytes(folder / f"{name}.png", figures.png(figure))
    show(f"wrote {', '.join(f'{name}.png' for name in drawn)} in {folder}")


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
    """Watch components share out a density on the plane: a table, a picture and an animation.

    Args:
        target: ring, bigaussian, or the import path of a log-density of your own, from points (N, 2) to (N,).
        components: numbers of components, separated by commas.
        steps: steps of each optimisation.
        span: the density is measured between -span and span.
        seed: seed of each optimisation.
        out: folder for toy.png, toy.gif and results.json; runs/toy-TARGET by default.
        rival: whether one component with an inverse autoregressive flow takes part.
    """
    from rich.table import Table

    from mixvae import experiments

    sizes = names(components)
    if not sizes or not all(size.isdigit() and int(size) for size in sizes):
        raise ValueError(f"--components takes positive numbers separated by commas, such as 1,2,5; got {components!r}")
    folder = Path(out or f"runs/toy-{target}")
    with progress_bar("training") as (advance, say):
        result = experiments.toy(
            target, folder, components=[int(size) for size in sizes], steps=steps, rival=rival, span=span, seed=seed,
            say=say, progress=advance,
        )  # fmt: skip
    title = f"{target}, log Z = {result.target.log_z:.3f} nats by quadrature"
    table = Table("approximation", "bound (nats)", "short of log Z", "mass covered", title=title)
    for row in result.table:
        bound = f"{row['bound']:.3f} ± {row['bound_se']:.3f}"
        table.add_row(row["name"], bound, f"{row['gap']:.3f}", f"{row['covered']:.0%}")
    show(table)
    show(f"wrote {folder / 'toy.png'}, {folder / 'toy.gif'} and {folder / 'results.json'}")


def reproduce(
    name: str | None = None,
    scale: Literal["smoke", "small", "paper"] = "small",
    out: str | None = None,
    seeds: str | None = None,
    epochs: int | None = None,
    warmup: int | None = None,
    models: str | None = None,
    jobs: int = 1,
    *,
    list: bool = False,
) -> None:
    """Carry out an experiment of the paper by name; the same command again resumes it.

    Args:
        name: the experiment; --list shows all.
        scale: smoke on digits in minutes, small on two cores in an hour or two, or paper on a GPU.
        out: folder of runs, results.json, figures and report.html; runs/reproduce/NAME-SCALE by default.
        seeds: seeds of every training, separated by commas, instead of the scale's.
        epochs: epochs of every training, instead of the scale's.
        warmup: epochs of warm-up, instead of the scale's.
        models: only these of its models, separated by commas.
        jobs: trainings at the same time.
        list: show the experiments, and what each scale takes.
    """
    from rich.table import Table

    from mixvae import reproduce as experiments

    if list or name is None:
        table = Table("experiment", "what it is", *(f"{scale}" for scale in ("smoke", "small", "paper")))
        for experiment in experiments.EXPERIMENTS.values():
            costs = [plan.cost for plan in experiment.scales.values()]
            table.add_row(experiment.name, experiment.title, *costs)
        show(table)
        return
    if seeds is not None and not all(seed.isdigit() for seed in names(seeds)):
        raise ValueError(f"--seeds takes numbers separated by commas, such as 0,1,2; got {seeds!r}")
    numbers = None if seeds is None else [int(seed) for seed in names(seeds)]
    found = experiments.reproduce(
        name, scale, out, seeds=numbers, epochs=epochs, warmup=warmup,
        models=None if models is None else names(models), jobs=jobs, say=show,
    )  # fmt: skip
    show_rows(found.columns, found.table, experiments.find(name).title)
    for verdict in found.verdicts:
        show(f"{verdict.word}: {verdict.claim} ({verdict.evidence})")
    for note in found.notes:
        show(f"note: {note}")
    show(f"wrote {Path(out or f'runs/reproduce/{name}-{scale}') / 'report.html'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "presets": presets,
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "reconstruct": reconstruct,
    "encode": encode,
    "report": report,
    "demo": demo,
    "sweep": sweep,
    "extend": extend,
    "grow": grow,
    "components": components,
    "toy": toy,
    "reproduce": reproduce,
    **SINGLE_CELL,
}
