"""Pushing a run to the hub: packed, described, and sent in one commit."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from mixvae.files import checksum, write_text
from mixvae.hub import CARD, Address, Commit, upload
from mixvae.progress import SILENT, Progress
from mixvae.publishing._card import card
from mixvae.publishing._packing import pack
from mixvae.runs import Run, evaluation_of, open_run

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push(
    run: str | Path | Run,
    repo: str,
    *,
    license: str,
    baseline: str | Path | Run | None = None,
    private: bool = False,
    progress: Progress = SILENT,
) -> Commit:
    """Push a run to the hub, with its evaluations and a model card made from them.

    What `pack` leaves out stays here: state, pictures, logs, data, and paths of this machine. All files are published
    at once, in one commit, under a tag of its own that begins with the weights' checksum; an interrupted push is
    completed by the same call.

    Args:
        run: a run that was evaluated; one of cells needs no evaluation.
        repo: ORG/NAME, created if it does not exist. Files of an earlier push are replaced.
        license: the licence of weights and card, as the hub abbreviates it, such as mit or cc-by-4.0.
        baseline: an evaluated run on the same data; the card then has the gain over it, and how it splits.
        private: create a repository that only its owners see.
        progress: where to report progress, such as `mixvae.progress.Terminal()`; silent by default.

    Returns:
        The repository and the commit.

    Raises:
        FileNotFoundError: there is no such run, or it has no weights or no evaluation yet.
        ValueError: the run is damaged or being trained, the hub refuses, or huggingface_hub is not installed.
        Unreachable: the hub cannot be reached.
    """
    address = Address.parse(repo)
    if not _LICENSE.fullmatch(license):
        raise ValueError(
            f"{license!r} is not a licence in the hub's abbreviation, such as mit, apache-2.0, cc-by-4.0 or other"
        )
    run = open_run(run)
    others = [] if baseline is None else [open_run(baseline)]
    if others and run.is_of_cells:
        raise ValueError("a baseline is compared by evaluations, which runs of cells do not have: leave it out")
    for one in [] if run.is_of_cells else [run, *others]:
        evaluation_of(one)  # which says what to do where there is none
    with TemporaryDirectory(prefix="mixvae-") as folder:
        packed = pack(run, Path(folder) / address.name)
        beside = next((_packed_beside(other, packed) for other in others), None)
        tag = _tag(packed, card(packed, Address(address.repo), license, beside))
        write_text(packed.path / CARD, card(packed, Address(address.repo, tag), license, beside))
        paths = [path for path in sorted(packed.path.rglob("*")) if path.is_file()]
        files = {path.relative_to(packed.path).as_posix(): path for path in paths}
        message = f"Run of recipe {packed.recipe.sha256[:12]}, {packed.epoch} epochs"
        return upload(repo, files, message=message, tag=tag, private=private, progress=progress)


def _tag(packed: Run, card: str) -> str:
    """Tag of the commit that holds a packed run and its card: different whenever either differs.

    So a tag is created once and never moved, whoever else pushes meanwhile and wherever a push is interrupted.

    Args:
        packed: the run, whose manifest lists all of its files.
        card: its card, without the tag.
    """
    content = checksum(packed.manifest["checksum"] + card)
    return f"weights-{str(packed.weights_sha256)[:12]}-{content[:8]}"


def _packed_beside(baseline: Run, packed: Run) -> Run:
    """The packed baseline, in a folder of another name."""
    name = f"{baseline.name} (baseline)" if baseline.name == packed.name else baseline.name
    return pack(baseline, packed.path.parent / name)
