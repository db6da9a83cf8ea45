"""Data sets by name or path, split and binarised by fixed seeds, held in memory as bytes.

`load_dataset("fashion_mnist")` returns training, validation and test examples, split as in the paper. Binarisation and
batching happen on the device, in `Split.batch`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixvae._resources import check
from mixvae.datasets._download import fetch, folders, locate
from mixvae.datasets._formats import ARRAY_SUFFIXES, read_array, read_cifar, read_idx, read_images
from mixvae.datasets._splits import Dataset, Split
from mixvae.progress import SILENT, Progress

__all__ = ["SOURCES", "Dataset", "Split", "as_split", "load_dataset", "resolve_paths", "search"]

Binarize = Literal["stochastic", "fixed", "threshold", "none"]
Labelled = tuple[np.ndarray, np.ndarray | None]


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    binarize: Binarize = "stochastic",
    seed: int = 0,
    limit: int | None = None,
    limit_validation: int | None = None,
    flip: bool = False,
    progress: Progress = SILENT,
) -> Dataset:
    """Load a data set.

    Args:
        name: `digits`, `mnist`, `fashion_mnist`, `cifar10`, or the path of your own data: a `.npy`, `.npz`
            or `.pt` file of shape (N, H, W), (N, C, H, W) or (N, D), or a folder of images.
        root: folder of the standard data sets; else $MIXVAE_DATA, the cache, the system's folder, a download.
        binarize: `stochastic` binarises training examples anew at every step, validation and test once;
            `fixed` binarises all of them once; `threshold` at ½; `none` keeps the values.
        seed: seed of the split and the binarisation, not of the training.
        limit: use at most this many training examples.
        limit_validation: use at most this many validation examples.
        flip: mirror training images left to right with probability ½, anew at every step; never the others.
        progress: where a download is reported, such as `mixvae.progress.Terminal()`; silent by default.

    Raises:
        ValueError: the name is unknown, or the data are damaged, not finite or of a wrong shape or range.
        OSError: a file is missing and cannot be downloaded.

    Example:
        >>> from mixvae import load_dataset
        >>> data = load_dataset("digits", limit=40)
        >>> data.shape, len(data.train), len(data.validation), len(data.test)
        ((1, 8, 8), 40, 200, 400)
    """
    if binarize not in ("stochastic", "fixed", "threshold", "none"):
        raise ValueError(f"unknown binarize {binarize!r}: choose stochastic, fixed, threshold or none")
    for which, most, what in (("limit", limit, "training"), ("limit_validation", limit_validation, "validation")):
        if most is not None and most < 1:
            raise ValueError(f"{which} must be at least 1 {what} example; got {most}")
    name, root = resolve_paths(name, root)
    if name in SOURCES:
        train, validation, test = SOURCES[name](root, seed, progress)
    elif Path(name).exists():
        train, validation, test = _own(Path(name), seed)
    else:
        near = difflib.get_close_matches(name, SOURCES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(SOURCES)} or a path that exists"
        raise ValueError(f"unknown data set {name!r}: {hint}")
    train, validation = train.head(limit), validation.head(limit_validation)
    for split, part in (("training", train), ("validation", validation), ("test", test)):
        if not len(part):
            raise ValueError(f"the {split} split of {name} is empty: it needs more examples")
    _check(name, [train, validation, test], binarize)
    if flip and len(train.shape) != 3:
        raise ValueError(f"only images can be mirrored; {name} has examples of shape {train.shape}")
    return Dataset(
        Path(name).stem if name not in SOURCES else name,
        replace(train, resample=True, flip=flip)
        if binarize == "stochastic"
        else replace(_binarized(train, binarize, seed), flip=flip),
        _binarized(validation, binarize, seed + 1),
        _binarized(test, binarize, seed + 2),
        origin={
            "name": name, "root": root, "binarize": binarize, "seed": seed, "limit": limit,
            "limit_validation": limit_validation, "flip": flip,
        },
    )  # fmt: skip


def resolve_paths(name: str, root: str | Path | None = None) -> tuple[str, str | None]:
    """Name and root with `~` expanded and paths absolute, so that they mean the same from every folder.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.datasets import resolve_paths
        >>> resolve_paths("digits"), resolve_paths("my/cells.npy") == (str(Path("my/cells.npy").absolute()), None)
        (('digits', None), True)
    """
    whole = None if root is None else str(Path(root).expanduser().absolute())
    path = Path(name).expanduser()
    is_path = name not in SOURCES and (path.exists() or len(path.parts) > 1)
    return str(path.absolute()) if is_path else name, whole


def search(name: str, beside: Path, relative: str | None = None) -> str:
    """Where the data of a run are now: where they were, or beside a run that was moved together with them.

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


def _binarized(split: Split, binarize: Binarize, seed: int) -> Split:
    """Binarise once and for all."""
    if binarize == "none":
        return split
    probabilities = split.x.float() / split.levels
    threshold = torch.rand(probabilities.shape, generator=torch.Generator().manual_seed(seed))
    if binarize == "threshold":
        threshold = torch.full((), 0.5)
    return replace(split, x=(probabilities > threshold).to(torch.uint8), levels=1)


def _check(name: str, splits: list[Split], binarize: Binarize) -> None:
    """Refuse values that no model can be trained on."""
    for split in splits:
        if not split.x.is_floating_point():
            continue
        bad = ~split.x.isfinite()
        if bad.any():
            raise ValueError(f"{name} holds {int(bad.sum())} values that are NaN or infinite: remove or impute them")
        low, high = float(split.x.min()), float(split.x.max())
        if binarize != "none" and not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} holds values from {low:.4g} to {high:.4g}; to binarise them they must lie in [0, 1]: "
                "rescale them, or set binarize to none and choose a likelihood for real values"
            )


def as_split(x: np.ndarray, y: np.ndarray | None = None, *, name: str = "x") -> Split:
    """Turn an array into a split: bytes stay bytes, grey images gain a channel axis.

    Args:
        x: examples (N, H, W), (N, C, H, W) or (N, D).
        y: class labels (N,).
        name: what errors call the array.

    Raises:
        ValueError: the shape, type or number of labels is wrong.

    Example:
        >>> import numpy as np
        >>> from mixvae.datasets import as_split
        >>> split = as_split(np.full((5, 8, 8), 255, np.uint8), np.array(list("abcab")))
        >>> split.x.shape, split.levels, split.y.tolist()
        (torch.Size([5, 1, 8, 8]), 255, [0, 1, 2, 0, 1])
    """
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise ValueError(f"{name} must have shape (N, D), (N, H, W) or (N, C, H, W); got {x.shape}")
    if x.ndim == 4 and x.shape[1] > 4 and x.shape[-1] in (1, 3, 4):
        raise ValueError(f"{name} has its channels last, {x.shape}: transpose it to (N, C, H, W)")
    if y is not None and y.shape != (len(x),):
        raise ValueError(f"{name} has {len(x)} examples, its labels have shape {y.shape}: give one label each")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers or booleans; got {x.dtype}")
    if y is not None:
        _check_labels(y, name)
    bytes_fit = x.dtype.kind in "bui" and x.size > 0 and x.min() >= 0 and x.max() <= 255
    if x.dtype.kind in "bui" and x.ndim > 2 and x.size and not bytes_fit:
        raise ValueError(f"{name} holds whole numbers from {x.min()} to {x.max()}; 8-bit images have 0 to 255")
    as_bytes = bytes_fit and (x.ndim > 2 or x.dtype.kind == "b" or x.dtype == np.uint8 or x.max() <= 1)
    kept = np.dtype(np.uint8 if as_bytes else np.float32)
    check(2 * x.size * kept.itemsize, f"{name} of shape {x.shape}", "give fewer or smaller examples")
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        values = x.astype(kept)
    levels = 255 if as_bytes and x.max() > 1 else 1
    labels = None if y is None else torch.from_numpy(np.unique(y, return_inverse=True)[1].astype(np.int64))
    tensor = torch.from_numpy(np.ascontiguousarray(values[:, None] if x.ndim == 3 else values))
    return Split(tensor, labels, levels)


def _check_labels(y: np.ndarray, name: str) -> None:
    """Refuse labels that do not name a class.

    Raises:
        ValueError: they are neither numbers nor text, or some are NaN or infinite.
    """
    if y.dtype.kind not in "buifUS":
        raise ValueError(f"the labels of {name} must be numbers or text; got {y.dtype}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int((~np.isfinite(y)).sum())
        raise ValueError(f"the labels of {name} hold {bad} values that are NaN or infinite: give every example a class")


def _shuffled(whole: Split, sizes: tuple[int, int], seed: int) -> tuple[Split, Split, Split]:
    """Split at random into training, validation and test examples; `sizes` are those of the last two."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(whole)))
    validation, test = sizes
    cut = len(whole) - validation - test
    parts = order[:cut], order[cut : cut + validation], order[cut + validation :]
    return tuple(_take(whole, part) for part in parts)  # pyright: ignore[reportReturnType]


def _take(whole: Split, index: Tensor) -> Split:
    """Some examples by index."""
    return replace(whole, x=whole.x[index], y=None if whole.y is None else whole.y[index])


def _own(path: Path, seed: int) -> tuple[Split, Split, Split]:
    """Split the user's own data 80 : 10 : 10."""
    if path.is_dir():
        x, y = read_images(path)
    elif path.suffix in ARRAY_SUFFIXES:
        x, y = read_array(path)
    else:
        raise ValueError(f"{path} must be a folder of images or end in {', '.join(ARRAY_SUFFIXES)}")
    whole = as_split(x, y, name=str(path))
    if len(whole) < 10:
        raise ValueError(f"{path} holds {len(whole)} examples; a split into three needs at least 10")
    return _shuffled(whole, (len(whole) // 10, len(whole) // 10), seed)


def _digits(root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
    """scikit-learn's 1797 handwritten digits, 8 × 8 pixels of 17 grey levels: 1197/200/400."""
    del root
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(x.reshape(-1, 1, 8, 8).astype(np.uint8))
    return _shuffled(Split(images, torch.from_numpy(y.astype(np.int64)), levels=16), (200, 400), seed)


@dataclass(frozen=True)
class IdxSource:
    """A data set of four IDX files; the last sixth of the training images is for validation: 50k/10k/10k.

    Args:
        name: name of the data set.
        url: folder of the files.
        checksums: MD5 sums by file name: training images and labels, then those of the test.
    """

    name: str
    url: str
    checksums: dict[str, str]

    def __call__(self, root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
        """Read the files, after downloading those that are missing."""
        del seed
        paths = [self._path(file, root, progress) for file in self.checksums]
        images, labels, test_images, test_labels = (read_idx(path) for path in paths)
        whole = as_split(images, labels, name=str(paths[0]))
        cut = len(whole) - len(whole) // 6
        train, validation = (_take(whole, part) for part in torch.arange(len(whole)).tensor_split([cut]))
        return train, validation, as_split(test_images, test_labels, name=str(paths[2]))

    def _path(self, file: str, root: str | Path | None, progress: Progress) -> Path:
        path = locate([file, file.removesuffix(".gz")], self.name, root)
        return path or fetch(self.url + file, f"md5:{self.checksums[file]}", self.name, progress)


@dataclass(frozen=True)
class CifarSource:
    """CIFAR-10's binary version; the last fifth of the training images is for validation: 40k/10k/10k.

    Args:
        url: the archive.
        checksum: MD5 sum of the archive.
    """

    url: str
    checksum: str

    def __call__(self, root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
        """Read the archive, or the folder that it unpacks to, after downloading it if it is missing."""
        del seed
        archive = self.url.rpartition("/")[2]
        path = locate(["cifar-10-batches-bin", archive], "cifar10", root)
        if path is None:
            unpacked = [f for f in folders("cifar10", root) if (f / "test_batch.bin").exists()]
            path = unpacked[0] if unpacked else fetch(self.url, f"md5:{self.checksum}", "cifar10", progress)
        batches = read_cifar(path)
        names = [name for name in batches if name.startswith("data_batch")]
        if not names or "test_batch" not in batches:
            raise ValueError(f"{path} must hold data_batch_1.bin … and test_batch.bin; it holds {sorted(batches)}")
        images, labels = (np.concatenate(part) for part in zip(*(batches[n] for n in names), strict=True))
        whole = as_split(images, labels, name=str(path))
        cut = len(whole) - len(whole) // 5
        train, validation = (_take(whole, part) for part in torch.arange(len(whole)).tensor_split([cut]))
        return train, validation, as_split(*batches["test_batch"], name=str(path))


SOURCES: dict[str, Callable[[str | Path | None, int, Progress], tuple[Split, Split, Split]]] = {
    "digits": _digits,
    "mnist": IdxSource(
        "mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": IdxSource(
        "fashion_mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": CifarSource(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
    ),
}
"""The data sets by name."""
