"""Modes of users' networks: pseudo-inputs are not data, and must not count as such for BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def module_of(network: object) -> nn.Module | None:
    """A module, or the one that a method belongs to; None for any other function."""
    owner = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def statistics_held(network: object) -> Iterator[None]:
    """Normalise by the running statistics of every BatchNorm, as in evaluation, without updating them.

    Args:
        network: a module, or a method of one.
    """
    module = module_of(network)
    layers = () if module is None else module.modules()
    held = [part for part in layers if isinstance(part, _BatchNorm) and part.training and part.track_running_stats]
    for layer in held:
        layer.training = False
    try:
        yield
    finally:
        for layer in held:
            layer.training = True


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every part of a module in evaluation mode, and restore its mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
