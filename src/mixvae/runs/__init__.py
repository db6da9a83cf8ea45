"""A run on disk: what it was made from, train, resume, evaluate, ask, and load the model back."""

from mixvae.runs.evaluating import SplitName, evaluate, evaluation_of, save_arrays
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
from mixvae.runs.run import Run, find_runs, load, open_data, open_run
from mixvae.runs.store import Layout, RunStore
from mixvae.runs.training import extension, fit, train

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
    "find_runs",
    "fit",
    "load",
    "open_data",
    "open_run",
    "posteriors",
    "reconstruct",
    "representation",
    "representations",
    "sample",
    "save_arrays",
    "train",
]
