"""Data as they are in Python: arrays, torch data sets and loaders, Hugging Face data sets, and iterables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from mixvae._failures import plain_errors
from mixvae._resources import check, short
from mixvae.datasets._finished import Binarize, finished
from mixvae.datasets._items import Items, check_apart, check_repeatable, classes_in, pass_of, plain_values, scanned
from mixvae.datasets._kinds import check_labels
from mixvae.datasets._lazy import SAME, ByNumber, InOrder, Lazy, apart
from mixvae.datasets._own import PARTS, enough
from mixvae.datasets._plan import Plan
from mixvae.datasets._splits import READ, Dataset, Split, as_split
from mixvae.parts import a_kind
from mixvae.progress import SILENT, Progress

KEPT = (Image.Image, tuple)
"""Items of a list that are not numbers yet: pictures, and pairs of example and label."""
KINDS = (
    "an array or tensor, a torch Dataset or DataLoader, anything with __len__ and __getitem__, an iterable, or "
    "(train, validation[, test]) of these"
)
LABELLED = "labels are given with their examples, as in TensorDataset(x, y) or Split(x, y)"
NUMBER = 48
"""Bytes for the number of a streamed example: in a tensor, and as an object in a list."""


def as_dataset(
    data: Any,
    *,
    column: str | None = None,
    binarize: Binarize = "none",
    seed: int = 0,
    workers: int = 0,
    flip: bool = False,
    name: str = "data",
    progress: Progress = SILENT,
) -> Dataset:
    """Make a data set from Python objects. `fit` calls it on whatever it is given.

    Arrays, tensors and `TensorDataset`s are held in memory. Training examples of anything else are streamed: read again
    in every epoch, with any transforms they have, whose random numbers are seeded by epoch and example. They are read
    once at the beginning, to check them and compute their checksum. Validation and test examples are held in memory.

    Args:
        data: `(train, validation[, test])`, a mapping with these keys, or one collection of examples, which is divided
            80 : 10 : 10 by the seed. Each is an array or tensor (N, D), (N, H, W) or (N, C, H, W), a `Split`, a torch
            `Dataset` or `DataLoader`, anything with `__len__` and `__getitem__`, or an iterable that can be restarted.
            Labels come with their examples, in a `TensorDataset(x, y)` for instance: a tuple holds parts of the data.
            An example is an image, an array, a pair (example, label), or a mapping. A DataLoader decides the batches
            of the training: its sampler, batch size, workers and `collate_fn` are used, its sampler seeded by epoch.
        column: which entry to take of examples that are mappings, as in Hugging Face data sets.
        binarize: `stochastic` binarises training examples afresh at every step, the others once; `fixed` binarises all
            once; `threshold` at ½; `none` keeps the values.
        seed: seed of the split and of the binarisation, not of a training.
        workers: processes that read streamed examples ahead, instead of the DataLoader's own.
        flip: mirror training images left to right with probability ½, afresh at every step.
        name: name of the data set.
        progress: where to report progress; silent by default.

    Raises:
        ValueError: the data are of another kind, are not numbers, differ in shape, hold NaN, are only partly labelled,
            change between two readings with the same random seeds, or depend on the batch in which they are read.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from mixvae.datasets import as_dataset
        >>> x = torch.rand(60, 1, 4, 4)
        >>> data = as_dataset((DataLoader(TensorDataset(x), batch_size=20, shuffle=True), x[:10]))
        >>> data.shape, len(data.train), len(data.validation), len(data.test), data.train.plan.batch
        ((1, 4, 4), 60, 10, 0, 20)
    """
    if isinstance(data, Dataset):
        if column is not None or binarize != "none" or workers or flip:
            raise ValueError("a Dataset is taken as it is: give column, binarize, workers and flip where it is made")
        return data
    named = _named_parts(data)
    if named is None:
        one = alike({name: _part(data, column, workers, progress, name)})[name]
        if one.plan is not None or isinstance(one.x, InOrder):
            raise ValueError(f"{a_kind(data)} provides training examples only: give (train, validation[, test])")
        enough(name, len(one))
        parts = dict(zip(PARTS, one.divided((len(one) // 10, len(one) // 10), seed), strict=True))
    else:
        parts = alike({part: _part(given, column, workers, progress, part) for part, given in named.items()})
    if not any(isinstance(split.x, Lazy) for split in parts.values()):
        if column is not None:
            raise ValueError("column applies only to examples that are mappings, and these are not: leave it out")
        if workers:
            raise ValueError("workers read streamed examples ahead, but these are held in memory: leave workers out")
    for part in PARTS.keys() & parts.keys() - {"train"}:
        parts[part] = in_memory(_sampled(parts[part]), part)
    shapes = {part: split.shape for part, split in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the parts of the data hold examples of different shapes, {shapes}; {LABELLED}")
    for part, split in parts.items():
        if not len(split) and part != "test":
            raise ValueError(f"{part} holds no examples")
    parts.setdefault("test", parts["validation"].head(0))
    return finished(name, *(parts[part] for part in PARTS), binarize=binarize, seed=seed, flip=flip)


def collected(data: Any, column: str | None = None) -> Tensor:
    """Examples of any kind in memory, ready for a model: (N, *shape), by `Split.fixed`.

    Raises:
        ValueError: they are of no known kind, or do not fit into memory.
    """
    return in_memory(examples_of(data, column), "data").fixed()


def examples_of(data: Any, column: str | None = None, name: str = "data") -> Split:
    """Examples of any kind, in memory or to be streamed; those of a `Split` keep the numbers of their classes.

    Raises:
        ValueError: they are of no known kind.
    """
    if isinstance(data, Dataset):
        raise ValueError("a Dataset has three parts: name one, such as data.test")
    if isinstance(data, tuple | Mapping):
        raise ValueError(f"expected the examples of one part; got {a_kind(data)}: name one; {LABELLED}")
    if isinstance(data, Split):
        return _sampled(data)
    return _sampled(alike({name: _part(data, column, 0, SILENT, name)})[name])


def _sampled(split: Split) -> Split:
    """The examples that a plan takes in an epoch, such as those of a DataLoader's sampler."""
    return split if split.plan is None else split.take(split.plan.rows())


def _named_parts(data: Any) -> dict[str, Any] | None:
    """The parts of a split; None if the data are a single part."""
    if isinstance(data, Mapping):
        known = {name: part for part, names in PARTS.items() for name in names}
        if other := [key for key in data if key not in known]:
            raise ValueError(f"a mapping of data has the keys train, validation and test; got {other[0]!r}")
        parts = {known[key]: value for key, value in data.items()}
    elif isinstance(data, tuple):
        if len(data) not in (2, 3):
            raise ValueError(f"data are given as (train, validation[, test]); got a tuple of {len(data)}")
        parts = dict(zip(PARTS, data, strict=False))
    else:
        return None
    if missing := [part for part in ("train", "validation") if part not in parts]:
        raise ValueError(f"the data have no {missing[0]} examples: give train, validation and, if there are any, test")
    return parts


Part = tuple[Split, np.ndarray | None]
"""Examples without labels, and the labels as they were given."""


def _part(data: Any, column: str | None, workers: int, progress: Progress, name: str) -> Part:
    """One part, in memory or to be read."""
    if isinstance(data, Split):
        return replace(data, y=None), None if data.y is None else data.y.cpu().numpy()
    if isinstance(data, str | Path):
        raise ValueError(f"data must be {KINDS}; got the string {str(data)[:80]!r}: read files with load_dataset")
    if hasattr(data, "toarray") or (isinstance(data, Tensor) and data.layout != torch.strided):
        raise ValueError(f"{a_kind(data)} is sparse: pass a dense one")
    plan, collate, loader = None, None, data if isinstance(data, DataLoader) else None
    if isinstance(data, DataLoader) and data.batch_size is None and data.batch_sampler is None:
        raise ValueError("a DataLoader without batches (batch_size=None) gives no examples: give its dataset")
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset):
        if isinstance(data.sampler, DistributedSampler):
            raise ValueError(
                "a DistributedSampler gives each process examples of its own, but mixvae divides every batch among "
                "its processes itself: give the DataLoader without it"
            )
        _check_length(data.dataset, name)
        plan = Plan(data)
        collate = None if data.collate_fn is default_collate else data.collate_fn
        workers, data = data.num_workers or workers, data.dataset
    if collate is None and (tensors := _tensors(data, name)) is not None:
        return replace(as_split(plain_values(tensors[0]), name=name), plan=plan), tensors[1]
    if collate is None and (array := _array(data)) is not None:
        if array.ndim < 2:
            raise ValueError(
                f"{name} of shape {array.shape} holds no examples (N, …); a tuple of data is (train, validation[, "
                f"test]), and {LABELLED}"
            )
        return replace(as_split(array, name=name), plan=plan), None
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        source = Items(data, column, collate)
        _check_length(data, name)
        lazy = ByNumber(source, workers=workers)
        check_repeatable(source.read([0], 0)[0], source.read([0], 0)[0])
        check_apart(source)
        scan = scanned(lazy.labelled(torch.arange(len(lazy)).split(READ), 0), len(lazy), progress, name)
    elif isinstance(data, Iterable):
        begin = pass_of(
            cast("Iterable[Any]", loader if loader is not None else data), column, batched=loader is not None
        )
        scan = scanned(apart(begin, 0), None, progress, name)
        lazy = InOrder(begin, scan.examples, scan.like)
        again = next(apart(begin, 0), None)
        if again is None:
            raise ValueError(f"{a_kind(data)} gives no examples when it is iterated over again: {SAME}")
        check_repeatable(scan.like[:1], again[0][:1])
        plan = None if loader is None else Plan(scan.sizes)
    else:
        raise ValueError(f"data must be {KINDS}; got {a_kind(data)}")
    lazy.sha256, lazy.values = scan.sha256, scan.values
    return Split(lazy, levels=scan.levels, plan=plan), scan.labels


def _check_length(data: Any, name: str) -> None:
    """Refuse a data set without examples, or with so many that their numbers do not fit into memory.

    Raises:
        ValueError: it has none, or too many.
    """
    with plain_errors(f"{a_kind(data)} cannot be read"):
        examples = len(data)
    if not examples:
        raise ValueError(f"{name} holds no examples")
    check(NUMBER * examples, f"{a_kind(data)} of {short(examples)} examples", "check its __len__")


def _tensors(data: Any, name: str) -> tuple[Tensor, np.ndarray | None] | None:
    """Examples and labels of a TensorDataset, or of a part of one; None for anything else.

    Raises:
        ValueError: it holds more, or labels that are not one class for each example.
    """
    rows: Any = slice(None)
    if type(data) is Subset:
        data, rows = data.dataset, torch.as_tensor(data.indices)
    if type(data) is not TensorDataset:
        return None
    x, *others = (tensor[rows] for tensor in data.tensors)
    if len(others) > 1:
        raise ValueError(
            f"{name} is a TensorDataset of {len(data.tensors)} tensors; expected (examples, labels): leave the rest out"
        )
    return x, classes_in(others[0].cpu().numpy(), name) if others else None


def _array(data: Any) -> np.ndarray | None:
    """Numbers of an array, a tensor, a table or nested lists; None for anything else."""
    if isinstance(data, Tensor):
        return plain_values(data)
    is_list = isinstance(data, list) and not isinstance(next(iter(data), None), KEPT)
    if not is_list and not hasattr(data, "__array__"):
        return None
    try:
        array = np.asarray(data)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "buif" or not isinstance(data, list) else None


def in_memory(split: Split, name: str) -> Split:
    """The split with all its examples read into memory."""
    if not isinstance(split.x, Lazy):
        return split
    x = split.x
    check(x.shape.numel() * x.dtype.itemsize, f"{name} of shape {tuple(x.shape)}", "give fewer examples")
    return replace(split, x=torch.cat(list(split.raw())))


def alike(parts: Mapping[str, Part]) -> dict[str, Split]:
    """Parts with a common meaning of bytes and a common numbering of classes."""
    byte = [split.levels for split, _ in parts.values() if not split.x.is_floating_point()]
    found = {name: split.ends() for name, (split, _) in parts.items() if split.x.is_floating_point()}
    reals = {name: ends for name, ends in found.items() if ends is not None}
    if max(byte, default=1) > 1 and (beyond := [name for name, (low, high) in reals.items() if low < 0 or high > 1]):
        raise ValueError(
            f"{beyond[0]} holds real numbers from {reals[beyond[0]][0]:.4g} to {reals[beyond[0]][1]:.4g}, another part "
            "bytes, which are scaled to [0, 1]: give all parts in one unit"
        )
    labels = [y for _, y in parts.values() if y is not None]
    for name, (split, y) in parts.items():
        if y is not None:
            check_labels(y, len(split), name)
    if len({y.dtype.kind in "US" for y in labels}) > 1:
        raise ValueError("the classes are numbers in one part and text in another: give one of the two")
    known = np.unique(np.concatenate(labels)) if labels else np.empty(0)
    made = {}
    for name, (split, y) in parts.items():
        numbers = None
        if y is not None:
            numbers = torch.from_numpy(np.searchsorted(known, y).astype(np.int64))
        made[name] = replace(split, y=numbers, levels=1 if split.x.is_floating_point() else max(byte))
    return made
