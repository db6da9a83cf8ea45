"""The last step for every data set: its values are checked, binarised and limited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch

from mixvae.datasets._given import Binarize, Given
from mixvae.datasets._lazy import Lazy
from mixvae.datasets._splits import Dataset, Split


def finished(
    name: str,
    train: Split,
    validation: Split,
    test: Split,
    *,
    binarize: Binarize,
    seed: int,
    flip: bool,
    origin: Mapping[str, Any] | None = None,
) -> Dataset:
    """Check the values of examples, record how they were given, and binarise them.

    Raises:
        ValueError: some are NaN or infinite, or cannot be binarised or mirrored.
    """
    if binarize not in get_args(Binarize):
        raise ValueError(f"unknown binarize {binarize!r}: choose stochastic, fixed, threshold or none")
    for split in (train, validation, test):
        check_split(name, split, binarize)
    if flip and len(train.shape) != 3:
        raise ValueError(f"only images can be mirrored; {name} has examples of shape {train.shape}")
    if binarize in ("fixed", "threshold") and isinstance(train.x, Lazy):
        raise ValueError(
            f"streamed examples can be binarised afresh at every step (binarize stochastic) or by a transform, but not "
            f"once and for all; got binarize {binarize}"
        )
    given = Given.of(train, None if binarize == "none" else binarize, seed)
    train = replace(train, resample=True) if binarize == "stochastic" else binarized(train, binarize, seed)
    return Dataset(
        name,
        replace(train, flip=flip),
        binarized(validation, binarize, seed + 1),
        binarized(test, binarize, seed + 2),
        origin=origin,
        given=given,
    )


def binarized(split: Split, binarize: Binarize, seed: int) -> Split:
    """Binarise once and for all."""
    if binarize == "none":
        return split
    generator, done = torch.Generator().manual_seed(seed), 0
    binary = torch.empty(split.x.shape, dtype=torch.uint8)
    for values in split.raw():  # in batches: as floating point, all at once would take four times their memory
        threshold = 0.5 if binarize == "threshold" else torch.rand(values.shape, generator=generator)
        binary[done : done + len(values)] = values.float() / split.levels > threshold
        done += len(values)
    return replace(split, x=binary, levels=1)


def check_split(name: str, split: Split, binarize: Binarize) -> None:
    """Refuse values on which no model can be trained."""
    x = split.x.values if isinstance(split.x, Lazy) else split.x
    if x is None or not len(x) or not split.x.is_floating_point():
        return
    bad = ~x.isfinite()
    if bad.any():
        raise ValueError(f"{name} holds {int(bad.sum())} values that are NaN or infinite: remove or impute them")
    low, high = float(x.min()), float(x.max())
    if binarize != "none" and not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} holds values from {low:.4g} to {high:.4g}; to binarise them they must lie in [0, 1]: "
            "rescale them, or set binarize to none and choose a likelihood for real values"
        )
