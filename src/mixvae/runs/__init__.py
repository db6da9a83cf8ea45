"""A run on disk: its recipe; training, resuming, evaluating and querying it; loading its model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mixvae.runs._data import open_data
from mixvae.runs._evaluating import (
    check,
    evaluate,
    evaluation_of,
    find_evaluation,
    per_example,
    save_arrays,
    save_per_example,
)
from mixvae.runs._examples import NewData, SplitName
from mixvae.runs._listing import find_runs, listing
from mixvae.runs._opening import directory_of, load, open_run, open_runs
from mixvae.runs._queries import (
    components,
    cooperation,
    encode_split,
    interpolate,
    posteriors,
    reconstruct,
    representation,
    representations,
    sample,
)
from mixvae.runs._recipe import Recipe
from mixvae.runs._run import Run
from mixvae.runs._shards import Shard, evaluate_shard, merge_shards
from mixvae.runs._standing import standing
from mixvae.runs._starting import extension
from mixvae.runs._store import Layout, RunStore

if TYPE_CHECKING:
    from mixvae.runs._training import fit, train

__all__ = [
    "Layout",
    "NewData",
    "Recipe",
    "Run",
    "RunStore",
    "Shard",
    "SplitName",
    "components",
    "cooperation",
    "directory_of",
    "encode_split",
    "check",
    "evaluate",
    "evaluate_shard",
    "evaluation_of",
    "extension",
    "find_evaluation",
    "find_runs",
    "fit",
    "interpolate",
    "listing",
    "load",
    "merge_shards",
    "open_data",
    "open_run",
    "open_runs",
    "per_example",
    "posteriors",
    "reconstruct",
    "representation",
    "representations",
    "sample",
    "save_arrays",
    "save_per_example",
    "standing",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in ("fit", "train"):  # these import Lightning Fabric
        raise AttributeError(f"module 'mixvae.runs' has no attribute {name!r}")
    return getattr(importlib.import_module("mixvae.runs._training"), name)
