"""Batches of cells in the order that is asked for, wherever the cells are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, dataloaders
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import Dataset

from mixvae.single_cell.data import check_block


class InOrder(Dataset):
    """Cells of another data set in the order of the given rows, each as often as it is given.

    scvi-tools reads cells on disk in the order of their rows, as HDF5 needs it, whatever order is asked for.

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
        """Check counts that were read, as only a sample of those on disk was checked before.

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
    """`scvi.dataloaders.AnnDataLoader`, whose batches of cells on disk are in the order of the indices too.

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

    By this name scvi-tools knows which splits to check before a training.
    """

    data_loader_cls = CellLoader
