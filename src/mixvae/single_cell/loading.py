"""Batches of cells in the requested order, wherever the cells are."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from scvi import REGISTRY_KEYS, dataloaders
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mixvae.single_cell.data import check_block


class InOrder(Dataset):
    """Cells of another data set in the order of the given rows, each as often as its row is given.

    scvi-tools reads cells on disk in the order of their rows, as HDF5 needs it, whatever order is requested.

    Args:
        cells: the data set.
        counted: whether the cells read must have counts, or only finite numbers; None for no check.
    """

    def __init__(self, cells: AnnTorchDataset, *, counted: bool | None = None):
        self.cells, self.counted = cells, counted

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        """Read rows by their numbers."""
        ascending, places = np.unique(rows, return_inverse=True)
        read = self.cells[ascending]
        if self.counted is not None and REGISTRY_KEYS.X_KEY in read:
            self._check(read[REGISTRY_KEYS.X_KEY], ascending)
        return {key: _taken(values, places) for key, values in read.items()}

    def _check(self, counts: Any, cells: np.ndarray) -> None:
        """Check counts as they are read, as only a sample of those on disk was checked before.

        Raises:
            ValueError: a value is not a count, or a cell is empty.
        """
        values = counts.to_dense().numpy() if isinstance(counts, torch.Tensor) else counts
        names = self.cells.adata_manager.adata.obs_names[cells]
        check_block(values, names, None, "give the raw counts", counted=bool(self.counted))


def _taken(values: Any, rows: np.ndarray) -> Any:
    """Rows of an array or a sparse tensor; those of torch cannot be indexed by rows in every layout."""
    if not isinstance(values, torch.Tensor):
        return values[rows]
    return values.to_sparse_coo().index_select(0, torch.from_numpy(rows)).to_sparse(layout=values.layout)


class CellLoader(dataloaders.AnnDataLoader):
    """`scvi.dataloaders.AnnDataLoader`, whose batches are in the order of the indices for cells on disk too.

    Args:
        adata_manager: scvi-tools' manager of the cells.
        *args: what `AnnDataLoader` takes.
        counted: whether cells that are read from disk must have counts, or only finite numbers; None for no check.
        **kwargs: what `AnnDataLoader` takes.
    """

    def __init__(self, adata_manager: AnnDataManager, *args: Any, counted: bool | None = None, **kwargs: Any):
        super().__init__(adata_manager, *args, **kwargs)
        if adata_manager.adata.isbacked:
            self.dataset.dataset = InOrder(self.dataset.dataset, counted=counted)


class DataSplitter(dataloaders.DataSplitter):
    """`scvi.dataloaders.DataSplitter` with such loaders, so that batches are the same in memory and on disk.

    scvi-tools recognises by this name which splits to check before a training.
    """

    data_loader_cls = CellLoader


def leave_out_one(loader: DataLoader) -> None:
    """Leave out the last batch of an epoch if it is a single cell, on which BatchNorm cannot be trained.

    Args:
        loader: scvi-tools' loader of the cells of one process.

    Raises:
        ValueError: there is no other cell.
    """
    sampler = loader.sampler
    cells = len(cast("Any", loader.dataset))
    if isinstance(sampler, BatchSampler) and cells % sampler.batch_size == 1:
        if cells == 1:
            raise ValueError("one cell, or one labelled cell, is left to train on, and BatchNorm needs two: give more")
        sampler.drop_last = True


class LabelLoader(dataloaders.SemiSupervisedDataLoader):
    """`scvi.dataloaders.SemiSupervisedDataLoader` that leaves out a batch of one cell, of all or of labelled ones."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for loader in self.dataloaders:
            leave_out_one(loader)

    def resample_labels(self) -> None:
        """Choose other labelled cells for the next epoch."""
        super().resample_labels()
        leave_out_one(self.dataloaders[1])


class LabelSplitter(dataloaders.SemiSupervisedDataSplitter):
    """`scvi.dataloaders.SemiSupervisedDataSplitter` whose training leaves out a batch of one cell."""

    def train_dataloader(self) -> DataLoader:
        """The training cells."""
        if self.data_loader_class is not dataloaders.SemiSupervisedDataLoader:
            loader = super().train_dataloader()
            leave_out_one(loader)
            return loader
        self.data_loader_class = LabelLoader
        try:
            return super().train_dataloader()
        finally:
            self.data_loader_class = dataloaders.SemiSupervisedDataLoader
