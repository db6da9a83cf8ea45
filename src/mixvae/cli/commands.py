"""The commands: nothing but arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mixvae import config
from mixvae.cli.experiments import demo, grow, reproduce, sweep, toy
from mixvae.cli.output import folder, names, progress_bar, show, show_comparison, show_rows, show_scores, target, write
from mixvae.cli.single_cell import SINGLE_CELL

Split = Literal["train", "validation", "test"]


WIDEST = 50
"""Examples that a picture of reconstructions shows beside each other."""


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

    before = runs.open_run(out).epoch if resume else 0
    run = runs.train(settings, out, resume=resume)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # another process of the same training
        return
    rows = run.metrics
    if run.epoch == before:
        show(f"{run.path}: done already after {run.epoch} epochs; ask for more by --training.epochs to go on")
        return
    best = next(row for row in rows if row["epoch"] == rows[-1]["best_epoch"])
    show(
        f"{run.path}: {rows[-1]['epoch']} epochs in {rows[-1]['seconds']:.0f} s; best epoch {best['epoch']}, "
        f"validation MISELBO {best['validation']:.3f} nats\nnext: mixvae evaluate {run.path}"
    )


def list_runs(folder: str = "runs") -> None:
    """List the runs of a folder: what they are, how far they have come, and their latest figures.

    Args:
        folder: the folder.
    """
    from mixvae import runs
    from mixvae.reports import Column

    columns = (
        Column("run", "run"),
        Column("state", "state"),
        Column("recipe", "recipe"),
        Column("data", "data"),
        Column("S", "components", digits=0),
        Column("epochs", "progress"),
        Column("validation MISELBO", "validation", digits=3),
        Column("pooled NLL", "nll_pooled", "nll_pooled_se"),
        Column("split", "split"),
        Column("draws", "draws", digits=0),
    )
    rows = runs.listing(folder)
    if not rows:
        show(f"there are no runs in {folder}: `mixvae train` makes one")
        return
    for row in rows:
        row["progress"] = f"{row['epochs']}/{row['goal']}" if "epochs" in row else None
    show_rows(columns, rows, f"{len(rows)} run{'s' if len(rows) > 1 else ''} in {folder}, nats")


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
    data_name: str | None = None,
) -> None:
    """Estimate the likelihood of held-out data, store it in RUN/evaluations and print a table.

    An evaluation of the whole test split is copied to RUN/results.json. What is stored already is not computed again.

    Args:
        run: the run directory.
        draws: total draws per example, over all components.
        draws_per_component: draws of each component instead, the paper's protocol.
        split: which examples.
        examples: only so many examples.
        chunk: latents decoded at once; memory depends on it alone.
        seed: seed of the draws.
        per_example: write the per-example values to this .npz file too.
        representation: classify and cluster by the latents first, fitted to training ones; RUN/evaluations.
        samples: draws side by side in the features of the paper's rival; as many as components by default.
        data_name: where the run's data are now, if they were moved.
    """
    from mixvae import reports, runs

    if per_example is not None:
        target(per_example, ".npz", option="--per-example")
    opened = runs.open_run(run, data=data_name)
    if representation:
        with progress_bar("classifying by the latents") as (advance, _):
            found = runs.representation(opened, split=split, samples=samples, progress=advance)
        show_scores(found.table)
    with progress_bar("evaluating") as (advance, _):
        evaluation = runs.evaluate(
            opened,
            draws,
            draws_per_component=draws_per_component,
            split=split,
            examples=examples,
            chunk=chunk,
            seed=seed,
            progress=advance,
        )
    if per_example is not None:
        runs.save_arrays(per_example, dict(evaluation.bounds))
    show_comparison(reports.compare([opened], [evaluation]))
    if evaluation.identity.legacy:
        show(f"note: {run} is legacy, so that nothing was stored in it; a run trained anew keeps its evaluations")


def sample(run: str, n: int = 64, out: str | None = None, seed: int = 0) -> None:
    """Draw from the prior and decode: a picture, or an array of means.

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
    """Show examples beside their reconstruction by every component.

    Args:
        run: the run directory.
        n: how many examples.
        out: a .png file, or .npy for the reconstructions; RUN/figures/reconstructions.png by default.
        split: which examples.
        data_name: where the run's data are now, if they were moved.
    """
    from mixvae import figures, runs

    path = target(out or Path(run) / "figures" / "reconstructions.png", ".png", ".npy")
    if path.suffix == ".png" and n > WIDEST:
        raise ValueError(f"a picture shows at most {WIDEST} examples; got --n {n}: give --out a name that ends in .npy")
    originals, rebuilt = runs.reconstruct(runs.open_run(run, data=data_name), n, split=split)
    write(path, rebuilt, lambda: figures.reconstructions(originals, rebuilt), as_array=path.suffix == ".npy")


def encode(run: str, out: str | None = None, split: Split = "test", data_name: str | None = None) -> None:
    """Write mean and standard deviation of every component, and labels, as .npz.

    Args:
        run: the run directory.
        out: a .npz file with mean and std, (N, S, D) each, and labels (N,); RUN/latents.npz by default.
        split: which examples.
        data_name: where the run's data are now, if they were moved.
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
    """Add components to a trained run and go on training, in a run directory of its own.

    Args:
        run: the trained run.
        components: number of components in all; one more than the run has by default.
        out: the new run directory; RUN-S… by default.
        freeze: parts held fixed, such as decoder,prior.
        epochs: epochs to train; as many as the run's by default.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        data_name: where the run's data are now, if they were moved.
        fresh: start the added components from random weights instead of copies.
    """
    from mixvae import runs

    opened = runs.open_run(run, data=data_name)
    settings = runs.extension(opened, components, freeze=names(freeze), epochs=epochs, noise=noise, fresh=fresh)
    train(settings, out or f"{Path(run)}-S{settings.model.components}", resume=False)


def components(
    run: str,
    draws: int = 16,
    split: Split = "test",
    examples: int = 500,
    out: str | None = None,
    data_name: str | None = None,
) -> None:
    """Tell and draw what each component is for: how far apart they lie, what they cover, and which are redundant.

    Args:
        run: the run directory.
        draws: draws per component and example.
        split: which examples.
        examples: how many of them.
        out: folder of components.png, spread.png, classes.png (with labels) and posteriors.png (of 2 latents);
            RUN/figures by default.
        data_name: where the run's data are now, if they were moved.
    """
    from rich.table import Table

    from mixvae import figures, runs
    from mixvae.files import write_bytes

    place = folder(out or Path(run) / "figures")
    opened = runs.open_run(run, data=data_name)
    found, drawn = runs.cooperation(opened, draws=draws, split=split, examples=examples)
    table = Table("component", "share", "KL to the prior", "nearest", "KL both ways (nats)", "redundant?")
    for row in found.table:
        near = (str(row["nearest"]), f"{row['kl_nearest']:.3g}") if len(found.share) > 1 else ("–", "–")
        distances = f"{row['kl_prior']:.2f}", *near
        table.add_row(str(row["component"]), f"{row['share']:.2%}", *distances, row["redundant"])
    show(table)
    show(f"{len(found.redundant())} of {len(found.share)} components are redundant")
    for name, figure in drawn.items():
        write_bytes(place / f"{name}.png", figures.png(figure))
    show(f"wrote {', '.join(f'{name}.png' for name in drawn)} in {place}")


COMMANDS: dict[str, Callable[..., None]] = {
    "presets": presets,
    "train": train,
    "list": list_runs,
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
