"""Cells that stay on disk: in any order, with the same numbers as in memory, and never all at once."""

import anndata
import numpy as np
import pytest
from anndata.experimental import AnnCollection
from scvi.dataloaders import CollectionAdapter

from mixvae.single_cell import Atlas, MixtureSCANVI, MixtureSCVI, bounds, data, read_cells
from mixvae.single_cell.atlas import Part
from mixvae.single_cell.data import check_setup
from mixvae.single_cell.loading import CellLoader

from .conftest import make

ASKED = [7, 3, 119, 3, 60, 0, 61]


@pytest.fixture
def backed(cells, tmp_path):
    """The cells in two files, of which the second has the genes in another order; opened as anndata does."""
    parts = [cells[:70].copy(), cells[70:, ::-1].copy()]
    for part, name in zip(parts, "ab", strict=True):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    return [anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r") for name in "ab"]


def from_sparse(cells, folder):
    cells.write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


def from_dense(cells, folder):
    cells.X = cells.X.toarray()
    return from_sparse(cells, folder)


def from_file(cells, folder):
    cells.write_h5ad(folder / "cells.h5ad")
    return read_cells([folder / "cells.h5ad"], backed=True)


def from_collection(cells, folder):
    return CollectionAdapter(AnnCollection([cells[:70].copy(), cells[70:].copy()], join_vars="inner"))


@pytest.mark.parametrize("place", [from_sparse, from_dense, from_file, from_collection])
def test_rows_on_disk_come_in_the_order_asked_for(cells, tmp_path, place):
    """scvi-tools sorts the rows of each batch, so that latents would be those of other cells."""
    layer = "counts" if place is from_collection else None
    MixtureSCVI.setup_anndata(cells, layer=layer)
    model = MixtureSCVI(cells, n_components=2, n_hidden=8, n_latent=2)
    model.is_trained_ = True
    model.module.eval()
    there = place(cells.copy(), tmp_path)
    for asked in (ASKED, np.arange(120) % 7 == 0, range(119, 0, -20)):
        expected = model.get_latent_representation(indices=asked, batch_size=4)
        found = model.get_latent_representation(there, indices=asked, batch_size=4)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    draws = {"indices": ASKED, "n_mc_samples": 20, "return_mean": False}
    np.testing.assert_allclose(model.get_marginal_ll(there, **draws), model.get_marginal_ll(**draws), atol=1e-3)


def test_training_on_disk_ends_with_the_weights_of_memory(cells, tmp_path):
    memory = make(cells.copy(), setup={"batch_key": "batch"})
    disk = make(from_sparse(cells, tmp_path), setup={"batch_key": "batch"})
    for name, tensor in memory.module.state_dict().items():
        assert tensor.equal(disk.module.state_dict()[name]), name


def test_sparse_tensors_come_in_the_order_asked_for(cells, tmp_path):
    there = from_sparse(cells, tmp_path)
    MixtureSCVI.setup_anndata(there)
    manager = MixtureSCVI(there, n_components=2).adata_manager
    [batch] = CellLoader(manager, indices=ASKED, load_sparse_tensor=True)
    np.testing.assert_array_equal(batch["X"].to_dense().numpy(), cells.X.toarray()[ASKED])


def test_a_collection_of_backed_files_is_never_read_whole(cells, backed, monkeypatch):
    """scvi-tools takes the layers of anndata's collections only, and those of backed files are in memory."""
    monkeypatch.setattr(data, "BLOCK", 10)
    monkeypatch.setattr(data, "BLOCKS", 3)
    most, read = [], Part.read
    monkeypatch.setattr(Part, "read", lambda part, rows: (most.append(len(rows)), read(part, rows))[1])
    there = Atlas.of(AnnCollection(backed, join_vars="inner", label="file", index_unique=None))
    assert list(there.obs_names) == list(cells.obs_names)
    disk, memory = (make(place, setup={"batch_key": "batch"}) for place in (there, cells))
    for name, tensor in memory.module.state_dict().items():
        assert tensor.equal(disk.module.state_dict()[name]), name
    options = {"batch_size": 50}
    np.testing.assert_array_equal(*(model.get_latent_representation(**options) for model in (disk, memory)))
    options |= {"indices": ASKED, "n_mc_samples": 20}
    np.testing.assert_array_equal(*(model.get_responsibilities(**options) for model in (disk, memory)))
    np.testing.assert_array_equal(*(model.get_bounds(**options).log_px for model in (disk, memory)))
    np.testing.assert_array_equal(*(bounds(model.as_scvi(0), **options).elbo for model in (disk, memory)))
    assert max(most) < 60, "the batches of training"


def test_a_collection_is_told_how_it_can_be_read(backed):
    collection = AnnCollection(backed, join_vars="inner")
    for cells in (collection, CollectionAdapter(collection)):
        with pytest.raises(ValueError, match=r"Atlas\.of\(collection\)"):
            check_setup(cells, [], [], None)
    with pytest.raises(ValueError, match="without convert"):
        Atlas.of(AnnCollection(backed, join_vars="inner", convert=lambda x: x + 1))


def test_labels_on_disk_are_predicted_in_the_order_asked_for(cells, tmp_path):
    setup = {"labels_key": "kind", "unlabeled_category": "unknown"}
    MixtureSCANVI.setup_anndata(cells, **setup)
    model = MixtureSCANVI(cells, n_components=2, n_hidden=8, n_latent=2)
    model.is_trained_ = True
    model.module.eval()
    there = from_sparse(cells, tmp_path)
    asked = {"indices": ASKED, "soft": True, "batch_size": 4}
    np.testing.assert_allclose(model.predict(there, **asked), model.predict(**asked), rtol=1e-5)
