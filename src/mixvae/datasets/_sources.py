"""The data sets known by name: where their files are, and how they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixvae.datasets._benchmarks import caltech101_silhouettes, omniglot, static_mnist
from mixvae.datasets._download import fetch, folders, locate
from mixvae.datasets._formats import read_cifar, read_idx
from mixvae.datasets._splits import Split, as_split
from mixvae.progress import Progress

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A random change to one image (H, W)."""


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits, 8 × 8 pixels of 17 grey levels: 1197/200/400.

    Args:
        change: change made to every image, always the same for a given image; none by default.
    """

    change: Change | None = None

    def __call__(self, root: str | Path | None, seed: int, progress: Progress) -> tuple[Split, Split, Split]:
        """Read the images that scikit-learn ships."""
        del root, progress
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        images = x.reshape(-1, 8, 8).astype(np.uint8)
        if self.change is not None:
            random = np.random.default_rng(0)
            images = np.stack([self.change(image, random) for image in images])
        whole = Split(torch.from_numpy(images)[:, None], torch.from_numpy(y.astype(np.int64)), levels=16)
        return whole.divided((200, 400), seed)


def _rotated(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An image rotated by 0, 1, 2 or 3 right angles."""
    return np.rot90(image, int(random.integers(4)))


def _occluded(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An image whose upper, lower, left or right half is black."""
    turns = int(random.integers(4))
    turned = np.rot90(image, turns).copy()
    turned[: len(turned) // 2] = 0
    return np.rot90(turned, -turns)


WHOLE = 60_000
"""Number of training images of MNIST and its like; fewer are somebody's selection."""


def _idx_sources() -> list[IdxSource]:
    return [source for source in SOURCES.values() if isinstance(source, IdxSource)]


@dataclass(frozen=True)
class IdxSource:
    """A data set of four IDX files; the last sixth of the training images is used for validation: 50k/10k/10k.

    Args:
        name: name of the data set.
        url: folder of the files.
        checksums: MD5 sums by file name: training images and labels, then test images and labels.
        contents: SHA-256 of their values in the same order, where known: files of the same name are not always
            compressed alike, and another data set may use the same names.
        folder: torchvision's folder of the data set.
    """

    name: str
    url: str
    checksums: dict[str, str]
    contents: tuple[str, ...] = ()
    folder: str = "MNIST"

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
        """Refuse files of another data set, and mixtures of two.

        Raises:
            ValueError: some are known to belong to another data set, or differ from the known ones of this data set.
        """
        known = {digest: source.name for source in _idx_sources() for digest in source.contents}
        for path, array in zip(paths, arrays, strict=True):
            owner = known.get(hashlib.sha256(array.tobytes()).hexdigest(), self.name)
            if owner != self.name:
                raise ValueError(f"{path} belongs to {owner}, not to {self.name}: give the folder of its files as root")
        if self.contents and len(arrays[0]) == WHOLE:
            for path, array, digest in zip(paths, arrays, self.contents, strict=True):
                if hashlib.sha256(array.tobytes()).hexdigest() != digest:
                    raise ValueError(
                        f"{path} does not hold the values of {self.name}: it is from another data set, or changed"
                    )

    def _path(self, file: str, root: str | Path | None, progress: Progress) -> Path:
        plain = file.removesuffix(".gz")
        names = [file, plain, plain.replace("-idx", ".idx") + ".gz", plain.replace("-idx", ".idx")]
        places = ("", "raw/", f"{self.folder}/raw/")
        path = locate([place + name for place in places for name in names], self.name, root, Path.is_file)
        return path or fetch(self.url + file, f"md5:{self.checksums[file]}", self.name, progress)


@dataclass(frozen=True)
class CifarSource:
    """CIFAR-10's binary version; the last fifth of the training images is used for validation: 40k/10k/10k.

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
            pickled = locate(["cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1"], "cifar10", root)
            if pickled and not unpacked:
                raise ValueError(
                    f"{pickled} is pickled, and reading a pickle can run code: get the binary version, {self.url}"
                )
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
    "digits": Digits(),
    "rotated_digits": Digits(_rotated),
    "occluded_digits": Digits(_occluded),
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
        "FashionMNIST",
    ),
    "cifar10": CifarSource(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
    ),
    "static_mnist": static_mnist,
    "omniglot": omniglot,
    "caltech101_silhouettes": caltech101_silhouettes,
}
"""The data sets by name."""
