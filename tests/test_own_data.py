"""Data of one's own: splits that they have are kept, and nothing is converted without a word."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from mixvae import datasets

RNG = np.random.default_rng(0)


def load(path, **options):
    return datasets.load_dataset(str(path), **({"binarize": "none"} | options))


def pictures(folder, n, make=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        made = RNG.integers(0, 256, (8, 8), dtype=np.uint8) if make is None else make(i)
        (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(folder / f"{i:02}.png")


@pytest.mark.parametrize("validation", ["validation", "valid", "val", None])
def test_an_archive_keeps_the_split_that_it_has(tmp_path, validation):
    parts = {"train": 40, "test": 12} | ({validation: 5} if validation else {})
    arrays = {f"x_{name}": RNG.integers(2, 256, (n, 4, 4), dtype=np.uint8) for name, n in parts.items()}
    labels = {f"y_{name}": np.array(list("cab"))[np.arange(n) % 3] for name, n in parts.items()}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    data = load(tmp_path / "x.npz")
    assert (len(data.train), len(data.validation), len(data.test)) == ((40, 5, 12) if validation else (36, 4, 12))
    np.testing.assert_array_equal(data.test.x[:, 0], arrays["x_test"])
    assert data.test.y[:4].tolist() == [2, 0, 1, 2], "classes in alphabetical order, over all parts"
    if validation:
        np.testing.assert_array_equal(data.validation.x[:, 0], arrays[f"x_{validation}"])
    else:
        both = np.concatenate([data.train.x[:, 0], data.validation.x[:, 0]])
        assert sorted(map(bytes, both)) == sorted(map(bytes, arrays["x_train"]))
        assert load(tmp_path / "x.npz", seed=1).sha256() != data.sha256()


def test_parts_of_an_archive_that_do_not_fit_are_refused(tmp_path):
    for arrays, told in (
        ({"x_train": np.zeros((20, 4))}, "has parts train but no test"),
        ({"x_train": np.zeros((20, 4)), "x_test": np.zeros((5, 3))}, "examples of different shapes"),
        ({"x_train": np.zeros((20, 4)), "x_test": np.zeros((5, 4)), "y_train": np.zeros(20)}, "and others none"),
        ({"images": np.zeros((20, 4))}, "under the name x; it holds images|must hold the examples under the name x"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=told):
            load(tmp_path / "x.npz")


def test_folders_of_a_split_are_its_parts_and_not_classes(tmp_path):
    for part, n in (("train", 10), ("test", 4)):
        for kind in ("cat", "dog"):
            pictures(tmp_path / part / kind, n)
    (tmp_path / "train" / "cat" / "._00.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    data = load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 8)
    assert data.test.y.tolist() == [0] * 4 + [1] * 4
    assert set(data.train.y.tolist()) == {0, 1}
    pictures(tmp_path / "more", 3)
    with pytest.raises(ValueError, match="has folders test, train of a split, and more besides"):
        load(tmp_path)


def test_16_bits_are_kept(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pictures(tmp_path, 20, lambda i: np.roll(ramp, i))
    x = load(tmp_path).train.batch(slice(0, 1)).flatten().sort().values
    np.testing.assert_allclose(x, np.sort(ramp.ravel()) / 65535, atol=1e-7)
    pictures(tmp_path / "b", 1)
    with pytest.raises(ValueError, match="00.png has 8 bits, .* more: save all images"):
        load(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_refused_and_an_opaque_alpha_dropped(tmp_path, mode):
    def picture(alpha):
        grey = Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8))
        if mode == "P":
            made = grey.convert("P")
            made.info["transparency"] = bytes([alpha] * 256)
            return made
        made = grey.convert(mode)
        made.putalpha(alpha)
        return made

    pictures(tmp_path / "opaque", 20, lambda i: picture(255))
    assert load(tmp_path / "opaque").shape == ((1, 8, 8) if mode == "LA" else (3, 8, 8))
    pictures(tmp_path / "seen_through", 20, lambda i: picture(100))
    with pytest.raises(ValueError, match="00.png is partly transparent: paste it onto a background first"):
        load(tmp_path / "seen_through")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_a_tables_values_do_not_depend_on_their_type(tmp_path, dtype):
    x = RNG.integers(0, 200, (40, 3))
    np.save(tmp_path / "x.npy", x.astype(dtype))
    whole = load(tmp_path / "x.npy")
    values = np.concatenate([part.batch(slice(None)) for part in (whole.train, whole.validation, whole.test)])
    assert sorted(map(tuple, values)) == sorted(map(tuple, x.astype(float)))
    with pytest.raises(ValueError, match="holds values from 0 to 19.; to binarise them"):
        load(tmp_path / "x.npy", binarize="stochastic")


def test_tables_in_text_are_read_with_headings_and_classes(tmp_path):
    x = RNG.normal(size=(30, 3)).round(3)
    kinds = np.array(["ant", "bee"])[np.arange(30) % 2]
    lines = [f"{a},{kind},{b},{c}" for (a, b, c), kind in zip(x, kinds, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["width,Class,height,depth", *lines, ""]))
    data = load(tmp_path / "t.csv")
    again = np.concatenate([data.train.x, data.validation.x, data.test.x])
    labels = np.concatenate([data.train.y, data.validation.y, data.test.y])
    expected = {tuple(row): kind == "bee" for row, kind in zip(x.astype(np.float32), kinds, strict=True)}
    assert {tuple(row): bool(label) for row, label in zip(again, labels, strict=True)} == expected


def test_static_binary_images_in_text_are_read(tmp_path):
    x = RNG.integers(0, 2, (20, 784))
    np.savetxt(tmp_path / "binarized_mnist_train.amat", x, fmt="%d")
    data = load(tmp_path / "binarized_mnist_train.amat")
    assert data.shape == (784,)
    assert sorted(map(bytes, np.concatenate([data.train.x, data.validation.x, data.test.x]))) == sorted(
        map(bytes, x.astype(np.uint8))
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no examples"),
        ("a,b\n", "holds no examples"),
        ("1,2\n3\n", "line 2, has 1 values, the first line 2"),
        ("a,b\n1,red\n", "line 2, column b: 'red' is no number; name a column of classes 'label'"),
        ("1,2\n3,x\n", "line 2, value 2: 'x' is no number"),
    ],
)
def test_a_table_that_is_none_is_told_by_its_line(tmp_path, text, told):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "t.csv")


def idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def test_files_of_another_data_set_are_refused(tmp_path, monkeypatch):
    import hashlib
    from dataclasses import replace

    arrays = [RNG.integers(0, 256, (12, 4, 4), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 10] * 2
    digests = tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)
    monkeypatch.setitem(datasets.SOURCES, "fashion_mnist", replace(datasets.SOURCES["fashion_mnist"], contents=digests))
    for name, array in zip(datasets.SOURCES["mnist"].checksums, arrays, strict=True):
        idx(tmp_path / name, array)
    assert len(datasets.load_dataset("fashion_mnist", root=tmp_path).test) == 12
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is of fashion_mnist, not of mnist"):
        datasets.load_dataset("mnist", root=tmp_path)
    idx(tmp_path / "train-images-idx3-ubyte.gz", RNG.integers(0, 256, (12, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz is of fashion_mnist, not of mnist"):
        datasets.load_dataset("mnist", root=tmp_path)
    monkeypatch.setattr(datasets, "WHOLE", 12)
    with pytest.raises(ValueError, match="does not hold the values of fashion_mnist"):
        datasets.load_dataset("fashion_mnist", root=tmp_path)


def test_a_cifar_folder_with_a_missing_batch_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / f"{name}.bin").write_bytes(bytes(3073 * 5))
    with pytest.raises(ValueError, match="lacks data_batch_3.bin"):
        datasets.load_dataset("cifar10", root=tmp_path, binarize="none")
