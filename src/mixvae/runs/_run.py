"""A run on disk as one immutable handle, whose parts are read and checked once, at first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.random import fork_rng

import mixvae.config
from mixvae import datasets
from mixvae._failures import typed
from mixvae.config import Config, DataConfig, Trust
from mixvae.datasets import Dataset
from mixvae.evaluation import Evaluation
from mixvae.files import (
    canonical,
    check_ordinary,
    checksum,
    has_part,
    is_intact,
    load_tensors,
    read_part,
    weights_from_bytes,
)
from mixvae.files._lease import holder
from mixvae.model import MixtureVAE
from mixvae.runs import _legacy as legacy
from mixvae.runs import _memory as memory
from mixvae.runs._data import changed_data, open_data
from mixvae.runs._recipe import Recipe, parts_of, recipe_of
from mixvae.runs._store import Layout, read_run
from mixvae.training import History, default_device, is_over


class Run:
    """One training on disk. Made by `open_run`; open it again after the run has been continued.

    Args:
        path: the run directory.
        data: the data, or their new location if they were moved.
        model: a model of the same architecture, for a run whose own model cannot be named by import path.
        trust: packages whose classes the run may name besides those of mixvae, torch and zuko.
        shared: data sets that are already loaded, by their options; what this run loads is added.
    """

    def __init__(
        self,
        path: Path,
        *,
        data: Dataset | str | Path | None = None,
        model: MixtureVAE | None = None,
        trust: Sequence[str] = (),
        shared: dict[str, Dataset] | None = None,
    ):
        self._trust = Trust(frozenset(trust))
        self.path, self.layout = path, Layout(path)
        self._data, self._model, self._shared = data, model, {} if shared is None else shared

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.resolve().name

    @cached_property
    def is_legacy(self) -> bool:
        """Whether it dates from before runs had an identity."""
        return not self.layout.manifest.exists() and legacy.is_run(self.path)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Content of `run.json`.

        Raises:
            FileNotFoundError: the directory is not a run.
            ValueError: the file is damaged.
        """
        return legacy.manifest(self.path) if self.is_legacy else read_run(self.path)

    @cached_property
    def config(self) -> Config:
        """The configuration.

        Raises:
            ValueError: the run was built in Python and has none, or config.yaml was changed after the training.
        """
        content = self.manifest["config"]
        if content is None:
            self.refuse_cells()
            raise ValueError(
                f"{self.path} was built in Python and has no configuration: in Python, fit(model, data, "
                f"run={str(self.path)!r}) resumes it, and load({str(self.path)!r}).extended(n) adds components"
            )
        self._check_trust()
        config = mixvae.config.from_dict(content)
        if not self.is_legacy and not is_intact(self.layout.manifest, self.manifest["files"]["config"]):
            self._refuse_changed(config)
        return config

    @property
    def is_of_cells(self) -> bool:
        """Whether its model is one of scvi-tools: `mixvae.single_cell.runs` opens it."""
        return "genes" in (self.manifest["model"] or {})

    def refuse_cells(self, error: type[Exception] = ValueError) -> None:
        """Refuse a run of cells with an error of this class."""
        if self.is_of_cells:
            raise error(f"{self.path} is a run of cells: use `{typed('sc', 'embed', self.path)} FILE.h5ad`")

    def _check_trust(self) -> None:
        """Refuse classes that are neither allowed nor trusted, unless this user trained the run."""
        if not self.is_legacy:  # a legacy configuration is a file, which is checked when read
            memory.check(self.manifest, str(self.layout.manifest), self._trust)

    def _refuse_changed(self, config: Config) -> None:
        """Refuse a config.yaml that describes a run other than the trained one."""
        try:
            written = mixvae.config.read(self.layout.config, trust=tuple(self._trust.packages))
        except ValueError as error:
            raise ValueError(f"{error}; restore {self.layout.config}, or delete it: it is a copy") from None
        moved = {f"data.{option}" for option in (*datasets.PATHS, "root")}
        changed = [name for name in mixvae.config.changes(config, written) if name not in moved]
        if changed:
            raise ValueError(
                f"{self.layout.config} was changed after the training, at {changed[0]}: restore it or delete it; "
                "to resume with other settings give them to `mixvae train --resume`"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """Recipe from which the run was made."""
        return Recipe.from_json(self.manifest["recipe"])

    @property
    def metrics(self) -> History:
        """One row per epoch up to the last checkpoint, as returned by `fit`."""
        return self.manifest["rows"]

    @property
    def epoch(self) -> int:
        """Epochs completed at the last checkpoint."""
        return self.manifest["progress"]["epoch"]

    @property
    def is_done(self) -> bool:
        """Whether the training reached its recorded goal."""
        goal = self.manifest["goal"]
        return self._stopped_at(goal["epochs"], goal["patience"]) == self.epoch

    def _stopped_at(self, epochs: int, patience: int | None) -> int | None:
        """Epoch at which a training with this goal ends, if it has got that far."""
        warmup = self.recipe.identity["training"].get("warmup", 0)
        rows = self.metrics
        return next((r["epoch"] for r in rows if is_over(r["epoch"], r["best_epoch"], epochs, warmup, patience)), None)

    @property
    def state(self) -> str:
        """State of the run: training, done, stopped, damaged or legacy."""
        if self.is_legacy:
            return "legacy"
        try:
            check_ordinary(self.path)  # before the lease is read
            if holder(self.path) is not None:
                return "training"
            for name in self.manifest["files"].keys() - {"config"}:  # a copy
                read_part(self.layout.manifest, name)
            return "done" if self.is_done else "stopped"
        except (ValueError, OSError):
            return "damaged"

    @cached_property
    def data(self) -> Dataset:
        """The data that it was trained on, checked against the recorded checksum.

        Raises:
            ValueError: the data have changed since, or cannot be located.
        """
        data = self._data if isinstance(self._data, Dataset) else self._load_data()
        changed = changed_data(self.recipe.identity["data"], data)
        if changed:
            raise ValueError(
                f"the {changed} of {self.path} are not those that it was trained on ({data.name}): restore the old "
                "ones, say where they are with --data.name, or train a new run"
            )
        return data

    @property
    def data_config(self) -> DataConfig:
        """Options that load the data from their current location.

        Raises:
            ValueError: the data were made in Python.
        """
        return DataConfig(**self._data_options())

    def _load_data(self) -> Dataset:
        """Load the data, or share them with another run that was opened together with this one."""
        options = self._data_options()
        key = canonical(options)
        if key not in self._shared:
            self._shared[key] = datasets.load_dataset(**options)
        return self._shared[key]

    def _data_options(self) -> dict[str, Any]:
        """Arguments of `datasets.load_dataset`."""
        recorded = self.manifest["runtime"]["data"]
        origin = recorded["origin"]
        if isinstance(self._data, Dataset):
            if self._data.origin is None:
                raise ValueError(
                    f"the data of {self.path} were made in Python, so that no configuration can name them: save them "
                    "as .npy, .npz or .pt, and load_dataset the file"
                )
            return dict(self._data.origin)
        if self._data is not None:
            return self._options_elsewhere(str(self._data), origin)
        self.refuse_cells()
        if origin is None:
            raise ValueError(
                f"{self.path} was trained on data that were made in Python ({recorded['name']}): pass them, as "
                "open_run(path, data=…)"
            )
        options = datasets.located(origin, self.path, datasets.relatives_in(recorded))
        for path in (options[option] for option in datasets.PATHS if options.get(option) is not None):
            if path not in datasets.SOURCES and not Path(path).exists():
                raise ValueError(
                    f"the data of {self.path} are no longer at {path}: say where they are with --data.name "
                    "(open_run(path, data=…) in Python)"
                )
        return options

    def _options_elsewhere(self, place: str, origin: Mapping[str, Any] | None) -> dict[str, Any]:
        """Arguments of `datasets.load_dataset` for data that were moved.

        Args:
            place: the new file or folder; for data in several files, the folder that holds them.
            origin: the arguments when the run was trained.
        """
        if origin is not None:
            return datasets.moved(origin, place, str(self.path))
        is_resampled = self.recipe.identity["data"].get("resample", True)
        return {"name": datasets.resolve_paths(place)[0], "binarize": "stochastic" if is_resampled else "none"}

    @cached_property
    def _weights(self) -> tuple[str, dict[str, Tensor]]:
        """Checksum and tensors of the best epoch."""
        where = self.layout.weights
        if self.is_legacy:
            content = legacy.weights(self.path)
        elif "weights" not in self.manifest["files"]:
            raise FileNotFoundError(f"{where} does not exist: the run has not finished an epoch yet")
        else:
            manifest, content = read_part(self.layout.manifest, "weights")
            self.__dict__["manifest"] = manifest  # the one committed with these weights
        return checksum(content), weights_from_bytes(content, where)

    @property
    def weights_sha256(self) -> str | None:
        """Checksum of the weights of the best epoch; None if a legacy run came without weights."""
        if self.is_legacy:
            return checksum(legacy.weights(self.path)) if self.layout.weights.exists() else None
        return self.manifest["files"].get("weights", {}).get("sha256")

    @property
    def has_weights(self) -> bool:
        """Whether the weights of the best epoch exist; results may come without them."""
        return self.layout.weights.exists() or (not self.is_legacy and has_part(self.layout.manifest, "weights"))

    def refuse_remaking(self, what: str) -> None:
        """Refuse to compute a result again whose weights did not come along: it is missing, damaged or another one."""
        if self.is_done and not self.has_weights:
            raise ValueError(
                f"{self.path} has no weights and no {what} as asked for, or what is stored is damaged: restore its "
                "evaluations from a copy, or delete it to train it again"
            )

    def load(self) -> MixtureVAE:
        """Load the model with the weights of its best epoch, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: the run has not finished an epoch.
            ValueError: a file is damaged, or the model cannot be named by import path and was not passed.
        """
        _, weights = self._weights
        model = self.blank()
        kinds = {t.dtype for t in weights.values() if t.is_floating_point()}
        if len(kinds) == 1:
            model = model.to(kinds.pop())
        load_tensors(model, weights, str(self.layout.weights))
        return model.eval()

    @fork_rng(devices=[])  # the random weights are replaced, so they must not count as draws
    def blank(self) -> MixtureVAE:
        """The model with arbitrary weights, made without drawing from the caller's random numbers.

        Raises:
            ValueError: it cannot be named by import path and was not passed.
        """
        self.refuse_cells()
        recorded = self.manifest["model"] or {}
        if self._model is None:
            if self.manifest["config"] is not None:
                return mixvae.config.build(self.config.model)
            if "spec" in recorded:
                self._check_trust()
                return cast(MixtureVAE, mixvae.config.rebuild(recorded["spec"]))
            unnamed = recorded.get("unnamed", "?")
            raise ValueError(f"the model of {self.path} was built in Python and cannot be built again: {unnamed}")
        if self.manifest["config"] is not None or "spec" in recorded:
            raise ValueError(f"{self.path} records its own model: leave out the one that you pass")
        known = self.recipe.identity["model"].get("parts")
        if known is not None and known != (parts := parts_of(self._model)):
            other = next(name for name in {**known, **parts} if known.get(name) != parts.get(name))
            raise ValueError(
                f"the model that you pass differs in architecture from {self.path}: its {other or 'whole'} is "
                f"{parts.get(other)}, not {known.get(other)}"
            )
        return self._model

    @cached_property
    def model(self) -> MixtureVAE:
        """The model with the weights of its best epoch, in evaluation mode, on the default device."""
        return self.load().to(default_device())

    def evaluate(self, total_draws: int = 5000, **settings: Any) -> Evaluation:
        """Estimate the likelihood of some examples, and store the result; see `mixvae.runs.evaluate`."""
        from mixvae.runs._evaluating import evaluate

        return evaluate(self, total_draws, **settings)

    def matches(self, config: Config, data: Dataset | None = None) -> bool:
        """Whether this run is what a configuration describes, fully trained: the only definition of "done"."""
        return not self.why_not(config, data)

    def why_not(self, config: Config, data: Dataset | None = None) -> str:
        """Why this run cannot be what a configuration describes; "unfinished" if it can become that; empty if it is.

        Args:
            config: the configuration.
            data: its data; loaded by default.
        """
        asked = recipe_of(config, open_data(config.data) if data is None else data, self.start_of(config))
        return self.why_not_recipe(asked, config.training.epochs, config.training.patience)

    def start_of(self, config: Config, *, recorded: bool = False) -> str | None:
        """Checksum of the weights from which a configuration starts; the one recorded here if they are gone.

        Args:
            config: the configuration.
            recorded: use the one recorded here if it names the same start, even if that has been trained further.

        Raises:
            FileNotFoundError: it names another run than the one recorded here, and there is none.
        """
        mine = (self.recipe.identity.get("start") or {}).get("sha256")
        if config.start.run is None or (recorded and self.config.start == config.start):
            return mine if config.start.run else None
        try:
            return Run(Path(config.start.run).expanduser()).weights_sha256
        except FileNotFoundError:
            if config.start.run != self.config.start.run:
                raise
            return mine

    def why_not_recipe(self, asked: Recipe, epochs: int, patience: int | None, *, amend: bool = False) -> str:
        """The same for a recipe and a goal.

        Args:
            asked: the recipe.
            epochs: maximum number of epochs to train.
            patience: epochs without improvement after which training stops.
            amend: whether an unfinished run may continue under other amendable settings.
        """
        if changed := self.recipe.differences(asked):
            return changed[0]
        end = self._stopped_at(epochs, patience)
        if end is not None and end != self.epoch:
            return f"it has trained for {self.epoch} epochs, not {end}"
        for entry in self.recipe.journal[-1:] if amend else self.recipe.journal:
            for name, value in asked.amendable.items():
                if entry[name] != value and not (amend and end is None):
                    if amend:
                        asks = f"{name.replace('_', ' ')} {_one(value)}"
                        over = f"its training of {self.epoch} epochs is over"
                        return f"{over}; to continue under {asks} ask for more epochs"
                    begun = entry["epoch"] + 1
                    return f"training.{name} is {_one(entry[name])} from epoch {begun} on, not {_one(value)}"
        return "unfinished" if end is None else ""


def _one(values: Any) -> Any:
    """A single value instead of a list of one."""
    return values[0] if isinstance(values, list) and len(values) == 1 else values
