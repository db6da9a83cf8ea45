"""Trainings on data that are read as they go: the weights of memory, and resumed in the middle of an epoch."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mixvae import (
    MixtureVAE,
    MLPDecoder,
    SeparateEncoders,
    StandardNormal,
    encode,
    evaluate,
    fit,
    load_dataset,
    open_run,
)
from mixvae.datasets import as_dataset
from mixvae.datasets._streamed import Pictures
from mixvae.networks import GatedEncoder
from mixvae.training import Callback

SHAPE = (1, 4, 4)
X = (torch.rand(90, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5).float()


class Own(Dataset):
    def __init__(self, x=X, noisy=False):
        self.x, self.noisy = x, noisy

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i].flip(-1) if self.noisy and torch.rand(()) < 0.5 else self.x[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X[:60])


def model(dropout=False):
    torch.manual_seed(0)
    extra = [torch.nn.Dropout(0.3)] if dropout else []
    posterior = SeparateEncoders(
        lambda: torch.nn.Sequential(*extra, GatedEncoder(SHAPE, 2, (8,))) if extra else GatedEncoder(SHAPE, 2, (8,)), 2
    )
    return MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, SHAPE, (8,)))


def weights(data, *, dropout=False, run=None, **options):
    built = model(dropout)
    torch.manual_seed(1)
    fit(built, data, run=run, **{"epochs": 3, "batch": 16, "save_every": 0.0} | options)
    return torch.cat([p.detach().flatten() for p in built.parameters()])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_training_is_that_from_memory(workers):
    held = weights((X[:60], X[60:]), dropout=True)
    streamed = weights(as_dataset((Own(X[:60]), X[60:]), workers=workers), dropout=True)
    assert torch.equal(held, streamed)


def test_binarised_streams_are_those_of_memory():
    grey = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(1))
    held, streamed = (as_dataset((x, X[60:]), binarize="stochastic") for x in (grey, Own(grey)))
    assert torch.equal(weights(held), weights(streamed))


class Stopped(Exception):
    pass


class StopAt(Callback):
    """A callback that ends a training at a step."""

    def __init__(self, step):
        self.left = step

    def on_step(self, step):
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.mark.parametrize(
    "data",
    [
        as_dataset((Own(X[:60], noisy=True), X[60:])),
        as_dataset((DataLoader(Own(X[:60], noisy=True), 16, shuffle=True), X[60:])),
        as_dataset((Stream(), X[60:])),
        as_dataset((DataLoader(Stream(), 16), X[60:])),
    ],
    ids=["Dataset", "loader", "iterable", "loader of an iterable"],
)
def test_a_stream_resumes_in_the_middle_of_an_epoch(tmp_path, data):
    whole = weights(data, dropout=True, run=tmp_path / "whole")
    with pytest.raises(Stopped):
        weights(data, dropout=True, run=tmp_path / "cut", callbacks=[StopAt(6)])
    assert torch.equal(weights(data, dropout=True, run=tmp_path / "cut"), whole)


def test_a_loaders_batches_are_those_of_the_training():
    sizes = []

    class Watched(GatedEncoder):
        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                sizes.append(len(x))
            return super().forward(x)

    posterior = SeparateEncoders(lambda: Watched(SHAPE, 2, (8,)), 1)
    built = MixtureVAE(posterior, StandardNormal(2), MLPDecoder(2, SHAPE, (8,)))
    loader = DataLoader(TensorDataset(X), 25, shuffle=True, drop_last=True)
    history = fit(built, (loader, X), epochs=2)
    assert sizes == [25] * 6
    assert abs(history[-1]["bound"]) < 30, "a mean over the 75 examples that were seen"
    with pytest.raises(ValueError, match="batch is 64, but the DataLoader makes batches of 25: leave batch out"):
        fit(built, (loader, X), epochs=1, batch=64)


def test_a_run_on_other_batches_or_data_is_refused(tmp_path):
    loader = DataLoader(TensorDataset(X), 30, shuffle=True)
    weights((loader, X), run=tmp_path / "run", batch=30)
    with pytest.raises(ValueError, match="batch"):
        weights((DataLoader(TensorDataset(X), 45, shuffle=True), X), run=tmp_path / "run", batch=45)
    with pytest.raises(ValueError, match="order"):
        weights((DataLoader(TensorDataset(X), 30), X), run=tmp_path / "run", batch=30)
    with pytest.raises(ValueError, match="sha256"):
        weights((DataLoader(TensorDataset(1 - X), 30, shuffle=True), X), run=tmp_path / "run", batch=30)


def test_streams_with_values_that_have_no_density_are_refused(tmp_path):
    grey = torch.rand(60, *SHAPE)
    with pytest.raises(ValueError, match="outside the likelihood's support"):
        weights((Own(grey), X), run=tmp_path / "run")
    with pytest.raises(ValueError, match="outside the likelihood's support"):
        weights((grey, X), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_queries_take_what_trainings_take():
    built = model()
    expected, mean = evaluate(built, X, 10).log_px, encode(built, X)[0]
    for form in (Own(), DataLoader(Own(), 7), TensorDataset(X), as_dataset((X, X)).train, [(x, 0) for x in X]):
        np.testing.assert_array_equal(evaluate(built, form, 10).log_px, expected)
        assert torch.equal(encode(built, form)[0], mean)
    with pytest.raises(ValueError, match="a Dataset has three parts: name one, such as data.test"):
        evaluate(built, as_dataset((X, X)), 10)
    with pytest.raises(ValueError, match="bytes up to 255: scale them"):
        evaluate(built, torch.full((3, *SHAPE), 255, dtype=torch.uint8), 10)


def test_files_are_streamed_as_they_are_held(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "real.npy", pixels / 255)
    for name in ("pictures", "x.npy", "real.npy"):
        held, streamed = (
            load_dataset(str(tmp_path / name), binarize="none", stream=stream) for stream in (False, True)
        )
        assert held.sha256() == streamed.sha256()
        assert held.labels_sha256() == streamed.labels_sha256()
        assert not isinstance(streamed.train.x, torch.Tensor)
        rows = torch.arange(len(held.train)).split(13)
        assert all(map(torch.equal, held.train.batches(rows), streamed.train.batches(rows)))
    np.savez(tmp_path / "x.npz", x=pixels)
    with pytest.raises(ValueError, match="only .npy files and folders of images can be streamed"):
        load_dataset(str(tmp_path / "x.npz"), stream=True)
    with pytest.raises(ValueError, match="digits is held in memory"):
        load_dataset("digits", stream=True)
    with pytest.raises(ValueError, match="workers read streamed examples ahead; got 2: give stream too"):
        load_dataset("digits", workers=2)


def test_a_run_on_streams_is_evaluated_on_what_it_has(tmp_path):
    data = as_dataset((DataLoader(Own(), 30, shuffle=True), X[:20]))
    weights(data, run=tmp_path / "run", batch=30)
    run = open_run(tmp_path / "run", data=data, model=model())
    with pytest.raises(ValueError, match="was trained without test examples: name another split, or give new data"):
        run.evaluate(10)
    assert run.evaluate(10, split="validation").identity.examples == 20
    assert run.evaluate(10, data=X[:5]).identity.examples == 5
    with pytest.raises(ValueError, match="the data of .* are not those that it was trained on"):
        _ = open_run(tmp_path / "run", data=as_dataset((DataLoader(Own(1 - X), 30, shuffle=True), X[:20]))).data


class Breaking(Own):
    """Examples that cannot be read after a while."""

    def __getitem__(self, i):
        if i == 7 and BROKEN:
            raise OSError("the disk is gone")
        return super().__getitem__(i)


class Dying(Own):
    """Examples whose reader dies."""

    def __getitem__(self, i):
        if BROKEN and torch.utils.data.get_worker_info() is not None:
            os._exit(1)
        return super().__getitem__(i)


BROKEN: list[int] = []


@pytest.fixture
def broken():
    yield BROKEN.append
    BROKEN.clear()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_that_cannot_be_read_ends_in_a_checkpoint(tmp_path, broken, workers):
    data = as_dataset((Breaking(X[:60]), X[60:]), workers=workers)
    whole = weights(data, run=tmp_path / "whole")

    def after_one(row):
        broken(1)

    with pytest.raises((ValueError, OSError), match="the disk is gone") as caught:
        weights(data, run=tmp_path / "cut", callbacks=[after_one], save_every=1000.0)
    assert "\n" not in str(caught.value)
    assert open_run(tmp_path / "cut", data=data, model=model()).epoch == 1
    BROKEN.clear()
    assert torch.equal(weights(data, run=tmp_path / "cut", save_every=1000.0), whole)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_done_without(broken):
    data = as_dataset((Dying(X[:60]), X[60:]), workers=1)
    expected = weights((X[:60], X[60:]))
    broken(1)
    with pytest.warns(UserWarning, match="a process that reads data ahead has died; this one goes on alone"):
        assert torch.equal(weights(data), expected)


def test_parts_of_files_that_do_not_fit_are_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (30, 5, 4), dtype=np.uint8)
    np.save(tmp_path / "train.npy", grey)
    np.save(tmp_path / "real.npy", grey / 255)
    np.save(tmp_path / "wide.npy", grey.reshape(30, 4, 5))
    for name, told in (("real", "values of different kinds"), ("wide", "examples of different shapes")):
        with pytest.raises(ValueError, match=told):
            load_dataset(train=tmp_path / "train.npy", test=tmp_path / f"{name}.npy", stream=True)


def drawn(path, mode, seed=0, size=(5, 4)):
    random = np.random.default_rng(seed)
    shape = (size[1], size[0], *((3,) if mode == "RGB" else (4,) if mode == "RGBA" else ()))
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    if mode == "RGBA":
        pixels[..., 3] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("modes", [["L"] * 4, ["RGB"] * 4, ["L", "RGB", "L", "RGBA"]])
def test_images_read_together_are_those_read_apart(tmp_path, modes):
    for i, mode in enumerate(modes):
        drawn(tmp_path / f"{i}.png", mode, i)
    source = Pictures(tmp_path, None)
    assert (source.alike is not None) == (len(set(modes)) == 1)
    read, labels = source.read([2, 0, 3, 1], 0)
    assert labels is None
    for values, row in zip(read, [2, 0, 3, 1], strict=True):
        kept = np.asarray(Image.open(tmp_path / f"{row}.png").convert("L" if set(modes) == {"L"} else "RGB"))
        assert np.array_equal(values.numpy(), kept[None] if kept.ndim == 2 else kept.transpose(2, 0, 1))


def test_an_image_that_became_another_kind_is_not_pasted(tmp_path):
    for i in range(3):
        drawn(tmp_path / f"{i}.png", "L", i)
    source = Pictures(tmp_path, None)
    drawn(tmp_path / "1.png", "L", 1, (4, 5))
    with pytest.raises(ValueError, match="shape|size"):
        source.read([0, 1], 0)
    clear = Image.fromarray(np.zeros((4, 5), np.uint8))
    clear.save(tmp_path / "1.png", transparency=0)
    with pytest.raises(ValueError, match="is partly transparent"):
        source.read([0, 1], 0)


def test_workers_of_files_last_as_long_as_the_training(tmp_path):
    for i in range(40):
        drawn(tmp_path / f"{i:02}.png", "L", i, (4, 4))
    data = load_dataset(tmp_path, stream=True, workers=2, binarize="stochastic")
    readers = []
    weights(data, callbacks=[lambda row: readers.append({child.pid for child in multiprocessing.active_children()})])
    assert readers[0] == readers[1] == readers[2]
    assert len(readers[0]) == 2
    assert not multiprocessing.active_children()


def test_readers_of_changing_data_are_begun_anew(broken):
    """A worker that lasted would go on reading the first epoch's data."""

    def after_one(row):
        broken(1)

    with pytest.raises(ValueError, match="the disk is gone"):
        weights(as_dataset((Breaking(X[:60]), X[60:]), workers=2), callbacks=[after_one])
