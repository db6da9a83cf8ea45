"""The files of a run, and the one place that writes its checkpoints.

`run.json` is the commit point: it holds the checksums of the state and of the best weights, the recipe, the progress
and one row per epoch. Everything else beside it is a copy for people, or an evaluation with its own identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import mixvae.config
from mixvae._failures import plain_errors
from mixvae.files import (
    canonical,
    check_ordinary,
    checksum,
    commit,
    read_manifest,
    read_part,
    remove_orphans,
    settle,
    state_from_bytes,
    state_to_bytes,
    weights_to_bytes,
    write_text,
)
from mixvae.files._forms import conform
from mixvae.files._lease import Lease
from mixvae.runs._memory import forget, remember
from mixvae.runs._recipe import Recipe
from mixvae.runs._record import Record
from mixvae.training import Epoch, State
from mixvae.training._state import Checkpoint

FORMAT = "mixvae run"
VERSION = 1
MARK = "# A copy for people: run.json is the record of this run."
"""First line of config.yaml: distinguishes a run that has lost its run.json from one from before there was any."""
FOLDERS = ("last", "evaluations", "figures", "tensorboard")
"""Subfolders of a run."""
WRITTEN = ("run", "state", "model", "config", "metrics")
"""Stems of files that only the lease holder writes."""


@dataclass(frozen=True)
class Layout:
    """Paths within a run directory.

    Args:
        path: the run directory.

    Example:
        >>> from pathlib import Path
        >>> from mixvae.runs import Layout
        >>> Layout(Path("runs/S4")).manifest.as_posix()
        'runs/S4/run.json'
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """The commit point: recipe, progress, rows, checksums."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """Complete configuration, enough to repeat the run; a copy of the one in the manifest."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per epoch, appended as it ends; a copy of the rows in the manifest."""
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """Weights of the best epoch on validation."""
        return self.path / "model.safetensors"

    @property
    def state(self) -> Path:
        """Everything needed to resume."""
        return self.path / "last" / "state.pt"

    @property
    def evaluations(self) -> Path:
        """Folder of evaluations, each under its own identity."""
        return self.path / "evaluations"

    @property
    def results(self) -> Path:
        """Copy of the latest evaluation on the whole test split, for people."""
        return self.path / "results.json"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The run's own report page."""
        return self.path / "report.html"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is here, or only what was left by a process killed before its first checkpoint."""
        if not self.path.exists():
            return True
        shown = {p for p in self.path.rglob("*") if not p.is_dir() and not (p.name.startswith(".") and p.is_file())}
        left: set[Path] = {self.metrics} if (self.path / ".lease").exists() else set()
        return self.path.is_dir() and shown <= left


def read_run(path: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        FileNotFoundError: the directory is not a run.
        ValueError: the manifest is damaged, or was written by a newer mixvae.
    """
    manifest = Layout(path).manifest
    if not manifest.exists():
        raise FileNotFoundError(f"{path} is not a run: it has no run.json")
    check_ordinary(path, FOLDERS)
    content = read_manifest(manifest)
    version = content.get("version", 0)
    if content.get("format") != FORMAT or not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{manifest} was written by another version of mixvae: update mixvae, or train the run again")
    try:
        conform(content, Record, "it")
    except TypeError as error:
        raise ValueError(f"{manifest} is damaged: {error}; restore the file from a copy") from None
    with plain_errors(f"{manifest} is damaged, restore the file from a copy"):
        _try_parts(content)
    return content


def _try_parts(content: Mapping[str, Any]) -> None:
    """Read what readers rely on, so that an invalid record fails here rather than in the middle of a command."""
    Recipe.from_json(content["recipe"]).amendable  # noqa: B018
    if content["config"] is not None:
        content["files"]["config"]  # noqa: B018
        shape = mixvae.config.from_dict(content["config"]).model.shape
        if shape is not None and not (shape and all(type(size) is int and size > 0 for size in shape)):
            raise TypeError("model.shape holds something other than sizes")


@dataclass
class RunStore:
    """Checkpoints of one training, under a lease. `Trainer` writes to it.

    Args:
        path: the run directory.
        recipe: the requested recipe; after resuming, the amended one.
        goal: requested epochs and patience.
        runtime: other things that are recorded: versions, threads, devices, the location of the data.
        config: the configuration, if there is one.
        model: description of a model that was built in Python.
        text: the configuration as YAML.
    """

    path: Path
    recipe: Recipe
    goal: Mapping[str, Any]
    runtime: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    text: str | None = None
    _lease: Lease | None = field(default=None, init=False)
    _files: dict[str, Any] = field(default_factory=dict, init=False)
    _described: bool = field(default=False, init=False)
    is_stale: bool = field(default=False, init=False)
    """Whether the last commit has another goal, other amendable settings or another configuration."""
    _remembered: str | None = field(default=None, init=False)

    @property
    def layout(self) -> Layout:
        """Paths within the run directory."""
        return Layout(self.path)

    def load(self) -> Checkpoint | None:
        """Take the lease, and read the last checkpoint if there is one, as `Trainer` wrote it."""
        content = self.begin()
        return None if content is None else state_from_bytes(content, self.layout.state)

    def begin(self) -> bytes | None:
        """Take the lease, and read the state of the last checkpoint if there is one.

        Raises:
            ValueError: another process trains this run, a file is damaged or a folder, or the run is of another recipe.
        """
        of = self.layout
        for path in (of.manifest, of.state, of.weights, of.config, of.metrics, of.results):
            if path.is_dir():
                raise ValueError(f"{path} is a directory, but a run has a file of that name: remove it")
        self._lease = Lease.acquire(self.path)
        for folder in (self.path, self.layout.state.parent):  # what a killed process left of its commits
            remove_orphans(folder, 0.0, of=WRITTEN)
        manifest = self.layout.manifest
        if not manifest.exists():
            self.layout.metrics.unlink(missing_ok=True)
            return None
        if "state" not in read_manifest(manifest)["files"]:
            raise ValueError(
                f"{self.path} came without the state that a training resumes from: `mixvae extend` and `mixvae train "
                f"--start.run {self.path}` train on from its weights"
            )
        content, state = read_part(manifest, "state")
        old = Recipe.from_json(content["recipe"])
        if changed := old.differences(self.recipe):
            raise ValueError(f"{self.path} was begun by another training meanwhile: {changed[0]}")
        progress = content["progress"]
        self.recipe = old.amended(self.recipe, progress["epoch"], progress["step"])
        requested = {"goal": dict(self.goal), "recipe": self.recipe.to_json(), "config": self.config}
        self.is_stale = any(canonical(content[name]) != canonical(value) for name, value in requested.items())
        self._files = content["files"]
        settle(manifest, content)
        self._write_rows(content["rows"])
        return state

    def save(
        self, state: Checkpoint, weights: dict[str, Tensor] | None, rows: Sequence[Epoch], progress: State
    ) -> None:
        """Commit a checkpoint of `Trainer`.

        Raises:
            LeaseLost: another process has taken the run over; nothing is written.
        """
        counts = {
            "epoch": progress.epoch,
            "step": progress.step,
            "best_epoch": progress.best_epoch,
            "best": progress.best if progress.best_epoch else None,
            "seconds": progress.seconds,
        }
        best = None if weights is None else weights_to_bytes(weights)
        self.commit(state_to_bytes(state), best, rows, counts)

    def commit(self, state: bytes, weights: bytes | None, rows: Sequence[Epoch], progress: Mapping[str, Any]) -> None:
        """Commit a checkpoint from bytes.

        Args:
            state: everything needed to resume.
            weights: the best weights, as safetensors, if they are newer than the last commit.
            rows: one row per epoch.
            progress: epoch, step, best_epoch, best and seconds.

        Raises:
            LeaseLost: another process has taken the run over; nothing is written.
        """
        assert self._lease is not None, "begin() comes first"
        self._lease.check()
        parts = {"state": ("last/state.pt", state)}
        if weights is not None:
            parts["weights"] = ("model.safetensors", weights)
        if self.text is not None and not self._described:
            parts["config"] = ("config.yaml", f"{MARK}\n{self.text}".encode())
        content = {
            "format": FORMAT,
            "version": VERSION,
            "recipe": self.recipe.to_json(),
            "goal": dict(self.goal),
            "progress": dict(progress),
            "runtime": dict(self.runtime),
            "config": self.config,
            "model": self.model,
            "rows": rows,
            "files": self._files,
        }
        files = self._files if weights is None else {**self._files, "weights": {"sha256": checksum(weights)}}
        before, self._remembered = self._remembered, remember({**content, "files": files})
        self._files = commit(self.layout.manifest, content, parts, check=self._lease.check)["files"]
        if before not in (None, self._remembered):
            forget(before)
        self._described, self.is_stale = True, False
        if weights is not None:
            self.layout.results.unlink(missing_ok=True)  # it is for older weights; the evaluation itself is kept

    def log(self, row: Epoch) -> None:
        """Append a row to the copy for people to watch."""
        with open(self.layout.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _write_rows(self, rows: Sequence[Epoch]) -> None:
        """Write the copy of the rows for people, if it is missing or differs."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if not self.layout.metrics.exists() or self.layout.metrics.read_bytes() != lines.encode():
            write_text(self.layout.metrics, lines)

    def close(self) -> None:
        """Release the lease; rows without a checkpoint, which no training could resume, are removed."""
        if self._lease is not None:
            with suppress(OSError):
                if not self.layout.manifest.exists():
                    self.layout.metrics.unlink(missing_ok=True)
            self._lease.release()
            self._lease = None
