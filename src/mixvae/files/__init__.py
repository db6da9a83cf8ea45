"""Files that survive: atomic writes, weights, resumable state and the layout of a run directory."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only when the block ends well.

    The file is flushed to disk before the rename, so a crash at any instant leaves either the old file or the
    new one, never half of one. What a killed process leaves beside it, the next write takes away.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; the old file is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def one_line(error: BaseException) -> str:
    """First line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {one_line(error)}") from None


def save_weights(path: Path | str, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name, such as a module's `state_dict`, as safetensors, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically from memory, so that a full disk is told by the system's own words."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist: the run has not finished an epoch yet")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {one_line(error)}") from None


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load tensors by name into a module, strictly.

    Raises:
        ValueError: names or shapes differ: the tensors belong to another architecture.
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        expected, given = own.get(name), tensors.get(name)
        if expected is None or given is None or expected.shape != given.shape:
            shapes = [("none" if t is None else str(tuple(t.shape))) for t in (expected, given)]
            raise ValueError(
                f"{source} is of another architecture: the model's {name} is {shapes[0]}, the file's {shapes[1]}"
            )
    module.load_state_dict(tensors)


def save_state(path: Path | str, state: dict[str, Any]) -> None:
    """Write nested dictionaries of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path | str) -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file is ever executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist: there is nothing to resume; start the run again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is truncated or damaged: {one_line(error)}") from None


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Args:
        path: the directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Complete configuration, enough to run again."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """Weights of the epoch that is best on validation."""
        return self.path / "model.safetensors"

    @property
    def state(self) -> Path:
        """Everything that resuming needs."""
        return self.path / "last" / "state.pt"

    @property
    def results(self) -> Path:
        """Numbers of the last evaluation."""
        return self.path / "results.json"

    @property
    def examples(self) -> Path:
        """Per-example values of the last evaluation."""
        return self.path / "examples.npz"

    @property
    def representation(self) -> Path:
        """What the latents tell about labels."""
        return self.path / "representation.json"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The run's own report page."""
        return self.path / "report.html"

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of the metrics; a line cut off by a crash is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to the metrics."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the metrics' other lines, as resuming from an earlier epoch demands."""
        rows = [row for row in self.read_metrics() if keep(row)]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
