"""One evaluation by several workers: each evaluates some of the examples, and the stored parts are merged.

A shard holds whole groups of examples whose proposals are sought together, and its draws are keyed by the numbers of
the examples in the whole. So merged shards are what one worker would have computed, bit for bit on equal machines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from mixvae._arrays import read_npz
from mixvae._failures import at_least
from mixvae._tables import counted
from mixvae.evaluation import Estimate, Evaluation, Identity, ProposalName, group_size
from mixvae.files import check_file, check_folder, one_line, read_manifest, read_part
from mixvae.files._forms import conform
from mixvae.progress import SILENT, Progress
from mixvae.proposals import together
from mixvae.proposals._refine import COUNTS, SETTINGS
from mixvae.runs._examples import NewData, SplitName
from mixvae.runs._requests import FINITE, Request, request
from mixvae.runs._run import Run
from mixvae.runs._stored import VERSION, save_arrays

FORMAT = "mixvae shard of an evaluation"
FOLDER = "shards"
"""Folder beside the evaluation, where nothing else looks."""
NAMED = re.compile(r"-(\d+)of(\d+)$", re.ASCII)
"""How the name of a shard ends."""
OTHER = {"weights": "weights", "recipe": "weights", "data": "data", "observations": "examples", "source": "code"}
"""What to call the differing part, by the field in which a shard's identity differs."""
NOTES = {"refined": (*SETTINGS, *COUNTS), "posterior": ()}
"""Names of the notes on the proposals, by their kind."""
ARRAYS = tuple(name for name, kind in Estimate.__annotations__.items() if kind == "np.ndarray")
"""Names of the values of every example."""


@dataclass(frozen=True)
class Shard:
    """Bounds of some of an evaluation's examples; not an evaluation itself, so as never to be mistaken for a whole one.

    Args:
        identity: what the whole evaluation is made from.
        number: number of the part, from 1.
        of: number of parts.
        first: number of its first example.
        bounds: values of its examples by name, (n,) each.
        notes: what happened when their proposals were made.
        path: its file, or that of the whole evaluation if it already exists.
    """

    identity: Identity
    number: int
    of: int
    first: int
    bounds: dict[str, np.ndarray] = field(repr=False)
    notes: dict[str, Any] = field(repr=False)
    path: Path

    def __len__(self) -> int:
        """Number of its examples."""
        return len(self.bounds["elbo"])

    @property
    def is_merged(self) -> bool:
        """Whether the whole evaluation already existed, so that nothing was computed or stored."""
        return self.path.parent.name != FOLDER


class Stored(TypedDict):
    """The JSON file of a shard."""

    created: float
    identity: Identity
    number: int
    of: int
    chunk: int
    notes: dict[str, int]


def evaluate_shard(
    run: str | Path | Run,
    number: int,
    of: int,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    chunk: int = 1024,
    seed: int = 0,
    proposal: ProposalName = "refined",
    data: NewData | None = None,
    progress: Progress = SILENT,
) -> Shard:
    """Evaluate one of several parts of the examples, and store it in `shards/` beside the future evaluation.

    A stored shard of the same weights, data, examples, draws, seed, proposal and chunk is read instead of recomputed.
    It is part `number`, from 1, of `of` parts; see `evaluate` for the other arguments, which must be the same for all.
    `chunk` also decides which examples are evaluated together, and so where parts begin. Where the whole evaluation is
    stored, its part is returned, with `is_merged`, and no shard is made.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: there is no such part, the examples cannot be divided into that many, nothing can be stored there,
            or for the reasons given in `evaluate`.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.runs import evaluate_shard, merge_shards, train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/sharded")
        >>> [len(evaluate_shard(run, number, 2, 10, examples=300)) for number in (1, 2)]
        [102, 198]
        >>> merge_shards(run, 10, examples=300)["examples"]
        300
    """
    at_least(1, shard=number, shards=of)
    if number > of:
        raise ValueError(f"shard must be at most the number of shards, {of}; got {number}")
    asked = request(
        run, total_draws, draws_per_component=draws_per_component, split=split, examples=examples, chunk=chunk,
        seed=seed, proposal=proposal, data=data, progress=progress,
    )  # fmt: skip
    if asked.run.is_legacy:
        raise ValueError(f"{asked.run.path} is a legacy run, which stores nothing: evaluate it as a whole")
    first, last = extent(asked.identity, chunk, number, of)
    if (whole := asked.stored()) is not None:
        return _part(whole, asked, number, of, first, last)
    path = _file(asked, number, of)
    check_file(path)
    try:
        stored = _read(path, asked)
    except ValueError:  # missing, damaged, or made from something else
        stored = None
    if stored is not None and stored[1] == chunk:
        return stored[0]
    made = asked.estimate(progress, first, last)
    if (whole := asked.stored()) is not None:  # meanwhile another worker finished, and all were merged
        return _part(whole, asked, number, of, first, last)
    shard = Shard(asked.identity, number, of, first, made.arrays(), dict(made.proposal_notes), path)
    _save(shard, chunk)
    return shard


def _part(whole: Evaluation, asked: Request, number: int, of: int, first: int, last: int) -> Shard:
    """A part of an evaluation that is already whole; its notes are known only for the whole."""
    bounds = {name: values[first:last] for name, values in whole.bounds.items()}
    return Shard(whole.identity, number, of, first, bounds, {}, asked.file)


def merge_shards(
    run: str | Path | Run,
    total_draws: int = 5000,
    *,
    draws_per_component: int | None = None,
    split: SplitName = "test",
    examples: int | None = None,
    seed: int = 0,
    proposal: ProposalName = "refined",
    data: NewData | None = None,
    progress: Progress = SILENT,
    chunk: int | None = None,
) -> Evaluation:
    """Merge all shards of an evaluation, store the result as `evaluate` would have, and remove them.

    The arguments are those of `evaluate`, as given for the shards; without `chunk`, theirs is used. An evaluation that
    is already stored is returned.

    Raises:
        FileNotFoundError: it is not a run, or has not finished an epoch.
        ValueError: a shard is missing or damaged, or shards do not match each other or the run.
    """
    asked = request(
        run, total_draws, draws_per_component=draws_per_component, split=split, examples=examples, seed=seed,
        proposal=proposal, data=data, progress=progress,
    )  # fmt: skip
    folder, stem = asked.file.parent / FOLDER, asked.file.stem
    files = sorted(path for path in folder.glob("*.json") if path.stem.rpartition("-")[0] == stem)
    stored = asked.stored()
    if stored is None:
        check_file(asked.file)
        check_folder(folder)
        stored = asked.finish(_merged(asked, folder, files, chunk))
    else:
        asked.copy(stored)
    for path in files:
        path.unlink(missing_ok=True)
        path.with_suffix(".npz").unlink(missing_ok=True)
    return stored


def _merged(asked: Request, folder: Path, files: Sequence[Path], chunk: int | None) -> Estimate:
    """The estimate of all examples.

    Raises:
        ValueError: a shard is missing or damaged, or shards do not match each other or the run.
    """
    if not files:
        others = sorted({path.stem.rpartition("-")[0] for path in folder.glob("*.json")})
        there = f"there are some of {', '.join(others)}: give the same settings" if others else "evaluate them first"
        raise ValueError(f"{asked.run.path} has no shards of {asked.identity.key}; {there}")
    for path in files:
        found = NAMED.search(path.stem)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{path} is not named as a shard, …-IofN.json: delete it, or rename it if it is one")
    counts = {path.stem.rpartition("of")[2] for path in files}
    if len(counts) > 1:
        which = " and into ".join(f"{count} (…of{count}.json)" for count in sorted(counts))
        raise ValueError(f"{folder} holds shards of an evaluation split into {which}: delete those of one")
    of = int(counts.pop())
    shards, chunks = zip(*(_read(path, asked) for path in files), strict=True)
    if len(set(chunks)) > 1:
        raise ValueError(f"the shards in {folder} have chunk {min(chunks)} and {max(chunks)}: give all the same chunk")
    if chunk not in (None, chunks[0]):
        raise ValueError(f"the shards in {folder} have chunk {chunks[0]}, not {chunk}: give theirs, or leave it out")
    if missing := sorted(set(range(1, of + 1)) - {shard.number for shard in shards}):
        names = ", ".join(f"{number}/{of}" for number in missing)
        which = f"shard{'s' * (len(missing) > 1)} {names} of {asked.identity.key}"
        raise ValueError(f"{folder} lacks {which}; evaluate it with {_command(asked, missing[0], of)}")
    shards = sorted(shards, key=lambda shard: shard.number)
    whole = asked.identity
    arrays = {name: np.concatenate([shard.bounds[name] for shard in shards]) for name in ARRAYS}
    return Estimate(
        **arrays, components=whole.components, draws_per_component=whole.draws_per_component, seed=whole.seed,
        observations=whole.observations, proposal=whole.proposal,
        proposal_notes=together([shard.notes for shard in shards]),
    )  # fmt: skip


def extent(identity: Identity, chunk: int, number: int, of: int) -> tuple[int, int]:
    """First example of a shard, and one past its last: whole groups, divided as evenly as possible.

    Raises:
        ValueError: there are fewer groups than shards.

    Example:
        >>> from mixvae.evaluation import Identity
        >>> from mixvae.runs._shards import extent
        >>> identity = Identity("3f…", "test", 300, None, components=4, draws_per_component=25, seed=0)
        >>> extent(identity, 1024, 1, 2), extent(identity, 1024, 2, 2)
        ((0, 128), (128, 300))
    """
    size = group_size(identity.components, identity.draws_per_component, chunk)
    groups = -(-identity.examples // size)
    if of > groups:
        raise ValueError(
            f"{counted(identity.examples, 'example')} can be divided into {counted(groups, 'shard')} of {size} or more "
            f"at chunk {chunk}; got {of}: give fewer shards or a smaller chunk"
        )
    first, last = (groups * edge // of * size for edge in (number - 1, number))
    return first, min(last, identity.examples)


def _file(asked: Request, number: int, of: int) -> Path:
    return asked.file.parent / FOLDER / f"{asked.file.stem}-{number}of{of}.json"


def _save(shard: Shard, chunk: int) -> None:
    """Store a shard under its identity, atomically."""
    content = {
        "identity": shard.identity.record(),
        "number": shard.number,
        "of": shard.of,
        "chunk": chunk,
        "notes": shard.notes,
    }
    save_arrays(shard.path, FORMAT, content, shard.bounds)


def _command(asked: Request, number: int, of: int) -> str:
    """How to evaluate a shard, in words."""
    command = shlex.join(["mixvae", "evaluate", str(asked.run.path), "--shard", f"{number}/{of}"])
    return f"`{command}`, with these settings"


def _read(path: Path, asked: Request) -> tuple[Shard, int]:
    """A stored shard, and its chunk.

    Raises:
        ValueError: it is missing or damaged, or was made from something other than requested; the message says how to
            make it again.
    """
    found = NAMED.search(path.stem)
    assert found is not None
    number, of = map(int, found.groups())
    again = f"evaluate this shard again: {_command(asked, number, of)}"
    try:
        content = read_manifest(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); {again}") from None
    except ValueError as error:
        raise ValueError(f"{error}, or {again}") from None
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} was not written by this version of mixvae; {again}")
    try:
        conform(content, Stored, "it")
    except TypeError as error:
        raise ValueError(f"{path} is damaged: {error}; {again}") from None
    if missing := [name for name in NOTES[asked.identity.proposal] if name not in content["notes"]]:
        raise ValueError(f"{path} is damaged: its notes lack {missing[0]}; {again}")
    if path.stem != f"{asked.file.stem}-{content['number']}of{content['of']}":
        raise ValueError(f"{path} is shard {content['number']}/{content['of']} by another name: rename it")
    for name, value in asked.identity.record().items():
        if content["identity"].get(name) != value:
            what = OTHER.get(name, name)
            raise ValueError(f"{path} was made from other {what} than {asked.run.path} has now; {again}")
    chunk = content["chunk"]
    try:
        at_least(1, chunk=chunk)
        first, last = extent(asked.identity, chunk, number, of)
    except ValueError:
        raise ValueError(f"{path} is damaged: with chunk {chunk} there is no shard {number}/{of}; {again}") from None
    try:
        arrays = read_npz(read_part(path, "arrays")[1], f"{path.stem}.npz")
        bounds = {name: _checked(name, arrays, last - first) for name in ARRAYS}
    except Exception as error:  # noqa: BLE001  (whatever NumPy and its archive raise)
        raise ValueError(f"the arrays of {path} are damaged: {one_line(error)}; {again}") from None
    return Shard(asked.identity, number, of, first, bounds, content["notes"], path), chunk


def _checked(name: str, arrays: Mapping[str, np.ndarray], examples: int) -> np.ndarray:
    """The values of some examples.

    Raises:
        ValueError: they are missing, of another number or type, or not finite where they must be.
    """
    values = arrays.get(name)
    if values is None:
        raise ValueError(f"there is no {name}")
    if values.shape != (examples,) or values.dtype.kind != "f":
        raise ValueError(f"{name} is of shape {values.shape} and type {values.dtype}, not ({examples},) and float64")
    if name in FINITE and not np.isfinite(values).all():
        raise ValueError(f"{name} is not finite")
    return values
