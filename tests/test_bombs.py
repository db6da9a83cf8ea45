"""Files that are small and unpack to more than there is, that lie about their size, or that nest without end."""

import functools
import gzip
import io
import json
import os
import shutil
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from conftest import refused
from mixvae import _resources as resources
from mixvae import config, datasets, runs, sweeps
from mixvae._arrays import map_npy, read_npz
from mixvae.cli import main
from mixvae.config import _bounded as bounded
from mixvae.datasets import _formats as formats
from mixvae.datasets import _pictures as pictures
from mixvae.datasets import as_split
from mixvae.datasets._formats import read_array, read_cifar, read_idx
from mixvae.datasets._pictures import read_images
from mixvae.files import canonical, checksum, read_json

DEEP = "[" * 3000 + "]" * 3000
GIB = 2**30


def laughs(height=10, width=9):
    """A YAML text whose aliases stand for width**height values."""
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, height)]
    return "model: {decoder: {class_path: MLPDecoder, hidden: {" + ", ".join(lines) + "}}}\n"


BOMBS = {
    "deep": (f"model: {{encoder: {DEEP}}}\n", "nested more than 50 levels deep"),
    "deep in anchors": (
        "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 100)),
        "nested more than 50 levels deep",
    ),
    "laughs": (laughs(), "more than 20,000 values, aliases written out"),
    "endless": ("model: {decoder: &a {class_path: MLPDecoder, hidden: [*a]}}\n", r"the alias \*a is part of"),
    "merged": ("x0: &x0 {a: 1}\n" + "".join(
        f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}]}}\n" for i in range(1, 10)), "more than 20,000 values"),
    "many": ("model: {weights: [" + "1," * 30_000 + "]}\n", "more than 20,000 values"),
    "large": ("# " + "x" * 2**21 + "\n", "larger than 1 MiB"),
    "long": ("model: {encoder: " + "x" * 5000 + "}\n", "more than 4,096 characters"),
    "month": ("model: {latent: 2001-13-45}\n", "is not a YAML file: month must be"),
    "unknown alias": ("model: {latent: *a}\n", "is not a YAML file"),
    "open": ("model: {latent: [\n", "is not a YAML file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_yaml_bomb_is_one_line_wherever_it_stands(tmp_path, capsys, kind):
    content, told = BOMBS[kind]
    path = tmp_path / "c.yaml"
    path.write_text(content)
    started = time.monotonic()
    for read in (config.read_yaml, config.check_file, config.read, sweeps.read_grid):
        with pytest.raises(ValueError, match=told) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    for words in (["train", path], ["train", "--config", path], ["sweep", path]):
        assert len(refused(capsys, *words)) < 400
    assert time.monotonic() - started < 10
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["model.encoder", "model", "config", "seed", "training.optimizer", "model.weights"])
def test_a_flag_that_nests_without_end_is_one_line(capsys, flag):
    assert "nested more than 50 levels deep" in refused(capsys, "train", "digits", f"--{flag}={DEEP}")
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        config.read("digits", [f"--{flag}={DEEP}"])


def test_aliases_of_a_usual_size_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: {encoder: {class_path: GatedEncoder, hidden: &h [7, 8]}, "
        "decoder: {class_path: MLPDecoder, hidden: *h}}\n"
    )
    model = config.read(tmp_path / "c.yaml").model
    assert model.encoder["hidden"] == model.decoder["hidden"] == [7, 8]


def test_bounds_count_what_yaml_makes():
    """The count of events is the number of nodes that writing the value out has."""

    def nodes(value):
        parts = [*value.values(), *value] if isinstance(value, dict) else value if isinstance(value, list) else []
        return 1 + sum(map(nodes, parts))

    text = "a: &a [1, {b: &b [2, 3]}, *b]\nc: [*a, *a]\n"
    whole = nodes(yaml.safe_load(text))
    for most, fits in ((whole, True), (whole - 1, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bounded, "MOST", most)
            if fits:
                config.load_yaml(text)
            else:
                with pytest.raises(ValueError, match="aliases written out"):
                    config.load_yaml(text)


def test_nested_and_config_flag_files_are_checked_as_well(tmp_path, capsys, monkeypatch):
    """`--config FILE` was read without looking whose classes it names; a group was read from whatever file it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text("model: {encoder: {class_path: os.system, command: touch pwned}}\n")
    (tmp_path / "model.yaml").write_text("encoder: {class_path: os.system, command: touch pwned}\n")
    (tmp_path / "outer.yaml").write_text("model: model.yaml\n")
    assert "names os.system as model.encoder" in refused(capsys, "train", "--config", "evil.yaml")
    assert "names os.system as model.encoder" in refused(capsys, "train", "--config=evil.yaml")
    assert "model must map settings to values" in refused(capsys, "train", "outer.yaml")
    assert "model must map settings to values" in refused(capsys, "train", "--config", "outer.yaml")
    assert "give the file with --config" in refused(capsys, "train", "--model", "model.yaml")
    assert "give the file with --config" in refused(capsys, "train", "--model=model.yaml")
    with pytest.raises(ValueError, match="names os.system"):
        config.read("digits", ["--config=evil.yaml"])
    assert not (tmp_path / "pwned").exists()


def idx(shape, content=b"", kind=8):
    return b"\0\0" + bytes([kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


@pytest.fixture
def small(monkeypatch):
    """A machine of 64 MiB."""
    monkeypatch.setattr(resources, "memory", lambda: 2**26)


def peak(function):
    """Bytes of Python's and NumPy's that a function took at its peak."""
    tracemalloc.start()
    try:
        function()
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most


def told(function, match):
    def run():
        with pytest.raises(ValueError, match=match) as caught:
            function()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    return run


def test_idx_bomb_is_read_no_further_than_its_header_promises(tmp_path, small):
    (tmp_path / "a").write_bytes(gzip.compress(idx((10, 28, 28), bytes(2**27))))
    assert peak(told(lambda: read_idx(tmp_path / "a"), "7840 bytes promised, more found")) < 2**20
    (tmp_path / "b").write_bytes(gzip.compress(idx((2**31, 28, 28))))
    assert peak(told(lambda: read_idx(tmp_path / "b"), "needs at least 3136.0 GiB of memory")) < 2**20
    (tmp_path / "c").write_bytes(idx((2**31, 28, 28)))
    told(lambda: read_idx(tmp_path / "c"), "1683627180032 bytes promised, 0 found")()
    (tmp_path / "d").write_bytes(idx((1,) * 200, b"x"))
    told(lambda: read_idx(tmp_path / "d"), "promises 200 axes")()


def npy(shape, dtype="<f4", content=b""):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((10**12, 784), "<f4", "promises the shape .10*, 784., 3136000000000000 bytes, and it has"),
        ((10**30, 784), "<f4", "truncated, damaged"),
        ((10**12, 1), "<U0", "truncated, damaged"),
        ((4, 4), "|O", "pickled objects: it holds Python objects"),
        ((-4, 4), "<f4", "truncated, damaged"),
        ((0, 10**30), "<f4", "truncated, damaged"),
        ((4, 4), "<q9", "truncated, damaged"),
    ],
)
def test_headers_that_lie_are_told_before_memory_is_taken(tmp_path, shape, dtype, message):
    (tmp_path / "x.npy").write_bytes(npy(shape, dtype, b"x" * 64))
    assert peak(told(lambda: map_npy(tmp_path / "x.npy"), message)) < 2**20
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy(shape, dtype, b"x" * 64))
    assert peak(told(lambda: read_array(tmp_path / "x.npz"), message)) < 2**20


def test_npz_exceeding_memory_is_refused_by_its_directory(tmp_path, small):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((2**25, 1), "<f4", bytes(2**27)))
    assert (tmp_path / "x.npz").stat().st_size < 2**18
    assert peak(told(lambda: read_array(tmp_path / "x.npz"), "unpacked, needs at least 0.13 GiB of memory")) < 2**20
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_DEFLATED) as archive:  # what is not asked for is not read
        archive.writestr("x.npy", npy((20, 2), "<f4", bytes(160)))
        archive.writestr("other.npy", npy((2**25, 1), "<f4", bytes(2**27)))
    assert read_array(tmp_path / "y.npz")[0].shape == (20, 2)


def test_npz_directory_understating_a_size_yields_no_more(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((2**24, 1), "<f4", bytes(2**26)))
    content = (tmp_path / "x.npz").read_bytes()
    size = struct.pack("<I", 2**26 + 128)
    assert content.count(size) == 2
    (tmp_path / "x.npz").write_bytes(content.replace(size, struct.pack("<I", 1000)))
    assert peak(told(lambda: read_array(tmp_path / "x.npz"), "promises the shape|Bad CRC")) < 2**25


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    for i, x in enumerate((
        rng.random((5, 3)), np.asfortranarray(rng.random((5, 3))), rng.integers(0, 9, (4, 2, 2), dtype=np.uint8),
        rng.random((3, 2)).astype(">f4"), np.zeros((0, 3)), np.array(["a", "bc"]), np.array(3.0),
        rng.random((2, 2)) < 0.5,
    )):  # fmt: skip
        np.save(tmp_path / f"{i}.npy", x)
        np.savez_compressed(tmp_path / f"{i}.npz", x=x, y=x)
        for found in (map_npy(tmp_path / f"{i}.npy"), read_npz(tmp_path / f"{i}.npz", "it")["y"]):
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found, x)


def test_damage_to_any_archive_byte_is_one_line_or_nothing(tmp_path):
    """Whatever NumPy and zipfile raise of it, the file is named."""
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).random((40, 6)), y=np.arange(40) % 3)
    whole = (tmp_path / "x.npz").read_bytes()
    rng, refusals = np.random.default_rng(1), []
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            content[place] = rng.integers(0, 256)
        (tmp_path / "d.npz").write_bytes(content[: rng.integers(20, len(whole))] if rng.random() < 0.3 else content)
        try:
            read_array(tmp_path / "d.npz")
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not [text for text in refusals if "\n" in text or "d.npz" not in text]


def saved(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    return tmp_path / "x.pt"


ONE = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: ONE.to_sparse(), r"x.pt must hold a dense tensor.* it is sparse .*\.to_dense"),
        (lambda: {"x": ONE.to_sparse_csr()}, r"x is sparse .*\.to_dense"),
        (lambda: {"x": ONE, "y": ONE[:, 0].to_sparse()}, "y is sparse"),
        (lambda: torch.quantize_per_tensor(ONE, 0.1, 0, torch.quint8), r"quantised: save \.dequantize"),
        (lambda: ONE.to("meta"), "without values"),
        (lambda: ONE.to(torch.complex64), "complex: save its real and imaginary parts"),
        (lambda: {1: ONE, "a": ONE, None: 3}, "under the name x; it holds"),
        (lambda: {"x": [1, 2]}, "x is a list"),
        (lambda: {"x": None}, "x is a NoneType"),
        (lambda: [ONE], "it is a list"),
        (lambda: "text", "it is a str"),
        (lambda: {("x" * 10**5): 1}, "under the name x"),
        (lambda: torch.zeros(1).expand(10**12, 64), r"of shape \(1000000000000, 64\), needs at least"),
        (lambda: {"x": ONE, "y": torch.full((20,), torch.nan)}, "labels of .* hold 20 values that are NaN"),
        (lambda: {"x": ONE, "y": torch.zeros(20, 2)}, "its labels have shape"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_are_no_plain_numbers_are_told(tmp_path, content, message):
    path = saved(tmp_path, content())
    told(lambda: datasets.load_dataset(str(path), binarize="none"), message)()


@pytest.mark.parametrize(
    "x",
    [ONE.clone().requires_grad_(), torch.nn.Parameter(ONE), ONE.bfloat16(), ONE.double(), ONE.T.contiguous().T, -ONE],
)
def test_tensors_that_are_plain_numbers_after_all_are_read(tmp_path, x):
    found, _ = read_array(saved(tmp_path, {"x": x, "y": torch.arange(20)}))
    np.testing.assert_allclose(found, x.detach().float().numpy(), rtol=1e-6)


def test_tensor_file_bomb_is_refused_by_its_directory(tmp_path, small):
    path = saved(tmp_path, ONE)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/9", bytes(2**27))
    assert peak(told(lambda: read_array(path), "unpacked, needs at least")) < 2**20


@pytest.mark.parametrize("labels", [np.array([np.nan] * 12), np.array([np.inf] * 12), np.array([1j] * 12)])
def test_labels_that_name_no_class_are_told(labels):
    told(lambda: as_split(np.zeros((12, 3), np.float32), labels), "labels of x (hold 12 values|must be numbers)")()


def tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))


def test_image_archive_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_ARCHIVE", 2**22)
    for members in ([("data_batch_1.bin", 3073 * 2000)], [("junk", 2**23)], [("junk", 2**20)] * 8):
        tar(tmp_path / "x.tar.gz", members)
        assert peak(told(lambda: read_cifar(tmp_path / "x.tar.gz"), "unpacks to more than 4 MiB")) < 2**24
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:  # an extended header that is a bomb itself
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 2**30
        file.write(info.tobuf() + bytes(2**24))
    assert peak(told(lambda: read_cifar(tmp_path / "x.tar.gz"), "unpacks to more than 4 MiB")) < 2**24


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("data_batch_1.bin")
        info.type, info.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(info)
    assert read_cifar(tmp_path / "x.tar.gz") == {}


def png(width, height):
    """A PNG whose header promises so many pixels, and that has hardly any."""
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png(side, side))
    assert peak(told(lambda: read_images(tmp_path), "a.png is too large to be an example")) < 2**22


def test_too_many_images_are_refused_before_any_is_decoded(tmp_path, small):
    for i in range(100):
        (tmp_path / f"{i:03}.png").write_bytes(png(1000, 1000))
    told(lambda: read_images(tmp_path), "100 images of 1000×1000 pixels in .* needs? at least 0.56 GiB")()


def test_a_folder_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_FOLDER", 50)
    for i in range(60):
        (tmp_path / f"{i}.txt").touch()
    told(lambda: read_images(tmp_path), "holds more than 50 files")()


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_a_pipe_is_no_file(tmp_path):
    """Reading one would wait for ever."""
    import os

    os.mkfifo(tmp_path / "x.npy")
    told(lambda: datasets.load_dataset(str(tmp_path / "x.npy")), "is not a file")()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "a.png")
    told(lambda: datasets.load_dataset(str(tmp_path / "folder")), "holds no images")()


@pytest.mark.parametrize("kind", ["npz", "pt", "png"])
def test_the_command_line_tells_bad_data_in_one_line(tmp_path, capsys, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", npy((10**12, 784)))
    elif kind == "pt":
        saved(tmp_path, torch.zeros(1).expand(10**12, 64))
    else:
        path = tmp_path / "images"
        path.mkdir()
        Image.new("L", (4, 4)).save(path / "a.png")
        (path / "b.png").write_bytes(png(30_000, 30_000))
    refused(capsys, "train", "digits", "--data.name", path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small run."""
    path = tmp_path_factory.mktemp("bombs") / "run"
    runs.train(config.read("digits", ["--data.limit=60", "--model.latent=2", "--training.epochs=1"]), path)
    return path


@pytest.mark.parametrize("file", ["run.json", "model.safetensors", "last/state.pt"])
@pytest.mark.parametrize("kind", ["device", "pipe", "sparse"])
def test_a_file_of_a_run_that_never_ends_is_not_read(trained, tmp_path, capsys, file, kind):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / file).unlink()
    if kind == "device":
        (run / file).symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(run / file)
    else:
        with open(run / file, "wb") as content:
            content.truncate(300 * 2**30)
    command = ["train", "--resume", run, "--training.epochs=2"] if file == "last/state.pt" else ["sample", run]
    assert peak(lambda: refused(capsys, *map(str, command))) < 2**24
    main(["list", str(tmp_path)])


def test_an_old_run_of_such_files_is_none(tmp_path, capsys):
    for i, (config_file, weights) in enumerate([("/dev/zero", "x"), ("c", "/dev/zero")]):
        run = tmp_path / str(i)
        run.mkdir()
        for name, target in (("config.yaml", config_file), ("model.safetensors", weights)):
            (run / name).symlink_to(target) if target.startswith("/") else (run / name).write_text("seed: 0")
        refused(capsys, "sample", str(run))
    main(["list", str(tmp_path)])


def test_more_components_than_memory_holds_are_refused(trained, tmp_path, capsys):
    for number in (99_999_999_999, 10**7):
        words = ["extend", str(trained), "--components", str(number), "--epochs=1", "--out", str(tmp_path / "x")]
        assert "of memory" in refused(capsys, *words)


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"identity": {}, "journal": None}}, {"recipe": {"identity": [], "journal": [{}]}}, {"version": "x"},
        {"files": {}}, {"rows": [{"epoch": 1}]},
        {"rows": [dict.fromkeys(("epoch", "best_epoch", "validation", "seconds"))]},
        {"config": {}}, {"config": {"model": {}}}, {"progress": {}}, {"progress": []}, {"runtime": {}}, {"goal": None},
        {"model": []}, {"rows": None}, {"more": functools.reduce(lambda inner, _: [inner], range(900), [])},
    ],
)  # fmt: skip
def test_malformed_record_is_one_line_and_hides_no_other_run(trained, tmp_path, capsys, change):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.copytree(trained, tmp_path / "good")
    content = read_json(run / "run.json") | change
    content.pop("checksum")
    if "model" in change:
        content["config"] = None
    sys.setrecursionlimit(5000)
    try:
        text = json.dumps(content | {"checksum": checksum(canonical(content))})
    finally:
        sys.setrecursionlimit(1000)
    (run / "run.json").write_text(text)
    assert "damaged" in refused(capsys, "sample", str(run)) or "version" in change
    main(["list", str(tmp_path)])
    assert "good" in capsys.readouterr().out


class Grown:
    def __reduce__(self):
        return bytearray, (3_000_000_000,)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensor_file_requesting_memory_by_a_number_is_refused(tmp_path, capsys, zipped):
    torch.save({"x": torch.zeros(20, 4), "z": Grown()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert peak(told(lambda: read_array(tmp_path / "x.pt"), "holds a bytearray")) < 2**24
