"""The form of `run.json`: what readers of a run may rely on. Further keys are allowed."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from mixvae.config import DataConfig
from mixvae.datasets._given import Given


class Identity(TypedDict):
    """What a run was made from; its recipe hashes it."""

    data: NotRequired[dict[str, Any]]
    model: NotRequired[dict[str, Any]]
    training: NotRequired[dict[str, Any]]


class RecipeRecord(TypedDict):
    """The recipe."""

    identity: Identity
    journal: list[dict[str, Any]]


class Goal(TypedDict):
    """Where the training is to end."""

    epochs: int
    patience: NotRequired[int | None]


class Progress(TypedDict):
    """Progress at the last checkpoint."""

    epoch: int
    step: int
    best: float | None
    best_epoch: int
    seconds: float


class Epoch(TypedDict):
    """One row of metrics."""

    epoch: int
    validation: float
    best_epoch: int
    seconds: float
    bound: NotRequired[float]
    beta: NotRequired[float]
    learning_rate: NotRequired[float]


class Location(TypedDict):
    """Where the data were, and how they were given."""

    name: str
    origin: NotRequired[DataConfig | None]
    relative: NotRequired[str | None]
    relatives: NotRequired[dict[str, str]]
    sizes: NotRequired[dict[str, int]]
    given: NotRequired[Given]


class Runtime(TypedDict):
    """What is recorded besides the recipe."""

    data: Location


class Description(TypedDict, total=False):
    """A model that was built in Python, or a model of cells."""

    spec: dict[str, Any] | None
    components: int | None


class Record(TypedDict):
    """`run.json`."""

    recipe: RecipeRecord
    goal: Goal
    progress: Progress
    runtime: Runtime
    config: dict[str, Any] | None
    model: Description | None
    rows: list[Epoch]
    files: dict[str, dict[str, Any]]
