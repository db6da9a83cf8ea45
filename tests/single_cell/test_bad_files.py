"""Files of cells of every odd and bad kind: `mixvae sc` works with them, or says in one line why it cannot."""

import gzip
import os
import re
import subprocess
import sys
from functools import partial

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from mudata import MuData

from conftest import refused
from mixvae.single_cell import read_cells, runs
from mixvae.single_cell.atlas import with_genes
from mixvae.single_cell.data import find_genes
from mixvae.single_cell.writing import write_cells, write_on_disk

pytestmark = pytest.mark.usefixtures("as_users_run")
SETTINGS = runs.Settings(components=2, batch_key="batch", latent=2, epochs=1)


def one_line_of(call, *arguments):
    """What a call says that refuses."""
    with pytest.raises(ValueError, match=" ") as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(change, name="cells.h5ad"):
    """A maker of a file that is written after a change of the cells, which may return others."""

    def make(cells, folder):
        changed = change(cells)
        (changed if isinstance(changed, anndata.AnnData) else cells).write_h5ad(folder / name)
        return folder / name

    return make


def edited(change, name="cells.h5ad"):
    """A maker of a file that is changed after it was written."""

    def make(cells, folder):
        cells.write_h5ad(folder / name)
        with h5py.File(folder / name, "r+") as file:
            change(file)
        return folder / name

    return make


def holding(name, content):
    """A maker of a file with this content."""

    def make(cells, folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def with_value(value):
    def change(cells):
        cells.X = cells.X.copy()
        cells.X.data[7] = value

    return written(change)


def with_counts(counts):
    return written(lambda cells: setattr(cells, "X", counts(cells.X)))


def with_batch(values):
    return written(lambda cells: cells.obs.__setitem__("batch", values(np.arange(cells.n_obs))))


def put(where, values):
    """Replace entries of an array of a file."""

    def change(file):
        file[where][: len(values)] = values

    return change


def replaced(where, values):
    """Replace an array of a file as anndata writes one."""

    def change(file):
        del file[where]
        file[where] = values
        file[where].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    return change


def truncated(cells, folder):
    path = written(lambda _: None)(cells, folder)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def zipped(cells, folder):
    path = written(lambda _: None)(cells, folder)
    path.with_suffix(".h5ad.gz").write_bytes(gzip.compress(path.read_bytes()))
    return path.with_suffix(".h5ad.gz")


def multimodal(cells, folder):
    MuData({"rna": cells}).write_h5mu(folder / "cells.h5mu")
    return folder / "cells.h5mu"


def matrix(content, suffix="", **tables):
    """A maker of a 10x matrix with tables beside it."""

    def make(cells, folder):
        for name, text in {"features": b"g\n" * 2, "barcodes": b"c\n" * 3, **tables}.items():
            if text is not None:
                (folder / f"{name}.tsv").write_bytes(text)
        (folder / f"matrix.mtx{suffix}").write_bytes(content)
        return folder / f"matrix.mtx{suffix}"

    return make


def cell_ranger(*genomes, kind="Gene Expression"):
    """A maker of an .h5 file, of an old version of Cell Ranger if there are genomes."""

    def make(cells, folder):
        counts, names = cells.X.astype(np.int32), cells.var_names.to_numpy().astype("S")
        with h5py.File(folder / "cells.h5", "w") as file:
            for genome in genomes or ["matrix"]:
                group = file.create_group(genome)
                for part in ("data", "indices", "indptr"):
                    group[part] = getattr(counts, part)
                group["shape"], group["barcodes"] = counts.T.shape, cells.obs_names.to_numpy().astype("S")
                old = {"genes": names, "gene_names": names}
                new = dict.fromkeys(("features/id", "features/name"), names)
                new |= {"features/feature_type": [kind] * len(names), "features/genome": ["GRCh38"] * len(names)}
                for part, values in (old if genomes else new).items():
                    group[part] = np.asarray(values, dtype="S")
        return folder / "cells.h5"

    return make


def looped(cells, folder):
    (folder / "cells.h5ad").symlink_to(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def folded(cells, folder):
    cells.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def renamed(cells):
    cells.var_names = [f"ENSG{i}" for i in range(cells.n_vars)]


MTX = b"%%MatrixMarket matrix coordinate integer general\n2 3 2\n1 1 4\n2 3 1\n"
BAD = {
    "text": (holding("cells.h5ad", b"gene,count\n"), "is not an HDF5 file, as .h5ad"),
    "nothing": (holding("cells.h5ad", b""), "is empty: give"),
    "cut off": (truncated, "cannot be read as cells: .*truncated"),
    "compressed": (zipped, "is not an HDF5 file"),
    "loom": (holding("cells.loom", b"x"), "is not an HDF5 file"),
    "csv": (holding("cells.csv", b",a,b\nc,1,2\n"), "is not an HDF5 file"),
    "zarr": (folded, "the folder .* holds no .h5ad"),
    "a folder": (lambda cells, folder: folder, "the folder .* holds no .h5ad"),
    "a loop of links": (looped, "there is no file"),
    "another h5": (edited(lambda h: [h.pop(name) for name in ("obs", "var")]), "as it has no obs and no var"),
    "MuData": (multimodal, "holds MuData of rna: write one of them"),
    "no matrix of 10x": (edited(lambda h: h.pop("obs"), "cells.h5"), "no matrix of Cell Ranger and no AnnData"),
    "two genomes": (cell_ranger("hg19", "mm10"), "several genomes, hg19, mm10: write one .*genome='hg19'"),
    "only antibodies": (cell_ranger(kind="Antibody Capture"), "got 120 cells with 0 genes|none of the model's"),
    "mtx without genes": (matrix(MTX, features=None), "has no features.tsv or features.tsv.gz beside it"),
    "mtx without cells": (matrix(MTX, barcodes=None), "has no barcodes.tsv or barcodes.tsv.gz beside it"),
    "mtx of no matrix": (matrix(b"nonsense"), "matrix.mtx cannot be read as cells: .*banner"),
    "mtx not compressed": (matrix(MTX, ".gz"), "matrix.mtx.gz cannot be read as cells: Not a gzipped file"),
    "mtx cut off": (matrix(MTX[:-8]), "matrix.mtx cannot be read as cells"),
    "mtx with a bad index": (matrix(MTX.replace(b"2 3 1", b"5 3 1")), "cannot be read as cells: .*bounds"),
    "genes of no text": (matrix(MTX, features=b"\xff\xfe"), "features.tsv cannot be read as cells: 'utf-8'"),
    "no cells": (written(lambda cells: cells[:0].copy()), "at least 10 cells.*got 0|got 0 cells with 60 genes"),
    "no genes": (written(lambda cells: cells[:, :0].copy()), "got 120 cells with 0 genes|none of the model's"),
    "NaN": (with_value(np.nan), "must hold counts, whole numbers from 0 up; got nan"),
    "inf": (with_value(np.inf), "got inf"),
    "negative": (with_value(-1), "got -1"),
    "logarithms": (with_counts(np.log1p), "must hold counts.*got"),
    "complex": (with_counts(lambda x: x.astype(np.complex64)), "must hold (numbers; got complex|a number for each)"),
    "texts": (edited(replaced("X", np.full((120, 60), b"a"))), "must hold (numbers; got|a number for each)"),
    "an empty cell": (
        with_counts(lambda x: sp.csr_matrix(x.toarray() * (np.arange(120) != 3)[:, None])), "has no counts in adata.X"),
    "raw only": (
        written(lambda cells: [setattr(cells, "raw", cells.copy()), setattr(cells, "X", None)]), "X is (empty|None)"),
    "an index too large": (edited(put("X/indices", [10**6])), "sparse matrix X is damaged, indices must be < 60"),
    "a negative index": (edited(put("X/indices", [-5])), "sparse matrix X is damaged, indices must be >= 0"),
    "rows without order": (edited(put("X/indptr", [0, 10**9])), "cells.h5ad.*(damaged|cannot be read)"),
    "more columns than genes": (
        edited(lambda h: h["X"].attrs.modify("shape", [120, 70])), "cells.h5ad.*(columns|the shape \\(120, 70\\))"),
    "a batch of NaN": (with_batch(lambda i: pd.Categorical(np.where(i % 2, "a", None))), "has no category for cell"),
    "no batch": (written(lambda cells: cells.obs.pop("batch")), "no column 'batch'"),
}  # fmt: skip
BAD_QUERY = {
    "another organism": (written(renamed), "none of the model's 60 genes .* but 60 others \\(ENSG0.*another organism"),
    "genes missing": (
        written(lambda cells: cells[:, :45].copy()), "has 60 genes, of which these cells lack 15 \\(such as"),
    "a gene twice": (
        written(lambda c: setattr(c, "var_names", [c.var_names[1], *c.var_names[1:]])), "cells lack 1 \\(such as"),
    "a batch that is new": (
        with_batch(lambda i: np.where(i, "a", "z")), r"\['batch'\] is z for cell .* trained on a, b: leave such"),
    "numbers as batches": (with_batch(lambda i: i % 2), r"\['batch'\] is 0 for cell .* trained on a, b"),
}  # fmt: skip
BAD_TRAINING = {
    "nine cells": (written(lambda cells: cells[:9].copy()), [], "at least 10 cells, a tenth of them .*; got 9"),
    "a batch misspelt": (written(lambda cells: None), ["--batch-key", "bacth"], "did you mean 'batch'"),
    "NaN of any likelihood": (with_value(np.nan), ["--likelihood", "normal"], "must hold finite numbers; got nan"),
    "a layer misspelt": (written(lambda cells: None), ["--layer", "count"], "'count': did you mean 'counts'|only X"),
    "a layer of another shape": (
        edited(lambda h: h["layers/counts"].attrs.modify("shape", [120, 50])), ["--layer", "counts"],
        "incorrect shape|only X"),
    "text as a number": (
        written(lambda cells: None), ["--continuous-covariates", "donor"], r"\['donor'\] must hold numbers; got"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_leaves_nothing(cells, finished, tmp_path, capsys, name):
    make, message = BAD[name]
    file, out = make(cells, tmp_path), tmp_path / "out"
    before = set(tmp_path.iterdir())
    told = [refused(capsys, "sc", "train", file, "--batch-key", "batch", "--epochs", 1, "--out", out)]
    told.append(one_line_of(runs.embed, finished / "run", file, out.with_suffix(".h5ad")))
    assert all(re.search(message, said) for said in told), told
    if file.suffix != ".h5ad":
        message = "only .h5ad files can stay on disk|as it has no obs|HDF5|the folder|MuData of rna"
    assert re.search(message, one_line_of(partial(runs.train, backed=True), file, out, SETTINGS))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("backed", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("name", BAD_QUERY)
def test_cells_that_a_model_does_not_know_are_refused(cells, finished, tmp_path, name, backed):
    make, message = BAD_QUERY[name]
    file, out = make(cells, tmp_path), tmp_path / "out.h5ad"
    assert re.search(message, one_line_of(partial(runs.embed, backed=backed), finished / "run", file, out))
    assert not out.exists()


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_wrong_options_of_a_training_are_refused(cells, tmp_path, capsys, name):
    make, options, message = BAD_TRAINING[name]
    file = make(cells, tmp_path)
    for backed in ((), ("--backed",)):
        said = refused(capsys, "sc", "train", file, *options, "--epochs", 1, "--out", tmp_path / "run", *backed)
        assert re.search(message, said), said
        assert not (tmp_path / "run").exists()


def unsorted(h):
    """Reverse the order of the values within each row."""
    bounds = h["X/indptr"][:]
    for part in ("X/indices", "X/data"):
        h[part][:] = np.concatenate([h[part][a:b][::-1] for a, b in zip(bounds[:-1], bounds[1:], strict=True)])


def with_more_genes(cells):
    others = cells[:, :5].copy()
    others.var_names = [f"other{i}" for i in range(5)]
    return anndata.concat([others, cells[:, ::-1]], axis=1, merge="same")


ODD = {
    "float16": with_counts(lambda x: x.toarray().astype(np.float16)),
    "int64": with_counts(lambda x: x.astype(np.int64)),
    "uint8": with_counts(lambda x: x.astype(np.uint8)),
    "dense": with_counts(lambda x: x.toarray()),
    "by columns": with_counts(sp.csc_matrix),
    "a sparse array": with_counts(sp.csr_array),
    "values in any order": edited(unsorted),
    "genes in another order": written(lambda cells: cells[:, ::-1].copy()),
    "further genes": written(with_more_genes),
    "a name with spaces": written(lambda cells: None, "données d'été 細胞.h5ad"),
    "an .h5ad by another name": written(lambda cells: None, "cells.h5"),
    "the same name twice": written(lambda cells: setattr(cells, "obs_names", ["cell"] * cells.n_obs)),
    "one batch": written(lambda cells: cells[cells.obs["batch"] == "a"].copy()),
    "one cell": written(lambda cells: cells[:1].copy()),
}


@pytest.fixture(scope="module")
def latents(real, finished):
    """Latents of the cells by the finished run."""
    return runs.load(finished / "run", real.copy()).get_latent_representation()


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_gives_the_latents_of_its_cells(cells, finished, latents, tmp_path, name):
    own = {"one batch": np.asarray(cells.obs["batch"] == "a"), "one cell": [0]}.get(name, slice(None))
    file = ODD[name](cells, tmp_path)
    genes = list(anndata.read_h5ad(file).var_names)
    for backed in (False, True)[: 1 if name == "by columns" else 2]:
        runs.embed(finished / "run", file, tmp_path / "out.h5ad", backed=backed)
        out = anndata.read_h5ad(tmp_path / "out.h5ad")
        np.testing.assert_allclose(out.obsm["X_mixvae"], latents[own], rtol=1e-4, atol=1e-5)
        assert list(out.var_names) == genes
        assert not [key for key in [*out.obs, *out.uns] if key.startswith("_scvi")]


def test_the_output_is_not_one_of_the_inputs(cells, finished, tmp_path, capsys):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "link.h5ad").symlink_to(tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()
    for out in ("cells.h5ad", "link.h5ad"):
        said = refused(capsys, "sc", "embed", finished / "run", tmp_path / "cells.h5ad", "--out", tmp_path / out)
        assert "is one of the files that are read: name another" in said
    assert (tmp_path / "cells.h5ad").read_bytes() == before


def test_outputs_are_checked_before_cells_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "read_cells", None)
    (tmp_path / "file").touch()
    (tmp_path / "folder.h5ad").mkdir()
    for words, message in (
        (("train", "c.h5ad", "--out", tmp_path / "file"), "is a file"),
        (("train", "c.h5ad", "--out", tmp_path / "file" / "run"), "is a file"),
        (("embed", "run", "c.h5ad", "--out", tmp_path / "folder.h5ad"), "is a directory: give the name of a file"),
        (("embed", "run", "c.h5ad", "--out", tmp_path / "file" / "x.h5ad"), "is a file"),
        (("embed", "run", "c.h5ad", "--out", "/proc/x/y.h5ad"), "--out /proc/x/y.h5ad cannot be written: no file can"),
        (("train", "c.h5ad", "--out", "/proc/x/y"), "--out /proc/x/y cannot be written: no file can be made in /proc"),
    ):
        assert message in refused(capsys, "sc", *words)


def test_a_file_given_twice_is_refused(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for backed in (False, True):
        with pytest.raises(ValueError, match="is given twice, so that its cells would count twice"):
            read_cells([tmp_path / "cells.h5ad", tmp_path / "x" / ".." / "cells.h5ad"], backed=backed)


def test_a_file_without_permission_is_not_called_damaged(cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may read everything
    with pytest.raises(ValueError, match=r"cells.h5ad may not be read by this user"):
        read_cells([tmp_path / "cells.h5ad"])


def test_a_layer_that_a_model_needs_is_asked_for_by_name(cells):
    with pytest.raises(ValueError, match="no layer 'count': did you mean 'counts'"):
        with_genes(cells, list(cells.var_names), "count")


def test_names_twice_among_further_genes_do_not_matter(cells):
    cells.var_names = [*cells.var_names[:-2], "twice", "twice"]
    assert list(find_genes(cells.var_names, cells.var_names[:3][::-1])) == [2, 1, 0]
    with pytest.raises(ValueError, match="several genes are named 'twice'"):
        find_genes(cells.var_names, ["twice"])


FULL = """
import resource, sys
from mixvae import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
cli.main(sys.argv[2:])
"""
"""A command on a disk where files outgrow a size, in a process of its own: torch may hang in a forked one."""


@pytest.mark.slow
def test_an_output_that_outgrows_the_disk_is_taken_back(cells, finished, tmp_path):
    """The copy fits, and what is added to it does not."""
    file = tmp_path / "cells.h5ad"
    cells.write_h5ad(file)
    words = ["sc", "embed", str(finished / "run"), str(file), "--backed", f"--out={tmp_path / 'out.h5ad'}"]
    command = [sys.executable, "-c", FULL, str(file.stat().st_size + 512), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot write" in done.stderr
    assert os.listdir(tmp_path) == ["cells.h5ad"]


def test_several_files_on_disk_are_copied_with_their_counts(cells, tmp_path):
    """Counts keep the widest type; `obsm` and layers of several files stay where they are."""
    cells.obsm["X_pca"] = np.ones((120, 3))
    parts = [cells[:50].copy(), cells[50:].copy()]
    parts[0].X, parts[1].X = parts[0].X.astype(np.uint8), parts[1].X.toarray().astype(np.int32)
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for part, file in zip(parts, files, strict=True):
        part.write_h5ad(file)
    write_on_disk(read_cells(files, backed=True), files, tmp_path / "out.h5ad", {"n": lambda numbers: numbers[:, None]})
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert out.X.dtype == np.int32
    np.testing.assert_array_equal(out.X.toarray(), cells.X.toarray())
    pd.testing.assert_frame_equal(out.obs[["batch"]], cells.obs[["batch"]], check_dtype=False, check_categorical=False)
    np.testing.assert_array_equal(out.obsm["n"][:, 0], np.arange(120))
    assert list(out.obsm) == ["n"]
    with h5py.File(tmp_path / "out.h5ad") as file:
        assert "raw" not in file


def entries(path):
    """Every entry of a file: how it is encoded, its attributes, and its values."""
    found = {}

    def note(name, item):
        values = item[()].tolist() if isinstance(item, h5py.Dataset) and item.shape is not None else None
        found[name] = {key: str(value) for key, value in item.attrs.items()}, values

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_cells_are_written_as_anndata_writes_them(cells, tmp_path):
    """Everything that a file may hold is in the copy, in the same form."""
    cells.raw = cells.copy()
    cells.raw.var["kind"] = ["gene", "other"] * 30
    cells.obs["note"] = ["x", "y", "z"] * 40
    cells.obs["whole"] = pd.array([1, None] * 60, dtype="Int64")
    cells.obsm["frame"] = pd.DataFrame({"a": np.arange(120.0)}, index=cells.obs_names)
    cells.obsp["near"] = sp.eye(120, format="csr")
    cells.varm["loadings"] = np.ones((60, 2))
    cells.uns |= {"nested": {"colours": np.array(["#fff", "#000"]), "none": None, "pairs": {"k": 3}}}
    cells.copy().write_h5ad(tmp_path / "theirs.h5ad")
    write_cells(cells.copy(), tmp_path / "ours.h5ad")
    ours, theirs = entries(tmp_path / "ours.h5ad"), entries(tmp_path / "theirs.h5ad")
    assert ours == theirs
    assert "raw/var/kind/codes" in ours
