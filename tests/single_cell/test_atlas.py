"""Cells of several files and kinds of files, and cells that stay on disk."""

import gzip
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
import scipy.sparse as sp
import scvi

from mixvae import cli
from mixvae.progress import Silent
from mixvae.runs import open_run
from mixvae.single_cell import MixtureSCVI, read_cells, runs, writing
from mixvae.single_cell import disk as module
from mixvae.single_cell.atlas import FILE_KEY
from mixvae.single_cell.reading import names_of

SETTINGS = runs.Settings(components=2, batch_key="batch", latent=3, epochs=2)


@pytest.fixture
def halves(cells, tmp_path):
    """The cells in two files."""
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path, rows in zip(paths, (slice(70), slice(70, None)), strict=True):
        cells[rows].copy().write_h5ad(path)
    return paths


@pytest.fixture
def file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def write_tables(cells, stem, suffix, genes, features, name="matrix"):
    """Write a matrix as 10x does, with antibodies in place of the last three genes if there is a third column."""
    wrap = gzip.open if suffix else open
    with wrap(f"{stem}{name}.mtx{suffix}", "wb") as file:
        scipy.io.mmwrite(file, cells.X.T.astype(np.int32))
    table = pd.DataFrame({"id": [f"E{i}" for i in range(cells.n_vars)], "name": cells.var_names})
    if genes == "features":
        table["type"] = ["Gene Expression"] * (cells.n_vars - 3) + ["Antibody Capture"] * 3
    table.to_csv(f"{stem}{genes}.tsv{suffix}", sep="\t", header=False, index=False)
    pd.Series(cells.obs_names[:features]).to_csv(f"{stem}barcodes.tsv{suffix}", header=False, index=False)


def write_10x(cells, path):
    """Write an .h5 file as Cell Ranger does."""
    counts = sp.csr_matrix(cells.X.astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = np.array(counts.T.shape)
        group["barcodes"] = cells.obs_names.to_numpy().astype("S")
        features = group.create_group("features")
        features["name"] = cells.var_names.to_numpy().astype("S")
        features["id"] = np.array([f"E{i}" for i in range(cells.n_vars)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * cells.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * cells.n_vars, dtype="S")


def test_several_files_are_put_together_in_their_order(cells, halves):
    both = read_cells(halves[::-1], ["batch"], "counts")
    np.testing.assert_array_equal(both.X.toarray(), np.r_[cells.X[70:].toarray(), cells.X[:70].toarray()])
    np.testing.assert_array_equal(both.layers["counts"].toarray(), both.X.toarray())
    assert list(both.obs_names) == [*cells.obs_names[70:], *cells.obs_names[:70]]
    assert list(both.obs[FILE_KEY]) == ["b"] * 50 + ["a"] * 70
    assert list(both.obs["batch"]) == [*cells.obs["batch"][70:], *cells.obs["batch"][:70]]


def test_genes_in_another_order_follow_the_first_file(cells, halves):
    anndata.read_h5ad(halves[1])[:, ::-1].copy().write_h5ad(halves[1])
    both = read_cells(halves)
    assert list(both.var_names) == list(cells.var_names)
    np.testing.assert_array_equal(both.X.toarray(), cells.X.toarray())


def test_files_with_different_genes_are_refused_with_numbers(cells, halves):
    cells[70:, 10:].copy().write_h5ad(halves[1])
    with pytest.raises(ValueError, match=r"different genes, 50 shared ones of 60 and 50: write .*shared") as error:
        read_cells(halves)
    assert "\n" not in str(error.value)
    twice = cells[70:, ::-1].copy()
    twice.var_names = ["x", "x", *twice.var_names[2:]]
    twice.write_h5ad(halves[1])
    with pytest.raises(ValueError, match=r"several genes of .*b.h5ad are named 'x'"):
        read_cells(halves)


def test_a_column_missing_from_one_file_is_named_with_it(halves):
    part = anndata.read_h5ad(halves[1])
    del part.obs["batch"]
    part.write_h5ad(halves[1])
    with pytest.raises(ValueError, match=r"b\.h5ad: adata\.obs has no column 'batch'"):
        read_cells(halves, ["batch"])


def test_a_column_named_file_is_not_overwritten(halves):
    part = anndata.read_h5ad(halves[1])
    part.obs[FILE_KEY] = "mine"
    part.write_h5ad(halves[1])
    with pytest.raises(ValueError, match=r"b\.h5ad has a column 'file' of its own"):
        read_cells(halves)
    assert set(read_cells(halves[1:], [FILE_KEY]).obs[FILE_KEY]) == {"mine"}


def test_same_barcodes_in_two_files_stay_apart(cells, halves):
    cells[:70].copy().write_h5ad(halves[1])
    both = read_cells(halves)
    assert both.obs_names.is_unique
    assert both.obs_names[70] == f"{cells.obs_names[0]}-b"


def test_names_of_files_tell_them_apart():
    assert names_of([Path("x/a.h5ad"), Path("x/s1_matrix.mtx.gz"), Path("s2/matrix.mtx")]) == ["a", "s1", "s2"]
    assert names_of([Path("x/a.h5ad"), Path("y/a.h5ad")]) == ["x/a.h5ad", "y/a.h5ad"]


@pytest.mark.parametrize(("suffix", "genes"), [(".gz", "features"), ("", "features"), ("", "genes")])
def test_a_10x_matrix_is_read_as_scanpy_reads_it(cells, tmp_path, suffix, genes):
    write_tables(cells, f"{tmp_path}/", suffix, genes, 120)
    [read] = [read_cells([tmp_path])]
    kept = 57 if genes == "features" else 60
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray()[:, :kept])
    assert list(read.obs_names) == list(cells.obs_names)
    if suffix or genes == "genes":
        theirs = scanpy.read_10x_mtx(tmp_path)
        np.testing.assert_array_equal(read.X.toarray(), theirs.X.toarray())
        pd.testing.assert_frame_equal(read.var, theirs.var, check_dtype=False)
        assert list(read.obs_names) == list(theirs.obs_names)


def test_prefixed_matrices_of_a_folder_are_its_samples(cells, tmp_path):
    for name, rows in (("s2_", slice(70, None)), ("s1_", slice(70))):
        write_tables(cells[rows], f"{tmp_path}/{name}", ".gz", "features", 120)
    both = read_cells([tmp_path])
    np.testing.assert_array_equal(both.X.toarray(), cells.X.toarray()[:, :57])
    assert list(both.obs[FILE_KEY]) == ["s1"] * 70 + ["s2"] * 50


def test_a_10x_matrix_that_lacks_a_table_is_refused(cells, tmp_path):
    write_tables(cells, f"{tmp_path}/", "", "genes", 119)
    with pytest.raises(ValueError, match="60 genes and 120 cells, and the tables beside it name 60 and 119"):
        read_cells([tmp_path / "matrix.mtx"])
    (tmp_path / "barcodes.tsv").unlink()
    with pytest.raises(ValueError, match=r"has no barcodes\.tsv or barcodes\.tsv\.gz beside it"):
        read_cells([tmp_path / "matrix.mtx"])
    (tmp_path / "counts.mtx").write_text("x")
    with pytest.raises(ValueError, match=r"is not named as 10x names it"):
        read_cells([tmp_path / "counts.mtx"])


def test_a_matrix_that_claims_too_much_is_not_allocated(tmp_path):
    (tmp_path / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n9000000 9000000 9000000000000\n1 1 1\n"
    )
    with pytest.raises(ValueError, match=r"matrix.mtx, unpacked, needs at least .* of memory"):
        read_cells([tmp_path])


def test_a_10x_h5_file_is_read_as_counts(cells, tmp_path):
    write_10x(cells, tmp_path / "counts.h5")
    read = read_cells([tmp_path / "counts.h5"])
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())
    assert list(read.var_names) == list(cells.var_names)
    cells.write_h5ad(tmp_path / "old.h5")  # which was always taken
    np.testing.assert_array_equal(read_cells([tmp_path / "old.h5"]).X.toarray(), cells.X.toarray())
    with h5py.File(tmp_path / "counts.h5", "r+") as file:
        file["matrix/far"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(ValueError, match="lies in another file"):
        read_cells([tmp_path / "counts.h5"])
    (tmp_path / "damaged.h5").write_bytes(b"no file of cells")
    with pytest.raises(ValueError, match=r"damaged.h5 is not an HDF5 file"):
        read_cells([tmp_path / "damaged.h5"])


def test_a_loom_file_names_the_package_that_it_takes(cells, tmp_path, monkeypatch):
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        file["matrix"] = cells.X.T.toarray()
    monkeypatch.setitem(__import__("sys").modules, "loompy", None)
    with pytest.raises(ValueError, match="without the package loompy: pip install loompy"):
        read_cells([tmp_path / "cells.loom"])


def test_a_loom_file_is_read_as_counts(cells, tmp_path):
    loompy = pytest.importorskip("loompy")
    rows = {"Gene": cells.var_names.to_numpy().astype(str)}
    columns = {"CellID": cells.obs_names.to_numpy().astype(str), "batch": cells.obs["batch"].to_numpy().astype(str)}
    loompy.create(str(tmp_path / "cells.loom"), cells.X.T.toarray(), rows, columns)
    read = read_cells([tmp_path / "cells.loom"])
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())
    assert list(read.var_names) == list(cells.var_names)
    assert list(read.obs["batch"]) == list(cells.obs["batch"])


def test_a_folder_must_hold_files_of_one_kind(halves, tmp_path):
    assert read_cells([tmp_path]).n_obs == 120
    (tmp_path / "c.h5").touch()
    with pytest.raises(ValueError, match=r"holds files of several kinds, \.h5, \.h5ad: name the files"):
        read_cells([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.h5ad, \.h5, \.loom or matrix\.mtx file"):
        read_cells([tmp_path / "empty"])
    assert len(halves) == 2


class Killed(BaseException):
    """As good as a kill."""


class Stopping(Silent):
    """A progress that ends the training after its first epoch."""

    def update(self, done, total, text=""):
        raise Killed


def test_the_checksum_covers_every_file_of_a_training(halves, file, tmp_path):
    with pytest.raises(Killed):
        runs.train(halves, tmp_path / "run", SETTINGS, Stopping())
    second = anndata.read_h5ad(halves[1])
    second.X.data[-1] += 1
    second.write_h5ad(halves[1])
    with pytest.raises(ValueError, match="was made from something else: data.sha256 is"):
        runs.train(halves, tmp_path / "run", SETTINGS)
    second.X.data[-1] -= 1
    second.write_h5ad(halves[1])
    with pytest.raises(ValueError, match="data.sha256"):
        runs.train(halves[::-1], tmp_path / "run", SETTINGS)
    with pytest.raises(Killed):  # the same cells in one file
        runs.train(file, tmp_path / "one", SETTINGS, Stopping())
    first, one = (open_run(tmp_path / name).recipe.sha256 for name in ("run", "one"))
    assert first == one
    runs.train(halves, tmp_path / "run", SETTINGS)
    assert open_run(tmp_path / "run").is_done


def test_a_run_by_file_embeds_all_files_or_one(halves, tmp_path):
    runs.train(halves, tmp_path / "run", replace(SETTINGS, batch_key=FILE_KEY))
    both = runs.embed(tmp_path / "run", halves, tmp_path / "both.h5ad")
    assert list(both.obs[FILE_KEY].cat.categories) == ["a", "b"]
    second = runs.embed(tmp_path / "run", halves[1], tmp_path / "second.h5ad")
    np.testing.assert_allclose(second.obsm["X_mixvae"], both.obsm["X_mixvae"][70:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_cells_on_disk_train_and_embed_as_in_memory(cells, file, halves, tmp_path, monkeypatch, several):
    monkeypatch.setattr(writing, "BLOCK", 50)
    files = halves if several else [file]
    if several:
        anndata.read_h5ad(halves[1])[:, ::-1].copy().write_h5ad(halves[1])
    runs.train(files, tmp_path / "run", SETTINGS, backed=True)
    memory = runs.embed(tmp_path / "run", files, tmp_path / "memory.h5ad")
    before = [path.read_bytes() for path in files]
    runs.embed(tmp_path / "run", files, tmp_path / "disk.h5ad", backed=True)
    runs.embed(tmp_path / "run", tmp_path / "disk.h5ad", tmp_path / "again.h5ad", backed=True)
    assert [path.read_bytes() for path in files] == before
    for name in ("disk.h5ad", "again.h5ad"):
        disk = anndata.read_h5ad(tmp_path / name)
        for key in ("X_mixvae", "X_mixvae_responsibilities"):
            np.testing.assert_allclose(disk.obsm[key], memory.obsm[key], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(disk.X.toarray(), cells.X.toarray())
        pd.testing.assert_frame_equal(disk.obs, memory.obs, check_names=False)
        assert list(disk.var_names) == list(cells.var_names)


@pytest.mark.parametrize("dense", [False, True])
def test_rows_on_disk_are_those_in_memory(cells, halves, dense):
    second = anndata.read_h5ad(halves[1])[:, ::-1].copy()
    if dense:
        second.X = second.X.toarray()
    second.write_h5ad(halves[1])
    read, counts = read_cells(halves, backed=True), cells.X.toarray()
    shuffled = np.random.default_rng(0).permutation(120)
    for rows in (
        slice(None), slice(60, 80), slice(5, 2), slice(110, 10, -7), shuffled, np.sort(shuffled[:30]), shuffled > 60,
        [3], [119, 0, 119, 69, 70], [-1, 5], np.zeros(120, bool),
    ):  # fmt: skip
        np.testing.assert_array_equal(read.X[rows].toarray(), counts[rows], err_msg=repr(rows))
    assert read.X.shape == (120, 60)


def test_weights_are_the_same_from_memory_and_disk(file, tmp_path):
    """scvi-tools sorts batches that it reads from disk, which changes the last bits of every sum over a batch."""
    memory = runs.train(file, tmp_path / "memory", SETTINGS)
    with pytest.raises(Killed):
        runs.train(file, tmp_path / "disk", SETTINGS, Stopping(), backed=True)
    disk = runs.train(file, tmp_path / "disk", SETTINGS)
    for name, tensor in memory.module.state_dict().items():
        assert tensor.equal(disk.module.state_dict()[name]), name


def test_only_the_counts_stay_on_disk_and_nothing_else_is_read(cells, file):
    cells.obsm["wide"] = np.ones((120, 7))
    cells.write_h5ad(file)
    read = read_cells([file], backed=True)
    assert read.isbacked
    assert not list(read.obsm)
    assert not list(read.layers)
    MixtureSCVI.setup_anndata(read, batch_key="batch")
    assert MixtureSCVI(read, n_components=2).adata is read


def test_cells_that_cannot_stay_on_disk_are_refused(cells, halves, file, tmp_path):
    for paths, layer, message in (
        (halves[:1] + [tmp_path / "no.h5ad"], None, "there is no file"),
        ([file], "counts", "only X can stay on disk, not the layer 'counts'"),
        ([tmp_path / "no.h5ad"], None, "there is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_cells(paths, [], layer, backed=True)
    cells.X = sp.csc_matrix(cells.X)
    cells.write_h5ad(file)
    with pytest.raises(ValueError, match="by rows to stay on disk, csr_matrix or array; X is csc_matrix"):
        read_cells([file], backed=True)
    cells.X = cells.X.toarray()
    cells.write_h5ad(file)
    assert read_cells([file], backed=True).isbacked


@pytest.mark.parametrize("backed", [False, True])
def test_other_files_are_embedded_by_names_of_genes(cells, file, halves, tmp_path, backed):
    runs.train(file, tmp_path / "run", SETTINGS)
    in_order = runs.embed(tmp_path / "run", halves[0], tmp_path / "in_order.h5ad").obsm["X_mixvae"]
    other = cells[:70, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    runs.embed(tmp_path / "run", tmp_path / "other.h5ad", tmp_path / "out.h5ad", backed=backed)
    found = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_mixvae"]
    np.testing.assert_allclose(found, in_order, rtol=1e-4, atol=1e-5)


def test_command_line_takes_folders_and_cells_on_disk(halves, file, tmp_path, monkeypatch, capsys, as_users_run):
    monkeypatch.chdir(tmp_path)
    options = ["--components=2", "--latent=2", "--epochs=1"]
    (tmp_path / "samples").mkdir()
    for path in halves:
        path.rename(tmp_path / "samples" / path.name)
    said = run_of(capsys, "sc", "train", "samples", *options, "--batch-key", "file")
    assert said.endswith("next: mixvae sc embed runs/samples-S2 samples")
    run_of(capsys, "sc", "embed", "runs/samples-S2", "samples")
    assert anndata.read_h5ad("samples-embedded.h5ad").obsm["X_mixvae"].shape == (120, 2)
    assert run_of(capsys, "sc", "train", file, *options, "--backed").endswith(f" {file} --backed")
    run_of(capsys, "sc", "embed", "runs/cells-S2", file, "--backed")
    assert anndata.read_h5ad("cells-embedded.h5ad").obsm["X_mixvae"].shape == (120, 2)
    with pytest.raises(SystemExit) as end:
        cli.main(["sc", "train", str(file), "--backed", "--layer", "counts"])
    assert end.value.code == 2
    assert "only X can stay on disk" in capsys.readouterr().err


def run_of(capsys, *words):
    """What a command says last."""
    cli.main(list(map(str, words)))
    return capsys.readouterr().out.strip()


@pytest.fixture
def atlas(halves):
    """The cells on disk, in two files with different orders of genes."""
    anndata.read_h5ad(halves[1])[:, ::-1].copy().write_h5ad(halves[1])
    return read_cells(halves, backed=True)


@pytest.fixture(scope="module")
def refusing(real, tmp_path_factory):
    """An atlas that refuses what is asked of it, and so stays as it is."""
    path = tmp_path_factory.mktemp("refusing") / "cells.h5ad"
    real.write_h5ad(path)
    return read_cells([path], backed=True)


def values(matrix):
    return np.asarray(matrix.todense() if sp.issparse(matrix) else matrix)


def test_counts_on_disk_are_indexed_by_genes_as_in_memory(cells, atlas):
    mask = np.arange(120) % 7 == 0
    for index in (
        (3, 2), (-1, -2), (slice(10), 3), (slice(60, 80), slice(5)), (slice(None), [3, 1]), ([3, 70], [1, 2]),
        (mask, [4, 2, 4] * 6), (np.array([[3], [119]]), [0, 5]), (mask, slice(5, 40)), (5, slice(None)),
    ):  # fmt: skip
        np.testing.assert_array_equal(values(atlas.X[index]), values(cells.X[index]), err_msg=repr(index))


def test_counts_on_disk_are_summed_as_in_memory(cells, atlas, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)
    for axis in (None, 0, 1, -1, -2):
        ours, theirs = atlas.X.sum(axis), cells.X.sum(axis, dtype=np.float64)
        np.testing.assert_array_equal(ours, theirs)
        assert np.shape(ours) == np.shape(theirs)
    assert "120 cells" in str(atlas.X) == repr(atlas.X)


@pytest.mark.parametrize(
    "ask",
    [
        lambda a: a.X.max(), lambda a: a.X.nnz, lambda a: a.X.mean(0), lambda a: a.X.toarray(),
        lambda a: a.X @ np.ones(60),
        lambda a: a.X.multiply(2), lambda a: a.X != 0, lambda a: a.X.T, lambda a: list(a.X), lambda a: a.X.tocsc(),
        lambda a: -a.X, lambda a: a.X.astype(int), lambda a: a.X.getrow(3), lambda a: a.X.count_nonzero(),
        lambda a: a.X.power(2), lambda a: a.X.tocoo(), lambda a: a.X.diagonal(), lambda a: a.X.sum_duplicates(),
        lambda a: a.X.min(1), lambda a: a.X.log1p(), lambda a: a.to_df(), lambda a: anndata.concat([a, a]),
        lambda a: a.X.nonzero(), lambda a: a.X.__setitem__((3, 3), 1), lambda a: sp.vstack([a.X]),
        lambda a: setattr(a, "X", None), lambda a: a.write("a.h5ad"), lambda a: a.copy("a.h5ad"), lambda a: a.X[120],
        lambda a: a.X[-121], lambda a: a.X[[True] * 119], lambda a: a.X["c"], lambda a: scanpy.pp.log1p(a),
        lambda a: scanpy.pp.normalize_total(a), lambda a: np.log1p(a.X.data), lambda a: -a.X.data,
        lambda a: a.X.data.max(), lambda a: a.X.data[3], lambda a: a.X.todense(),
        lambda a: sp.csr_matrix(a.X), lambda a: sp.csr_matrix(a.X, copy=True), lambda a: a.X.argmax(0),
        lambda a: a.X.eliminate_zeros(), lambda a: a.X.reshape(60, 120), lambda a: a.X.getcol(1),
        lambda a: a.X.getnnz(0),
    ],
)  # fmt: skip
def test_what_needs_all_counts_on_disk_is_refused(refusing, ask):
    with pytest.raises(ValueError, match=r"on disk|a mask must|numbered from|whole numbers") as error:
        ask(refusing)
    assert "\n" not in str(error.value)


def test_cells_on_disk_are_chosen_and_reordered_as_in_memory(cells, atlas):
    atlas.obsm["latent"] = cells.obsm["latent"] = np.arange(240.0).reshape(120, 2)
    for index in (slice(10), [5, 110, 5], (slice(None), [3, 1]), cells.obs["batch"] == "a", cells.obs_names[80:60:-1]):
        ours, theirs = atlas[index], cells[index]
        assert ours.isbacked
        for same in (ours, ours.copy(), ours[:], ours[::-1][::-1]):
            np.testing.assert_array_equal(same.to_memory().X.toarray(), theirs.X.toarray())
            np.testing.assert_array_equal(same.obsm["latent"], theirs.obsm["latent"])
            assert list(same.obs_names) == list(theirs.obs_names)
            assert list(same.var_names) == list(theirs.var_names)
    atlas._inplace_subset_obs(np.arange(120) % 3 == 0)  # as scanpy filters cells
    assert atlas.shape == (40, 60)
    np.testing.assert_array_equal(atlas.X[:].toarray(), cells[atlas.obs_names].X.toarray())


def test_a_model_of_cells_on_disk_answers_as_in_memory(cells, atlas, halves):
    models = []
    for some in (cells, atlas):
        MixtureSCVI.setup_anndata(some, batch_key="batch")
        scvi.settings.seed = 0
        models.append(MixtureSCVI(some, n_components=2, n_hidden=8, n_latent=2))
        models[-1].is_trained_ = True
        models[-1].module.eval()
    memory, disk = models
    expected = memory.get_latent_representation()
    np.testing.assert_allclose(
        disk.get_latent_representation(atlas[[5, 110]]), expected[[5, 110]], rtol=1e-4, atol=1e-6
    )
    query = read_cells(halves[1:], backed=True)
    MixtureSCVI.prepare_query_anndata(query, disk)
    np.testing.assert_allclose(disk.get_latent_representation(query), expected[70:], rtol=1e-4, atol=1e-6)
    tables = []
    for model in models:
        scvi.settings.seed = 0
        tables.append(model.differential_expression(groupby="batch", group1="a", silent=True).sort_index())
    for column in ("raw_mean1", "raw_normalized_mean1", "raw_normalized_mean2", "non_zeros_proportion2"):
        np.testing.assert_allclose(tables[1][column], tables[0][column], rtol=1e-5, err_msg=column)
    with pytest.raises(ValueError, match=r"on disk cannot be minified: load the model for adata.to_memory\(\)"):
        disk.minify_adata()
