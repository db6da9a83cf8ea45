"""The commands: nothing but arguments and calls. Imports no torch until one runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mixvae import config

Split = Literal["train", "validation", "test"]


def presets() -> None:
    """List the configurations that come with mixvae."""
    from rich.table import Table

    table = Table("preset", "what it is", "file")
    for name, path in config.presets().items():
        about = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        table.add_row(name, about, str(path))
    _print(table)


def train(settings: config.Config, out: str, *, resume: bool) -> None:
    """Train a model and keep the epoch that is best on validation."""
    from mixvae import runs

    run = runs.train(settings, out, resume=resume)
    rows = run.read_metrics()
    best = next(row for row in rows if row["epoch"] == rows[-1]["best_epoch"])
    _print(
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
    """
    from rich.console import Console
    from rich.progress import Progress

    from mixvae import report, runs

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating")
        runs.evaluate(
            run,
            draws,
            draws_per_component=draws_per_component,
            split=split,
            examples=examples,
            chunk=chunk,
            seed=seed,
            per_example=per_example,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print_comparison(report.compare([run]))


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
    suffix = _suffix(path, ".png", ".npy")
    means = runs.sample(run, n, seed=seed)
    _write(path, means, lambda: figures.images(means), as_array=suffix == ".npy")


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
    suffix = _suffix(path, ".png", ".npy")
    originals, rebuilt = runs.reconstruct(run, n, split=split)
    _write(path, rebuilt, lambda: figures.reconstructions(originals, rebuilt), as_array=suffix == ".npy")


def encode(run: str, out: str | None = None, split: Split = "test") -> None:
    """Write mean and standard deviation of every component, and labels, as .npz.

    Args:
        run: the run directory.
        out: a .npz file with mean and std, (N, S, D) each, and labels (N,); RUN/latents.npz by default.
        split: which examples.
    """
    from mixvae import runs

    path = Path(out or Path(run) / "latents.npz")
    _suffix(path, ".npz")
    features = runs.encode_split(run, split=split)
    runs.save_arrays(path, features)
    shapes = ", ".join(f"{name} {value.shape}" for name, value in features.items())
    _print(f"wrote {path}: {shapes}")


def report(runs: list[str], out: str | None = None) -> None:
    """Write one self-contained HTML page on one or more evaluated runs, and print their comparison.

    Args:
        runs: the run directories.
        out: the page; report.html in the first run by default.
    """
    from mixvae import report as pages

    path = pages.write(runs, out)
    _print_comparison(pages.compare(runs))
    _print(f"wrote {path}")


def demo(out: str = "runs/demo", draws: int = 2000, seed: int = 0) -> None:
    """Train S = 1, 2, 4 on the embedded digits, print their likelihoods and write a report.

    Args:
        out: folder of the three runs and of report.html.
        draws: total draws per test example.
        seed: seed of every training.
    """
    from mixvae import experiments

    rows, path = experiments.demo(out, draws=draws, seed=seed, say=_print)
    _print_comparison(rows)
    _print(f"wrote {path}")


def sweep(grid: str, jobs: int = 1) -> None:
    """Train and evaluate every cell of a grid, skip what is done, resume what was cut off, and write one report.

    Args:
        grid: a YAML file, or the name of a grid that comes with mixvae: ablation or ablation_digits.
        jobs: cells at the same time.
    """
    from mixvae import experiments
    from mixvae import report as pages

    cells = experiments.read_grid(grid)
    result = experiments.sweep(cells, jobs=jobs, say=_print)
    if result.done:
        _print_comparison(pages.compare(result.done))
        _print(f"wrote {cells.out / 'report.html'}")
    if result.failed:
        names = "; ".join(f"{name}: {error}" for name, error in result.failed.items())
        fail(f"{len(result.failed)} of {len(cells.cells)} cells failed: {names}", 1)


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

    settings = runs.extension(run, components, freeze=_names(freeze), epochs=epochs, noise=noise, fresh=fresh)
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
        run, folder, errors=errors, most=most, epochs=epochs, draws=draws, examples=examples, freeze=_names(freeze),
        say=_print,
    )  # fmt: skip
    table = Table("S", "gain (nats)", "NLL, pooled", "JSD", "effective S", "", title="validation examples")
    for row in rows:
        numbers = [f"{row['nll_pooled']:.3f}", f"{row['jsd']:.3f}", f"{row['effective_components']:.2f}"]
        gain = f"{row['gain']:.3f} ± {row['gain_se']:.3f}"
        table.add_row(str(row["components"]), gain, *numbers, "stays" if row["accepted"] else "gains too little")
    _print(table)
    _print(f"wrote {folder / 'growth.json'} and {folder / 'growth.png'}")


def components(run: str, draws: int = 16, split: Split = "test", examples: int = 500, out: str | None = None) -> None:
    """Tell and draw how components lie to each other, and which ones are redundant.

    Args:
        run: the run directory.
        draws: draws per component and example.
        split: which examples.
        examples: how many of them.
        out: a .png file; RUN/figures/components.png by default.
    """
    from rich.table import Table

    from mixvae import figures, runs
    from mixvae.files import atomic

    path = Path(out or Path(run) / "figures" / "components.png")
    _suffix(path, ".png")
    found = runs.components(run, draws=draws, split=split, examples=examples)
    redundant = found.redundant()
    table = Table("component", "share", "nearest", "KL both ways (nats)", "redundant?")
    for j, (other, distance) in enumerate(found.nearest()):
        table.add_row(str(j), f"{found.share[j]:.2%}", str(other), f"{distance:.3g}", redundant.get(j, ""))
    _print(table)
    _print(f"{len(redundant)} of {len(found.share)} components are redundant")
    with atomic(path) as temporary:
        temporary.write_bytes(figures.png(figures.overlap(found.kl, found.share, redundant)))
    _print(f"wrote {path}")


def _names(words: str) -> list[str]:
    """Names that are separated by commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def fail(message: str, status: int) -> None:
    """End the process with a line on standard error."""
    print(f"mixvae: error: {message}" if status != 130 else f"mixvae: {message}", file=sys.stderr)
    raise SystemExit(status)


def _suffix(path: Path, *allowed: str) -> str:
    """Suffix of a file to write, if it is one that the command can write."""
    if path.suffix not in allowed:
        raise ValueError(f"--out must end in {' or '.join(allowed)}; got {path}")
    return path.suffix


def _write(path: Path, values: Any, draw: Callable[[], Any], *, as_array: bool) -> None:
    """Write an array, or a picture of it."""
    import numpy as np

    from mixvae import figures
    from mixvae.files import atomic

    if not as_array and (values.ndim < 4 or values.shape[-3] not in (1, 3)):
        raise ValueError(f"these data are not images but of shape {values.shape}: give --out a name that ends in .npy")
    with atomic(path) as temporary:
        if as_array:
            np.save(temporary, values)
        else:
            temporary.write_bytes(figures.png(draw()))
    _print(f"wrote {path}")


def _print(what: Any) -> None:
    """Print to the terminal, or in full width to a file."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(what, highlight=False, soft_wrap=isinstance(what, str))


def _print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of one or more runs, and what makes it unfair."""
    from rich.table import Table

    from mixvae.report import COLUMNS, cells, warnings

    table = Table(title=f"{rows[0]['data']}, {rows[0]['examples']} {rows[0]['split']} examples, nats")
    for i, column in enumerate(COLUMNS):
        table.add_column(column.title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*cells(row))
    _print(table)
    for note in warnings(rows):
        _print(f"note: {note}")


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
}
