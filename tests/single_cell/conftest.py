"""Real cells, few of them, and a model that was trained on them for a moment."""

import logging
import shutil

import numpy as np
import pytest

pytest.importorskip("scvi")

import scvi  # noqa: E402
from scvi.model import SCVI  # noqa: E402

from mixvae.single_cell import MixtureSCVI, pbmc68k, runs  # noqa: E402

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
scvi.settings.verbosity = logging.ERROR


UPSTREAM = (
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore::PendingDeprecationWarning",
    "ignore::UserWarning",
    "ignore::ImportWarning",
    "ignore::RuntimeWarning:(scvi|scanpy|scib_metrics|sklearn|umap).*",
)
"""What scvi-tools, lightning, anndata and scanpy warn of among themselves."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "single_cell":
            for rule in UPSTREAM:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(scope="session")
def real():
    """120 real cells and their 60 most frequent genes; with batches, labels and covariates of every kind."""
    cells = pbmc68k()[:120]
    counts = np.asarray(cells.X.sum(0)).ravel()
    cells = cells[:, np.sort(np.argsort(-counts)[:60])].copy()
    cells.obs["batch"] = np.where(np.arange(120) % 3 == 0, "a", "b")
    cells.obs["kind"] = np.where(cells.obs["bulk_labels"] == "Dendritic", "dendritic", "other")
    cells.obs["donor"] = np.array(["x", "y", "z"])[np.arange(120) % 3]
    cells.obs["size"] = np.asarray(cells.X.sum(1)).ravel() / 100
    cells.layers["counts"] = cells.X.copy()
    for counts in (cells.X, cells.layers["counts"]):
        counts.data.setflags(write=False)
    return cells


@pytest.fixture
def cells(real):
    """A copy to change."""
    return real.copy()


def make(cells, cls=MixtureSCVI, *, setup=None, epochs=2, seed=0, **kwargs):
    """Set up, make, and train for a moment."""
    scvi.settings.seed = seed
    cls.setup_anndata(cells, **(setup or {}))
    if cls is not SCVI:
        kwargs = {"n_components": 3} | kwargs
    model = cls(cells, n_hidden=12, **({"n_latent": 3} | kwargs))
    if epochs:
        model.train(epochs, train_size=1.0, batch_size=60, **QUIET)
    return model


@pytest.fixture(scope="session")
def trained(real):
    """A trained mixture of three, with a batch; not to be changed."""
    return make(real.copy(), setup={"batch_key": "batch", "labels_key": "kind"}, epochs=60)


def batch_of(model, indices=None, size=None):
    """One batch of cells as scvi-tools loads it."""
    return next(iter(model._make_data_loader(adata=model.adata, indices=indices, batch_size=size or 200)))


@pytest.fixture(scope="module")
def finished(real, tmp_path_factory, request):
    """A finished run of the module's settings, and its file; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    real.copy().write_h5ad(folder / "cells.h5ad")
    runs.train(folder / "cells.h5ad", folder / "run", request.module.SETTINGS)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to change."""
    return shutil.copytree(finished / "run", tmp_path / "run")
