"""Files of cells and runs of cells that somebody else wrote: refused in one line, before they cost anything."""

import json
import os
import shutil
from dataclasses import asdict

import anndata
import h5py
import numpy as np
import pytest

from conftest import forge, refused
from mixvae import _resources as resources
from mixvae.files import checksum, read_json, weights_to_bytes, write_json
from mixvae.files._tensors import load_weights
from mixvae.reproduce.cells import study
from mixvae.single_cell import MixtureSCVI, runs
from mixvae.single_cell.reading import read_file

pytestmark = pytest.mark.usefixtures("as_users_run")
SETTINGS = runs.Settings(components=2, batch_key="batch", latent=3, epochs=1, categorical_covariate_keys=("donor",))
SECRET = b"a secret of the user's. " * 10


@pytest.fixture
def file(finished, tmp_path):
    """A copy of the file, to change."""
    return shutil.copy(finished / "cells.h5ad", tmp_path / "cells.h5ad")


def named(item, encoding="array", version="0.2.0"):
    """Mark an entry of a file as anndata does."""
    item.attrs["encoding-type"], item.attrs["encoding-version"] = encoding, version
    return item


def one_line_of(call, *arguments):
    """What a call says that refuses."""
    with pytest.raises(ValueError, match=" ") as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def external_storage(h, folder):
    named(h["obsm"].create_dataset("x", (120, 2), "u1", external=[(str(folder / "secret"), 0, 240)]))


def external_link(h, folder):
    h["obsm"]["x"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def external_link_far_below(h, folder):
    h["uns"].create_group("a/b/c")["x"] = h5py.ExternalLink("other.h5", "/x")


def virtual_dataset(h, folder):
    layout = h5py.VirtualLayout((120, 2), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (120, 2))
    named(h["obsm"].create_virtual_dataset("x", layout))


def soft_link_through_an_external_one(h, folder):
    h["uns"]["far"] = h5py.ExternalLink(str(folder / "other.h5"), "/")
    h["obsm"]["x"] = h5py.SoftLink("/uns/far/x")


def categories_that_nothing_else_names(h, folder):
    """As old files name the categories of a column; what holds itself stays in a file without a name."""
    group = h.create_group("hidden")
    group["self"] = group
    kept = group.create_dataset("kept", (2,), "S8", external=[(str(folder / "secret"), 0, 16)])
    h["obsm"].create_dataset("x", data=np.zeros((120, 2))).attrs["categories"] = kept.ref
    del h["hidden"]


FOREIGN = {
    external_storage: "'/obsm/x' lies in another file, '",
    external_link: "'/obsm/x' lies in another file, '",
    external_link_far_below: "'/uns/a/b/c/x' lies in another file, 'other.h5'",
    virtual_dataset: "'/obsm/x' is put together from other files",
    soft_link_through_an_external_one: "'/uns/far' lies in another file",
    categories_that_nothing_else_names: "'/obsm/x.categories' lies in another file, '",
}


@pytest.mark.parametrize("change", FOREIGN, ids=lambda change: change.__name__)
def test_a_file_of_cells_that_leads_to_other_files_is_not_read(file, finished, tmp_path, capsys, change):
    (tmp_path / "secret").write_bytes(SECRET)
    with h5py.File(tmp_path / "other.h5", "w") as h:
        named(h.create_dataset("x", data=np.arange(240.0).reshape(120, 2)))
    with h5py.File(file, "r+") as h:
        change(h, tmp_path)
    with pytest.raises(ValueError, match=FOREIGN[change]):
        read_file(file)
    out = tmp_path / "out.h5ad"
    assert "cells.h5ad" in refused(capsys, "sc", "embed", finished / "run", file, "--out", out)
    assert "cells.h5ad" in refused(capsys, "sc", "train", file, "--out", tmp_path / "new", "--epochs", 1)
    assert not out.exists()
    assert not (tmp_path / "new").exists()


def test_an_external_link_is_refused_without_being_followed(file, tmp_path):
    """Opening a pipe would wait for who writes to it."""
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(file, "r+") as h:
        h["uns"]["x"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
        h["uns"]["y"] = h5py.SoftLink("/uns/x/y")
    assert "lies in another file" in one_line_of(read_file, file)


def test_soft_links_within_a_file_are_read(file):
    with h5py.File(file, "r+") as h:
        h["obsm"]["x"] = h5py.SoftLink("/layers/counts")
    np.testing.assert_array_equal(read_file(file).obsm["x"].toarray(), read_file(file).layers["counts"].toarray())


def test_links_in_a_circle_end(file):
    with h5py.File(file, "r+") as h:
        h["uns"]["loop"] = h["uns"]
    assert "'/uns/loop' holds itself" in one_line_of(read_file, file)
    with h5py.File(file, "r+") as h:
        del h["uns/loop"]
        h["uns/loop"] = h5py.SoftLink("/uns")
    assert "'/uns/loop' holds itself" in one_line_of(read_file, file)


def test_groups_without_end_are_one_line(file):
    with h5py.File(file, "r+") as h:
        group = h["uns"]
        for _ in range(1500):
            group = named(group.create_group("a"), "dict", "0.1.0")
    assert "nested more than" in one_line_of(read_file, file)


def test_devices_pipes_and_folders_are_no_files_of_cells(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        assert "is not an ordinary file" in one_line_of(read_file, path)
    assert "there is no file" in one_line_of(read_file, tmp_path / "no.h5ad")


def unallocated(h):
    named(h["obsm"].create_dataset("big", (120, 10**8), "f4", chunks=(1, 1000)))


def compressed(h):
    named(h["uns"].create_dataset("big", (2**40, 2**22), "f8", chunks=(1000, 1), compression="gzip"))


def named_many_times(h):
    named(h["uns"].create_dataset("big", (2**27,), "f8", chunks=(1000,)))
    for i in range(50):
        h[f"uns/big{i}"] = h5py.SoftLink("/uns/big") if i % 2 else h["uns/big"]


def doubled_and_doubled(h):
    group = h["uns"].create_group("g")
    named(group.create_dataset("x", (2**20,), "u1", chunks=(1000,)))
    for i in range(40):
        outer = h["uns"].create_group(f"h{i}")
        outer["left"] = outer["right"] = group
        group = outer


def sparse_of_many_rows(h):
    group = named(h["obsm"].create_group("big"), "csr_matrix", "0.1.0")
    group.attrs["shape"] = np.array([10**11, 2])
    for name, data in (("data", [1.0]), ("indices", [0]), ("indptr", [0, 1])):
        group[name] = np.array(data)


@pytest.mark.parametrize(
    "change", [unallocated, compressed, named_many_times, doubled_and_doubled, sparse_of_many_rows],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_small_h5ad_exceeding_memory_unpacked_names_its_size(file, finished, tmp_path, capsys, monkeypatch, change):
    with h5py.File(file, "r+") as h:
        change(h)
    assert os.path.getsize(file) < 2**20
    monkeypatch.setattr(resources, "memory", lambda: 2**34)
    monkeypatch.setattr(anndata, "read_h5ad", None)
    said = refused(capsys, "sc", "embed", finished / "run", file, "--out", tmp_path / "out.h5ad")
    assert "cells.h5ad, unpacked, needs at least" in said
    assert "GiB of memory, but only 16.0 GiB is available" in said
    assert not (tmp_path / "out.h5ad").exists()


def opaque(h):
    h["uns"]["x"] = np.void(b"\x80\x04 of no type")


def opaque_in_a_folder(h):
    named(h["uns"].create_group("a"), "dict", "0.1.0")["x"] = np.array([b"\x80\x04"], dtype="V2")


def renamed(where):
    def change(h):
        group = h[where]
        name = group.attrs["_index"]
        values = [b"a\0b", *(f"{i}".encode() for i in range(1, len(group[name])))]
        del group[name]
        named(group.create_dataset(name, data=np.array(values, dtype="S8")), "string-array")

    return change


def text_with_nul(h):
    named(h["obs"].create_dataset("note", data=np.array([b"a\0b"] * 120, dtype="S8")), "string-array")
    h["obs"].attrs["column-order"] = np.array([*h["obs"].attrs["column-order"], "note"], dtype=object)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (opaque, "'/uns/x' is of a type that cannot be written again"),
        (opaque_in_a_folder, "'/uns/a/x' is of a type that cannot be written again"),
        (renamed("obs"), r"the cell 'a\\x00b' .* holds a zero byte"),
        (text_with_nul, r"obs column 'note' .* holds a zero byte"),
    ],
    ids=["opaque", "opaque in a folder", "cell", "text"],
)
def test_unwritable_cells_are_refused_before_loading_the_model(
    file, finished, tmp_path, capsys, monkeypatch, change, told
):
    with h5py.File(file, "r+") as h:
        change(h)
    assert read_file(file).n_obs == 120, "a training needs no copy"
    monkeypatch.setattr(runs, "load", None)
    with pytest.raises(ValueError, match=told):
        runs.embed(finished / "run", file, tmp_path / "out.h5ad")
    refused(capsys, "sc", "embed", finished / "run", file, "--out", tmp_path / "out.h5ad")
    assert not list(tmp_path.glob("*out*"))


def put(value, *keys):
    """A change of the described model: another value at a place; none to take it away."""

    def change(content):
        inner = content["model"]
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value

    return change


def several(*changes):
    def change(content):
        for one in changes:
            one(content)

    return change


SETUP = ("registry", "setup_args")
FIELDS = ("registry", "field_registries")
RECORDS = {
    "adata": (put(1, "settings", "adata"), "settings has 'adata', which"),
    "unknown": (put("os.system", "settings", "foo"), "settings has 'foo', which"),
    "registry setting": (put({"a": 1}, "settings", "registry"), "settings has 'registry', which"),
    "encoder arguments": (put({"activation_fn": "os.system"}, "settings", "extra_encoder_kwargs"), "settings has"),
    "latent text": (put("x", "settings", "n_latent"), "settings.n_latent must be a whole number from 1 up; got 'x'"),
    "latent true": (put(True, "settings", "n_latent"), "settings.n_latent must be a whole number"),
    "latent 0": (put(0, "settings", "n_latent"), "settings.n_latent must be a whole number from 1 up; got 0"),
    "latent of many digits": (put(10**400, "settings", "n_latent"), "settings.n_latent must be a whole number"),
    "likelihood": (put("os.system", "settings", "gene_likelihood"), "settings.gene_likelihood must be one of zinb, "),
    "likelihood list": (put(["nb"], "settings", "gene_likelihood"), "settings.gene_likelihood must be one of"),
    "dropout": (put(7, "settings", "dropout_rate"), "settings.dropout_rate must be a number from 0 to 1; got 7"),
    "frozen": (put("yes", "settings", "freeze_decoder"), "settings.freeze_decoder must be true or false"),
    "settings list": (put([1], "settings"), "settings must be an object"),
    "settings missing": (put(None, "settings"), "settings must be an object; got None"),
    "class list": (put(["x"], "class"), "is a run, but not of cells"),
    "class of another": (put("os.system", "class"), "is a run, but not of cells"),
    "another class": (put("scvi.model.SCVI", "class"), "settings has 'n_components', which"),
    "genes missing": (put(None, "genes"), "genes must be a list of names"),
    "genes number": (put(5, "genes"), "genes must be a list of names; got 5"),
    "genes numbers": (put([5], "genes"), "genes must be a list of names"),
    "registry missing": (put(None, "registry"), "registry must be an object"),
    "registry text": (put("x", "registry"), "registry must be an object; got 'x'"),
    "no setup": (put(None, *SETUP), "registry.setup_args must be an object"),
    "source": (put({}, *SETUP, "source_registry"), "registry.setup_args has 'source_registry', which"),
    "cls": (put("os.system", *SETUP, "cls"), "registry.setup_args has 'cls', which"),
    "layer list": (put(["x"], *SETUP, "layer"), "registry.setup_args.layer must be a name or null; got ['x']"),
    "covariates text": (put("donor", *SETUP, "categorical_covariate_keys"), "must be a list of names or null"),
    "no fields": (put({}, *FIELDS), "registry.field_registries.X must be an object"),
    "fields list": (put([], *FIELDS), "registry.field_registries must be an object"),
    "field number": (put(5, *FIELDS, "batch"), "registry.field_registries.batch must be an object"),
    "state": (put([1], *FIELDS, "batch", "state_registry"), "field_registries.batch.state_registry must be an object"),
    "batches": (put(5, *FIELDS, "batch", "state_registry", "categorical_mapping"), "must be a list of different cat"),
    "batch lists": (put([["a"]], *FIELDS, "batch", "state_registry", "categorical_mapping"), "list of different cat"),
    "one batch twice": (put(["a", "a"], *FIELDS, "batch", "state_registry", "categorical_mapping"), "different cat"),
    "mappings": (put([1], *FIELDS, "extra_categorical_covs", "state_registry", "mappings"), "cannot be made for"),
    "mapping of donor": (
        put({"donor": 5}, *FIELDS, "extra_categorical_covs", "state_registry", "mappings"), "cannot be made for"),
    "no batches": (put(None, *FIELDS, "batch", "state_registry", "categorical_mapping"), "a list of different cat"),
    "n_vars": (put("x", *FIELDS, "X", "state_registry", "n_vars"), "Number of vars"),
    "hidden": (several(put(100_000, "settings", "n_hidden"), put(3, "settings", "n_layers")),
               "settings.n_hidden is 100000, and that of the weights 128"),
    "layers": (put(10**9, "settings", "n_layers"), "settings.n_layers is 1000000000, and that of the weights 1"),
    "latent": (put(10**9, "settings", "n_latent"), "settings.n_latent is 1000000000, and that of the weights 3"),
    "components": (put(10**6, "settings", "n_components"), "settings.n_components is 1000000, and that of the wei"),
    "fewer components": (put(1, "settings", "n_components"), "settings.n_components is 1, and that of the weights 2"),
    "norm": (put("none", "settings", "use_batch_norm"), "is of another architecture"),
    "a model that is none": (lambda content: content.update(model=[1]), "run"),
    "goal": (lambda content: content["goal"].pop("patience"), "run.json is damaged"),
    "training": (lambda content: content["recipe"]["identity"].pop("training"), "run.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_form_is_one_line(copied, file, tmp_path, capsys, name):
    change, told = RECORDS[name]
    forge(copied / "run.json", change)
    said = refused(capsys, "sc", "embed", copied, file, "--out", tmp_path / "out.h5ad")
    assert told in said
    assert "report it" not in said
    assert len(said) < 600
    assert not list(tmp_path.glob("*out*"))
    before = (copied / "run.json").read_bytes()
    options = ["--components", 2, "--batch-key", "batch", "--latent", 3, "--categorical-covariates", "donor"]
    said = refused(capsys, "sc", "train", file, *options, "--epochs", 1, "--out", copied)
    assert "report it" not in said
    assert (copied / "run.json").read_bytes() == before


def test_model_size_is_checked_during_build_if_weights_agree(copied, file, monkeypatch, tmp_path, capsys):
    """Weights may be of the sizes that the record names where a model has more of that size than a file shows."""
    tensors = load_weights(copied / "model.safetensors")
    tensors = {n: t.new_zeros(3, 10**6) if n.endswith("mean_encoder.weight") else t for n, t in tensors.items()}
    content = weights_to_bytes(tensors)
    (copied / "model.safetensors").write_bytes(content)

    def change(record):
        record["model"]["settings"]["n_hidden"] = 10**6
        record["files"]["weights"].update(sha256=checksum(content), bytes=len(content))

    forge(copied / "run.json", change)
    monkeypatch.setattr(resources, "memory", lambda: 2**28)
    said = refused(capsys, "sc", "embed", copied, file, "--out", tmp_path / "out.h5ad")
    assert "needs at least" in said
    assert "of memory, but only 0.25 GiB is available" in said


def test_components_exceeding_memory_are_refused_after_one(cells, monkeypatch):
    MixtureSCVI.setup_anndata(cells)
    monkeypatch.setattr(resources, "memory", lambda: 2**28)
    assert "a model of 999999 further encoders needs" in one_line_of(lambda: MixtureSCVI(cells, n_components=10**6))


LEGACY = {
    "settings list": ("settings", [], "settings.json must hold an object"),
    "no settings": ("settings", {}, "genes must be a list of names; got None"),
    "settings text": ("settings", "x", "settings.json must hold an object"),
    "components list": ("settings", {"components": [1]}, "settings.n_components must be a whole number"),
    "components text": ("settings", {"components": "os"}, "settings.n_components must be a whole number"),
    "likelihood": ("settings", {"likelihood": "eval"}, "settings.gene_likelihood must be one of"),
    "latent": ("settings", {"latent": 10**6}, "settings.n_latent is 1000000, and that of the weights 3"),
    "components": ("settings", {"components": 10**6}, "settings.n_components is 1000000, and that of the weights 2"),
    "batch": ("settings", {"batch_key": 5}, "setup_args.batch_key must be a name or null"),
    "covariates": ("settings", {"categorical_covariate_keys": 5}, "must be a list of names or null"),
    "genes": ("settings", {"genes": {"a": 1}}, "genes must be a list of names"),
    "registry list": ("registry", [], "registry must be an object"),
    "registry empty": ("registry", {}, "registry.field_registries must be an object"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_record_of_another_form_is_one_line(copied, file, tmp_path, capsys, name):
    which, value, told = LEGACY[name]
    described = read_json(copied / "run.json")["model"]
    whole = {**asdict(SETTINGS), "genes": described["genes"]}
    held = {"settings": whole, "registry": described["registry"]}
    held[which] = {**whole, **value} if which == "settings" and value and isinstance(value, dict) else value
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(copied / "model.safetensors", old)
    for stem, content in held.items():
        (old / f"{stem}.json").write_text(json.dumps(content))
    said = refused(capsys, "sc", "embed", old, file, "--out", tmp_path / "out.h5ad")
    assert told in said
    assert not (tmp_path / "out.h5ad").exists()
    assert "report it" not in refused(capsys, "sc", "train", file, "--out", old)


def test_legacy_run_with_a_pipe_as_weights_does_not_block(copied, file, tmp_path, capsys):
    old = tmp_path / "old"
    old.mkdir()
    described = read_json(copied / "run.json")["model"]
    write_json(old / "settings.json", {**asdict(SETTINGS), "genes": described["genes"]})
    write_json(old / "registry.json", described["registry"])
    os.mkfifo(old / "model.safetensors")
    assert "is not an ordinary file" in refused(capsys, "sc", "embed", old, file, "--out", tmp_path / "out.h5ad")


PLAN = {"epochs": 400, "warmup": 100, "patience": 45, "draws": 1000, "batch": 128}
PAIR = {"kind": "scvi", "components": 1, "seed": 0}


@pytest.mark.parametrize(
    "content",
    [
        [], {}, {"settings": [], "pooled": 3}, {"settings": PLAN, "pooled": ["x"] * 10, **PAIR},
        {"settings": PLAN, "pooled": [1.0] * 10, **PAIR}, {"settings": PLAN, "pooled": [1.0] * 10, "estimate": 5},
    ],
)  # fmt: skip
def test_a_legacy_result_of_another_form_is_one_line(tmp_path, cells, content):
    write_json(tmp_path / "scvi-S1-seed0.json", content)
    listed = [study.Job("scvi", 1, 0)]
    held_out = cells[:74].copy()
    assert len(study.split(74)[2]) == 10
    assert "is not a result of this experiment" in one_line_of(lambda: study.run(tmp_path, listed, data=held_out))
