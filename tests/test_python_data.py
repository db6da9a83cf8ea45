"""Data as they are in Python: whatever gives examples trains as the same numbers in memory do, or says why not."""

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mixvae.datasets import Split, as_split, load_dataset
from mixvae.datasets._lazy import ByNumber, InOrder
from mixvae.datasets._python import as_dataset, collected

X = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(100) % 3
HOT = torch.nn.functional.one_hot(Y)


class Own(Dataset):
    """Examples with labels, by number."""

    def __init__(self, change=None, x=X):
        self.change, self.x = change, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] if self.change is None else self.change(self.x[i]), int(Y[i])


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y.tolist(), strict=True)


class Rows:
    """As a Hugging Face data set: `__len__` and `__getitem__`, examples by column."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"label": int(Y[i]), "image": self.x[i]}


def turned(x):
    """A transform with the random numbers of all three libraries."""
    return torch.roll(x, random.randrange(4), -1) + float(np.random.rand()) + torch.rand(())  # noqa: NPY002


def batches(split, key=0, batch=32):
    rows = split.epoch(batch, torch.Generator().manual_seed(key), key=key)
    return list(split.batches(rows, torch.Generator().manual_seed(key), key=key))


def same(ones, others):
    return len(ones) == len(others) and all(map(torch.equal, ones, others))


FORMS = {
    "array": X.numpy(), "double": X.numpy().astype(np.float64), "list": X.tolist(), "Dataset": Own(),
    "TensorDataset": TensorDataset(X, Y), "Subset": Subset(TensorDataset(X, Y), range(100)),
    "subset of Own": Subset(Own(), range(100)), "arrays": [x.numpy() for x in X], "half": X.half(),
    "loader": DataLoader(Own(), 32), "workers": DataLoader(Own(), 32, num_workers=1), "iterable": Stream(),
    "loader of an iterable": DataLoader(Stream(), 32), "Split": Split(X, Y),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_examples(form):
    data = as_dataset((FORMS[form], FORMS[form]))
    expected = X if form != "half" else X.half().float()
    assert data.shape == (1, 4, 4)
    assert len(data.train) == len(data.validation) == 100
    assert len(data.test) == 0
    assert torch.equal(data.validation.batch(slice(None)), expected)
    in_order = list(data.train.batches(torch.arange(100).split(32)))
    assert torch.equal(torch.cat(in_order), expected)
    if form not in ("array", "double", "list", "half", "arrays"):
        assert torch.equal(data.train.y, Y)
        assert torch.equal(data.validation.y, Y)


@pytest.mark.parametrize("resample", [False, True])
def test_streamed_batches_are_those_of_memory(resample):
    options = {"binarize": "stochastic"} if resample else {}
    streamed, held = as_dataset(Own(), seed=3, **options), as_dataset(X, seed=3, **options)
    assert isinstance(streamed.train.x, ByNumber)
    assert isinstance(held.train.x, torch.Tensor)
    assert len(streamed.train) == 80
    assert torch.equal(streamed.test.x, held.test.x)
    for key in (0, 1):
        assert same(batches(streamed.train, key), batches(held.train, key))
    assert not same(batches(streamed.train, 0), batches(streamed.train, 1))


def test_transforms_are_seeded_by_epoch_and_example():
    alone, together = (as_dataset((Own(turned), X), workers=workers).train for workers in (0, 2))
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = batches(alone, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert same(first, batches(together, 5)), "neither workers nor the caller's generators matter"
    assert not same(first, batches(alone, 6)), "every epoch is transformed anew"
    rows = alone.epoch(32, torch.Generator().manual_seed(5), key=5)
    assert same(first[2:], list(alone.batches(rows[2:], key=5))), "an epoch can be begun in the middle"
    assert alone.x.sha256 == together.x.sha256


def test_a_loaders_sampler_decides_the_batches():
    weights = torch.zeros(100)
    weights[:7] = 1
    generator = torch.Generator().manual_seed(9)
    loader = DataLoader(Own(), 30, sampler=WeightedRandomSampler(weights, 70, generator=generator), drop_last=True)
    before = generator.get_state()
    plan = as_dataset((loader, X)).train.plan
    assert plan.batch == 30
    assert [len(rows) for rows in plan.batches(4)] == [30, 30]
    assert max(int(rows.max()) for rows in plan.batches(4)) < 7
    assert same(plan.batches(4), plan.batches(4))
    assert not same(plan.batches(4), plan.batches(5))
    assert torch.equal(generator.get_state(), before)
    assert [rows.tolist() for rows in as_dataset((DataLoader(Own(), 60), X)).train.plan.batches(3)] == [
        list(range(60)), list(range(60, 100)),
    ]  # fmt: skip
    kinds = [DataLoader(Own(), size, sampler=RandomSampler(Own(), num_samples=n)) for size, n in ((50, 100), (50, 90))]
    assert len({as_dataset((loader, X)).train.plan.sha256 for loader in (*kinds, DataLoader(Own(), 50))}) == 3


def test_a_loaders_own_collation_is_used():
    loader = DataLoader(
        Own(), 10, collate_fn=lambda items: (1 - torch.stack([x for x, _ in items]), [y for _, y in items])
    )
    data = as_dataset((loader, X))
    assert torch.equal(data.train.batch(slice(None)), 1 - X)
    assert torch.equal(data.train.y, Y)
    iterated = DataLoader(Stream(), 10, collate_fn=lambda items: {"image": torch.stack([x for x, _ in items])})
    assert torch.equal(as_dataset((iterated, X), column="image").train.batch(slice(None)), X)


def test_columns_pictures_and_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    rows = {"train": Rows(list(map(Image.fromarray, pixels))), "val": Rows(pixels[:10]), "test": Rows(pixels[10:20])}
    data = as_dataset(rows, column="image")
    assert data.shape == (1, 6, 5)
    assert data.train.levels == data.test.levels == 255
    np.testing.assert_array_equal(data.train.batch(slice(None))[:, 0], pixels.astype(np.float32) / 255)
    np.testing.assert_array_equal(data.validation.batch(slice(None))[:, 0], pixels[:10].astype(np.float32) / 255)
    assert data.train.y[:5].tolist() == [0, 1, 2, 0, 1]
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8))
    assert as_dataset(([colour] * 3, [colour])).shape == (3, 6, 5)
    binary = as_dataset((Own(x=(X > 0.5).to(torch.uint8)), (X > 0.5).numpy()))
    assert binary.train.levels == 1
    assert set(binary.train.batch(slice(None)).unique().tolist()) == {0.0, 1.0}


def test_classes_are_numbered_over_all_parts():
    words = [(x, "cat" if i % 2 else "dog") for i, x in enumerate(X)]
    data = as_dataset((words, [(X[0], "emu"), (X[1], "cat")]))
    assert data.train.y[:2].tolist() == [1, 0]
    assert data.validation.y.tolist() == [2, 0]


class Shrinking:
    """An iterable that gives fewer examples at every pass."""

    left = 50

    def __iter__(self):
        Shrinking.left -= 10
        return iter(X[: self.left])


def test_an_iterable_that_changes_is_noticed():
    data = as_dataset((Shrinking(), X))
    assert isinstance(data.train.x, InOrder)
    assert len(data.train) == 40
    with pytest.raises(ValueError, match="gave 40 examples at first, and fewer later: give an iterable"):
        batches(data.train)


class Drawn:
    """A sampler with random numbers of its own."""

    noise = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.noise.permutation(100).tolist())

    def __len__(self):
        return 100


def loose(x):
    return x + float(np.random.default_rng().random())


class Boastful(Own):
    """More examples than there are numbers for."""

    def __len__(self):
        return 10**13


class Uneven:
    """An iterable whose seventh example has another shape."""

    def __iter__(self):
        return (x if i != 7 else x[:, :3] for i, x in enumerate(X))


class Spent:
    """An iterable that is empty when it is begun anew."""

    begun = 0

    def __iter__(self):
        self.begun += 1
        return iter(X if self.begun == 1 else ())


def ragged(items):
    """A batch whose third image is larger."""
    return [x[:, : 3 + (i == 2)] for i, (x, _) in enumerate(items)], None


def joined(items):
    """Entries of examples, stacked."""
    return tuple(torch.stack(entries) for entries in zip(*items, strict=True))


def gathered(change):
    """A loader whose collate_fn changes a batch."""
    return DataLoader(Own(), 10, collate_fn=lambda items: change(torch.stack([x for x, _ in items])))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ((csr_array(X[:, 0, 0].numpy()), X), "is sparse: pass a dense one"),
        ((Own(x=range), X), "cannot be read: TypeError"),
        ((X.to_sparse(), X), "is sparse: pass a dense one"),
        ((255 * X, (255 * X).to(torch.uint8)), "train holds real numbers from"),
        ((Own(lambda x: 255 * x), (255 * X).to(torch.uint8)), "train holds real numbers from"),
        ((Own(lambda x: x / 0 * 0), X), "NaN or infinite"),
        (([(x if i % 2 else (255 * x).byte(), 0) for i, x in enumerate(X)], X), "give all as bytes, or none"),
        ((DataLoader(Own(), 10, sampler=Drawn()), X), "gives different batches with the same random seeds"),
        ((X,), "given as (train, validation[, test]); got a tuple of 1"),
        ({"train": X}, "have no validation examples"),
        ({"train": X, "valdiation": X}, "got 'valdiation'"),
        ("digits", "read files with load_dataset"),
        (7, "got an int"),
        ((iter(X), X), "can be read only once"),
        ((x for x in X), "can be read only once"),
        (DataLoader(Own(), 10), "a DataLoader provides training examples only"),
        (Stream(), "a Stream provides training examples only"),
        ((X, X[:, 0, 0]), "examples of different shapes"),
        ((X, X[:0]), "validation holds no examples"),
        ((Own(x=X[:0]), X), "holds no examples"),
        (X[:5], "holds 5 examples; a split into three needs at least 10"),
        ((Rows(X), X), "examples are mappings with entries label, image: say which is the example"),
        ((Own(loose), X), "differs between two readings with the same random seeds"),
        ((Own(lambda x: x / 0), X), "NaN or infinite"),
        ((Own(lambda x: x[:, : 1 + int(10 * x[0, 0, 0]) % 4]), X), "crop or resize them to one"),
        ((Own(lambda x: x[0, 0, 0]), X), "must have shape (D,), (H, W) or (C, H, W)"),
        ((Own(lambda x: x.expand(5, 4, 4).permute(1, 2, 0)[..., :3].repeat(2, 1, 1)), X), "channels last"),
        ((Own(lambda x: ["a"]), X), "must hold numbers"),
        ((Own(lambda x: {}["x"]), X), "cannot be read: KeyError: 'x'"),
        ((DataLoader(Own(), None), X), "without batches"),
        ((DataLoader(Own(), 200, drop_last=True), X), "gives no batches"),
        ((gathered(lambda x: x - x.mean()), X), "makes the values of an example depend on the others in its batch"),
        ((gathered(lambda x: x[x.sum((1, 2, 3)).argsort()]), X), "makes the values of an example depend on the others"),
        ((gathered(lambda x: x + torch.rand(())), X), "draw random numbers in the data set's transform"),
        ((gathered(lambda x: torch.cat([x, x])), X), "the collate_fn returns 2 examples for 1"),
        ((gathered(lambda x: x[:0]), X), "a batch holds no examples"),
        ((Boastful(), X), "a Boastful of 10000000000000 examples needs at least"),
        ((DataLoader(Boastful(), 10), X), "check its __len__"),
        ((DataLoader(Own(), 10, sampler=RandomSampler(Own(), num_samples=10**14)), X), "check the sampler's length"),
        ((DataLoader(Own(), batch_sampler=[[0, 1], [2, 100]]), X), "gives the numbers [100] in a batch, but the data"),
        ((DataLoader(Own(), batch_sampler=[[0, -1]]), X), "gives the numbers [-1] in a batch"),
        ((DataLoader(Own(), batch_sampler=[[0, 1.5]]), X), "it must give whole numbers from 0 to 99"),
        ((DataLoader(Own(), batch_sampler=[["a"], [1]]), X), "gives the numbers ['a'] in a batch"),
        ((DataLoader(Own(), batch_sampler=[[0], []]), X), "gives an empty batch"),
        ((Uneven(), X), "an example from number 7 on is torch.float32 of shape (1, 3, 4)"),
        ((DataLoader(Own(), 10, collate_fn=ragged), X), "crop or resize them to one"),
        ((Spent(), X), "gives no examples when it is iterated over again"),
        ((X, Y), "validation of shape (100,) holds no examples (N, …); a tuple of data is (train, validation[, test])"),
        ((X, Y.tolist()), "labels are given with their examples, as in TensorDataset(x, y)"),
        ((X, torch.nn.functional.one_hot(Y)), "labels are given with their examples, as in TensorDataset(x, y)"),
        (
            (TensorDataset(X, HOT), X),
            "the labels of train have shape (100, 3): give one class for each example",
        ),
        ((Subset(TensorDataset(X, HOT), range(50)), X), "the labels of train have shape (50, 3): give one class"),
        ((DataLoader(TensorDataset(X, HOT), 10), X), "the labels of train have shape (100, 3)"),
        ((TensorDataset(X, Y, Y), X), "train is a TensorDataset of 3 tensors; expected (examples, labels): leave the"),
        (([*zip(X, HOT, strict=True)], X), "a label has shape (3,): give one class for each example, such as"),
        (
            ([*zip(X, Y, Y, strict=True)], X),
            "an example is a tuple of 3; expected (example, label): leave",
        ),
        ((DataLoader([*zip(X, Y, Y, strict=True)], 10, collate_fn=joined), X), "a batch is a tuple of 3; expected"),
        ((DataLoader([*zip(X, HOT, strict=True)], 10, collate_fn=joined), X), "the labels of a batch have shape"),
        (([(x, "a") for x in X], [(X[0], 1)]), "the classes are numbers in one part and text in another"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, told):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        as_dataset(data)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checksums_do_not_depend_on_how_examples_are_read():
    data = load_dataset("digits")
    whole = hashlib.sha256()
    for split in (data.train, data.validation, data.test):
        whole.update(f"{tuple(split.x.shape)} {split.x.dtype} {split.levels}".encode())
        whole.update(split.x.numpy().tobytes())
    assert data.sha256() == whole.hexdigest()
    assert as_dataset((Own(), X)).sha256() == as_dataset((DataLoader(Own(), 7), X)).sha256()
    assert as_dataset((Own(), X)).sha256() != as_dataset((Own(lambda x: x.flip(-1)), X)).sha256()


def test_a_samplers_examples_are_those_of_every_part():
    loaders = [DataLoader(Own(), 30, sampler=SubsetRandomSampler(rows)) for rows in (range(80), range(80, 100))]
    data = as_dataset(tuple(loaders))
    assert torch.equal(data.validation.batch(slice(None)), X[80:])
    assert torch.equal(data.validation.y, Y[80:])
    assert torch.equal(collected(loaders[1]), X[80:])
    assert {int(row) for rows in data.train.plan.batches(3) for row in rows} == set(range(80))


def test_a_data_set_is_not_changed_by_options():
    with pytest.raises(ValueError, match="a Dataset is taken as it is: give column, binarize"):
        as_dataset(as_dataset((X, X)), binarize="stochastic")


@pytest.mark.parametrize("at", [0, 37, 550])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_one_missing_label_is_named(at, missing):
    """One in the first of two readings of 500 or in the second; all labels were dropped without a word."""
    pairs = [(X[i % 100], missing if i == at else i % 3) for i in range(600)]
    labels = np.array([y for _, y in pairs])

    class Passes:
        def __iter__(self):
            return iter(pairs)

    together = DataLoader(pairs, 9, collate_fn=lambda some: (torch.stack([x for x, _ in some]), [y for _, y in some]))
    forms = [pairs, Passes(), together, [{"image": x, "label": y} for x, y in pairs]]
    for form, column in zip(forms, (None, None, None, "image"), strict=True):
        with pytest.raises(ValueError, match=rf"labels of train hold 1 values .* of example {at}: give every example"):
            as_dataset((form, X), column=column)
    with pytest.raises(ValueError, match=rf"hold 1 values that are NaN, infinite or missing, .* of example {at}:"):
        as_split(X.repeat(6, 1, 1, 1).numpy(), labels)


def test_labels_may_be_missing_altogether():
    for form, column in (([(x, None) for x in X], None), ([{"image": x, "label": None} for x in X], "image")):
        data = as_dataset((form, form[:10]), column=column)
        assert data.train.y is None
        assert data.validation.y is None


def test_a_label_may_have_an_axis_of_its_own():
    for form in (TensorDataset(X, Y[:, None]), [(x, y[None]) for x, y in zip(X, Y, strict=True)]):
        assert torch.equal(as_dataset((form, X)).train.y, Y)
    together = DataLoader([*zip(X, Y[:, None], strict=True)], 10, collate_fn=joined)
    assert torch.equal(as_dataset((together, X)).train.y, Y)


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        ((X, X), {"column": "image"}, "column applies only to examples that are mappings, and these are not"),
        (([*zip(X, Y, strict=True)], X), {"column": "image"}, "an example is a tuple, not a mapping: leave column out"),
        ((X, X), {"workers": 2}, "workers read streamed examples ahead, but these are held in memory"),
        ((TensorDataset(X, Y), X), {"workers": 2}, "workers read streamed examples ahead"),
    ],
)
def test_options_without_an_effect_are_refused(data, options, told):
    with pytest.raises(ValueError, match=told):
        as_dataset(data, **options)


class Growing:
    """An iterable whose examples grow after the passes that check it."""

    begun = 0

    def __iter__(self):
        self.begun += 1
        return (x if self.begun < 3 or i < 40 else x.repeat(1, 2, 1) for i, x in enumerate(X))


def test_a_later_pass_of_another_shape_is_one_line():
    data = as_dataset((Growing(), X))
    with pytest.raises(ValueError, match=r"example from number 40 on is torch.float32 of shape \(1, 8, 4\), but the"):
        batches(data.train)


def test_a_sampler_is_checked_in_every_epoch():
    class Late:
        most = 99

        def __iter__(self):
            return iter([[int(torch.randint(90, self.most, ()))] for _ in range(3)])

        def __len__(self):
            return 3

    loader = DataLoader(Own(), batch_sampler=Late())
    plan = as_dataset((loader, X)).train.plan
    loader.batch_sampler.most = 103
    with pytest.raises(ValueError, match="but the data set has 100 examples: it must give whole numbers from 0 to 99"):
        [plan.batches(key) for key in range(30)]


def test_data_print_as_a_line_without_their_values():
    split = Split(X, Y)
    assert repr(split) == "Split(100 examples of shape (1, 4, 4), real numbers, with labels)"
    data = as_dataset((DataLoader(Own(), 30), X), flip=True, binarize="stochastic", name="mine")
    assert repr(data) == (
        "Dataset('mine': 100 training, 100 validation and 0 test examples of shape (1, 4, 4), real numbers, with "
        "labels, streamed, binarised at every step, mirrored at random, in batches of 30)"
    )
    assert repr(load_dataset("digits", binarize="none").test) == (
        "Split(400 examples of shape (1, 8, 8), bytes up to 16, with labels)"
    )


@pytest.mark.parametrize("at", [0, 499, 700, 1999])
def test_the_largest_of_many_values_is_kept(at):
    """An outlier outside of a likelihood's support was forgotten when more values followed."""
    x = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    x[at, 1], x[at, 2] = 7, -7
    train = as_dataset(([(row, 0) for row in x], x)).train
    assert train.ends() == (-7, 7)
    assert len(train.x.values) < 1100


@pytest.mark.parametrize("binarize", ["stochastic", "fixed", "threshold", "none"])
def test_a_data_set_knows_how_it_was_given(binarize):
    pixels = (255 * X).round().to(torch.uint8).numpy()
    pixels[0, 0, 0, :2] = 0, 255
    same = {"binarize": binarize, "seed": 4, "labels": False}
    data = as_dataset(pixels[:10].repeat(2, 0), binarize=binarize, seed=4)
    whole = data.record()
    assert 0 <= whole.pop("low") <= whole.pop("high") <= 1
    assert whole == {"dtype": "uint8", "levels": 255, **same}
    real = as_dataset((TensorDataset(X, Y), X), binarize=binarize, seed=4).record()
    low, high = float(X.min()), float(X.max())
    assert real == {"dtype": "float32", "levels": 1, "low": low, "high": high, **same, "labels": True}
    if binarize in ("stochastic", "none"):
        streamed = as_dataset((Own(), X), binarize=binarize, seed=4).record()
        assert streamed == real
