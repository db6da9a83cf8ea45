"""Evaluations in files: arrays first, then the JSON that names what they were made from."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mixvae.evaluation import Evaluation, Identity
from mixvae.files import commit, read_manifest, read_part

FORMAT = "mixvae evaluation"
VERSION = 1
"""Version of what evaluation computes; a change makes stored ones be computed again."""


def save_evaluation(path: Path, made: Evaluation, extra: Mapping[str, Any] | None = None) -> None:
    """Store an evaluation under its identity, arrays and all, so that all of it counts or none.

    Args:
        path: the JSON file; the arrays go beside it.
        made: the evaluation.
        extra: what else it was made from.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **made.bounds)  # pyright: ignore[reportArgumentType]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created": time.time(),
        "identity": asdict(made.identity),
        "extra": dict(extra or {}),
        "results": made.results,
    }
    commit(path, content, {"arrays": (f"{path.stem}.npz", buffer.getvalue())})


def stored_evaluation(path: Path, identity: Identity, extra: Mapping[str, Any] | None = None) -> Evaluation | None:
    """The evaluation that is stored there; None if it was made from something else, or is damaged: it is made again."""
    try:
        content = read_manifest(path)
        asked = {"version": VERSION, "identity": asdict(identity), "extra": dict(extra or {})}
        if any(content.get(name) != value for name, value in asked.items()):
            return None
        return read_evaluation(path)
    except (OSError, ValueError):
        return None


def identity_in(path: Path) -> tuple[Identity, float]:
    """Identity of a stored evaluation, and when it was made.

    Raises:
        ValueError: the file is damaged, or was written by another version of mixvae.
    """
    return _identity(path, read_manifest(path))


def read_evaluation(path: Path) -> Evaluation:
    """Read a stored evaluation.

    Raises:
        ValueError: one of its files is damaged, or was written by another version of mixvae.
    """
    content, arrays = read_part(path, "arrays")
    identity, _ = _identity(path, content)
    with np.load(io.BytesIO(arrays), allow_pickle=False) as bounds:
        return Evaluation(identity, {name: bounds[name] for name in bounds.files}, content["results"])


def _identity(path: Path, content: Mapping[str, Any]) -> tuple[Identity, float]:
    if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} was not written by this version of mixvae: delete it and evaluate again")
    return Identity(**content["identity"]), content["created"]
