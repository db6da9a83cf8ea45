"""Files that are read again in every epoch, instead of being held in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixvae._arrays import map_npy
from mixvae.datasets._items import scanned
from mixvae.datasets._kinds import check_kind, held_as
from mixvae.datasets._lazy import ByNumber, Labelled
from mixvae.datasets._own import check_whole, enough, named_parts, read_undivided
from mixvae.datasets._pictures import (
    check_size,
    classes_of,
    exact_pixels,
    images_in,
    one_depth,
    opened_image,
    pasted,
    stacked,
)
from mixvae.datasets._python import Part, alike, in_memory
from mixvae.datasets._resizing import resized
from mixvae.datasets._splits import READ, Split, as_split
from mixvae.progress import Progress

DEEP = ("I", "F")
"""Prefixes of the modes of images with more than 8 bits."""


class Mapped:
    """The examples of a `.npy` file, which the system keeps in memory as far as it has room."""

    def __init__(self, path: Path):
        self.array = map_npy(path)
        if not len(self.array):
            raise ValueError(f"{path} holds no examples")
        check_kind(self.array, str(path))
        low = high = 0
        if self.array.dtype.kind in "bui":
            parts = [self.array[i : i + READ] for i in range(0, len(self.array), READ)]
            low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
        self.kept = held_as(self.array, low, high, str(path))

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Sequence[int], key: int) -> Labelled:
        """Some examples."""
        del key
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            values = self.array[list(rows)].astype(self.kept)
        return torch.from_numpy(values[:, None] if values.ndim == 3 else values), None


class Pictures:
    """The images of a folder. Their sizes and depths are read from their headers at the beginning."""

    def __init__(self, folder: Path, size: tuple[int, int] | None):
        self.paths, self.size, self.channels = images_in(folder), size, 1
        kinds: dict[np.dtype[Any], Path] = {}
        modes: set[str] = set()
        first = (0, 0)
        for path in self.paths:
            with opened_image(path) as image:
                first = image.size if path is self.paths[0] else first
                if size is None:
                    check_size(image, path, self.paths[0], first)
                modes.add(image.mode)
                kinds[np.dtype(np.float32 if image.mode.startswith(DEEP) else np.uint8)] = path
                if not image.mode.startswith((*DEEP, "L", "1")):
                    self.channels = 3
        one_depth(kinds, folder)
        self.alike = (modes.pop(), first) if size is None and modes in ({"L"}, {"RGB"}) else None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Sequence[int], key: int) -> Labelled:
        """Some images."""
        del key
        paths = [self.paths[row] for row in rows]
        pixels = pasted(paths, *self.alike) if self.alike else None
        if pixels is None:
            pixels = stacked([self._pixels(path) for path in paths], self.channels)
        return torch.from_numpy(pixels), None

    def _pixels(self, path: Path) -> np.ndarray:
        with opened_image(path) as image:
            pixels = exact_pixels(image, path)
        return pixels if self.size is None else resized(pixels, self.size)


def read_streamed(
    files: Path | Mapping[str, Path], seed: int, size: tuple[int, int] | None, workers: int
) -> tuple[Split, Split, Split]:
    """Training examples that are read from disk in every epoch; validation and test examples in memory.

    Args:
        files: a file or folder, or those of train, test and possibly validation.
        seed: seed of the split.
        size: height and width that images are scaled to.
        workers: processes that read ahead.

    Raises:
        ValueError: the training examples are of a kind that cannot be streamed, or the parts do not fit together.
    """
    found = files if isinstance(files, Mapping) else _folders(files)
    if isinstance(files, Path) and not found:
        whole = alike({"data": _streamed(files, size, workers, named=False)})["data"]
        enough(files, len(whole))
        parts = dict(
            zip(("train", "validation", "test"), whole.divided((len(whole) // 10, len(whole) // 10), seed), strict=True)
        )
    else:
        given = {"train": _streamed(found["train"], size, workers, named=True)}
        for part in found.keys() - {"train"}:
            x, y = read_undivided(found[part], size, named=True)
            given[part] = as_split(x, name=str(found[part])), y
        if len({split.shape for split, _ in given.values()}) > 1:
            shapes = {part: split.shape for part, (split, _) in given.items()}
            raise ValueError(f"the parts of the data hold examples of different shapes: {shapes}")
        if len({split.x.dtype for split, _ in given.values()}) > 1:
            kinds = {part: str(split.x.dtype) for part, (split, _) in given.items()}
            raise ValueError(
                f"the parts of the data hold values of different kinds, {kinds}: save all of them as one kind"
            )
        if len({y is None for _, y in given.values()}) > 1:
            raise ValueError("some parts of the data have classes and others none: give all of them, or none")
        parts = alike(given)
        if "validation" not in parts:
            enough(found["train"], len(parts["train"]))
            parts["train"], parts["validation"], _ = parts["train"].divided((len(parts["train"]) // 10, 0), seed)
    return parts["train"], in_memory(parts["validation"], "validation"), in_memory(parts["test"], "test")


def seen(splits: Sequence[Split], progress: Progress) -> list[Split]:
    """The same parts, with a common meaning of bytes, after the first one, which is streamed, has been read once.

    Raises:
        ValueError: values are NaN or infinite, or an image cannot be read.
    """
    lazy = splits[0].x
    assert isinstance(lazy, ByNumber)
    rows = torch.arange(len(lazy)).split(READ)
    scan = scanned(lazy.labelled(rows, 0), len(lazy), progress, "the training examples")
    lazy.values = scan.values
    held = [split.x for split in splits[1:] if isinstance(split.x, torch.Tensor) and not split.x.is_floating_point()]
    levels = max(scan.levels, *(255 if len(x) and int(x.max()) > 1 else 1 for x in held), 1)
    return [split if split.x.is_floating_point() else replace(split, levels=levels) for split in splits]


def _folders(path: Path) -> dict[str, Path]:
    """Folders of the parts of a split, if it has any."""
    if not path.is_dir():
        return {}
    found = {part: path / name for part, name in named_parts(path).items()}
    if found:
        check_whole(path, found)
    return found


def _streamed(path: Path, size: tuple[int, int] | None, workers: int, *, named: bool) -> Part:
    """One file or folder, to be streamed."""
    if path.is_dir():
        source = Pictures(path, size)
        return Split(ByNumber(source, workers=workers, fixed=True)), classes_of(source.paths, path, named=named)
    if path.suffix.lower() != ".npy":
        raise ValueError(f"only .npy files and folders of images can be streamed: save {path} as .npy")
    if size is not None:
        raise ValueError(f"{path} is streamed as it is: leave resize out, or hold it in memory (without stream)")
    return Split(ByNumber(Mapped(path), workers=workers, fixed=True)), None
