"""What is shared of a run: weights, configuration, evaluations of these weights, and the record without paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mixvae.config
from mixvae.files import commit, read_part
from mixvae.files._lease import holder
from mixvae.hub import Entry, entry_of
from mixvae.publishing._portable import portable, portable_record
from mixvae.runs import Layout, Run, open_run
from mixvae.runs._store import MARK
from mixvae.runs._stored import is_current, read_stored


def pack(run: str | Path | Run, out: str | Path) -> Run:
    """Copy a run for sharing: without state, pictures and logs, and without paths on this machine.

    Evaluations are those of the run's current weights on its own data. Of the paths of data, only the file names are
    kept. Weights, recipe and numbers are bit-for-bit the same.

    Args:
        run: a run that has finished an epoch.
        out: the directory to write, which must not exist.

    Returns:
        The copy.

    Raises:
        FileNotFoundError: it is not a run, or has no weights yet.
        ValueError: it is being trained, one of its files is damaged, it is from before runs had an identity, or a path
            of this machine is part of its recipe.

    Example:
        >>> from mixvae.config import read
        >>> from mixvae.publishing import pack
        >>> from mixvae.runs import train
        >>> run = train(read("digits", ["--data.limit=40", "--training.epochs=1"]), "runs/digits")
        >>> copy = pack(run, "packed")
        >>> sorted(path.name for path in copy.path.iterdir()), copy.recipe.sha256 == run.recipe.sha256
        (['config.yaml', 'model.safetensors', 'run.json'], True)
    """
    run, folder = open_run(run), Path(out).expanduser()
    record, weights = _read(run)
    try:
        content = portable_record(record)
    except ValueError as error:
        raise ValueError(f"{run.path} cannot be shared: {error}; train it with a relative path there") from None
    parts = {"weights": (run.layout.weights.name, weights)}
    if content["config"] is not None:
        text = mixvae.config.to_yaml(mixvae.config.from_dict(content["config"]))
        parts["config"] = (run.layout.config.name, f"{MARK}\n{text}".encode())
    folder.mkdir(parents=True)
    files = [entry for file in _evaluations(run) for entry in _copy_evaluation(file, folder)]
    commit(Layout(folder).manifest, {**content, "files": {}, "hub": {"files": files}}, parts)
    return open_run(folder)


def _read(run: Run) -> tuple[dict[str, Any], bytes]:
    """The record and the weights of a run, all of whose files are intact."""
    if run.is_legacy:
        raise ValueError(f"{run.path} is a legacy run, which records too little to be shared: train it again")
    if holder(run.path) is not None:
        raise ValueError(f"{run.path} is being trained: wait for its end, or stop it")
    if "weights" not in run.manifest["files"]:
        raise FileNotFoundError(f"{run.path} has no weights yet: train it further")
    for name in run.manifest["files"].keys() - {"config", "weights"}:
        read_part(run.layout.manifest, name)
    return read_part(run.layout.manifest, "weights")


def _evaluations(run: Run) -> Iterator[Path]:
    """Evaluations and scores that are stored for a run's current weights."""
    for file in sorted(run.layout.evaluations.glob("*.json")):
        if is_current(read_stored(file).get("identity"), run):
            yield file


def _copy_evaluation(file: Path, out: Path) -> Iterator[Entry]:
    """Copy an evaluation without paths into another run directory; yields an entry for each of its files."""
    content, folder = read_stored(file), Layout(out).evaluations
    arrays = {name: read_part(file, name)[1] for name in content["files"]}
    parts = {name: (content["files"][name]["path"], data) for name, data in arrays.items()}
    plain = {**content, "results": portable(content["results"])} if "results" in content else content
    commit(folder / file.name, plain, parts)
    for path in (file.name, *(path for path, _ in parts.values())):
        yield entry_of(f"{folder.name}/{path}", (folder / path).read_bytes())
