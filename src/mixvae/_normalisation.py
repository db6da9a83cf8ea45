"""BatchNorm in users' networks: pseudo-inputs are not data, and must not count as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_held(network: object) -> Iterator[None]:
    """Normalise by the running statistics of every BatchNorm, as in evaluation, without updating them.

    Args:
        network: a module, or a method of one.
    """
    network = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    layers = network.modules() if isinstance(network, nn.Module) else ()
    held = [part for part in layers if isinstance(part, _BatchNorm) and part.training and part.track_running_stats]
    for layer in held:
        layer.training = False
    try:
        yield
    finally:
        for layer in held:
            layer.training = True
