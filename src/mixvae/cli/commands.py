"""The commands: just arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mixvae import config
from mixvae._failures import at_least
from mixvae.cli.experiments import demo, grow, reproduce, sweep, toy
from mixvae.cli.output import folder, names, show, show_comparison, show_rows, show_scores, target, write
from mixvae.cli.single_cell import SINGLE_CELL
from mixvae.progress import Terminal

Split = Literal["train", "validation", "test"]


WIDEST = 50
"""Most examples that a picture of reconstructions shows side by side."""


def presets() -> None:
    """List the configurations that come with mixvae."""
    from rich.table import Table

    table = Table("preset", "what it is", "file")
    for name, path in config.presets().items():
        about = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        table.add_row(name, about, str(path))
    show(table)


def train(settings: config.Config, out: str, *, resume: bool) -> None:
    """Train a model, and keep the weights of the epoch that is best on validation."""
    from mixvae import runs

    before = runs.open_run(out).epoch if resume else 0
    with Terminal() as progress:
        run = runs.train(settings, out, resume=resume, progress=progress)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # another process of the same training
        return
    rows = run.metrics
    if run.epoch == before:
        show(f"{run.path}: done already after {run.epoch} epochs; ask for more with --training.epochs to continue")
        return
    best = next(row for row in rows if row["epoch"] == rows[-1]["best_epoch"])
    show(
        f"{run.path}: {rows[-1]['epoch']} epochs in {rows[-1]['seconds']:.0f} s; best epoch {best['epoch']}, "
        f"validation MISELBO {best['validation']:.3f} nats\nnext: mixvae evaluate {run.path}"
    )


def list_runs(folder: str = "runs") -> None:
    """List the runs of a folder: what they are, their progress, and their latest results.

    Args:
        folder: the folder.
    """
    from mixvae import runs
    from mixvae.reports import AMORTISED, Column, trust

    columns = (
        Column("run", "run"),
        Column("state", "state"),
        Column("recipe", "recipe"),
        Column("data", "data"),
        Column("S", "components", digits=0),
        Column("epochs", "progress"),
        Column("validation MISELBO", "validation", digits=3),
        Column("NLL", "nll", "nll_se", trust="nll"),
        Column("split", "split"),
        Column("draws", "total_draws", digits=0),
    )
    rows = runs.listing(folder).table
    if not rows:
        show(f"there are no runs in {folder}: `mixvae train` makes one")
        return
    for row in rows:
        row |= trust([row], "nll")
        row["progress"] = f"{row['epochs']}/{row['goal']}" if "epochs" in row else None
    show_rows(columns, rows, f"{len(rows)} run{'s' if len(rows) > 1 else ''} in {folder}, nats")
    if amortised := [row["run"] for row in rows if row.get("proposal") == "posterior"]:
        show("note: " + AMORTISED.format(", ".join(amortised)))


def evaluate_run(
    run: str,
    total_draws: int = 5000,
    draws_per_component: int | None = None,
    split: Split = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    proposal: Literal["refined", "posterior"] = "refined",
    per_example: str | None = None,
    check: int | None = None,
    *,
    representation: bool = False,
    samples: int | None = None,
    data_name: str | None = None,
) -> None:
    """Estimate the likelihood of held-out data, store it in RUN/evaluations and print a table.

    An evaluation of the whole test split is copied to RUN/results.json. Stored results are not recomputed.

    Args:
        run: the run directory.
        total_draws: total draws per example, over all components.
        draws_per_component: draws of each component instead, the paper's protocol.
        split: which examples.
        examples: evaluate only the first N examples.
        chunk: latents decoded at once; memory depends on nothing else.
        seed: seed of the draws.
        proposal: where draws of the NLL come from: proposals refined for each example, or the posterior.
        per_example: also write the per-example values to this .npz file.
        check: then check the NLL of the first N examples by annealed importance sampling; some minutes for a few dozen.
        representation: first classify and cluster by the latents, fitted to training ones; RUN/evaluations.
        samples: concatenated draws in the features of the paper's rival; as many as components by default.
        data_name: new location of the run's data, if they were moved.
    """
    from mixvae import reports, runs

    at_least(1, check=check)
    if per_example is not None:
        target(per_example, ".npz", option="--per-example")
    opened = runs.open_run(run, data=data_name)
    if representation:
        with Terminal() as progress:
            scores = runs.representation(opened, split=split, samples=samples, progress=progress)
        show_scores(scores.table)
    with Terminal() as progress:
        evaluation = runs.evaluate(
            opened,
            total_draws,
            draws_per_component=draws_per_component,
            split=split,
            examples=examples,
            chunk=chunk,
            seed=seed,
            proposal=proposal,
            progress=progress,
        )
    if per_example is not None:
        runs.save_arrays(per_example, dict(evaluation.bounds))
    show_comparison(reports.compare([opened], [evaluation]))
    if evaluation.identity.legacy:
        show(f"note: {run} is legacy, so nothing was stored in it; a newly trained run keeps its evaluations")
    if check is not None:
        with Terminal() as progress:
            checked = runs.check(
                opened, check, evaluation.identity.total_draws, split=split, seed=seed, progress=progress
            )
        show(repr(checked))


def sample(run: str, n: int = 64, out: str | None = None, seed: int = 0) -> None:
    """Draw from the prior and decode, to a picture or an array of means.

    Args:
        run: the run directory.
        n: how many samples.
        out: a .png or .npy file; RUN/figures/samples.png by default.
        seed: seed of the draws.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "samples.png", ".png", ".npy")
    means = runs.sample(run, n, seed=seed)
    write(path, means, lambda: figures.images(means), as_array=path.suffix == ".npy")


def reconstruct(
    run: str, n: int = 10, out: str | None = None, split: Split = "test", data_name: str | None = None
) -> None:
    """Show examples beside their reconstructions by every component.

    Args:
        run: the run directory.
        n: how many examples.
        out: a .png file, or .npy for the reconstructions; RUN/figures/reconstructions.png by default.
        split: which examples.
        data_name: new location of the run's data, if they were moved.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "reconstructions.png", ".png", ".npy")
    if path.suffix == ".png" and n > WIDEST:
        raise ValueError(f"a picture shows at most {WIDEST} examples; got --n {n}: give --out a name that ends in .npy")
    originals, rebuilt = runs.reconstruct(runs.open_run(run, data=data_name), n, split=split)
    write(path, rebuilt, lambda: figures.reconstructions(originals, rebuilt), as_array=path.suffix == ".npy")


def encode_run(run: str, out: str | None = None, split: Split = "test", data_name: str | None = None) -> None:
    """Write the mean and standard deviation of every component, and labels, as .npz.

    Args:
        run: the run directory.
        out: a .npz file with mean and std, (N, S, D) each, and labels (N,); RUN/latents.npz by default.
        split: which examples.
        data_name: new location of the run's data, if they were moved.
    """
    from mixvae import runs

    path = target(out or Path(run) / "latents.npz", ".npz")
    features = runs.encode_split(runs.open_run(run, data=data_name), split=split)
    runs.save_arrays(path, features)
    shapes = ", ".join(f"{name} {value.shape}" for name, value in features.items())
    show(f"wrote {path}: {shapes}")


def report(runs: list[str], out: str | None = None) -> None:
    """Write one self-contained HTML page on one or more evaluated runs, and print their comparison.

    Args:
        runs: the run directories.
        out: the page; report.html in the first run by default.
    """
    from mixvae import reports
    from mixvae.runs import evaluation_of, open_runs

    if out is not None:
        target(out)
    opened = open_runs(runs)
    evaluations = [evaluation_of(run) for run in opened]
    path = reports.write(opened, out, evaluations)
    show_comparison(reports.compare(opened, evaluations))
    show(f"wrote {path}")


def extend(
    run: str,
    components: int | None = None,
    out: str | None = None,
    freeze: str = "",
    epochs: int | None = None,
    noise: float = 0.01,
    data_name: str | None = None,
    *,
    fresh: bool = False,
) -> None:
    """Add components to a trained run and continue training, in a new run directory.

    Args:
        run: the trained run.
        components: total number of components; one more than the run has by default.
        out: the new run directory; RUN-S… by default.
        freeze: parts to hold fixed, such as decoder,prior.
        epochs: epochs to train; as many as the run's by default.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        data_name: new location of the run's data, if they were moved.
        fresh: start the added components from random weights instead of copies.
    """
    from mixvae import runs

    opened = runs.open_run(run, data=data_name)
    settings = runs.extension(opened, components, freeze=names(freeze), epochs=epochs, noise=noise, fresh=fresh)
    train(settings, out or f"{Path(run)}-S{settings.model.components}", resume=False)


def components(
    run: str,
    draws_per_component: int = 16,
    split: Split = "test",
    examples: int = 500,
    out: str | None = None,
    data_name: str | None = None,
) -> None:
    """Show what each component is for: how far apart they are, what they cover, and which are redundant.

    Args:
        run: the run directory.
        draws_per_component: draws per component and example.
        split: which examples.
        examples: how many of them.
        out: folder of components.png, spread.png, classes.png (with labels) and posteriors.png (with 2 latents);
            RUN/figures by default.
        data_name: new location of the run's data, if they were moved.
    """
    from rich.table import Table

    from mixvae import figures, runs
    from mixvae.files import write_bytes

    place = folder(out or Path(run) / "figures")
    opened = runs.open_run(run, data=data_name)
    overlap, drawn = runs.cooperation(opened, draws_per_component=draws_per_component, split=split, examples=examples)
    table = Table("component", "share", "KL to the prior", "nearest", "KL both ways (nats)", "redundant?")
    for row in overlap.table:
        near = (str(row["nearest"]), f"{row['kl_nearest']:.3g}") if len(overlap.share) > 1 else ("–", "–")
        distances = f"{row['kl_prior']:.2f}", *near
        table.add_row(str(row["component"]), f"{row['share']:.2%}", *distances, row["redundant"])
    show(table)
    show(f"{len(overlap.redundant())} of {len(overlap.share)} components are redundant")
    for name, figure in drawn.items():
        write_bytes(place / f"{name}.png", figures.png(figure))
    show(f"wrote {', '.join(f'{name}.png' for name in drawn)} in {place}")


COMMANDS: dict[str, Callable[..., None]] = {
    "presets": presets,
    "train": train,
    "list": list_runs,
    "evaluate": evaluate_run,
    "sample": sample,
    "reconstruct": reconstruct,
    "encode": encode_run,
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
