"""From a description to a model with random weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mixvae._failures import said
from mixvae._resources import built
from mixvae.config._naming.paths import imported
from mixvae.model import evaluating

VERSION = 1
"""Version of the description's format."""


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Build the model of a description, and run it once if it has lazy layers."""
    if spec.get("version") != VERSION:
        raise ValueError(f"the model is described in version {spec.get('version')!r} of the format, not {VERSION}")
    before = torch.get_default_dtype()

    def make() -> Any:
        return Builder(spec["model"]).value(spec["model"])

    try:
        torch.set_default_dtype(getattr(torch, spec["dtype"]))
        model = built(make, "the model that is described", "get a copy of a smaller run")
        if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
            _run_once(model, spec.get("shape"))
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001  (third-party constructors may raise anything)
        raise ValueError(f"the model cannot be built from its description: {said(error)}") from error
    finally:
        torch.set_default_dtype(before)
    return model


def _run_once(model: Any, shape: Sequence[int] | None) -> None:
    """Give lazy layers their sizes."""
    if shape is None:
        raise ValueError("the model has lazy layers, which take their sizes from data: give the shape of an example")
    with torch.no_grad(), evaluating(model):
        model.posterior(torch.zeros(1, *shape))
        model.decoder(model.prior().sample((1,)))


class Builder:
    """Makes values from their descriptions.

    Besides plain values and modules, an argument is `{"tuple": […]}`, `{"dict": [[key, value], …]}` (or `"ordered"`),
    `{"float": "inf"}`, `{"object": path}` for a class, function or dtype, `{"partial": …, "args": […],
    "init_args": {…}}`, `{"attribute": name, "of": …}` for a method, `{"tensor": values, "shape": […], "dtype": …}`,
    or `{"blank": shape, "dtype": …}` for a large tensor whose values do not affect the model.
    """

    def __init__(self, root: Any):
        self.numbered = {node["id"]: node for node in _nodes(root) if "id" in node}
        self.made: dict[int, Any] = {}
        self.begun: set[int] = set()

    def value(self, node: Any) -> Any:
        """Make one value."""
        if isinstance(node, list):
            return [self.value(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "ref" in node:
            return self._shared(node["ref"])
        if "id" in node:
            return self._shared(node["id"])
        return self._make(node)

    def _shared(self, number: int) -> Any:
        """Make an entry only once, however often it is used."""
        if number not in self.made:
            if number in self.begun:
                raise ValueError("the model's description refers to itself")
            self.begun.add(number)
            self.made[number] = self._make(self.numbered[number])
        return self.made[number]

    def _make(self, node: dict[str, Any]) -> Any:
        """Make an entry, regardless of whether it is used elsewhere."""
        args = self.value(node.get("args", []))
        named = {name: self.value(part) for name, part in node.get("init_args", {}).items()}
        match node:
            case {"class_path": path}:
                return imported(path)(*args, **named)
            case {"partial": function}:
                return partial(self.value(function), *args, **named)
            case {"object": path}:
                return imported(path)
            case {"attribute": name, "of": owner}:
                return getattr(self.value(owner), name)
            case {"tuple": parts}:
                return tuple(self.value(parts))
            case {"dict": items} | {"ordered": items}:
                return (OrderedDict if "ordered" in node else dict)((self.value(k), self.value(v)) for k, v in items)
            case {"float": text}:
                return float(text)
            case {"tensor": values, "shape": shape, "dtype": dtype}:
                return torch.tensor(self.value(values), dtype=self.value(dtype)).reshape(shape)
            case {"blank": shape, "dtype": dtype}:
                return torch.ones(shape, dtype=self.value(dtype))
        raise ValueError(f"the model's description has an entry of no known kind: {sorted(node)}")


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries of a description."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _nodes(part)
