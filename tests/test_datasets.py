"""Files in their standard formats, split and binarised by fixed seeds; damage and wrong input told in one line."""

import gc
import gzip
import io
import re
import socket
import struct
import tarfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Recorded
from mixvae import datasets
from mixvae.datasets import IdxSource, Split, as_split
from mixvae.datasets import _download as download
from mixvae.datasets._finished import binarized
from mixvae.datasets._formats import read_array, read_cifar, read_idx
from mixvae.datasets._pictures import read_images
from mixvae.progress import SILENT

RNG = np.random.default_rng(0)


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    """No data but what a test writes."""
    monkeypatch.delenv("MIXVAE_DATA", raising=False)
    monkeypatch.setattr(download, "user_cache_dir", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(download, "SYSTEM_FOLDER", tmp_path / "system")


@pytest.fixture
def mnist(tmp_path):
    """MNIST's four files, small: 60 and 10 images."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    arrays = {}
    for part, n in (("train", 60), ("t10k", 10)):
        arrays[part] = RNG.integers(0, 256, (n, 5, 4), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(arrays[part][0])))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(arrays[part][1]))
    return folder, arrays


def test_mnist_is_read_and_split_as_in_the_paper(mnist):
    folder, arrays = mnist
    data = datasets.load_dataset("mnist", root=folder, binarize="none")
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 10, 10)
    assert data.shape == (1, 5, 4)
    torch.testing.assert_close(data.train.x[:, 0].numpy(), arrays["train"][0][:50])
    torch.testing.assert_close(data.validation.x[:, 0].numpy(), arrays["train"][0][50:])
    assert data.test.y.tolist() == list(range(10))
    assert data.train.x.dtype == torch.uint8
    x = data.train.batch(torch.tensor([3, 1]))
    torch.testing.assert_close(x[:, 0].numpy(), arrays["train"][0][[3, 1]].astype(np.float32) / 255)


def test_real_fashion_mnist_is_read_if_the_system_has_it(monkeypatch):
    monkeypatch.undo()
    if not (download.SYSTEM_FOLDER / "fashion-mnist").exists():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = datasets.load_dataset("fashion_mnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (50_000, 10_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert data.test.y.bincount().tolist() == [1000] * 10
    assert set(data.test.x.unique().tolist()) == {0, 1}


def test_search_order_is_root_environment_cache_system(mnist, tmp_path, monkeypatch):
    folder, _ = mnist
    names = ["train-images-idx3-ubyte.gz"]
    places = [tmp_path / "system" / "mnist", download.cache("mnist"), tmp_path / "env" / "mnist", tmp_path / "root"]
    monkeypatch.setenv("MIXVAE_DATA", str(tmp_path / "env"))
    for place in places:  # from the last in the order to the first
        place.mkdir(parents=True)
        (place / names[0]).write_bytes((folder / names[0]).read_bytes())
        assert download.locate(names, "mnist", tmp_path / "root") == place / names[0]


def test_training_data_are_rebinarised_but_held_out_data_fixed():
    data, again = (datasets.load_dataset("digits") for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    first, second = (data.train.batch(slice(0, 50), generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.test.batch(slice(0, 50)), data.test.batch(slice(0, 50)))
    assert torch.equal(data.test.x, again.test.x)
    assert not torch.equal(datasets.load_dataset("digits", seed=1).test.x, data.test.x)


def test_binarisation_has_the_intensities_as_probabilities():
    grey = datasets.load_dataset("digits", binarize="none").train.batch(slice(0, 3))
    data = datasets.load_dataset("digits")
    n = 2000
    mean = sum(data.train.batch(slice(0, 3)) for _ in range(n)) / n
    assert ((mean - grey).abs() <= 5 * (grey * (1 - grey) / n).sqrt() + 1e-6).all()


def test_fixed_and_threshold_binarise_training_once():
    grey = datasets.load_dataset("digits", binarize="none")
    sharp = datasets.load_dataset("digits", binarize="threshold")
    torch.testing.assert_close(sharp.train.batch(slice(0, 9)), (grey.train.batch(slice(0, 9)) > 0.5).float())
    fixed = datasets.load_dataset("digits", binarize="fixed")
    assert torch.equal(fixed.train.batch(slice(0, 9)), fixed.train.batch(slice(0, 9)))
    assert not torch.equal(fixed.train.x, sharp.train.x)


def test_splits_of_digits_are_disjoint_and_complete():
    data = datasets.load_dataset("digits", binarize="none")
    assert (len(data.train), len(data.validation), len(data.test)) == (1197, 200, 400)
    rows = [tuple(row) for part in (data.train, data.validation, data.test) for row in part.x.flatten(1).tolist()]
    from sklearn.datasets import load_digits

    assert sorted(rows) == sorted(tuple(row) for row in load_digits().data.astype(int).tolist())


def test_rotated_and_occluded_digits_are_digits_changed():
    names = ("digits", "rotated_digits", "occluded_digits")
    whole = {}
    for name in names:
        data = datasets.load_dataset(name, binarize="none")
        parts = (data.train, data.validation, data.test)
        whole[name] = torch.cat([part.x for part in parts])[:, 0].numpy(), torch.cat([part.y for part in parts])
    plain, rotated, occluded = (whole[name][0] for name in names)
    assert all(torch.equal(whole[name][1], whole["digits"][1]) for name in names)
    turns, halves = [], []
    for x, turned, half in zip(plain, rotated, occluded, strict=True):
        turns.append([np.array_equal(np.rot90(x, k), turned) for k in range(4)])
        kept = [np.rot90(x, k).copy() for k in range(4)]
        for image in kept:
            image[:4] = 0
        halves.append([np.array_equal(np.rot90(image, -k), half) for k, image in enumerate(kept)])
    for which in (turns, halves):
        assert all(map(any, which))
        counts = np.bincount(np.argmax(which, axis=1), minlength=4)
        assert np.abs(counts - 1797 / 4).max() < 4 * np.sqrt(1797 * 3 / 16)


def test_checksum_tells_data_apart():
    data = datasets.load_dataset("digits")
    assert data.sha256() == datasets.load_dataset("digits").sha256()
    assert data.sha256() != datasets.load_dataset("digits", seed=1).sha256()
    assert data.sha256() != datasets.load_dataset("digits", limit=100).sha256()
    assert len(datasets.load_dataset("digits", limit=100).train) == 100
    assert len(datasets.load_dataset("digits", limit_validation=50).validation) == 50


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_is_read_from_archive_and_folder(tmp_path, packed):
    batches = {f"data_batch_{i}": 10 for i in range(1, 6)} | {"test_batch": 6}
    records = {n: RNG.integers(0, 256, (k, 3073), dtype=np.uint8) for n, k in batches.items()}
    for array in records.values():
        array[:, 0] %= 10
    folder = tmp_path / "root" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, array in records.items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    if packed:
        with tarfile.open(tmp_path / "root" / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    data = datasets.load_dataset("cifar10", root=tmp_path / "root", binarize="none")
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 6)
    assert data.shape == (3, 32, 32)
    first = records["data_batch_1"][0]
    assert data.train.x[0, 2, 31, 30].item() == first[1 + 2 * 1024 + 31 * 32 + 30], "channel planes, row by row"
    assert data.test.y.tolist() == np.unique(records["test_batch"][:, 0], return_inverse=True)[1].tolist()


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "pt-dict"])
def test_own_arrays_of_every_kind(tmp_path, kind):
    x, y = RNG.random((40, 6, 5)).astype(np.float32), np.arange(40) % 3
    path = tmp_path / f"own.{kind.removesuffix('-dict')}"
    if kind == "npy":
        np.save(path, x)
    elif kind == "npz":
        np.savez(path, x=x, y=y)
    else:
        torch.save(torch.from_numpy(x) if kind == "pt" else {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, path)
    data = datasets.load_dataset(str(path), binarize="none")
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)
    assert data.shape == (1, 6, 5)
    assert (data.train.y is not None) == (kind in ("npz", "pt-dict"))


def test_real_vectors_are_kept_as_they_are(tmp_path):
    x = RNG.normal(size=(50, 3)) * 100
    np.save(tmp_path / "x.npy", x)
    data = datasets.load_dataset(str(tmp_path / "x.npy"), binarize="none")
    kept = torch.cat([data.train.x, data.validation.x, data.test.x]).sort(0).values
    torch.testing.assert_close(kept, torch.from_numpy(x).float().sort(0).values)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_of_images_has_classes_from_its_subfolders(tmp_path, mode):
    for name in ("cats", "dogs"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((4, 5) if mode == "L" else (4, 5, 3), 20 * i, np.uint8)
            Image.fromarray(pixels, mode).save(tmp_path / "own" / name / f"{i}.png")
    x, y = read_images(tmp_path / "own")
    assert x.shape == (12, 1 if mode == "L" else 3, 4, 5)
    assert y.tolist() == [0] * 6 + [1] * 6
    assert x[3, 0, 0, 0] == 60
    assert datasets.load_dataset(str(tmp_path / "own")).shape == x.shape[1:]


def test_bytes_of_zeros_and_ones_are_binary():
    split = as_split((RNG.random((12, 4, 4)) < 0.5).astype(np.uint8))
    assert set(split.batch(slice(None)).unique().tolist()) == {0.0, 1.0}


def damaged(tmp_path, kind):
    path = tmp_path / f"own{'.npz' if kind == 'wrong name' else '.npy'}"
    good = RNG.random((40, 4, 4))
    arrays = {
        "NaN": np.where(good > 0.999, np.nan, good) * np.where(np.arange(16).reshape(4, 4) == 0, np.nan, 1),
        "outside [0, 1]": good * 3 - 1,
        "one dimension": good[0, 0],
        "channels last": RNG.random((40, 8, 8, 3)),
        "text": np.full((40, 4), "a"),
        "sixteen bits": RNG.integers(0, 60_000, (40, 4, 4)),
        "too few": good[:5],
        "no pixels": good[:, :0],
    }
    if kind == "truncated":
        np.save(path, good)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "pickle":
        np.save(path, np.array([{}] * 20, object), allow_pickle=True)
    elif kind == "wrong name":
        np.savez(path, images=good)
    else:
        np.save(path, arrays[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("NaN", "NaN or infinite: remove or impute"),
        ("outside [0, 1]", r"values from -0\.\d+ to 1\.\d+; to binarise them they must lie in \[0, 1\]"),
        ("one dimension", r"\(N, D\), \(N, H, W\) or \(N, C, H, W\); got \(4,\)"),
        ("channels last", r"channels last, \(40, 8, 8, 3\): transpose"),
        ("text", "must hold numbers or booleans; got <U1"),
        ("sixteen bits", "8-bit images have 0 to 255"),
        ("too few", "holds 5 examples; a split into three needs at least 10"),
        ("no pixels", r"got \(40, 0, 4\)"),
        ("truncated", "truncated, damaged"),
        ("pickle", "pickled objects"),
        ("wrong name", r"under the name x; it holds \['images'\]"),
    ],
)
def test_bad_arrays_are_told_in_one_line(tmp_path, kind, told):
    with pytest.raises(ValueError, match=told) as caught:
        datasets.load_dataset(str(damaged(tmp_path, kind)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4", "cut"])
@pytest.mark.parametrize("read", [datasets.load_dataset, datasets.load_examples])
def test_a_file_that_is_no_archive_is_told_in_one_line(tmp_path, content, read):
    """Its names were asked for before it was read: an unexpected BadZipFile."""
    path = tmp_path / "own.npz"
    np.savez(path, x=np.zeros((40, 4, 4)))
    path.write_bytes(path.read_bytes()[:-30] if content == "cut" else content)
    with pytest.raises(ValueError, match="own.npz is truncated, damaged, or holds pickled objects") as caught:
        read(str(path))
    assert "\n" not in str(caught.value)


def test_a_pickle_in_a_pt_file_is_not_executed(tmp_path):
    torch.save({"x": io.BytesIO}, tmp_path / "own.pt")
    with pytest.raises(ValueError, match="own.pt"):
        read_array(tmp_path / "own.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not an IDX file.*starts with nothing"),
        (b"\0\0\x0d\x01\0\0\0\1abcd", "not an IDX file of unsigned bytes: it starts with 00000d01"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], "6 bytes promised, 5 found"),
        (idx(np.zeros((2, 3), np.uint8))[:7], "header ends early"),
        (gzip.compress(idx(np.zeros((200, 30), np.uint8)), mtime=0)[:-9], "truncated or damaged gzip"),
    ],
)
def test_damaged_idx_files_are_told_in_one_line(tmp_path, content, told):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_idx(tmp_path / "f")


def test_damaged_cifar_is_told_in_one_line(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b nonsense")
    with pytest.raises(ValueError, match="damaged archive"):
        read_cifar(tmp_path / "x.tar.gz")
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match="3072 bytes, not a multiple of 3073"):
        read_cifar(tmp_path)


def test_damaged_and_unequal_images_are_told_in_one_line(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (5, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"a.png is 4×4 pixels, b.png is 5×4"):
        read_images(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.png is not a readable image"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "digit"}, "did you mean digits"),
        ({"name": "digits", "binarize": "yes"}, "choose stochastic, fixed, threshold or none"),
        ({"name": "digits", "limit": 0}, "at least 1 training example; got 0"),
        ({"name": "digits", "limit_validation": 0}, "at least 1 validation example; got 0"),
    ],
)
def test_bad_options_are_told_in_one_line(options, told):
    with pytest.raises(ValueError, match=told):
        datasets.load_dataset(**options)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="choose train, validation or test"):
        datasets.load_dataset("digits").split("valid")


def test_an_empty_split_is_refused(tmp_path):
    for part, n in (("train", 5), ("t10k", 5)):  # a sixth of five images is none
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(np.full((n, 2, 2), 9, np.uint8)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(n, np.uint8)))
    with pytest.raises(ValueError, match="the validation split of mnist is empty"):
        datasets.load_dataset("mnist", root=tmp_path)


def test_only_training_images_are_mirrored():
    plain, mirrored = (datasets.load_dataset("digits", binarize="none", flip=flip) for flip in (False, True))
    x, y = plain.train.batch(slice(0, 400)), mirrored.train.batch(slice(0, 400))
    same, flipped = (x == y).flatten(1).all(1), (x.flip(-1) == y).flatten(1).all(1)
    assert (same | flipped).all()
    assert abs((flipped & ~same).float().mean() - 0.5) < 5 * 0.5 / 20
    assert torch.equal(plain.test.batch(slice(None)), mirrored.test.batch(slice(None)))
    assert torch.equal(plain.validation.batch(slice(None)), mirrored.validation.batch(slice(None)))


def test_vectors_cannot_be_mirrored(tmp_path):
    np.save(tmp_path / "x.npy", RNG.random((20, 3)))
    with pytest.raises(ValueError, match="only images can be mirrored"):
        datasets.load_dataset(str(tmp_path / "x.npy"), flip=True)


class Files(BaseHTTPRequestHandler):
    content = gzip.compress(idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)), mtime=0)

    def do_GET(self):
        if "missing" in self.path:
            self.send_error(404)
            return
        if "away" in self.path:
            self.send_response(302)
            self.send_header("location", "file:///etc/hosts")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-length", str(len(self.content)))
        self.end_headers()
        if "slow" in self.path:
            for byte in self.content:
                with suppress(OSError):  # the client had enough
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            return
        self.wfile.write(self.content[: len(self.content) // 2 if "broken" in self.path else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def md5(content):
    import hashlib

    return hashlib.md5(content).hexdigest()


def test_a_missing_file_is_downloaded_once_checked_and_cached(server):
    source = IdxSource("mnist", server, {"images.gz": md5(Files.content)})
    seen = Recorded()
    path = source._path("images.gz", None, seen)
    done, total, text = seen.seen[-1]
    assert done == total == path.stat().st_size
    assert text == "downloading images.gz"
    assert path == download.cache("mnist") / "images.gz"
    assert read_idx(path).shape == (3, 2, 2)
    assert IdxSource("mnist", "http://nowhere.invalid/", source.checksums)._path("images.gz", None, SILENT) == path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests leaves its socket open
@pytest.mark.parametrize(
    ("file", "checksum", "error", "told"),
    [
        ("missing.gz", md5(Files.content), OSError, "the server answered 404"),
        ("broken.gz", md5(Files.content), OSError, "the connection broke off"),
        ("images.gz", md5(b"other"), ValueError, "does not have the checksum"),
        ("away.gz", md5(Files.content), OSError, "an address that is not on the web"),
        ("slow.gz", md5(Files.content), OSError, "too slow"),
    ],
)
def test_a_download_that_fails_is_told_and_leaves_nothing(server, monkeypatch, tmp_path, file, checksum, error, told):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    with pytest.raises(error, match=told) as caught:
        IdxSource("mnist", server, {file: checksum})._path(file, None, SILENT)
    assert re.search(r"put \S+ into \S+", str(caught.value)), "says how to mend it"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "not").exists(), "no folder above it either"
    del caught
    gc.collect()  # the socket goes here, where its warning is ignored, and not in whatever test comes next


def test_a_file_without_end_does_not_fill_the_disk(server, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 30)
    with pytest.raises(OSError, match="the server sends more than"):
        IdxSource("mnist", server, {"images.gz": md5(Files.content)})._path("images.gz", None, SILENT)
    assert not download.cache("mnist").exists()


def test_no_network_is_told_in_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="the server cannot be reached; put"):
        IdxSource("mnist", f"http://127.0.0.1:{port}/", {"a.gz": "0" * 32})._path("a.gz", None, SILENT)
    assert not list(download.cache("mnist").glob("*"))


@pytest.mark.parametrize("binarize", ["stochastic", "fixed", "threshold"])
def test_examples_binarised_some_at_a_time_are_those_of_all(binarize):
    x = torch.randint(0, 17, (1203, 1, 3, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(7))
    found = binarized(Split(x, levels=16), binarize, 7)
    assert torch.equal(found.x, (x.float() / 16 > (0.5 if binarize == "threshold" else noise)).to(torch.uint8))
    assert len(binarized(Split(x[:0], levels=16), binarize, 7)) == 0
