"""The data of a run: loaded as configured, and compared with the data named by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixvae import datasets
from mixvae._failures import at_least
from mixvae.config import DataConfig
from mixvae.datasets import Dataset
from mixvae.progress import SILENT, Progress


def data_identity(data: Dataset) -> dict[str, Any]:
    """Checksums of a data set, and how its training examples are randomised at every step."""
    return {
        "sha256": data.sha256(),
        "labels_sha256": data.labels_sha256(),
        "resample": data.train.resample,
        "flip": data.train.flip,
        **({} if data.train.plan is None else {"order": data.train.plan.sha256}),
    }


def changed_data(old: Mapping[str, Any], data: Dataset) -> str:
    """What differs between a data set and the one in a recipe: data, labels, or nothing."""
    new = data_identity(data)
    if old["sha256"] is not None and old["sha256"] != new["sha256"]:
        return "data"
    return "labels" if old.get("labels_sha256") not in (None, new["labels_sha256"]) else ""


def open_data(config: DataConfig, progress: Progress = SILENT) -> Dataset:
    """Load the data that a configuration names."""
    at_least(0, **{"data.seed": config.seed})
    return datasets.load_dataset(**config.arguments(), progress=progress)
