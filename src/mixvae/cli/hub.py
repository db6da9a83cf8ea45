"""The commands for the hub, `mixvae push` and `mixvae pull`: just arguments and calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixvae import config
from mixvae._tables import counted
from mixvae.cli.output import quiet, show
from mixvae.progress import Terminal

if TYPE_CHECKING:
    from mixvae.runs import Run


def push(
    run: str, repo: str, license: str | None = None, baseline: str | None = None, *, private: bool = False
) -> None:
    """Push a run to the Hugging Face hub, with its evaluations and a model card made from them.

    Args:
        run: the run directory.
        repo: ORG/NAME on the hub; created if it does not exist.
        license: licence of weights and card, as the hub abbreviates it, such as mit or cc-by-4.0; must be given.
        baseline: a run on the same data that the card compares with.
        private: create a repository that only its owners see.
    """
    if license is None:
        raise ValueError("give --license, such as --license mit: without one nobody else may use the weights")
    from mixvae import publishing

    with quiet(), Terminal() as progress:
        made = publishing.push(run, repo, license=license, baseline=baseline, private=private, progress=progress)
    at = made.address
    show(f"pushed {run} to {made.url}, commit {at.revision}\nnext: mixvae pull {at.repo}@{at.revision}")


def pull(repo: str, out: str | None = None) -> None:
    """Download a run from the Hugging Face hub, check all its files, and make it a run directory.

    Args:
        repo: ORG/NAME or ORG/NAME@REVISION, where REVISION is a branch, a tag or a commit.
        out: the run directory; runs/NAME by default.
    """
    from mixvae import hub, runs

    with quiet(), Terminal() as progress:
        path = hub.pull(repo, out, progress)
    run = runs.open_run(path)
    origin = run.manifest["hub"]
    show(f"{path}: {origin['repo']} at commit {origin['commit']}; {counted(run.epoch, 'epoch')}, {run.state}")
    if note := _untrusted(run):
        show(f"note: {note}")


def _untrusted(run: Run) -> str:
    """Why the model of a run needs to be trusted, in one line; empty if it does not."""
    from mixvae.runs._memory import check

    try:
        check(run.manifest, str(run.layout.manifest), config.NOBODY)
    except ValueError as error:
        return str(error)
    return ""


HUB = {"push": push, "pull": pull}
