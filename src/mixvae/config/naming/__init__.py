"""Models by the names of their classes and arguments: from a model to what JSON can hold, and back.

    spec = describe(model, shape=(1, 28, 28))  # {"version": 1, "model": {"class_path": "mixvae.model.MixtureVAE", …}}
    blank = rebuild(json.loads(json.dumps(spec)))  # in any process that can import its classes; with random weights

A module is `{"class_path": path, "args": […], "init_args": {name: value}}`, with an `id` where it is used more than
once and `{"ref": id}` at its other places; what else an argument may be is listed at `rebuilding.Builder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixvae.failures import said

if TYPE_CHECKING:
    from torch import nn

REMEDY = "or pass the model, as load(path, model)"


def describe(model: nn.Module, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Describe a model's architecture so that another process can build it: by import paths and plain arguments.

    The description is tried out before it is returned: what it builds has the same submodules, the same tensors and the
    same attributes as the model, also where the model was changed after its construction. Torch's generator is left
    as it was. Weights, devices, precision and what is frozen are no part of it.

    Args:
        model: the model, of `mixvae.Part`s, modules of torch.nn, and modules whose constructors take no arguments.
        shape: event shape of the data, which lazy layers take their sizes from.

    Raises:
        ValueError: something of it cannot be named by import path, is not saved with its weights, or was changed in a
            way that its arguments do not tell. The message names it and what to do.
    """
    import torch
    from torch.nn.parameter import is_lazy

    from mixvae.config.naming.comparing import difference
    from mixvae.config.naming.describing import Describer
    from mixvae.config.naming.rebuilding import VERSION, build

    describer = Describer()
    try:
        if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
            raise ValueError("the model has lazy layers that have not seen an example: run it once")
        node = describer.value(model, "model")
        describer.refuse_unsaved(model)
        spec = {"version": VERSION, "dtype": str(torch.get_default_dtype()).removeprefix("torch."), "model": node}
        if shape is not None:
            spec["shape"] = [int(size) for size in shape]
        with torch.random.fork_rng(devices=[]):
            again = build(spec)
        if told := difference(model, again):
            raise ValueError(f"{told}: what its constructors were given no longer describes it")
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None
    except Exception as error:  # noqa: BLE001  (modules of others may do anything when they are looked at)
        raise ValueError(f"the model cannot be described: {said(error)}; {REMEDY}") from error
    return spec


def rebuild(spec: Mapping[str, Any]) -> nn.Module:
    """Build a model that `describe` described, with random weights. The classes that it names are imported.

    Args:
        spec: the description, as it was or through JSON.

    Raises:
        ValueError: a class cannot be imported here, or is no longer what it was.
    """
    from mixvae.config.naming.rebuilding import build

    try:
        return build(spec)
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None
