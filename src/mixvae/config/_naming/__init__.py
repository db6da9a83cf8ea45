"""Models by the names of their classes and arguments: from a model to JSON values, and back.

A module is `{"class_path": path, "args": […], "init_args": {name: value}}`, with an `id` if it is used more than once
and `{"ref": id}` everywhere else; `rebuilding.Builder` lists what else an argument may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixvae._failures import said

if TYPE_CHECKING:
    from torch import nn

REMEDY = "or pass the model, as load(path, model)"


def describe(model: nn.Module, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Describe a model's architecture by import paths and plain arguments, so that another process can build it.

    The description is tested before it is returned: what it builds has the same submodules, tensors and attributes
    as the model, even if the model was changed after construction. The state of torch's generator is preserved.
    Weights, devices, precision and what is frozen are not part of the description.

    Args:
        model: the model, of `mixvae.Part`s, modules of torch.nn, and modules whose constructors take no arguments.
        shape: event shape of the data, from which lazy layers get their sizes.

    Raises:
        ValueError: a part of it cannot be named by import path, is not saved with its weights, or was changed in a
            way that its arguments do not show. The message names it and the remedy.

    Example:
        >>> from mixvae.config import describe
        >>> from mixvae.networks import GatedEncoder
        >>> spec = describe(GatedEncoder((1, 8, 8), latent=2, hidden=(16,)))
        >>> spec["model"]["class_path"]
        'mixvae.networks.GatedEncoder'
    """
    import torch
    from torch.nn.parameter import is_lazy

    from mixvae.config._naming.comparing import difference
    from mixvae.config._naming.describing import Describer
    from mixvae.config._naming.rebuilding import VERSION, build

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
        if changed := difference(model, again):
            raise ValueError(f"{changed}: what its constructors were given no longer describes it")
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None
    except Exception as error:  # noqa: BLE001  (third-party modules may do anything when inspected)
        raise ValueError(f"the model cannot be described: {said(error)}; {REMEDY}") from error
    return spec


def rebuild(spec: Mapping[str, Any]) -> nn.Module:
    """Build a model from its description by `describe`, with random weights. The classes that it names are imported.

    Args:
        spec: the description, possibly after a round trip through JSON.

    Raises:
        ValueError: a class cannot be imported here, or has changed since.

    Example:
        >>> import json
        >>> from mixvae.config import describe, rebuild
        >>> from mixvae.networks import GatedEncoder
        >>> spec = json.dumps(describe(GatedEncoder((1, 8, 8), latent=2, hidden=(16,))))
        >>> type(rebuild(json.loads(spec))).__name__
        'GatedEncoder'
    """
    from mixvae.config._naming.rebuilding import build

    try:
        return build(spec)
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDY}") from None
