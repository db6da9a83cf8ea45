"""A run on disk: what it was made from, train, resume, evaluate, ask, and load the model back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mixvae.runs.evaluating import SplitName, evaluate, evaluation_of, find_evaluation, save_arrays
from mixvae.runs.listing import find_runs, listing
from mixvae.runs.opening import load, open_run, open_runs
from mixvae.runs.queries import (
    components,
    cooperation,
    encode_split,
    posteriors,
    reconstruct,
    representation,
    representations,
    sample,
)
from mixvae.runs.recipe import Recipe
from mixvae.runs.run import Run, open_data
from mixvae.runs.standing import standing
from mixvae.runs.starting import extension
from mixvae.runs.store import Layout, RunStore

if TYPE_CHECKING:
    from mixvae.runs.training import fit, train

__all__ = [
    "Layout",
    "Recipe",
    "Run",
    "RunStore",
    "SplitName",
    "components",
    "cooperation",
    "encode_split",
    "evaluate",
    "evaluation_of",
    "extension",
    "find_evaluation",
    "find_runs",
    "fit",
    "listing",
    "load",
    "open_data",
    "open_run",
    "open_runs",
    "posteriors",
    "reconstruct",
    "representation",
    "representations",
    "sample",
    "save_arrays",
    "standing",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in ("fit", "train"):  # which import Lightning Fabric
        raise AttributeError(f"module 'mixvae.runs' has no attribute {name!r}")
    return getattr(importlib.import_module("mixvae.runs.training"), name)
