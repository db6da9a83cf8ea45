"""The examples of a query of a run: a split of its data, or new ones, treated as its test examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mixvae import datasets
from mixvae._failures import at_least
from mixvae.datasets import SOURCES, CifarSource, Dataset, IdxSource, Split
from mixvae.datasets._finished import check_split, finished
from mixvae.datasets._given import Given
from mixvae.datasets._python import in_memory
from mixvae.evaluation import fingerprint
from mixvae.parts import a_kind
from mixvae.progress import SILENT, Progress
from mixvae.runs._run import Run
from mixvae.training import default_device, keep_freed_memory

SplitName = Literal["train", "validation", "test"]
NewData = str | Path | np.ndarray | Tensor | Split | Any
"""New examples: a file or folder that `load_dataset` reads, an array (N, *shape), or whatever else `as_dataset` takes,
such as a `Split`, a torch `Dataset`, a `DataLoader` or an iterable. They are read into memory."""
NEW = "new"
"""What replaces the name of a split for new examples."""
ONCE = {"stochastic": "binarised once by a fixed seed", "fixed": "binarised once by a fixed seed"}
"""What happens to held-out examples, by the run's `binarize`."""
ANOTHER = 8
"""New examples whose typical values are this many times the largest in training count as being in another unit."""


@dataclass(frozen=True)
class Examples:
    """Examples of a query, on the default device, and where they come from.

    Args:
        part: the examples.
        data: name of the data, or of the file with new examples.
        split: train, validation or test, or new.
        sha256: checksum of the data set, or of all examples of the file.
    """

    part: Split
    data: str
    split: str
    sha256: str

    @property
    def is_new(self) -> bool:
        """Whether they are not from the run's own data."""
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
        part = _own(run, split).split(split).head(examples).to(default_device())
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
        raise ValueError(f"{name} does not fit {run.path}: {error}{_column(run, whole)}") from None
    return Examples(whole.head(examples).to(default_device()), name, NEW, fingerprint(x))


def part_of(run: Run, split: str, examples: int | None = None, data: NewData | None = None) -> Split:
    """The examples alone that `examples_of` returns."""
    return examples_of(run, split, examples, data).part


def prepared(run: Run, split: Split, seed: int = 0) -> Tensor:
    """Examples as a run's model takes them; training examples are binarised by a fixed seed, and not mirrored."""
    return split.fixed(seed).to(next(run.model.parameters()).dtype)


def _own(run: Run, split: str) -> Dataset:
    """The data of a run, to query a split of them.

    Raises:
        ValueError: they are gone, or were made in Python.
    """
    try:
        return run.data
    except ValueError as error:
        if split != "test":  # new examples have no splits
            raise
        raise ValueError(f"{error}; new examples are given with --data FILE (data=… in Python)") from None


def _as_tested(run: Run, data: NewData, progress: Progress) -> tuple[str, Split]:
    """Name of new examples, and the examples treated as the run's test examples were."""
    recorded = run.manifest["runtime"]["data"]
    origin: dict[str, Any] = recorded["origin"] or {}
    given = _given(run)
    treated = origin if given is None else {"binarize": given.binarize, "seed": given.seed}
    binarize = treated.get("binarize", "none")
    name, raw = _read(data, origin.get("resize"))
    if not len(raw):
        raise ValueError(f"{name} holds no examples")
    check_split(name, raw, "none")
    if other := _other_unit(given or _found(run), raw, str(run.path)):
        raise ValueError(f"{name} holds {other}")
    one = raw.head(1)
    new = finished(name, one, one, raw, binarize=binarize, seed=treated.get("seed", 0), flip=False).test
    changed = not torch.equal(new.fixed(), raw.fixed())
    done = [f"resized to {origin['resize']}"] if origin.get("resize") else []
    done += [ONCE.get(binarize, "binarised at ½")] if changed else []
    if done:
        progress.announce(f"{name}: {len(new)} examples, {' and '.join(done)}, as the test examples of {run.path} were")
    return name, new


def _read(data: NewData, resize: Any) -> tuple[str, Split]:
    """New examples unchanged, in memory, with the name that tables show."""
    if isinstance(data, str | Path):
        return Path(data).name, datasets.load_examples(data, binarize="none", resize=resize)
    if isinstance(data, Split):
        return "a split", in_memory(datasets.examples_of(data), "a split")
    name = "an array" if hasattr(data, "__array__") else a_kind(data)
    return name, in_memory(datasets.examples_of(data, name=name), name)


def _other_unit(own: Given | None, new: Split, run: str) -> str:
    """What new examples hold in a unit other than that of the training examples, and the remedy; empty if nothing.

    Bytes have a unit, intensities in [0, 1]. Real numbers count as being in another unit if their typical values are
    more than `ANOTHER` times the largest in training; images in [0, 1] also if values in training reach `ANOTHER`, or
    if these go below −½ times their largest while the smallest new one is 0.

    Args:
        own: how the training examples were given.
        new: the new examples.
        run: what the error calls the run.
    """
    ends = new.ends()
    if own is None or ends is None:
        return ""
    (low, high), real = ends, new.x.is_floating_point()
    values = f"values from {low:.4g} to {high:.4g}"
    if not own.real:
        if real and not (low >= 0 and high <= 1):
            return f"{values}, and {run} was trained on intensities in [0, 1]: rescale them"
        if not real and new.levels > own.levels > 1 and high * new.levels <= own.levels:
            return (
                f"whole numbers up to {high * new.levels:.0f}, which count as 8-bit grey values, and {run} was trained "
                f"on grey values from 0 to {own.levels}: divide them by {own.levels}"
            )
        return ""
    if own.low is None or own.high is None:
        return ""
    trained = f"{run} was trained on values from {own.low:.4g} to {own.high:.4g}"
    if new.levels > 1 and (own.low < 0 or own.high > 1):
        return (
            f"bytes, which count as intensities in [0, 1], and {trained}: give floating-point numbers of the same unit"
        )
    most = max(-own.low, own.high)
    largest = torch.cat([values.abs().flatten(1).amax(1) for values in new.raw()])  # of every example
    typical = float(largest.float().median()) / new.levels
    intensities = len(new.shape) == 3 and low >= 0 and 0 < high <= 1
    shifted = low == 0 and own.low <= -own.high / 2
    if typical > ANOTHER * most or (intensities and (most >= ANOTHER or shifted)):
        return f"{values}, and {trained}: give them in the same unit"
    return ""


def _given(run: Run) -> Given | None:
    """How the training examples of a run were given; None if it was made by an earlier version."""
    recorded = run.manifest["runtime"]["data"]
    return Given(**recorded["given"]) if "given" in recorded else None


def _column(run: Run, new: Split) -> str:
    """The remedy if a table has one more column than the training examples, which had labels; otherwise empty."""
    given = _given(run)
    more = len(new.shape) == 1 and run.model.at_origin().event_shape == (new.shape[0] - 1,)
    if given is None or not given.labels or new.y is not None or not more:
        return ""
    return "; the training examples had labels: leave their column out, or call it label in a .csv or .parquet file"


def _found(run: Run) -> Given | None:
    """How the training examples of a run that has no record of it were given, if they can be read.

    Returns:
        None if they are gone, or would have to be downloaded.
    """
    name = (run.manifest["runtime"]["data"]["origin"] or {}).get("name")
    if name in SOURCES and isinstance(SOURCES[name], IdxSource | CifarSource):
        return None
    try:
        return Given.of(run.data.train)
    except (OSError, ValueError):
        return None
