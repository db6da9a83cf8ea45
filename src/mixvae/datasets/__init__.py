"""Data sets by name or path, split and binarised by fixed seeds, held in memory as bytes.

`load_dataset("fashion_mnist")` returns training, validation and test examples, split as in the paper. Binarisation and
batching happen on the device, in `Split.batch`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mixvae.datasets._download import fetch, folders, locate
from mixvae.datasets._formats import read_cifar, read_idx
from mixvae.datasets._own import read_own
from mixvae.datasets._splits import Dataset, Split, as_split
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
            or `.pt` file of shape (N, H, W), (N, C, H, W) or (N, D), a `.csv`, `.amat` or `.txt` table, or a folder of
            images. A `.npz` of `x_train` and `x_test`, and a folder of `train` and `test`, keep their split.
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
        train, validation, test = read_own(Path(name), seed)
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


def _digits(root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
    """scikit-learn's 1797 handwritten digits, 8 × 8 pixels of 17 grey levels: 1197/200/400."""
    del root
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(x.reshape(-1, 1, 8, 8).astype(np.uint8))
    whole = Split(images, torch.from_numpy(y.astype(np.int64)), levels=16)
    return whole.divided((200, 400), seed)


WHOLE = 60_000
"""Training images of MNIST and its like; fewer are somebody's selection."""


def _idx_sources() -> list[IdxSource]:
    return [source for source in SOURCES.values() if isinstance(source, IdxSource)]


@dataclass(frozen=True)
class IdxSource:
    """A data set of four IDX files; the last sixth of the training images is for validation: 50k/10k/10k.

    Args:
        name: name of the data set.
        url: folder of the files.
        checksums: MD5 sums by file name: training images and labels, then those of the test.
        contents: SHA-256 of their values in the same order, where they are known: files of one name are not always
            packed alike, and those of another data set have the same names.
    """

    name: str
    url: str
    checksums: dict[str, str]
    contents: tuple[str, ...] = ()

    def __call__(self, root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
        """Read the files, after downloading those that are missing."""
        del seed
        paths = [self._path(file, root, progress) for file in self.checksums]
        arrays = [read_idx(path) for path in paths]
        self._check_contents(paths, arrays)
        images, labels, test_images, test_labels = arrays
        whole = as_split(images, labels, name=str(paths[0]))
        cut = len(whole) - len(whole) // 6
        train, validation = (whole.take(part) for part in torch.arange(len(whole)).tensor_split([cut]))
        return train, validation, as_split(test_images, test_labels, name=str(paths[2]))

    def _check_contents(self, paths: list[Path], arrays: list[np.ndarray]) -> None:
        """Refuse files of another data set, and sets that were put together from two.

        Raises:
            ValueError: some are known as those of another data set, while those of this one are other ones.
        """
        known = {digest: source.name for source in _idx_sources() for digest in source.contents}
        for path, array in zip(paths, arrays, strict=True):
            owner = known.get(hashlib.sha256(array.tobytes()).hexdigest(), self.name)
            if owner != self.name:
                raise ValueError(f"{path} is of {owner}, not of {self.name}: name the folder of its files by root")
        if self.contents and len(arrays[0]) == WHOLE:
            for path, array, digest in zip(paths, arrays, self.contents, strict=True):
                if hashlib.sha256(array.tobytes()).hexdigest() != digest:
                    raise ValueError(
                        f"{path} does not hold the values of {self.name}: it is of another data set, or changed"
                    )

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
        names = [f"data_batch_{number}" for number in range(1, 6)]
        if missing := [name for name in (*names, "test_batch") if name not in batches]:
            raise ValueError(f"{path} lacks {missing[0]}.bin; it holds {', '.join(sorted(batches)) or 'no batches'}")
        images, labels = (np.concatenate(part) for part in zip(*(batches[n] for n in names), strict=True))
        whole = as_split(images, labels, name=str(path))
        cut = len(whole) - len(whole) // 5
        train, validation = (whole.take(part) for part in torch.arange(len(whole)).tensor_split([cut]))
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
        (
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    ),
    "cifar10": CifarSource(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
    ),
}
"""The data sets by name."""
