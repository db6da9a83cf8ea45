"""Errors explained in one line, with the exit status."""

from __future__ import annotations

import errno
import os
import re
import site
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jsonargparse

from mixvae import config
from mixvae._failures import Failed, said

BAD_INPUT, FAILED, STOPPED = 2, 1, 130
LIBRARIES = tuple(
    {
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib")),
        *site.getsitepackages(),
    }
)
"""Folders of code that is not the user's."""


REMEDIES = {
    errno.ENOENT: "check the name",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "name another place",
    errno.EEXIST: "remove it, or name another place",
    errno.EISDIR: "remove it, or name another place",
    errno.ENOTDIR: "remove what is not a folder, or name another place",
    errno.ENOTEMPTY: "empty it, or name another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EMFILE: "raise `ulimit -n`",
}
"""Remedies for what the system refuses."""


def explain(error: BaseException, commands: Sequence[str], options: Callable[[], list[str]]) -> tuple[str, int]:
    """Explain an error in one line, with the exit status of the process.

    Args:
        error: the exception.
        commands: names of all commands.
        options: names of the command's options.

    Returns:
        The line, and 2 for bad input, 1 for a failed training or a bug in mixvae, 130 for Ctrl-C.
    """
    match error:
        case KeyboardInterrupt():
            return (
                "interrupted; the same command resumes it, or for a training `mixvae train --resume RUN`",
                STOPPED,
            )
        case FloatingPointError() | Failed():
            return _joined(error), FAILED
        case OSError(errno=int(), strerror=str()):
            return _refused(error), BAD_INPUT
        case jsonargparse.ArgumentError() | ValueError() | OSError():
            return _bad_input(error, commands, options), BAD_INPUT
    frames = traceback.extract_tb(error.__traceback__)
    training = any(frame.name == "_epoch" and frame.filename.endswith("trainer.py") for frame in frames)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        ways = "a smaller --chunk or fewer draws" if "chunk" in options() else "a smaller model or batch"
        return f"out of memory: use {ways} ({said(error)})", FAILED
    own = next((frame for frame in reversed(frames) if not frame.filename.startswith((*LIBRARIES, "<"))), None)
    if own is not None:
        return f"{own.filename}, line {own.lineno}, in {own.name}: {said(error)}", FAILED if training else BAD_INPUT
    if training:
        return f"the training failed: {said(error)}; --debug shows where", FAILED
    return f"unexpected {said(error)}; --debug shows where: please report it", FAILED


def _refused(error: OSError) -> str:
    """What the system refused, and the remedy."""
    files = " → ".join(os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    refusal = f"{files}: {error.strerror}" if files else str(error.strerror)
    remedy = REMEDIES.get(error.errno or 0)
    return f"{refusal}; {remedy}" if remedy else refusal


def _joined(error: BaseException) -> str:
    """All lines of an error as one."""
    return " ".join(str(error).split()) or type(error).__name__


def _bad_input(error: Exception, commands: Sequence[str], options: Callable[[], list[str]]) -> str:
    """One line on what was wrong, with the nearest option or command where one was mistyped."""
    text = _joined(error)
    if unknown := re.search(r"(?:[Uu]nrecognized arguments|does not accept option)[: ]+'?-*([\w.]+)", text):
        known = options()
        if stray := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", text):
            name = stray[1].partition("=")[0]
            hint = f"did you mean --{name}?" if name in known else "--help shows what this command takes"
            return f"unexpected argument {stray[1]!r}: {hint}"
        if unknown[1] in known:
            return f"-{unknown[1]} is no option: did you mean --{unknown[1]}?"
        if "training.epochs" in known:
            return f"unknown option --{unknown[1]}{config.meant(unknown[1], known, '--')}"
        last = unknown[1].rpartition(".")[2]  # training.epochs, if a command has epochs
        near = last if last in known else config.nearest(unknown[1], known)
        written = near.replace("_", "-") if near and "." not in near else near  # as the help shows it
        return f"unknown option --{unknown[1]}" + (f": did you mean --{written}?" if near else "")
    if choice := re.search(r"invalid choice: '(.*?)'", text):
        near = config.nearest(choice[1], commands)
        hint = (
            f"did you mean {near}?" if near else f"choose {', '.join(name.replace('sc-', 'sc ') for name in commands)}"
        )
        return f"unknown command {choice[1]!r}: {hint}"
    text = re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", text)
    if missing := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"{re.sub(r'(?<![^ ])[a-z-]+[.]', '', missing[1])}: missing; --help shows what this command takes"
    if several := re.match(r"([\w.]+: ).*?Subtypes: \[(.*?)\] Errors: .* Given value: (.*)", text):
        kinds = re.findall(r"<class '(?!NoneType)([\w.]+)'>", several[2])
        return f"{several[1]}expected {' or '.join(kinds)}; got {several[3]}"
    text = re.sub(r"Literal\[(.*?)\]", lambda m: f"one of {m[1].replace(chr(39), '')}", text)
    text = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.)", lambda m: f"expected {m[1] or ''}", text)
    return text.replace(". Got value:", "; got")
