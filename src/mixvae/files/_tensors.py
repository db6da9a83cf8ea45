"""Weights and states as bytes and files; nothing in them is ever executed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from mixvae._arrays import check_pickle
from mixvae.files._atomic import one_line, write_bytes


def weights_to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Tensors by name, such as a module's `state_dict`, in the safetensors format; tied ones become copies.

    Example:
        >>> import torch
        >>> from mixvae.files import weights_from_bytes, weights_to_bytes
        >>> content = weights_to_bytes({"bias": torch.arange(3)})
        >>> weights_from_bytes(content, "model.safetensors")["bias"].tolist()
        [0, 1, 2]
    """
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return safetensors.save(own)


def weights_from_bytes(content: bytes, source: Path | str) -> dict[str, Tensor]:
    """Tensors by name from the safetensors format; see `weights_to_bytes`.

    Raises:
        ValueError: the content is truncated or damaged.
    """
    try:
        return safetensors.load(content)
    except Exception as error:  # noqa: BLE001  (damage shows as any kind: SafetensorError, KeyError, MemoryError …)
        raise ValueError(f"{source} is damaged or not a safetensors file: {one_line(error)}") from None


def save_weights(path: Path | str, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name as safetensors, atomically.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from mixvae.files import load_weights, save_weights
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_weights(path, {"bias": torch.arange(3)})
        >>> load_weights(path)["bias"].tolist()
        [0, 1, 2]
    """
    write_bytes(path, weights_to_bytes(tensors))


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file; see `save_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist: the run has not finished an epoch yet")
    return weights_from_bytes(Path(path).read_bytes(), path)


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load tensors by name into a module, strictly; values are converted to the module's dtypes exactly or not at all.

    Raises:
        ValueError: names or shapes differ, because the tensors belong to another architecture, or a value would be
            rounded.

    Example:
        >>> import torch
        >>> from mixvae.files import load_tensors
        >>> load_tensors(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "model.pt")
        Traceback (most recent call last):
        ValueError: model.pt is of another architecture: the model's weight is (2, 3), the file's (2, 4)
    """
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        expected, given = own.get(name), tensors.get(name)
        if expected is None or given is None or expected.shape != given.shape:
            shapes = [("none" if t is None else str(tuple(t.shape))) for t in (expected, given)]
            raise ValueError(
                f"{source} is of another architecture: the model's {name} is {shapes[0]}, the file's {shapes[1]}"
            )
        if not _fits(given, expected.dtype):
            raise ValueError(
                f"{source} is of another precision: {name} is {given.dtype}, and would be rounded to the model's "
                f"{expected.dtype}; convert the model first, with model.to({given.dtype})"
            )
    module.load_state_dict(tensors)


def _fits(given: Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype holds all values of a tensor exactly."""
    if given.dtype == dtype:
        return True
    if given.is_complex() > dtype.is_complex or given.is_floating_point() > (
        dtype.is_floating_point or dtype.is_complex
    ):
        return False
    own = given.detach()
    back = own.to(dtype).to(own.dtype)
    return bool(((back == own) | ((back != back) & (own != own))).all())


def state_to_bytes(state: dict[str, Any]) -> bytes:
    """Nested dictionaries of tensors and plain values in torch's format.

    Example:
        >>> import torch
        >>> from mixvae.files import state_from_bytes, state_to_bytes
        >>> content = state_to_bytes({"epoch": 3, "noise": {"state": torch.arange(3)}})
        >>> state_from_bytes(content, "state.pt")["epoch"]
        3
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def state_from_bytes(content: bytes, source: Path | str) -> dict[str, Any]:
    """Read what `state_to_bytes` wrote; nothing in it is ever executed.

    Raises:
        ValueError: the content is truncated or damaged.
    """
    try:
        check_pickle(io.BytesIO(content))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (damage shows as any kind: UnpicklingError, KeyError, IndexError …)
        raise ValueError(f"{source} is truncated or damaged: {one_line(error)}") from None
