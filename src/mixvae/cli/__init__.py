"""The command line: parses words and calls a command. Imports no torch until a command runs."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

from mixvae import config
from mixvae.cli.commands import COMMANDS, evaluate_runs, interpolate, list_runs, report, reproduce, train
from mixvae.cli.explaining import explain
from mixvae.cli.output import fail, quiet
from mixvae.progress import muted

__all__ = ["COMMANDS", "Parser", "main", "parser"]


class Parser(config.Parser):
    """A parser whose help shows options with dashes, as they are usually written."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help text."""
        text = re.sub(r"--\w+(?![\w.])", lambda m: m[0].replace("_", "-"), super().format_help(*args, **kwargs))
        return text.replace(" sc-", " sc ").replace(",sc-", ",sc ")


@cache
def parser(chosen: str | None = None) -> Parser:
    """Make the command line's parser, with the arguments of the chosen command only: all of them would take a second.

    Example:
        >>> from mixvae.cli import parser
        >>> parser("sample").parse_args(["sample", "runs/S4", "--n=16"]).sample.n
        16
    """
    top = Parser(prog="mixvae", description="Mixture VAEs with likelihoods that can be trusted.")
    top.add_argument("--version", action="version", version=_version())
    top.add_argument("--trust", metavar="PACKAGE", help="also let files name classes of this package; may be repeated")
    top.add_argument("--quiet", action="store_true", help="show no progress and no warnings, only results and errors")
    top.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = top.add_subcommands(title="commands", dest="command")
    for name, function in COMMANDS.items():
        summary = _summary(function)
        sub = Parser(description=summary)
        if name == chosen:
            _add_arguments(sub, function)
        commands.add_subcommand(name, sub, help=summary)
    return top


def _summary(function: Callable[..., None]) -> str:
    """First line of a command's description."""
    return (function.__doc__ or "").strip().splitlines()[0]


def _add_arguments(sub: Parser, function: Callable[..., None]) -> None:
    """Add a command's arguments: its function's parameters, unless they need their own descriptions."""
    if function is train:
        sub.usage = "mixvae train [PRESET_OR_YAML] [--model.components S] [--out RUN] … | --resume RUN"
        sub.add_argument("--out", type=str | None, help="run directory; runs/PRESET-S…-seed… by default")
        sub.add_argument(
            "--resume",
            type=str | None,
            help="resume this run, possibly with other epochs, patience, learning rate, weight decay or clipping",
        )
        sub.add_argument(
            "--auto_resume",
            action="store_true",
            help="resume the run in --out if there is one, otherwise start it: for schedulers that repeat the command",
        )
        config.add_arguments(sub)
    elif function in (report, evaluate_runs):
        sub.add_argument("runs", nargs="+", help="the run directories")
        sub.add_function_arguments(function, as_positional=True, skip={"runs"})
    elif function is interpolate:
        sub.add_argument("run", help="the run directory")
        sub.add_argument("--between", nargs=2, type=int, required=True, help="numbers of the two examples, from 0")
        sub.add_function_arguments(function, as_positional=True, skip={"run", "between"})
    elif "files" in inspect.signature(function).parameters:
        sub.add_function_arguments(function, as_positional=True, skip={"files"})
        sub.add_argument("files", nargs="+", help=".h5ad, .loom, 10x .h5 or matrix.mtx files, or folders of one kind")
    elif function is list_runs:
        sub.add_argument("folder", nargs="?", default="runs", help="the folder; runs by default")
    elif function is reproduce:
        sub.add_argument("name", type=str | None, nargs="?", help="the experiment; --list shows all")
        sub.add_function_arguments(function, as_positional=True, skip={"name"})
    else:
        sub.add_function_arguments(function, as_positional=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends with status 2 on bad input, 1 on a failed training, 130 on Ctrl-C."""
    words = [_at_home(_underscored(word)) for word in (sys.argv[1:] if argv is None else argv)]
    debug, silent = "--debug" in words, "--quiet" in words
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if there is no home directory to cache fonts in
    words = [word for word in words if word not in ("--debug", "--quiet")]
    hook, threading.excepthook = threading.excepthook, threading.excepthook if debug else _threads_fail
    try:
        words, trusted = _trusted(words)
        with config.granting(*trusted, working_folder=True), _silence() if silent else nullcontext():
            words = _flags(_grouped(words))
            _check_local(words)
            _run(words)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        fail(*explain(error, list(COMMANDS), partial(_options, words)))
    finally:
        threading.excepthook = hook


@contextmanager
def _silence() -> Iterator[None]:
    """Keep progress, warnings and logs from standard error; errors are still reported."""
    with muted(), quiet():
        yield


def _threads_fail(failure: threading.ExceptHookArgs) -> None:
    """Show what ends a thread, except a full disk, which TensorBoard's thread hits before the command does."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _run(words: list[str]) -> None:
    """Parse the words and call the command."""
    if not words:
        parser().print_help()
        return
    words, preset = _train_words(words) if words[0] == "train" else (words, "")
    typed: list[str] = []
    if words[0] == "train":
        config.check_words(words[1:])
        typed = config.typed_names(words[1:])  # also looked for in the working folder: a typed name is trusted
        words = config.spelled(words)
    else:
        config.check_once(words)
    try:
        arguments = parser(words[0]).parse_args(words)
    except OverflowError as error:
        raise ValueError(f"a number is too large: {error}") from None
    command = arguments.command
    values = {k: v for k, v in arguments[command].as_dict().items() if k != "config"}
    if command != "train":
        COMMANDS[command](**values)
        return
    settings = config.from_namespace(arguments[command])
    config.check_parsed(settings, preset or "the configuration", typed)
    resume = values["resume"]
    if resume and values["out"]:
        raise ValueError("give either --out for a new run or --resume for an old one, not both")
    name = f"{Path(preset).stem}-S{settings.model.components}-seed{settings.seed}"
    out = resume or values["out"] or str(Path("runs") / name)
    train(settings, out, resume=bool(resume) or values["auto_resume"])


def _trusted(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate the packages that `--trust` names from the other words."""
    rest, packages = list(words), []
    while index := next((i + 1 for i, word in enumerate(rest) if word.split("=")[0] == "--trust"), 0):
        value = _value(rest, index - 1)
        if not value or value.startswith("-"):
            raise ValueError("--trust takes the name of a package whose code you trust, such as --trust mypackage")
        packages.append(value)
        del rest[index - 1 : index + ("=" not in rest[index - 1])]
    return rest, packages


def _grouped(words: list[str]) -> list[str]:
    """Join a command of two words, such as `sc train`, into one."""
    if words[:1] != ["sc"]:
        return words
    members = [name.removeprefix("sc-") for name in COMMANDS if name.startswith("sc-")]
    chosen = next(iter(words[1:2]), "")
    if chosen in ("", "-h", "--help"):
        print("\n".join(f"mixvae sc {name}\t{_summary(COMMANDS['sc-' + name])}" for name in members).expandtabs(20))
        raise SystemExit(0)
    if chosen not in members:
        near = config.nearest(chosen, members)
        hint = f"did you mean sc {near}?" if near else f"choose {' or '.join(f'sc {name}' for name in members)}"
        raise ValueError(f"unknown command {'sc ' + chosen!r}: {hint}")
    return [f"sc-{chosen}", *words[2:]]


def _check_local(words: Sequence[str]) -> None:
    """Refuse addresses on the hub where run directories are expected."""
    for word in words[1:] if words[:1] not in (["pull"], ["push"]) else []:
        if address := re.fullmatch(r"(?:--[\w.]+=)?hub://(.*)", word):
            raise ValueError(
                f"{address[0]} is not on this machine: `mixvae pull {address[1]}` makes it a run directory"
            )


def _flags(words: list[str]) -> list[str]:
    """Allow bare flags: `--fresh` for `--fresh true`, `--no-rival` for `--rival false`."""
    if words[:1] == [] or words[0] not in COMMANDS or COMMANDS[words[0]] is train:  # its --resume takes a run
        return words
    parameters = inspect.signature(COMMANDS[words[0]]).parameters.values()
    flags = {parameter.name for parameter in parameters if parameter.annotation == "bool"}
    whole = []
    if "data_name" in {parameter.name for parameter in parameters}:
        named = re.compile(r"^--data[._](name|root)(?==|$)")  # as in `mixvae train`
        words = [named.sub("--data_name", word) for word in words]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name = word.removeprefix("--")
        alone = word.startswith("--") and following.lower() not in ("true", "false", "yes", "no")
        if alone and name in flags:
            whole.append(f"{word}=true")
        elif alone and name.removeprefix("no_") in flags:
            whole.append(f"--{name.removeprefix('no_')}=false")
        else:
            whole.append(word)
    return whole


def _train_words(words: list[str]) -> tuple[list[str], str]:
    """Turn a preset, a file or a run to resume into the configuration that the other options change."""
    rest = words[1:]
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else None
    resumed = next((_value(rest, i) for i, word in enumerate(rest) if word.split("=")[0] == "--resume"), None)
    if preset and resumed:
        raise ValueError(f"--resume {resumed} has its own configuration; leave {preset} out")
    if {"-h", "--help"} & set(rest):
        return ["train", *rest], ""
    for i, word in enumerate(rest):
        value = _value(rest, i) or ""
        if (option := word.split("=")[0]) in ("--resume", "--out") and (not value or value.startswith("--")):
            raise ValueError(f"{option} takes a run directory; {f'got {value}' if value else 'it is empty'}")
    if resumed:
        return ["train", f"--config={_config_of(resumed)}", *rest], ""
    path = config.locate(preset or "digits")
    config.check_file(path)
    return ["train", f"--config={path}", *rest], str(path)


def _config_of(run: str) -> str:
    """Configuration of a run to resume, as YAML."""
    from mixvae.cli.commands import of_first
    from mixvae.runs import open_run

    return of_first(lambda: config.to_yaml(open_run(run).config))


def _value(words: list[str], index: int) -> str | None:
    """Value of the option at this place."""
    option, equals, value = words[index].partition("=")
    del option
    return value if equals else next(iter(words[index + 1 : index + 2]), None)


def _underscored(word: str) -> str:
    """Accept dashes for underscores in option names."""
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _at_home(word: str) -> str:
    """Expand ~ at the start of a word or of an option's value, where a shell may not."""
    option, value = re.fullmatch(r"(--[\w.]+=)?(.*)", word, re.DOTALL).groups("")  # pyright: ignore
    return option + os.path.expanduser(value) if value == "~" or value.startswith("~/") else word


def _options(words: Sequence[str]) -> list[str]:
    """Names of a command's options."""
    if words[0] not in COMMANDS:
        return ["help", "version", "trust", "quiet", "debug"]
    sub = Parser()
    _add_arguments(sub, COMMANDS[words[0]])
    return [option.lstrip("-") for action in sub._actions for option in action.option_strings] + [
        "trust",
        "quiet",
        "debug",
    ]


def _version() -> str:
    from importlib.metadata import version

    return f"mixvae {version('mixvae')}"
