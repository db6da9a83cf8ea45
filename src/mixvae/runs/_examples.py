"""The examples that a run is asked about: those of a split of its data, or new ones, treated as its test examples."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixvae import datasets
from mixvae._failures import at_least
from mixvae.datasets import SOURCES, Split, as_split
from mixvae.datasets._finished import finished
from mixvae.evaluation import fingerprint
from mixvae.progress import SILENT, Progress
from mixvae.runs._run import Run
from mixvae.training import default_device, keep_freed_memory

SplitName = Literal["train", "validation", "test"]
NewData = str | Path | np.ndarray | Tensor | Split
"""New examples: a file or folder that `load_dataset` reads, an array (N, *shape), or a split."""
NEW = "new"
"""What takes the place of a split's name where examples are new ones."""
ONCE = {"stochastic": "binarised once by a fixed seed", "fixed": "binarised once by a fixed seed"}
"""What happens to held-out examples, by the run's `binarize`."""


@dataclass(frozen=True)
class Examples:
    """Examples of a query, on the default device, and where they come from.

    Args:
        part: the examples.
        data: name of the data, or of the file of new ones.
        split: train, validation or test, or new.
        sha256: checksum of the data set, or of all examples of the file.
    """

    part: Split
    data: str
    split: str
    sha256: str

    @property
    def is_new(self) -> bool:
        """Whether they are not of the run's own data."""
        return self.split == NEW


def examples_of(
    run: Run,
    split: str = "test",
    examples: int | None = None,
    data: NewData | None = None,
    progress: Progress = SILENT,
) -> Examples:
    """Some examples of a run's data, or new ones.

    Args:
        run: the run.
        split: which part of its data.
        examples: only the first N.
        data: new examples instead.
        progress: where to report how new examples were treated.

    Raises:
        ValueError: the data are not those it was trained on, new ones do not fit the run, or `examples` is not
            positive.
    """
    at_least(1, examples=examples)
    keep_freed_memory()
    if data is None:
        part = run.data.split(split).head(examples).to(default_device())
        if not len(part):
            raise ValueError(f"{run.path} was trained without {split} examples: name another split, or give new data")
        return Examples(part, run.data.name, split, run.data.sha256())
    if split != "test":
        raise ValueError(f"new data have no splits; got split {split}: leave it out, or give no data")
    name, whole = _as_tested(run, data, progress)
    x = whole.fixed().to(next(run.model.parameters()).dtype)
    try:
        run.model.check(x.to(default_device()))
    except ValueError as error:
        raise ValueError(f"{name} does not fit {run.path}: {error}") from None
    return Examples(whole.head(examples).to(default_device()), name, NEW, fingerprint(x))


def part_of(run: Run, split: str, examples: int | None = None, data: NewData | None = None) -> Split:
    """The examples alone that `examples_of` returns."""
    return examples_of(run, split, examples, data).part


def prepared(run: Run, split: Split, seed: int = 0) -> Tensor:
    """Examples as a run's model takes them; training examples are binarised by a fixed seed, and not mirrored."""
    return split.fixed(seed).to(next(run.model.parameters()).dtype)


def _as_tested(run: Run, data: NewData, progress: Progress) -> tuple[str, Split]:
    """Name of new examples, and the examples treated as the run's test examples were."""
    origin: dict[str, Any] = run.manifest["runtime"]["data"]["origin"] or {}
    binarize, seed = origin.get("binarize", "none"), origin.get("seed", 0)
    name, raw = _read(data, origin.get("resize"))
    if not len(raw):
        raise ValueError(f"{name} holds no examples")
    _check_scale(run, raw, name)
    one = raw.head(1)
    new = finished(name, one, one, raw, binarize=binarize, seed=seed, flip=False).test
    changed = not torch.equal(new.fixed(), raw.fixed())
    done = [f"resized to {origin['resize']}"] if origin.get("resize") else []
    done += [ONCE.get(binarize, "binarised at ½")] if changed else []
    if done:
        progress.announce(f"{name}: {len(new)} examples, {' and '.join(done)}, as the test examples of {run.path} were")
    return name, new


def _read(data: NewData, resize: Any) -> tuple[str, Split]:
    """New examples as they are, with the name that tables show."""
    if isinstance(data, Split):
        return "a split", data
    if isinstance(data, str | Path):
        return Path(data).name, datasets.load_examples(data, binarize="none", resize=resize)
    values = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    return "an array", as_split(values, name="the array")


def _check_scale(run: Run, new: Split, name: str) -> None:
    """Refuse examples in another unit than those that the run was trained on, where these can be read.

    Raises:
        ValueError: they are.
    """
    own = _own(run)
    trained = None if own is None else own.x if isinstance(own.x, Tensor) else own.x.values
    if own is None or trained is None or not isinstance(new.x, Tensor):
        return
    low, high = float(new.x.min()), float(new.x.max())
    if new.x.is_floating_point():
        if not own.x.is_floating_point() and not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} holds values from {low:.4g} to {high:.4g}, and {run.path} was trained on intensities in "
                "[0, 1]: rescale them"
            )
        return
    if own.x.is_floating_point():
        most = float(trained.abs().max())
        if new.levels > 1 and most > 1:
            raise ValueError(
                f"{name} holds bytes, which count as intensities in [0, 1], and {run.path} was trained on values up to "
                f"{most:.4g}: save them as floating-point numbers of the same unit"
            )
    elif own.levels > 1 and new.levels > own.levels and high <= own.levels:
        raise ValueError(
            f"{name} holds whole numbers up to {high:.0f}, which count as 8-bit grey values, and {run.path} was "
            f"trained on grey values from 0 to {own.levels}: divide them by {own.levels}"
        )


def _own(run: Run) -> Split | None:
    """Training examples of a run; None if they are gone, or would have to be downloaded."""
    name = (run.manifest["runtime"]["data"]["origin"] or {}).get("name")
    if name in SOURCES and not inspect.isfunction(SOURCES[name]):
        return None
    try:
        return run.data.train
    except (OSError, ValueError):
        return None
