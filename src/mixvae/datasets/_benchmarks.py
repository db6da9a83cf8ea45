"""Binary and grey 28 × 28 images on which likelihoods are compared, in the files published by their authors.

No checksum of these files has been verified, so a download of one is reported as untested, with its SHA-256.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from mixvae.datasets._columns import Labelled, read_table
from mixvae.datasets._download import fetch, locate
from mixvae.datasets._matlab import read_variables
from mixvae.datasets._own import together
from mixvae.datasets._splits import Split
from mixvae.progress import Progress

PUBLISHED = {
    "static_mnist": (50_000, 10_000, 10_000),
    "omniglot": (23_000, 1_345, 8_070),
    "caltech101_silhouettes": (4_100, 2_264, 2_307),
}
"""Training, validation and test images of the published files."""
SHUFFLE = 123
"""Seed with which the IWAE's code shuffles OMNIGLOT's training images before it takes the last ones for validation."""

Parts = tuple[Split, Split, Split]


def static_mnist(root: str | Path | None, seed: int, progress: Progress) -> Parts:
    """MNIST, binarised once and for all: 50,000/10,000/10,000 images without labels.

    References:
        Larochelle and Murray, The neural autoregressive distribution estimator (2011),
        https://proceedings.mlr.press/v15/larochelle11a.html
    """
    found: dict[str, Labelled] = {}
    for part, word in (("train", "train"), ("validation", "valid"), ("test", "test")):
        url = f"https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{word}.amat"
        path = _file("static_mnist", url, root, progress)
        found[part] = _binary(_square(read_table(path)[0], path), path), None
    return _parts("static_mnist", found, seed, progress)


def omniglot(root: str | Path | None, seed: int, progress: Progress) -> Parts:
    """OMNIGLOT's characters in grey, 28 × 28, as the IWAE's authors published and divided them; classes are alphabets.

    Columns of `data` (784 × 24,345) and `testdata` (784 × 8,070) are images, column by column. 1,345 training images
    are used for validation, chosen as in the IWAE's code.

    References:
        Lake et al., Human-level concept learning through probabilistic program induction (2015),
        https://doi.org/10.1126/science.aab3050; Burda et al., Importance weighted autoencoders (2016),
        https://arxiv.org/abs/1509.00519
    """
    path = _file("omniglot", "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat", root, progress)
    names = {"data": "target", "testdata": "testtarget"}  # one row per alphabet
    arrays = _variables(path, names, names.values())
    labelled = all(name in arrays for name in names.values())
    (x, y), test = (
        (_square(arrays[data].T, path, by_column=True), arrays[target].argmax(0) if labelled else None)
        for data, target in names.items()
    )
    order = np.random.RandomState(SHUFFLE).permutation(len(x))  # noqa: NPY002  (as for the published split)
    rows = dict(zip(("train", "validation"), np.split(order, [len(x) - round(len(x) * 1_345 / 24_345)]), strict=True))
    found = {part: (x[chosen], None if y is None else y[chosen]) for part, chosen in rows.items()}
    return _parts("omniglot", {**found, "test": test}, seed, progress)


def caltech101_silhouettes(root: str | Path | None, seed: int, progress: Progress) -> Parts:
    """Silhouettes of Caltech 101's objects, 28 × 28, object 1 and background 0: 4,100/2,264/2,307 images, 101 classes.

    The file holds rows of images, column by column, in which the background is 1.

    References:
        Marlin et al., Inductive principles for restricted Boltzmann machine learning (2010),
        https://proceedings.mlr.press/v9/marlin10a.html
    """
    url = "https://people.cs.umass.edu/~marlin/data/caltech101_silhouettes_28_split1.mat"
    path = _file("caltech101_silhouettes", url, root, progress)
    words = {"train": "train", "validation": "val", "test": "test"}
    labels = [f"{word}_labels" for word in words.values()]
    arrays = _variables(path, [f"{word}_data" for word in words.values()], labels)
    labelled = all(name in arrays for name in labels)
    found = {
        part: (
            1 - _binary(_square(arrays[f"{word}_data"], path, by_column=True), path),
            arrays[f"{word}_labels"].ravel() if labelled else None,
        )
        for part, word in words.items()
    }
    return _parts("caltech101_silhouettes", found, seed, progress)


def _file(name: str, url: str, root: str | Path | None, progress: Progress) -> Path:
    """A file on disk, or downloaded."""
    return locate([url.rpartition("/")[2]], name, root) or fetch(url, None, name, progress)


def _variables(path: Path, needed: Collection[str], others: Collection[str]) -> dict[str, np.ndarray]:
    """Variables of a MATLAB file.

    Raises:
        ValueError: a required one is missing.
    """
    found = read_variables(path, [*needed, *others])
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path} lacks the variable {missing[0]}: it is another file")
    return found


def _square(x: np.ndarray, path: Path, *, by_column: bool = False) -> np.ndarray:
    """Rows of pixels as square images (N, H, H).

    Raises:
        ValueError: the number of pixels in a row is not a square.
    """
    side = math.isqrt(x.shape[-1])
    if x.ndim != 2 or not side or side**2 != x.shape[-1]:
        raise ValueError(f"{path} holds an array of shape {x.shape}, not rows of square images: it is another file")
    images = x.reshape(-1, side, side)
    return images.swapaxes(1, 2) if by_column else images


def _binary(x: np.ndarray, path: Path) -> np.ndarray:
    """Zeros and ones as bytes.

    Raises:
        ValueError: there are other values.
    """
    if not np.isin(x, (0, 1)).all():
        raise ValueError(f"{path} holds values from {x.min():.4g} to {x.max():.4g}, not 0 and 1: it is another file")
    return x.astype(np.uint8)


def _parts(name: str, found: Mapping[str, Labelled], seed: int, progress: Progress) -> Parts:
    """The parts of a data set; sizes that differ from the published ones are reported."""
    sizes = tuple(len(x) for x, _ in found.values())
    if sizes != PUBLISHED[name]:
        shown = ["/".join(f"{size:,}" for size in each) for each in (sizes, PUBLISHED[name])]
        progress.announce(f"{name}: {shown[0]} images here, {shown[1]} in the published files")
    return together(found, name, seed)
