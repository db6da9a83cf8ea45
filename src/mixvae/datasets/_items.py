"""Examples of a user's data set: what an item holds, and what one pass over all of them shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixvae._failures import plain_errors
from mixvae.datasets._lazy import SAME, Labelled, own_noise, seed
from mixvae.datasets._own import LABELS
from mixvae.datasets._pictures import check_one, exact_pixels
from mixvae.parts import a_kind
from mixvae.progress import Progress

MOST_VALUES = 1000
"""Maximum number of distinct values of streamed examples that are kept, to check each against a likelihood."""
TRIED = 8
"""Number of examples on which a collate_fn is tested."""
ONE_CLASS = "give one class for each example, such as the argmax of a one-hot label, or leave the labels out"
ROUNDING = 1e-4
"""Difference of values, relative to the largest, that rounding may explain."""


def plain_values(x: Tensor) -> np.ndarray:
    """Values of a tensor; half precision as float32, which holds them."""
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).numpy()


class Items:
    """Examples of a user's data set, by number.

    Args:
        dataset: has `__len__` and `__getitem__`.
        column: which entry of its examples.
        collate: makes a batch of examples; they are stacked by default.
    """

    def __init__(self, dataset: Any, column: str | None = None, collate: Callable[[list[Any]], Any] | None = None):
        self.dataset, self.column, self.collate = dataset, column, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Sequence[int], key: int) -> Labelled:
        """Some examples; their random numbers are seeded by the key and their own number."""
        with own_noise(), plain_errors(f"examples {rows[0]} to {rows[-1]} cannot be read"):
            items = []
            for row in rows:
                seed(key, row)
                items.append(self.dataset[row])
            if self.collate is not None:
                x, labels = _batch(self.collate(items), self.column)
                if len(x) != len(rows):
                    raise ValueError(f"the collate_fn returns {len(x)} examples for {len(rows)}: return one for each")
                return x, labels
            return _stacked([_pair(item, self.column) for item in items], rows)


def pass_of(data: Iterable[Any], column: str | None, *, batched: bool) -> Callable[[], Iterator[Labelled]]:
    """Function that begins a pass over an iterable of examples or batches."""
    if isinstance(data, Iterator):
        raise ValueError(f"{a_kind(data)} can be read only once: {SAME}")

    first: list[Tensor] = []

    def begin() -> Iterator[Labelled]:
        number = 0
        for item in data:
            x, labels = _batch(item, column) if batched else _stacked([_pair(item, column)], [number])
            first.extend(() if first else [x[:1].clone()])
            check_like(x, first[0], number, "the data")
            yield x, labels
            number += len(x)

    return begin


def check_like(x: Tensor, like: Tensor, number: int, name: str) -> None:
    """Refuse examples whose shape or type differs from the first one's.

    Args:
        x: some examples.
        like: the first one.
        number: number of the first of `x`.
        name: name of the data in error messages.

    Raises:
        ValueError: they differ.
    """
    if x.shape[1:] != like.shape[1:] or x.dtype != like.dtype:
        raise ValueError(
            f"{name}: an example from number {number} on is {x.dtype} of shape {tuple(x.shape[1:])}, but the first one "
            f"was {like.dtype} of shape {tuple(like.shape[1:])}: give all the same type and shape, in every pass"
        )


def _pair(item: Any, column: str | None) -> tuple[Any, Any]:
    """Example and label of an item; None for no label."""
    if isinstance(item, Mapping):
        x, label = _of_mapping(item, column)
        return x, _one_class(label)
    if column is not None:
        raise ValueError(f"an example is {a_kind(item)}, not a mapping: leave column out")
    if isinstance(item, tuple) or (isinstance(item, list) and item and not np.isscalar(item[0])):
        x, label = _two(item, "an example", "(example, label)")
        return x, _one_class(label)
    return item, None


def _one_class(label: Any) -> Any:
    """A label, which may have an axis of its own.

    Raises:
        ValueError: it is not one class.
    """
    shape = tuple(np.shape(label))
    if label is not None and shape not in ((), (1,)):
        raise ValueError(f"a label has shape {shape}: {ONE_CLASS}")
    return np.asarray(label).item() if shape == (1,) else label


def _of_mapping(item: Mapping[Any, Any], column: str | None) -> tuple[Any, Any]:
    """The entry that is the example, and the label if there is one."""
    if column is None or column not in item:
        asked = "say which is the example" if column is None else f"there is no {column!r}, name another"
        raise ValueError(
            f"examples are mappings with entries {', '.join(map(str, item))}: {asked}, as in as_dataset(data, column=…)"
        )
    return item[column], next((item[key] for key in item if str(key).lower() in LABELS), None)


def _two(entries: Sequence[Any], what: str, expected: str) -> tuple[Any, Any]:
    """The first entry, and the second or None.

    Raises:
        ValueError: there are none, or more.
    """
    if not entries:
        raise ValueError(f"{what} is an empty tuple: give {expected}")
    if len(entries) > 2:
        raise ValueError(f"{what} is a tuple of {len(entries)}; expected {expected}: leave the rest out")
    x, label = (*entries, None)[:2]
    return x, label


def classes_in(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels in the shape (N,); an array (N, 1) of them is accepted too.

    Raises:
        ValueError: there is not one class for each example.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"the labels of {name} have shape {labels.shape}: {ONE_CLASS}")
    return labels


def _batch(batch: Any, column: str | None) -> Labelled:
    """Values and labels of a batch that a DataLoader made."""
    if isinstance(batch, Tensor | np.ndarray):
        x, y = batch, None
    elif isinstance(batch, Mapping):
        x, y = _of_mapping(batch, column)
    else:
        x, y = _two(batch, "a batch", "(examples, labels)")
    labels = None if y is None else classes_in(np.asarray(y), "a batch")
    each = [(one, None) for one in (plain_values(x) if isinstance(x, Tensor) else x)]
    if not each:
        raise ValueError("a batch holds no examples: leave it out")
    values, _ = _stacked(each, range(len(each)))
    if labels is not None and len(labels) != len(values):
        raise ValueError(f"a batch of {len(values)} examples has {len(labels)} labels: give one for each")
    return values, labels


def _stacked(pairs: list[tuple[Any, Any]], rows: Sequence[int]) -> Labelled:
    """Values and labels of some examples."""
    values = [_values(x) for x, _ in pairs]
    for number, one in zip(rows, values, strict=True):
        if one.dtype != values[0].dtype:
            raise ValueError(
                f"example {number} is {one.dtype}, example {rows[0]} {values[0].dtype}: give all as bytes, or none"
            )
        if one.shape != values[0].shape:
            raise ValueError(
                f"example {number} has shape {tuple(one.shape)}, example {rows[0]} {tuple(values[0].shape)}: crop or "
                "resize them to one"
            )
    labels = [y for _, y in pairs]
    return torch.stack(values), None if all(y is None for y in labels) else _classes(labels)


def _classes(labels: list[Any]) -> np.ndarray:
    """Labels as an array; an object array if some are missing, which `check_labels` refuses."""
    return np.array(labels, object) if any(y is None for y in labels) else np.asarray(labels)


def _values(x: Any) -> Tensor:
    """One example: bytes of an image stay bytes, other numbers become float32; grey images gain a channel axis."""
    if isinstance(x, Image.Image):
        check_one(x, "an example")
        return torch.from_numpy(np.array(exact_pixels(x, "an example").transpose(2, 0, 1), order="C"))
    array = plain_values(x) if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind not in "buif":
        raise ValueError(f"an example must hold numbers; got {a_kind(x)} of {array.dtype}")
    if array.ndim not in (1, 2, 3) or 0 in array.shape:
        raise ValueError(f"an example must have shape (D,), (H, W) or (C, H, W); got {array.shape}")
    if array.ndim == 3 and array.shape[0] > 4 and array.shape[-1] in (1, 3, 4):
        raise ValueError(f"an example has its channels last, {array.shape}: transpose it to (C, H, W)")
    if array.dtype.kind in "bui" and array.ndim > 1:
        if array.min() < 0 or array.max() > 255:
            raise ValueError(
                f"an example holds whole numbers from {array.min()} to {array.max()}; 8-bit images have 0 to 255"
            )
        array = array.astype(np.uint8)
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        kept = array if array.dtype == np.uint8 and array.ndim > 1 else array.astype(np.float32)
    return torch.from_numpy(np.array(kept[None] if kept.ndim == 2 else kept, order="C"))


def check_repeatable(first: Tensor, second: Tensor) -> None:
    """Refuse examples whose random numbers cannot be seeded.

    Raises:
        ValueError: two readings of one example differ.
    """
    if first.shape != second.shape or not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            "the first example differs between two readings with the same random seeds, so that no training on it "
            "could be resumed: draw from the global generators of torch, NumPy or Python"
        )


def check_apart(source: Items) -> None:
    """Refuse a collate_fn whose examples depend on the rest of their batch: some are collated in two different batches.

    Raises:
        ValueError: their values differ.
    """
    rows = range(0, len(source), max(1, len(source) // TRIED))[:TRIED]
    if source.collate is None or len(rows) < 2:
        return
    half = len(rows) // 2
    whole, *parts = (source.read(some, 0)[0].float() for some in (rows, rows[:half], rows[half:]))
    most = ROUNDING * max(1.0, float(whole.abs().nan_to_num().max()))
    alike = all(part.shape[1:] == whole.shape[1:] for part in parts)
    if not alike or not torch.allclose(whole, torch.cat(parts), rtol=0, atol=most, equal_nan=True):
        raise ValueError(
            "the collate_fn makes the values of an example depend on the others in its batch, so that no example "
            "has a likelihood of its own: collate each separately, and draw random numbers in the data set's transform"
        )


@dataclass
class Scan:
    """What one pass over streamed examples shows."""

    examples: int
    like: Tensor
    values: Tensor
    labels: Any
    sizes: list[int]
    sha256: str

    @property
    def levels(self) -> int:
        """What bytes are divided by."""
        return 255 if self.like.dtype == torch.uint8 and float(self.values.max()) > 1 else 1


def scanned(batches: Iterator[Labelled], total: int | None, progress: Progress, name: str) -> Scan:
    """Read all examples once: count and check them."""
    digest, sizes, labels = hashlib.sha256(), list[int](), list[Any]()
    like: Tensor | None = None
    seen = torch.zeros(0)
    for x, y in batches:
        like = x[:1].clone() if like is None else like
        check_like(x, like, sum(sizes), name)
        if bad := int((~x.isfinite()).sum()):
            raise ValueError(f"{name} holds {bad} values that are NaN or infinite: remove or impute them")
        sizes.append(len(x))
        labels.append(y)
        digest.update(x.contiguous().numpy().tobytes())
        seen = _with_values(seen, x)
        if total is not None:
            progress.update(sum(sizes), total, f"reading {name} once: {sum(sizes)}/{total}")
    if like is None:
        raise ValueError(f"{name} holds no examples")
    return Scan(sum(sizes), like, seen, _known(labels, sizes), sizes, digest.hexdigest())


def _known(labels: list[Any], sizes: list[int]) -> np.ndarray | None:
    """Labels of all batches, None where one is missing; None if there are no labels."""
    if all(y is None for y in labels):
        return None
    return np.concatenate(
        [np.full(size, None) if y is None else np.asarray(y) for y, size in zip(labels, sizes, strict=True)]
    )


def _with_values(seen: Tensor, x: Tensor) -> Tensor:
    """Distinct values so far, at most `MOST_VALUES`, always with the smallest and the largest."""
    if len(seen) < MOST_VALUES:
        distinct = torch.bincount(x.flatten(), minlength=256).nonzero()[:, 0] if x.dtype == torch.uint8 else x.unique()
        found = torch.cat([seen, distinct.float()]).unique()
        return found if len(found) <= MOST_VALUES else torch.cat([found[-1:], found[:: len(found) // MOST_VALUES + 1]])
    ends = torch.cat([seen, torch.stack(x.aminmax()).float()]).aminmax()
    return torch.cat([torch.stack(ends), seen])[: MOST_VALUES + 2]
