"""The commands: just arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixvae import config
from mixvae._failures import typed
from mixvae._tables import counted
from mixvae.cli.experiments import demo, grow, reproduce, sweep, toy
from mixvae.cli.hub import HUB
from mixvae.cli.output import folder, names, show, show_comparison, show_rows, target
from mixvae.cli.queries import Split, encode_run, evaluate_runs, export, interpolate, reconstruct, sample
from mixvae.cli.single_cell import SINGLE_CELL
from mixvae.progress import Terminal


def presets() -> None:
    """List the configurations that come with mixvae."""
    from rich.table import Table

    table = Table("preset", "what it is", "file")
    for name, path in config.presets().items():
        about = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        table.add_row(name, about, str(path))
    show(table)


def of_first(act: Callable[[], Any]) -> Any:
    """Result of a function that reads a run, called by the first process only: the other nodes need not have the run.

    Args:
        act: reads the run and returns a JSON value.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the first node has none.
    """
    from mixvae.training._cluster import cluster
    from mixvae.training._meeting import told_by_first

    started = cluster()

    def acted() -> Any:
        try:
            return act()
        except FileNotFoundError as error:
            if started is None or started.nodes == 1:
                raise
            raise ValueError(
                f"{error}; {platform.node()}, the first of {started.nodes} nodes, must have it: copy it there, or let "
                "a node that has it be the first"
            ) from None

    return told_by_first(acted)


def train(settings: config.Config, out: str, *, resume: bool) -> None:
    """Train a model, and keep the weights of the epoch that is best on validation."""
    from mixvae import runs
    from mixvae.training._cluster import is_first

    resumed = resume and is_first() and runs.Layout(Path(out)).manifest.exists()
    before = runs.open_run(out).epoch if resumed else 0
    with Terminal() as progress:
        run = runs.train(settings, out, resume=resume, progress=progress)
    if not is_first():
        return
    rows = run.metrics
    if run.epoch == before:
        done = f"already done after {counted(run.epoch, 'epoch')}"
        show(f"{run.path}: {done}; ask for more with --training.epochs to continue")
        return
    best = next(row for row in rows if row["epoch"] == rows[-1]["best_epoch"])
    show(
        f"{run.path}: {counted(rows[-1]['epoch'], 'epoch')} in {rows[-1]['seconds']:.0f} s; "
        f"best epoch {best['epoch']}, validation bound {best['validation']:.3f} nats\n"
        f"next: {typed('evaluate', run.path)}"
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
        Column("validation bound", "validation", digits=3),
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
        epochs: epochs to train; the run's own setting by default.
        noise: noise on the copied components, relative to each tensor's own standard deviation.
        data_name: new location of the run's data, if they were moved.
        fresh: start the added components from random weights instead of copies.
    """
    from mixvae import runs

    added: dict[str, Any] = {"freeze": names(freeze), "epochs": epochs, "noise": noise, "fresh": fresh}
    extended = of_first(lambda: asdict(runs.extension(runs.open_run(run, data=data_name), components, **added)))
    settings = config.from_dict(extended)
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
        examples: how many examples.
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
    "evaluate": evaluate_runs,
    "sample": sample,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "encode": encode_run,
    "export": export,
    "report": report,
    "demo": demo,
    "sweep": sweep,
    "extend": extend,
    "grow": grow,
    "components": components,
    "toy": toy,
    "reproduce": reproduce,
    **HUB,
    **SINGLE_CELL,
}
