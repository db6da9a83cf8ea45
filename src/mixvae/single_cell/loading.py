"""Batches of cells in the order that is asked for, wherever the cells are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scvi import dataloaders
from scvi.data import AnnDataManager, AnnTorchDataset
from torch.utils.data import Dataset


class InOrder(Dataset):
    """Cells of another data set in the order of the given rows, each as often as it is given.

    scvi-tools reads cells on disk in the order of their rows, as HDF5 needs it, whatever order is asked for.

    Args:
        cells: the data set.
    """

    def __init__(self, cells: AnnTorchDataset):
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        """Read rows by their numbers."""
        ascending, places = np.unique(rows, return_inverse=True)
        return {key: _taken(values, places) for key, values in self.cells[ascending].items()}


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
        **kwargs: what `AnnDataLoader` takes.
    """

    def __init__(self, adata_manager: AnnDataManager, *args: Any, **kwargs: Any):
        super().__init__(adata_manager, *args, **kwargs)
        if adata_manager.adata.isbacked:
            self.dataset.dataset = InOrder(self.dataset.dataset)


class DataSplitter(dataloaders.DataSplitter):
    """`scvi.dataloaders.DataSplitter` with such loaders, so that batches are the same in memory and on disk.

    By this name scvi-tools knows which splits to check before a training.
    """

    data_loader_cls = CellLoader
