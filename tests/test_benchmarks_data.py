"""Data sets by name: the files that their authors published, and the folders that torchvision makes."""

import gzip
import struct
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from scipy.io import savemat

from conftest import Recorded
from mixvae import datasets
from mixvae.datasets import _benchmarks as benchmarks
from mixvae.datasets import _download as download

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    """No data but what a test writes, and nothing from the network."""
    monkeypatch.delenv("MIXVAE_DATA", raising=False)
    monkeypatch.setattr(download, "user_cache_dir", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(download, "SYSTEM_FOLDER", tmp_path / "system")


def load(name, root, **options):
    return datasets.load_dataset(name, root=root, **({"binarize": "none"} | options))


def column_by_column(images):
    """Rows (N, H·W) that hold images pixel by pixel down each column, as MATLAB's reshape does."""
    return np.array([[image[i, j] for j in range(image.shape[1]) for i in range(image.shape[0])] for image in images])


def ones(n):
    return RNG.integers(0, 2, (n, 28, 28), dtype=np.uint8)


def test_static_mnist_keeps_its_images_and_its_split(tmp_path):
    parts = {"train": ones(12), "valid": ones(4), "test": ones(3)}
    for part, images in parts.items():
        np.savetxt(tmp_path / f"binarized_mnist_{part}.amat", images.reshape(len(images), -1), fmt="%d")
    seen = Recorded()
    data = load("static_mnist", tmp_path, binarize="stochastic", progress=seen)
    for split, images in zip((data.train, data.validation, data.test), parts.values(), strict=True):
        np.testing.assert_array_equal(split.batch(slice(None))[:, 0], images)
        assert split.y is None
    assert seen.lines == ["static_mnist: 12/4/3 images here, 50,000/10,000/10,000 in the published files"]
    np.savetxt(tmp_path / "binarized_mnist_test.amat", 3 * parts["test"].reshape(3, -1), fmt="%d")
    with pytest.raises(ValueError, match="test.amat holds values from 0 to 3, not 0 and 1: it is another file"):
        load("static_mnist", tmp_path)
    np.savetxt(tmp_path / "binarized_mnist_test.amat", parts["test"].reshape(3, -1)[:, :50], fmt="%d")
    with pytest.raises(ValueError, match=r"shape \(3, 50\), not rows of square images"):
        load("static_mnist", tmp_path)


def test_omniglot_is_upright_and_divided_as_in_the_iwaes_code(tmp_path):
    images = {"data": RNG.random((200, 28, 28)), "testdata": RNG.random((7, 28, 28))}
    alphabets = {"data": np.arange(200) % 5, "testdata": np.array([4, 0, 0, 1, 3, 4, 2])}
    content = {name: column_by_column(x).T for name, x in images.items()}
    content |= {"target": np.eye(5)[alphabets["data"]].T, "testtarget": np.eye(5)[alphabets["testdata"]].T}
    savemat(tmp_path / "chardata.mat", content, do_compression=True)
    data = load("omniglot", tmp_path)
    order = np.random.RandomState(123).permutation(200)  # noqa: NPY002
    assert (len(data.train), len(data.validation), len(data.test)) == (189, 11, 7), "1345 of 24345 are for validation"
    for split, rows in ((data.train, order[:-11]), (data.validation, order[-11:])):
        np.testing.assert_allclose(split.x[:, 0], images["data"][rows], rtol=1e-6)
        np.testing.assert_array_equal(split.y, alphabets["data"][rows])
    np.testing.assert_allclose(data.test.x[:, 0], images["testdata"], rtol=1e-6)
    np.testing.assert_array_equal(data.test.y, alphabets["testdata"])
    assert load("omniglot", tmp_path, seed=5).sha256() == data.sha256(), "the published split, whatever the seed"


@pytest.mark.parametrize("labelled", [True, False])
def test_silhouettes_are_ones_upright_with_their_classes(tmp_path, labelled):
    parts = {"train": ones(9), "val": ones(4), "test": ones(5)}
    classes = {"train": np.arange(9) % 3 + 1, "val": np.array([3, 3, 1, 101]), "test": np.array([2, 1, 101, 3, 3])}
    content = {f"{part}_data": column_by_column(1 - x) for part, x in parts.items()}
    if labelled:
        content |= {f"{part}_labels": y[:, None] for part, y in classes.items()}
    savemat(tmp_path / "caltech101_silhouettes_28_split1.mat", content)
    data = load("caltech101_silhouettes", tmp_path)
    number = {1: 0, 2: 1, 3: 2, 101: 3}
    for split, part in zip((data.train, data.validation, data.test), parts, strict=True):
        np.testing.assert_array_equal(split.x[:, 0], parts[part])
        assert split.x.dtype == torch.uint8
        assert (None if split.y is None else split.y.tolist()) == (
            [number[y] for y in classes[part]] if labelled else None
        )


def test_a_benchmark_of_another_content_is_refused(tmp_path):
    savemat(tmp_path / "chardata.mat", {"data": RNG.random((784, 20))})
    with pytest.raises(ValueError, match="chardata.mat lacks the variable testdata: it is another file"):
        load("omniglot", tmp_path)


def test_an_unverified_download_says_its_checksum(tmp_path, monkeypatch):
    import hashlib
    import io

    content = io.BytesIO()
    savemat(content, {"data": RNG.random((784, 200)), "testdata": RNG.random((784, 3))})

    class Files(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.getvalue())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/chardata.mat"
    monkeypatch.setattr(benchmarks, "fetch", lambda _, *rest: download.fetch(url, *rest))
    seen = Recorded()
    try:
        data = load("omniglot", None, progress=seen)
    finally:
        server.shutdown()
        server.server_close()
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    assert seen.lines[0] == f"untested: {url} has no known checksum; its SHA-256 is {digest}"
    assert load("omniglot", None).sha256() == data.sha256(), "from the cache, without the server"


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def four():
    """Contents of four IDX files."""
    sizes = {"train": 60, "t10k": 10}
    return {f"{part}-images-idx3-ubyte": idx(RNG.integers(0, 256, (n, 4, 4), dtype=np.uint8)) for part, n in
            sizes.items()} | {f"{part}-labels-idx1-ubyte": idx(np.arange(n, dtype=np.uint8) % 10)
                              for part, n in sizes.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "root"),
    [("mnist", "MNIST/raw", "."), ("fashion_mnist", "FashionMNIST/raw", "."), ("mnist", "MNIST/raw", "MNIST")],
)
def test_torchvisions_folders_are_found(tmp_path, four, name, place, root):
    for other in ("MNIST/raw", "FashionMNIST/raw"):
        (tmp_path / other).mkdir(parents=True)
        for file, content in four.items():
            (tmp_path / other / file).write_bytes(content if other == place else b"another set")
    assert len(load(name, tmp_path / root).train) == 50


@pytest.mark.parametrize("packed", [True, False])
def test_idx_names_with_a_dot_are_found_beside_folders(tmp_path, four, packed):
    for file, content in four.items():
        (tmp_path / file).mkdir()  # as in an archive that holds both
        name = file.replace("-idx", ".idx") + (".gz" if packed else "")
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert len(load("mnist", tmp_path).test) == 10


def test_cifars_pickles_are_refused_by_what_to_get_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets._sources, "fetch", pytest.fail)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x04.")
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(ValueError, match="is pickled, and reading a pickle can run code: get the binary version"):
            load("cifar10", root)


def test_what_macs_leave_beside_cifars_batches_is_skipped(tmp_path):
    import tarfile

    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(bytes(3073 * 5))
        (folder / f"._{name}.bin").write_bytes(b"what a Mac leaves")
    sizes = partial(load, "cifar10", tmp_path)
    assert len(sizes().test) == 5
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert len(sizes().test) == 5


def test_names_that_are_resized_keep_their_levels(tmp_path, four):
    for file, content in four.items():
        (tmp_path / file).write_bytes(content)
    small = load("mnist", tmp_path, resize=2)
    assert small.shape == (1, 2, 2)
    assert (small.train.x.dtype, small.train.levels) == (torch.uint8, 255)
    digits = datasets.load_dataset("digits", resize=[4, 8], binarize="none")
    whole = datasets.load_dataset("digits", binarize="none")
    x = whole.test.batch(slice(None))[..., 0]
    means = torch.stack(
        [x[:, 0, 0:3] @ torch.tensor([3.0, 3.0, 1.0]) / 7, x[:, 0, 1:5] @ torch.tensor([1.0, 3, 3, 1]) / 8], 1
    )
    torch.testing.assert_close(digits.test.batch(slice(None))[:, 0, :2, 0], means)
    assert replace(digits.test, y=None).shape == (1, 4, 8)
