"""Data sets by name or path, split and binarised by fixed seeds, held in memory as bytes.

`load_dataset("fashion_mnist")` returns training, validation and test examples, split as in the paper. Binarisation and
batching happen on the device, in `Split.batch`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixvae._failures import at_least
from mixvae.datasets._finished import Binarize, binarized, check_split, finished
from mixvae.datasets._own import read_files, read_own, read_undivided
from mixvae.datasets._python import as_dataset, collected, examples_of
from mixvae.datasets._resizing import Size, height_and_width, resized_split
from mixvae.datasets._sources import SOURCES, CifarSource, Digits, IdxSource
from mixvae.datasets._splits import Dataset, Split, as_split
from mixvae.datasets._streamed import read_streamed, seen
from mixvae.progress import SILENT, Progress

__all__ = [
    "PATHS", "SOURCES", "CifarSource", "Dataset", "IdxSource", "Split", "absolute_paths", "as_dataset", "as_split",
    "becomes_binary", "collected", "examples_of", "has_root", "load_dataset", "load_examples", "located",
    "relative_paths", "relatives_in", "resolve_paths", "search",
]  # fmt: skip

PATHS = ("name", "train", "validation", "test")
"""Options of `load_dataset` that may be paths of examples."""


def load_dataset(
    name: str | None = None,
    *,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    root: str | Path | None = None,
    binarize: Binarize = "stochastic",
    seed: int = 0,
    limit: int | None = None,
    limit_validation: int | None = None,
    flip: bool = False,
    resize: Size | None = None,
    stream: bool = False,
    workers: int = 0,
    progress: Progress = SILENT,
) -> Dataset:
    """Load a data set: by name, from a file or folder that is then split, or from one file or folder for each part.

    Files are `.npy`, `.npz`, `.pt` and `.mat` arrays of shape (N, H, W), (N, C, H, W) or (N, D), tables of numbers as
    `.csv`, `.tsv`, `.txt`, `.amat` (also gzipped) or `.parquet`, or folders of images.

    Args:
        name: `digits`, `rotated_digits`, `occluded_digits`, `mnist`, `fashion_mnist`, `cifar10`, `static_mnist`,
            `omniglot`, `caltech101_silhouettes`, or the path of your own file or folder. A `.npz` of `x_train` and
            `x_test`, and a folder of `train` and `test`, keep their split; anything else is split 80 : 10 : 10.
        train: file or folder of the training examples, instead of a name.
        validation: file or folder of the validation examples; else a tenth of the training ones, chosen by the seed.
        test: file or folder of the test examples, needed with `train`.
        root: folder of the standard data sets; else $MIXVAE_DATA, the cache, the system's folder, a download.
        binarize: `stochastic` binarises training examples afresh at every step, validation and test examples once;
            `fixed` binarises all of them once; `threshold` at ½; `none` keeps the values.
        seed: seed of the split and the binarisation, not of the training.
        limit: use at most this many training examples.
        limit_validation: use at most this many validation examples.
        flip: mirror training images left to right with probability ½, afresh at every step; other examples never.
        resize: height and width that images are scaled to, or one number for both, by an antialiased bilinear filter:
            pixel i of an axis is the mean of the old pixels j, weighted by
            max(0, 1 − |(j + ½) − (i + ½) s| / max(1, s)) with s = old/new. 8-bit images stay 8-bit; images of
            a folder may then be of several sizes.
        stream: reread the training examples in every epoch instead of holding them in memory, from a `.npy` file or
            a folder of images; they are read once at the beginning, to check them. Trainings have the same result.
        workers: processes that read streamed examples ahead.
        progress: where a download is reported, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: the name is unknown, or the data are damaged, not finite or of a wrong shape or range.
        OSError: a file is missing and cannot be downloaded.

    Example:
        >>> from mixvae import load_dataset
        >>> data = load_dataset("digits", limit=40, resize=16)
        >>> data.shape, len(data.train), len(data.validation), len(data.test)
        ((1, 16, 16), 40, 200, 400)
    """
    at_least(0, workers=workers)
    for which, most, what in (("limit", limit, "training"), ("limit_validation", limit_validation, "validation")):
        if most is not None and most < 1:
            raise ValueError(f"{which} must be at least 1 {what} example; got {most}")
    size = None if resize is None else height_and_width(resize)
    given = {"train": train, "validation": validation, "test": test}
    files = {part: Path(_absolute(path)) for part, path in given.items() if path is not None}
    if files:
        called = _check_files(files, name)
        splits = read_streamed(files, seed, size, workers) if stream else read_files(files, seed, size)
        name, title = None, files["train"].name.split(".")[0]
    elif name is None:
        raise ValueError("name a data set, a file or a folder, or give train and test")
    else:
        name, root = resolve_paths(name, root)
        called, title = name, name if name in SOURCES else Path(name).stem
        if name in SOURCES and stream:
            raise ValueError(f"{name} is held in memory: leave stream out")
        if name in SOURCES:
            splits = SOURCES[name](root, seed, progress)
        elif Path(name).exists():
            splits = read_streamed(Path(name), seed, size, workers) if stream else read_own(Path(name), seed, size)
        else:
            near = difflib.get_close_matches(name, SOURCES, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(SOURCES)} or a path that exists"
            raise ValueError(f"unknown data set {name!r}: {hint}")
    kept = [split.head(most) for split, most in zip(splits, (limit, limit_validation, None), strict=True)]
    for part, split in zip(("training", "validation", "test"), kept, strict=True):
        if not len(split):
            raise ValueError(f"the {part} split of {called} is empty: it needs more examples")
    if size is not None:
        kept = [resized_split(split, size, called) for split in kept]
    if stream:
        kept = seen(kept, progress)
    elif workers:
        raise ValueError(f"workers read streamed examples ahead; got {workers}: give stream too, or leave workers out")
    origin = {
        "name": name, "root": root, "binarize": binarize, "seed": seed, "limit": limit,
        "limit_validation": limit_validation, "flip": flip, "resize": resize,
        "stream": stream, "workers": workers,
        **{part: str(files[part]) if part in files else None for part in given},
    }  # fmt: skip
    data = finished(called, *kept, binarize=binarize, seed=seed, flip=flip, origin=origin)
    return replace(data, name=title)


def load_examples(path: str | Path, *, binarize: Binarize = "none", seed: int = 0, resize: Size | None = None) -> Split:
    """Load all examples of one file or folder without splitting them, such as new data for a trained model.

    Args:
        path: a file or folder of any kind that `load_dataset` reads, without parts of a split.
        binarize: `none` keeps the values; `stochastic` and `fixed` binarise them once, as `load_dataset` does test
            examples; `threshold` at ½.
        seed: seed of the binarisation.
        resize: height and width that images are scaled to, or one number for both.

    Raises:
        ValueError: it is divided into parts, or damaged, empty, not finite or of a wrong shape or range.
        OSError: there is no such file or folder.

    Example:
        >>> import numpy as np
        >>> from mixvae.datasets import load_examples
        >>> np.save("new.npy", np.full((3, 8, 8), 51, np.uint8))
        >>> examples = load_examples("new.npy")
        >>> len(examples), examples.shape, round(float(examples.batch(slice(1)).mean()), 6)
        (3, (1, 8, 8), 0.2)
    """
    place = Path(_absolute(path))
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    size = None if resize is None else height_and_width(resize)
    x, y = read_undivided(place, size)
    examples = as_split(x, y, name=str(place))
    if not len(examples):
        raise ValueError(f"{place} holds no examples")
    if size is not None:
        examples = resized_split(examples, size, str(place))
    check_split(str(place), examples, binarize)
    return binarized(examples, binarize, seed + 2)  # as the test examples of a data set


def _check_files(files: Mapping[str, Path], name: str | None) -> str:
    """What errors call a data set of several files.

    Raises:
        ValueError: one of them is missing, or a name is given as well.
    """
    if name is not None:
        raise ValueError(f"data are given by name ({name}) or as {', '.join(files)}: leave one of the two out")
    if missing := [part for part in ("train", "test") if part not in files]:
        raise ValueError(f"{' and '.join(files)} without {missing[0]}: give train and test, and validation if you like")
    if absent := [path for path in files.values() if not path.exists()]:
        raise ValueError(f"there is no file or folder {absent[0]}")
    return str(files["train"])


def becomes_binary(split: Split) -> bool:
    """Whether grey values are binarised at every step.

    Example:
        >>> from mixvae.datasets import becomes_binary, load_dataset
        >>> data = load_dataset("digits")
        >>> becomes_binary(data.train), becomes_binary(data.test)
        (True, False)
    """
    x = split.x if isinstance(split.x, torch.Tensor) else split.x.values
    return split.resample and x is not None and bool(((x != 0) & (x != split.levels)).any())


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())


def resolve_paths(name: str, root: str | Path | None = None) -> tuple[str, str | None]:
    """Name and root with `~` expanded and paths absolute, so that they mean the same from every folder.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.datasets import resolve_paths
        >>> resolve_paths("digits"), resolve_paths("my/cells.npy") == (str(Path("my/cells.npy").absolute()), None)
        (('digits', None), True)
    """
    whole = None if root is None else _absolute(root)
    path = Path(name).expanduser()
    is_path = name not in SOURCES and (path.exists() or len(path.parts) > 1)
    return _absolute(name) if is_path else name, whole


def absolute_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """The paths among options of `load_dataset`, with `~` expanded and absolute."""
    name, root = options["name"], options.get("root")
    if name is not None:
        name, root = resolve_paths(name, root)
    files = {part: _absolute(options[part]) for part in PATHS[1:] if options.get(part) is not None}
    return {"name": name, "root": root, **files}


def search(name: str, beside: Path, relative: str | None = None) -> str:
    """Where the data of a run are now: in their old place, or beside a run that was moved together with them.

    Args:
        name: name or absolute path of the data when the run was trained.
        beside: the run directory.
        relative: path of the data from the run directory at that time.

    Returns:
        A name or path that exists, or `name` if none does.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.datasets import search
        >>> search("digits", Path("run")), search("/gone/cells.npy", Path("run"))
        ('digits', '/gone/cells.npy')
    """
    if name in SOURCES or Path(name).exists():
        return name
    file = Path(name).name
    near = ([beside / relative] if relative else []) + [beside / file, beside.parent / file]
    return next((str(path.resolve()) for path in near if path.exists()), name)


def located(options: Mapping[str, Any], beside: Path, relatives: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Options of `load_dataset` with every path as `search` finds it.

    Args:
        options: the options when the run was trained, paths absolute.
        beside: the run directory.
        relatives: paths from the run directory at that time, by option.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from mixvae.datasets import located
        >>> Path("run").mkdir(exist_ok=True)
        >>> np.save("beside.npy", np.zeros((3, 2)))
        >>> Path(located({"train": "/gone/beside.npy", "seed": 1}, Path("run"))["train"]).exists()
        True
    """
    paths = {name: options[name] for name in PATHS if options.get(name) is not None}
    return {**options, **{name: search(path, beside, (relatives or {}).get(name)) for name, path in paths.items()}}


def has_root(name: str | None) -> bool:
    """Whether this is the name of a data set that is read from files in a folder, `root`."""
    return name in SOURCES and not isinstance(SOURCES[name], Digits)


def moved(options: Mapping[str, Any], place: str, of: str) -> dict[str, Any]:
    """Options of `load_dataset` for data that were moved.

    Args:
        options: the options before.
        place: the new file or folder; for data in several files, or known by name, the folder that holds them.
        of: what errors say is made from the data.

    Raises:
        ValueError: the folder lacks one of the files.
    """
    name = resolve_paths(place)[0]
    files = {part: Path(path).name for part in PATHS[1:] if (path := options.get(part)) is not None}
    if not files:
        return {**options, "root" if name not in SOURCES and has_root(options["name"]) else "name": name}
    if missing := [file for file in files.values() if not (Path(name) / file).exists()]:
        raise ValueError(
            f"{of} was trained on {', '.join(files.values())}, and {name} holds no {missing[0]}: name the folder that "
            "holds all of them"
        )
    return {**options, **{part: str(Path(name) / file) for part, file in files.items()}}


def relative_paths(options: Mapping[str, Any], beside: Path) -> dict[str, str]:
    """The paths among options of `load_dataset`, from a run directory."""
    paths = {name: options[name] for name in PATHS if options.get(name) is not None}
    return {name: os.path.relpath(path, beside.absolute()) for name, path in paths.items() if Path(path).is_absolute()}


def relatives_in(recorded: Mapping[str, Any]) -> dict[str, str]:
    """The paths that `relative_paths` returned for a run, from its record, where earlier versions kept a single one."""
    before = {} if recorded.get("relative") is None else {"name": recorded["relative"]}
    return {**recorded.get("relatives", {}), **before}
