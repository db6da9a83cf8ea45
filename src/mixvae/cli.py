"""The command line: nothing but arguments and calls. Imports no torch until a command runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonargparse

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
        _fail(f"{len(result.failed)} of {len(cells.cells)} cells failed: {names}", 1)


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
}


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises its errors, and shows options as they are usually written, with dashes."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, exit_on_error=False, allow_abbrev=False, **kwargs)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help text."""
        return re.sub(r"--\w+(?![\w.])", lambda m: m[0].replace("_", "-"), super().format_help(*args, **kwargs))


def parser(chosen: str | None = None) -> Parser:
    """Make the parser of the command line, with the arguments of the chosen command only: all would take a second."""
    top = Parser(prog="mixvae", description="Mixture VAEs with likelihoods that can be trusted.")
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subcommands(title="commands", dest="command")
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").strip().splitlines()[0]
        sub = Parser(description=summary)
        if name == chosen:
            _add_arguments(sub, function)
        commands.add_subcommand(name, sub, help=summary)
    return top


def _add_arguments(sub: Parser, function: Callable[..., None]) -> None:
    """Add a command's arguments: its function's parameters, unless they need words of their own."""
    if function is train:
        sub.usage = "mixvae train [PRESET_OR_YAML] [--model.components S] [--out RUN] … | --resume RUN"
        sub.add_argument("--out", type=str | None, help="run directory; runs/PRESET-S…-seed… by default")
        sub.add_argument("--resume", type=str | None, help="go on with this run; only training options may change")
        config.add_arguments(sub)
    elif function is report:
        sub.add_argument("runs", nargs="+", help="the run directories")
        sub.add_argument("--out", type=str | None, help="the page; report.html in the first run by default")
    else:
        sub.add_function_arguments(function, as_positional=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends with status 2 on bad input, 1 on a failed training, 130 on Ctrl-C."""
    sys.path.append(os.getcwd())  # so that classes of the user's own are found by import path
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    try:
        _run(words)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; `mixvae train --resume RUN` goes on from the last checkpoint", 130)
    except (jsonargparse.ArgumentError, ValueError, OSError) as error:
        _fail(_explain(error, words), 2)


def _run(words: list[str]) -> None:
    """Parse the words and call the command."""
    if not words:
        parser().print_help()
        return
    words, preset = _train_words(words) if words[0] == "train" else (words, "")
    arguments = parser(words[0]).parse_args(words)
    command = arguments.command
    given = {k: v for k, v in arguments[command].as_dict().items() if k != "config"}
    if command != "train":
        COMMANDS[command](**given)
        return
    settings = config.from_namespace(arguments[command])
    resume = given["resume"]
    if resume and given["out"]:
        raise ValueError("give either --out for a new run or --resume for an old one, not both")
    name = f"{Path(preset).stem}-S{settings.model.components}-seed{settings.seed}"
    train(settings, resume or given["out"] or str(Path("runs") / name), resume=bool(resume))


def _train_words(words: list[str]) -> tuple[list[str], str]:
    """Turn a preset, a file or a run to resume into the configuration that the other options change."""
    rest = words[1:]
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else None
    resumed = next((_value(rest, i) for i, word in enumerate(rest) if word.split("=")[0] == "--resume"), None)
    if preset and resumed:
        raise ValueError(f"--resume {resumed} brings its own configuration; leave {preset} out")
    if {"-h", "--help"} & set(rest):
        return ["train", *rest], ""
    if resumed and not (Path(resumed) / "config.yaml").exists():
        raise ValueError(f"{resumed} is not a run: it has no config.yaml")
    path = Path(resumed) / "config.yaml" if resumed else config.locate(preset or "digits")
    config.check_keys(path)
    return ["train", f"--config={path}", *rest], str(path)


def _value(words: list[str], index: int) -> str | None:
    """Value of the option at this place."""
    option, equals, value = words[index].partition("=")
    del option
    return value if equals else next(iter(words[index + 1 : index + 2]), None)


def _underscored(word: str) -> str:
    """Accept dashes for underscores in an option's name."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _explain(error: Exception, words: Sequence[str]) -> str:
    """One line on what was wrong, with the nearest option or command where one was mistyped."""
    text = " ".join(str(error).split()) or type(error).__name__
    if unknown := re.search(r"(?:[Uu]nrecognized arguments|does not accept option)[: ]+'?-*([\w.]+)", text):
        near = config.nearest(unknown[1], _options(words[0]))
        return f"unknown option --{unknown[1]}" + (f": did you mean --{near}?" if near else "")
    if choice := re.search(r"invalid choice: '(.*?)'", text):
        near = config.nearest(choice[1], COMMANDS)
        hint = f"did you mean {near}?" if near else f"choose {', '.join(COMMANDS)}"
        return f"unknown command {choice[1]!r}: {hint}"
    text = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)
    text = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.)", lambda m: f"expected {m[1] or ''}", text)
    return text.replace(". Got value:", "; got")


def _options(command: str) -> list[str]:
    """Names of a command's options."""
    sub = Parser()
    _add_arguments(sub, COMMANDS[command])
    return [option.lstrip("-") for action in sub._actions for option in action.option_strings]


def _fail(message: str, status: int) -> None:
    print(f"mixvae: error: {message}" if status != 130 else f"mixvae: {message}", file=sys.stderr)
    raise SystemExit(status)


def _version() -> str:
    from importlib.metadata import version

    return f"mixvae {version('mixvae')}"


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
