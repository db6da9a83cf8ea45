"""Float32 products in full float32, whatever shortcuts were allowed for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Setting = tuple[Callable[[], Any], Callable[[Any], object], Any]
"""How a setting of torch is read, how it is written, and its exact value."""
BACKENDS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products in float32 within the block, without TensorFloat-32 or bfloat16, and then as before.

    torch rounds the inputs of convolutions on a GPU to TensorFloat-32, with a 10-bit mantissa, unless told not to.
    """
    settings = _settings()
    before = [(read(), write) for read, write, _ in settings]
    for _, write, exact in settings:
        write(exact)
    try:
        yield
    finally:
        for value, write in before:
            write(value)


def _settings() -> list[Setting]:
    """Torch's two switches, or the finer ones if a user has set those, as torch then refuses to read the two."""
    cudnn: Any = torch.backends.cudnn
    switches: list[Setting] = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False),
    ]
    try:
        for read, _, _ in switches:
            read()
    except RuntimeError:
        return [_finer(name) for name in BACKENDS]
    return switches


def _finer(name: str) -> Setting:
    """The precision of one kind of product on one backend."""
    backend, _, kind = name.partition(".")
    place: Any = getattr(getattr(torch.backends, backend), kind)
    return partial(getattr, place, "fp32_precision"), partial(setattr, place, "fp32_precision"), "ieee"
