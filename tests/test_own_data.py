"""Data of one's own: splits that they have are kept, and nothing is converted without a word."""

import gzip
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import mixvae
from conftest import forge, refused
from mixvae import _resources, config, datasets, runs
from mixvae.cli import main
from mixvae.datasets import _columns, _sources

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
    with pytest.raises(ValueError, match="has folders test, train of a split, but also more"):
        load(tmp_path)


def test_16_bits_are_kept(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pictures(tmp_path, 20, lambda i: np.roll(ramp, i))
    x = load(tmp_path).train.batch(slice(0, 1)).flatten().sort().values
    np.testing.assert_allclose(x, np.sort(ramp.ravel()) / 65535, atol=1e-7)
    pictures(tmp_path / "b", 1)
    with pytest.raises(ValueError, match="00.png has 8 bits, .* more: save all images"):
        load(tmp_path)


def sixteen_bits(path, kind, channels):
    """A PNG of 16 bits per channel, which Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + RNG.integers(0, 2**16, 8 * channels).astype(">u2").tobytes() for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def of_frames(path):
    image = Image.fromarray(RNG.integers(0, 256, (8, 8), dtype=np.uint8))
    image.save(path, save_all=True, append_images=[image.rotate(90)])


def in_inks(path):
    Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8), "CMYK").save(path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        ("z.png", lambda path: sixteen_bits(path, 2, 3), "z.png has 16 bits per colour, .* cut to 8: save it with 8"),
        ("z.png", lambda path: sixteen_bits(path, 4, 2), "z.png has 16 bits per colour"),
        ("z.tif", of_frames, "z.tif holds 2 pictures, of which one .*: save each as a file of its own"),
        ("z.gif", of_frames, "z.gif holds 2 pictures"),
        ("z.tif", in_inks, "z.tif has colours in CMYK, .*: save it in RGB or grey"),
        ("z.jp2", lambda path: path.write_bytes(b"a"), r"holds z.jp2; pictures are read as .png, .*: convert it"),
        ("z.HEIC", lambda path: path.write_bytes(b"a"), "holds z.HEIC; pictures are read as"),
    ],
)
def test_pictures_that_would_lose_something_are_refused(tmp_path, name, write, told, stream):
    pictures(tmp_path, 20, lambda i: RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    write(tmp_path / name)
    with pytest.raises(ValueError, match=told):
        load(tmp_path, stream=stream)


def test_a_python_picture_may_be_one_frame_of_many(tmp_path):
    of_frames(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(1)
        assert datasets.as_dataset([image] * 20).shape == (1, 8, 8)


def test_16_grey_bits_with_a_transparent_shade_are_kept(tmp_path):
    ramp = np.linspace(0, 65000, 64).astype(np.uint16).reshape(8, 8)
    for shade, folder in ((65535, "kept"), (0, "seen_through")):
        pictures(tmp_path / folder, 20, lambda i: np.roll(ramp, i))
        for path in (tmp_path / folder).iterdir():
            with Image.open(path) as image:
                image.load()
            image.save(path, transparency=shade)
    assert len(load(tmp_path / "kept").train.batch(slice(0, 1)).unique()) == 64
    with pytest.raises(ValueError, match="png is partly transparent"):
        load(tmp_path / "seen_through")


def test_a_class_may_be_a_link_to_a_folder(tmp_path):
    pictures(tmp_path / "all" / "a", 12)
    pictures(tmp_path / "elsewhere", 12)
    (tmp_path / "all" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "b" / "back").symlink_to(tmp_path / "all")
    data = load(tmp_path / "all")
    assert sum(map(len, (data.train, data.validation, data.test))) == 24


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "column",
    [
        1_700_000_000 + np.arange(40),  # times in seconds
        2**40 + np.arange(40),
        1e6 + np.linspace(0, 1, 40),
        -1e6 + np.linspace(0, 1, 40),
    ],
)
def test_columns_that_float32_would_blur_are_refused(tmp_path, column, stream):
    np.save(tmp_path / "x.npy", np.stack([np.zeros(40), np.linspace(0, 1e9, 40), column], 1))
    with pytest.raises(ValueError, match=r"value 3 of .*x.npy .* float32 .*: subtract the mean of that column"):
        load(tmp_path / "x.npy", stream=stream)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_columns_that_float32_holds_well_enough_are_kept(tmp_path, dtype):
    columns = [np.full(40, 2**40 + 1), np.linspace(0, 1e9, 40), 300_000 + 1000 * RNG.normal(size=40), np.arange(40)]
    np.save(tmp_path / "x.npy", np.stack(columns, 1).astype(dtype))
    assert load(tmp_path / "x.npy").shape == load(tmp_path / "x.npy", stream=True).shape == (4,)


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
    with pytest.raises(ValueError, match=r"holds values from \d to 19\d; to binarise them"):
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


def test_a_column_of_classes_tells_that_a_line_is_of_headings(tmp_path):
    rows = [f"{'ab'[i % 2]},{i},{i + 0.5}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["label,0,1", *rows]))
    data = load(tmp_path / "t.csv")
    assert data.shape == (2,)
    assert sum(map(len, (data.train, data.validation, data.test))) == 30
    assert set(data.train.y.tolist()) == {0, 1}


def test_static_binary_images_in_text_are_read(tmp_path):
    x = RNG.integers(0, 2, (20, 784))
    np.savetxt(tmp_path / "binarized_mnist_train.amat", x, fmt="%d")
    data = load(tmp_path / "binarized_mnist_train.amat")
    assert data.shape == (784,)
    assert sorted(map(bytes, np.concatenate([data.train.x, data.validation.x, data.test.x]))) == sorted(
        map(bytes, x.astype(np.uint8))
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("x", "labels"), "holds labels, which is not read: classes of x are named y"),
        (("x", "y", "target"), "holds target, which is not read"),
        (("x", "y_train"), "holds y_train, which is not read"),
        (("x_train", "x_test", "y"), "holds y, which is not read: classes of x_train are named y_train"),
        (("x_train", "x_test", "labels_train"), "holds labels_train, which is not read"),
        (("x_train", "x_test", "x_dev"), "holds x_dev, which is not read"),
        (("x", "y", "class_names", "x_mean"), None),
    ],
)
def test_arrays_that_are_not_read_are_named(tmp_path, names, told):
    np.savez(tmp_path / "x.npz", **{name: np.arange(40) if name[0] != "x" else np.eye(40) for name in names})
    if told is None:
        assert len(load(tmp_path / "x.npz").train) == 32
        return
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "x.npz")
    if "x" in names:
        torch.save({name: torch.eye(40) for name in names}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=told):
            load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no examples"),
        ("a,b\n", "holds no examples"),
        ("1,2\n3\n", "line 2, has 1 values, the first line 2"),
        ("a,b\n1,red\n", "line 2, column b: 'red' is not a number; name a column of classes 'label'"),
        ("1,2\n3,x\n", "line 2, value 2: 'x' is not a number"),
        ("a,b\n1,\n", "line 2, column b, is empty: remove the example or impute the value"),
        ("1, \n", "line 1, value 2, is empty"),
        ("a,label,b\n,red,1\n", "line 2, column a, is empty"),
        ("a,label,b\n1,,1\n", "line 2, has no class: give every example one"),
        ("x,y,label\n1,2,red\n", "the columns y and label could each hold the classes: keep or rename all but one"),
        (",a,b\n0,1,2\n", r"column 1 has no name, .* index of a data frame: save it without, by to_csv\(index=False\)"),
        (",0,1\n0,5,6\n", "column 1 has no name"),
        ("0,1,2\n5,6,7\n", "the first line, 0, 1, 2, looks like numbers of columns: name them, such as x0, or leave"),
        ("1,2,3,4\n5,6,7,8\n", "the first line, 1, 2, 3, … looks like numbers of columns"),
        ("0.0,1.0,2.0\n5,6,7\n", "looks like numbers of columns"),
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
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz belongs to fashion_mnist, not to mnist"):
        datasets.load_dataset("mnist", root=tmp_path)
    idx(tmp_path / "train-images-idx3-ubyte.gz", RNG.integers(0, 256, (12, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz belongs to fashion_mnist, not to mnist"):
        datasets.load_dataset("mnist", root=tmp_path)
    monkeypatch.setattr(_sources, "WHOLE", 12)
    with pytest.raises(ValueError, match="does not hold the values of fashion_mnist"):
        datasets.load_dataset("fashion_mnist", root=tmp_path)


def test_a_cifar_folder_with_a_missing_batch_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / f"{name}.bin").write_bytes(bytes(3073 * 5))
    with pytest.raises(ValueError, match="lacks data_batch_3.bin"):
        datasets.load_dataset("cifar10", root=tmp_path, binarize="none")


def test_examples_of_one_file_are_whole_and_in_order(tmp_path):
    x = RNG.integers(0, 256, (7, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(7) % 2)
    examples = datasets.load_examples(tmp_path / "x.npz")
    np.testing.assert_array_equal(examples.x[:, 0], x)
    assert examples.y.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert not examples.resample


@pytest.mark.parametrize("binarize", ["stochastic", "fixed", "threshold"])
def test_new_examples_are_binarised_as_test_examples_are(tmp_path, binarize):
    for part, n in (("train", 20), ("test", 9)):
        np.save(tmp_path / f"{part}.npy", RNG.integers(0, 256, (n, 4, 4), dtype=np.uint8))
    train, test = tmp_path / "train.npy", tmp_path / "test.npy"
    data = datasets.load_dataset(train=train, test=test, binarize=binarize, seed=3)
    assert torch.equal(datasets.load_examples(test, binarize=binarize, seed=3).x, data.test.x)


def test_examples_that_are_divided_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=np.zeros((20, 4)), x_test=np.zeros((5, 4)))
    with pytest.raises(ValueError, match="x.npz is divided into x_train, x_test: save one, such as x_test, as .npy"):
        datasets.load_examples(tmp_path / "x.npz")
    for part in ("train", "Test"):
        pictures(tmp_path / "folder" / part, 2)
    with pytest.raises(ValueError, match="name one of them, such as .*/folder/Test"):
        datasets.load_examples(tmp_path / "folder")
    assert len(datasets.load_examples(tmp_path / "folder" / "Test")) == 2
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*/gone.npy"):
        datasets.load_examples(tmp_path / "gone.npy")
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    with pytest.raises(ValueError, match="none.npy holds no examples"):
        datasets.load_examples(tmp_path / "none.npy")
    np.save(tmp_path / "bad.npy", np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match="bad.npy holds 12 values that are NaN"):
        datasets.load_examples(tmp_path / "bad.npy")


@pytest.mark.parametrize("validation", [True, False])
def test_every_part_may_have_a_file_of_its_own_format(tmp_path, monkeypatch, validation):
    x = {part: RNG.normal(size=(n, 2)).round(3) for part, n in (("train", 20), ("validation", 3), ("test", 4))}
    kinds = {part: np.array(["cat", "dog", "ant"])[np.arange(len(v)) % (3 if part == "test" else 2)]
             for part, v in x.items()}  # fmt: skip
    rows = {part: [f"{a},{k},{b}" for (a, b), k in zip(x[part], kinds[part], strict=True)] for part in x}
    (tmp_path / "train.csv").write_text("\n".join(["a,class,b", *rows["train"]]))
    np.savez(tmp_path / "v.npz", x=x["validation"], y=kinds["validation"])
    (tmp_path / "t.tsv").write_text("\n".join(["a,class,b", *rows["test"]]).replace(",", "\t"))
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"validation": tmp_path / "v.npz"} if validation else {}
    data = datasets.load_dataset(train="~/train.csv", test="~/t.tsv", binarize="none", **given)
    assert (len(data.train), len(data.validation), len(data.test)) == ((20, 3, 4) if validation else (18, 2, 4))
    np.testing.assert_allclose(data.test.x, x["test"], rtol=1e-6)
    assert data.test.y.tolist() == [1, 2, 0, 1], "classes in alphabetical order, over all parts"
    assert data.origin["train"] == str(tmp_path / "train.csv")
    assert data.name == "train"
    whole = np.concatenate([data.train.x, data.validation.x] if not validation else [data.train.x])
    assert sorted(map(tuple, whole)) == sorted(map(tuple, x["train"].astype(np.float32)))
    if not validation:
        assert data.sha256() != datasets.load_dataset(**dict(data.origin) | {"seed": 1}).sha256()
    assert data.sha256() == datasets.load_dataset(**data.origin).sha256()


def test_parts_in_several_files_that_do_not_fit_are_refused(tmp_path):
    np.save(tmp_path / "bytes.npy", RNG.integers(0, 256, (20, 4, 4), dtype=np.uint8))
    np.save(tmp_path / "real.npy", RNG.random((20, 4, 4)))
    np.save(tmp_path / "wide.npy", RNG.random((20, 5, 4)))
    np.savez(tmp_path / "two.npz", x_train=np.zeros((20, 4, 4)), x_test=np.zeros((20, 4, 4)))
    for y, name in ((np.arange(20), "n.npz"), (np.array(list("abcde") * 4), "t.npz")):
        np.savez(tmp_path / name, x=RNG.random((20, 4, 4)), y=y)
    for options, told in (
        ({"train": "bytes.npy", "test": "real.npy"}, "hold pixels of different kinds, .* save all of them as one kind"),
        ({"train": "real.npy", "test": "wide.npy"}, "examples of different shapes"),
        ({"train": "real.npy", "test": "two.npz"}, "two.npz is divided into x_train, x_test"),
        ({"train": "n.npz", "test": "t.npz"}, "are numbers in one part and text in another"),
        ({"train": "real.npy", "test": "n.npz"}, "have classes and others none"),
        ({"train": "real.npy"}, "train without test: give train and test"),
        ({"test": "real.npy", "validation": "real.npy"}, "validation and test without train"),
        ({"train": "real.npy", "test": "gone.npy"}, "there is no file or folder .*gone.npy"),
    ):
        with pytest.raises(ValueError, match=told):
            datasets.load_dataset(**{part: tmp_path / file for part, file in options.items()}, binarize="none")
    with pytest.raises(ValueError, match=r"by name \(digits\) or as train, test: leave one of the two out"):
        datasets.load_dataset("digits", train=tmp_path / "real.npy", test=tmp_path / "real.npy")
    with pytest.raises(ValueError, match="name a data set, a file or a folder, or give train and test"):
        datasets.load_dataset()


def test_16_bits_beside_8_in_another_part_are_refused(tmp_path):
    pictures(tmp_path / "train", 12)
    pictures(tmp_path / "test", 3, lambda i: np.full((8, 8), 60_000, np.uint16))
    with pytest.raises(ValueError, match="pixels of different kinds, {'train': 'whole numbers', 'test': 'real numb"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "amat"])
def test_gzipped_text_is_read_like_plain_text(tmp_path, suffix):
    x = RNG.integers(0, 9, (20, 3))
    text = "\n".join({"csv": ",", "tsv": "\t"}.get(suffix, " ").join(map(str, row)) for row in x)
    (tmp_path / f"t.{suffix}").write_text(text)
    (tmp_path / f"t.{suffix.upper()}.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (datasets.load_examples(tmp_path / name) for name in (f"t.{suffix}", f"t.{suffix.upper()}.gz"))
    np.testing.assert_array_equal(plain.x, x)
    assert torch.equal(plain.x, packed.x)


def test_gzipped_text_without_end_is_refused(tmp_path, monkeypatch):
    for limit, told in (
        ("LONGEST_LINE", "t.csv.gz has a line of more than 1,000 char"),
        ("LARGEST_TABLE", "GiB of tex"),
    ):
        text = ("1," * 10**5 if limit == "LONGEST_LINE" else "1\n" * 10**5).encode()
        (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
        with monkeypatch.context() as patch:
            patch.setattr(_columns, limit, 1000)
            with pytest.raises(ValueError, match=told):
                datasets.load_examples(tmp_path / "t.csv.gz")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 100)[:-9])
    with pytest.raises(ValueError, match="truncated or damaged gzip file"):
        datasets.load_examples(tmp_path / "t.csv.gz")
    (tmp_path / "t.csv").write_bytes(b"1,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        datasets.load_examples(tmp_path / "t.csv")


def test_parquet_needs_its_extra_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ImportError, match=r"need pyarrow: pip install 'mixvae\[tables\]'"):
        datasets.load_examples(tmp_path / "t.parquet")


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(**columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    return write


def test_parquet_columns_are_numbers_vectors_and_classes(parquet):
    import pyarrow

    x, v = RNG.normal(size=(12, 2)), RNG.normal(size=(12, 6))
    kinds = np.array(["ant", "bee", "ant"] * 4)
    flat = pyarrow.array(v[:, :2].ravel())
    path = parquet(
        a=x[:, 0], n=np.arange(12), on=np.arange(12) % 2 == 0, label=kinds, b=x[:, 1],
        __index_level_0__=np.arange(12) + 99,
        fixed=pyarrow.FixedSizeListArray.from_arrays(flat, 2), lists=v[:, 2:4].tolist(),
        nested=v[:, 4:].reshape(12, 2, 1).tolist(),
    )  # fmt: skip
    examples = datasets.load_examples(path)
    rows = np.column_stack([x[:, 0], np.arange(12), np.arange(12) % 2 == 0, x[:, 1], v])
    np.testing.assert_allclose(examples.x, rows, rtol=1e-6)
    assert examples.y.tolist() == (kinds == "bee").tolist()
    path = parquet(y=pyarrow.array(["b", "a"] * 6).dictionary_encode(), a=x[:, 0])
    assert datasets.load_examples(path).y.tolist() == [1, 0] * 6


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"a": ["x", "y"]}, r"column 'a', holds string, not numbers; name a column of classes 'label'"),
        ({"a": [[1.0], [1.0, 2.0]]}, "column 'a', holds lists of different lengths"),
        ({"a": [[1.0, 2.0], [3.0], [1.0, 2.0, 4.0]]}, "column 'a', holds lists of different lengths"),
        ({"a": [[1.0], None]}, "column 'a', holds lists of different lengths"),
        ({"a": [1.0, None]}, "t.parquet holds 1 values that are NaN"),
        ({"a": [1.0, 2.0], "y": ["u", None]}, "lacks the class of 1 examples"),
        ({"y": ["u", "v"]}, "holds no examples"),
        ({"a": np.zeros(0)}, "holds no examples"),
    ],
)
def test_parquet_that_holds_no_examples_is_refused(parquet, columns, told):
    with pytest.raises(ValueError, match=told):
        datasets.load_examples(parquet(**columns))


def test_damaged_and_too_large_parquet_is_refused(parquet, monkeypatch):
    path = parquet(a=np.zeros(10**6))
    assert path.stat().st_size < 10**5
    with monkeypatch.context() as patch:
        patch.setattr(_resources, "memory", lambda: 10**6)
        with pytest.raises(ValueError, match="t.parquet, unpacked, needs at least 0.01 GiB"):
            datasets.load_examples(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="t.parquet is a truncated or damaged Parquet file"):
        datasets.load_examples(path)


@pytest.mark.parametrize("packed", [True, False])
def test_matlab_variables_are_found_by_name_or_alone(tmp_path, packed):
    x, y, path = RNG.normal(size=(20, 3)), np.arange(20) % 3 + 1, tmp_path / "t.mat"
    note = np.array([["text"]], object)
    for content in (
        {"spectra": x}, {"data": x, "other": x[:4], "note": note}, {"X": x, "note": "text"},
        {"m": x, "labels": y[:, None]},
    ):  # fmt: skip
        savemat(path, content, do_compression=packed)
        examples = datasets.load_examples(path)
        np.testing.assert_allclose(examples.x, x, rtol=1e-6)
        assert (None if examples.y is None else examples.y.tolist()) == (
            (y - 1).tolist() if "labels" in content else None
        )
    savemat(path, {"a": x, "b": x})
    with pytest.raises(ValueError, match=r"must hold the examples under the name x; it holds \['a', 'b'\]"):
        datasets.load_examples(path)


def test_matlab_bombs_and_other_versions_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.mat"
    savemat(path, {"x": np.zeros((1000, 1000))}, do_compression=True)
    assert path.stat().st_size < 10**5
    with monkeypatch.context() as patch:
        patch.setattr(_resources, "memory", lambda: 10**6)
        with pytest.raises(ValueError, match="t.mat, unpacked, needs at least 0.00 GiB of memory"):
            datasets.load_examples(path)
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    with pytest.raises(ValueError, match=f"t.mat is not a MATLAB file, .*: it ends after {len(content) - 50} of"):
        datasets.load_examples(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"is of MATLAB's version 7.3 \(HDF5\): save it with -v7"):
        datasets.load_examples(path)
    for wrong in (b"", b"nonsense" * 40, content[:128]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match="t.mat (is not a MATLAB file|must hold the examples)"):
            datasets.load_examples(path)


def test_a_matlab_tag_that_lies_is_refused(tmp_path, monkeypatch):
    """A matrix of one number whose compressed element unpacks to 4 MiB."""
    import zlib

    savemat(tmp_path / "t.mat", {"x": np.ones((1, 1))})
    content = bytearray((tmp_path / "t.mat").read_bytes())
    inner = zlib.compress(struct.pack("<II", 14, 2**22) + bytes(2**22))
    (tmp_path / "t.mat").write_bytes(bytes(content[:128]) + struct.pack("<II", 15, len(inner)) + inner)
    monkeypatch.setattr(_resources, "memory", lambda: 2**20)
    with pytest.raises(ValueError, match="t.mat, unpacked, needs at least 0.00 GiB of memory"):
        datasets.load_examples(tmp_path / "t.mat")


def triangle(values, new):
    """The resizing of one axis, by the formula of load_dataset."""
    old, s = len(values), len(values) / new
    weights = np.array(
        [[max(0, 1 - abs((j + 0.5) - (i + 0.5) * s) / max(1, s)) for j in range(old)] for i in range(new)]
    )
    return weights @ values / weights.sum(1, keepdims=True)


def test_images_of_several_sizes_need_a_size(tmp_path):
    sizes = [(8, 8), (10, 6), (3, 12), (5, 5)]
    originals = [RNG.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    for i, image in enumerate(originals):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_bytes(b"what a Mac leaves")
    (tmp_path / ".DS_Store").write_bytes(b"what a Mac leaves")
    with pytest.raises(ValueError, match="0.png is 8×8 pixels, 1.png is 6×10: scale them with --data.resize=8"):
        datasets.load_examples(tmp_path)
    examples = datasets.load_examples(tmp_path, resize=[5, 4])
    assert (examples.shape, examples.x.dtype, examples.levels) == ((1, 5, 4), torch.uint8, 255)
    for image, scaled in zip(originals, examples.x, strict=True):
        exact = triangle(triangle(image.T.astype(float), 4).T, 5)
        np.testing.assert_allclose(scaled[0], exact, atol=1.01)  # rounded along each axis


@pytest.mark.parametrize("kind", ["16 bits", "real", "binary"])
def test_images_that_are_not_8_bits_are_resized_as_real_numbers(tmp_path, kind):
    shape = (4, 2, 9, 6) if kind == "real" else (4, 1, 9, 6)
    if kind == "16 bits":
        original = RNG.integers(0, 2**16, shape, dtype=np.uint16)
        pictures(tmp_path / "x", 4, lambda i: original[i, 0])
        path, original = tmp_path / "x", original / 65535
    else:
        original = RNG.normal(size=shape) if kind == "real" else RNG.integers(0, 2, shape)
        path = tmp_path / "x.npy"
        np.save(path, original)
    examples = datasets.load_examples(path, resize=[3, 12])
    for image, scaled in zip(original, examples.batch(slice(None)), strict=True):
        exact = [triangle(triangle(plane.T.astype(float), 12).T, 3) for plane in image]
        np.testing.assert_allclose(scaled, exact, atol=1e-6)
    assert torch.equal(datasets.load_examples(path, resize=[9, 6]).x, datasets.load_examples(path).x)


@pytest.mark.parametrize("size", [0, -3, [4], [4, 0], [2, 3, 4], [2.5, 3], True])
def test_sizes_that_are_none_are_told(size):
    with pytest.raises(ValueError, match=r"resize must be one number of pixels, or \[height, width\]"):
        datasets.load_dataset("digits", resize=size)


def test_vectors_cannot_be_resized(tmp_path):
    np.save(tmp_path / "x.npy", RNG.random((20, 3)))
    with pytest.raises(ValueError, match=r"only images can be resized; .* has examples of shape \(3,\)"):
        load(tmp_path / "x.npy", resize=4)
    np.save(tmp_path / "x.npy", RNG.random((20, 3, 3)))
    with pytest.raises(ValueError, match="resized to .* needs at least"):
        load(tmp_path / "x.npy", resize=10**6)


TINY = ["--model.latent=2", "--training.epochs=1", "--training.warmup=0", "--model.encoder={class_path: GatedEncoder, "
        "hidden: [3]}", "--model.decoder={class_path: MLPDecoder, hidden: [3]}"]  # fmt: skip


@pytest.fixture
def two_files(tmp_path):
    """Training and test examples in files of their own."""
    (tmp_path / "data").mkdir()
    for part, n in (("train", 40), ("test", 10)):
        np.save(tmp_path / "data" / f"{part}.npy", RNG.random((n, 6)).astype("f4"))
    return tmp_path / "data"


def train_on(folder, out, *words):
    files = [f"--data.{part}={folder / part}.npy" for part in ("train", "test")]
    main(["train", "tabular", *files, "--out", str(out), *TINY, *words])
    return runs.open_run(out)


def test_a_run_of_two_files_is_found_again_after_both_moved(tmp_path, two_files, monkeypatch):
    monkeypatch.chdir(two_files.parent)
    run = train_on(Path("data"), "there/run")
    written = config.read("there/run/config.yaml").data
    assert (written.train, written.name, written.binarize) == (str(two_files / "train.npy"), "files", "none")
    expected = run.data.sha256()
    run.evaluate(10)
    (tmp_path / "moved").mkdir()
    two_files.rename(tmp_path / "moved" / "data")
    (tmp_path / "there").rename(tmp_path / "moved" / "there")
    again = runs.open_run(tmp_path / "moved" / "there" / "run")
    assert again.data.sha256() == expected
    assert again.data_config.test == str(tmp_path / "moved" / "data" / "test.npy")
    monkeypatch.chdir(tmp_path / "moved")
    main(["train", "--resume", "there/run", "--training.epochs=2"])
    (tmp_path / "moved" / "data").rename(tmp_path / "far")
    with pytest.raises(ValueError, match="are no longer at .*train.npy: say where they are with --data.name"):
        _ = runs.open_run("there/run").data
    assert runs.open_run("there/run", data=tmp_path / "far").data.sha256() == expected
    with pytest.raises(
        ValueError, match="was trained on train.npy, test.npy, and .*there holds no train.npy: name the"
    ):
        _ = runs.open_run("there/run", data="there").data
    main(["train", "--resume", "there/run", "--training.epochs=3", f"--data.name={tmp_path / 'far'}"])
    assert runs.open_run("there/run").data_config.train == str(tmp_path / "far" / "train.npy")
    with pytest.raises(ValueError, match=r"data.name is .*far and data.train is given too: leave one of them out"):
        config.DataConfig(name=str(tmp_path / "far"), train=str(tmp_path / "far" / "train.npy"))


@pytest.mark.parametrize("option", ["--data.root", "--data-root", "--data.name"])
def test_a_run_is_told_the_new_folder_of_a_known_data_set(tmp_path, monkeypatch, option):
    """A folder was taken for a data set of its own."""
    from dataclasses import replace

    monkeypatch.setitem(datasets.SOURCES, "mnist", replace(datasets.SOURCES["mnist"], url="", contents=()))
    arrays = [RNG.integers(0, 256, (24, 4, 4), dtype=np.uint8), np.arange(24, dtype=np.uint8) % 10] * 2
    (tmp_path / "old").mkdir()
    for name, array in zip(datasets.SOURCES["mnist"].checksums, arrays, strict=True):
        idx(tmp_path / "old" / name, array)
    words = ["train", "vanilla", "--data.name=mnist", f"--data.root={tmp_path / 'old'}", f"--out={tmp_path / 'run'}"]
    main([*words, *TINY])
    (tmp_path / "old").rename(tmp_path / "new")
    main(["evaluate", str(tmp_path / "run"), "--total-draws=4", f"{option}={tmp_path / 'new'}"])
    assert runs.evaluation_of(tmp_path / "run")["examples"] == 24


def test_a_run_of_files_that_changed_is_refused(tmp_path, two_files):
    run = train_on(two_files, tmp_path / "run")
    np.save(two_files / "test.npy", RNG.random((10, 6)).astype("f4"))
    with pytest.raises(ValueError, match="the data of .* are not those that it was trained on"):
        _ = runs.open_run(run.path).data


def test_a_record_of_odd_paths_is_no_traceback(tmp_path, two_files):
    run = train_on(two_files, tmp_path / "run")
    for odd in ([1], {"train": 3}, "text"):
        forge(run.path / "run.json", lambda content, odd=odd: content["runtime"]["data"].update(relatives=odd))
        with pytest.raises(ValueError, match=r"run.json is damaged: it.runtime.data.relatives"):
            _ = runs.open_run(run.path).data


def test_grey_values_are_kept_for_a_likelihood_of_them(tmp_path, capsys):
    main(
        [
            "train",
            "digits",
            "--data.limit=20",
            "--model.likelihood=GaussianLikelihood",
            "--out",
            str(tmp_path / "r"),
            *TINY,
        ]
    )
    run = runs.open_run(tmp_path / "r")
    assert run.config.data.binarize == "none"
    assert len(run.data.test.batch(slice(None)).unique()) == 17
    assert "binaris" not in capsys.readouterr().err
    main(["train", "digits", "--data.limit=20", "--out", str(tmp_path / "b"), *TINY])
    told = "binarising the grey values of digits at every step (data.binarize stochastic)"
    assert capsys.readouterr().err.count(told) == 1
    np.save(tmp_path / "x.npy", RNG.integers(0, 2, (20, 3, 3)))
    main(["train", "digits", f"--data.name={tmp_path / 'x.npy'}", "--out", str(tmp_path / "c"), *TINY])
    assert "binaris" not in capsys.readouterr().err, "they are binary already"


@pytest.mark.parametrize("binarize", ["stochastic", "fixed", "threshold"])
@pytest.mark.parametrize(
    ("likelihood", "decoder"),
    [
        ("GaussianLikelihood", "MLPDecoder"),
        ("ContinuousBernoulli", "MLPDecoder"),
        ("LogisticMixture", "PixelCNNDecoder"),
    ],
)
def test_a_grey_likelihood_of_binarised_data_is_refused(tmp_path, capsys, binarize, likelihood, decoder):
    words = [f"--data.binarize={binarize}", f"--model.likelihood={likelihood}", "--out", tmp_path / "r"]
    kind = [f"--model.decoder={decoder}"] if decoder != "MLPDecoder" else []
    told = refused(capsys, "train", "digits", "--data.limit=20", *TINY, *kind, *words)
    assert "describes grey values: keep them with binarize none, or choose Bernoulli" in told
    assert likelihood.removesuffix("Likelihood") in told.replace("Normal", "Gaussian")
    assert not (tmp_path / "r").exists()


def test_a_python_model_of_grey_values_refuses_binarised_ones():
    data = datasets.load_dataset("digits", limit=20)
    decoder = mixvae.MLPDecoder(2, data.shape, (3,), likelihood=mixvae.decoders.GaussianLikelihood(data.shape))
    posterior = mixvae.SeparateEncoders(lambda: mixvae.networks.GatedEncoder(data.shape, 2, (3,)), 1)
    model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(2), decoder)
    with pytest.raises(ValueError, match="the data are binarised, but the likelihood, Normal, describes grey values"):
        mixvae.fit(model, data, epochs=1)


def test_a_name_beside_files_is_refused(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((20, 3)))
    flags = [f"--data.train={tmp_path}/a.npy", f"--data.test={tmp_path}/a.npy"]
    with pytest.raises(ValueError, match="--data.name and --data.test are both given: leave one of them out"):
        config.read("digits", ["--data.name=mnist", *flags])
    (tmp_path / "own.yaml").write_text(f"data: {{name: mnist, train: {tmp_path}/a.npy, test: {tmp_path}/a.npy}}")
    with pytest.raises(ValueError, match="data.name and data.train are both given: leave one of them out"):
        config.read(tmp_path / "own.yaml")
    assert config.read("digits", flags).data.train == f"{tmp_path}/a.npy", "a preset's data set gives way"
