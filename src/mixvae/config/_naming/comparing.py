"""How two models of the same description differ beyond their weights."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from mixvae.config._naming.describing import has_tensors

IGNORED = {*vars(nn.Module()), "training", "_arguments", "_compiled_call_impl"}
"""Attributes of a module that hold its tensors, children and hooks, or do not concern its architecture."""
Tensors = Mapping[str, Tensor]


def difference(model: nn.Module, again: nn.Module) -> str:
    """How a model differs from one that was built from its description; empty if it does not.

    It compares the names and classes of submodules, the names, shapes and precisions of tensors, the values of those
    that are not saved, all other attributes, and the number of hooks. Weights and what is frozen may differ.

    Args:
        model: the model.
        again: the model built from its description.
    """
    return next(_Comparison(model, again).differences(), "")


class _Comparison:
    """Two modules side by side."""

    def __init__(self, model: nn.Module, again: nn.Module):
        self.pair = tuple(dict(m.named_modules(remove_duplicate=False)) for m in (model, again))
        self.places = tuple({id(m): name for name, m in reversed(side.items())} for side in self.pair)
        self.model, self.again = model, again
        self.begun: set[tuple[int, int]] = set()

    def differences(self) -> Iterator[str]:
        """All differences, outer modules first."""
        own, other = self.pair
        for name in sorted(own.keys() | other.keys(), key=lambda n: (n.count("."), n)):
            mine, its = own.get(name), other.get(name)
            if mine is None or its is None or type(mine) is not type(its):
                now, then = ("not there" if m is None else f"a {type(m).__name__}" for m in (mine, its))
                yield f"{_full(name)} is {now}, but would be built as {then}"
                return
            yield from self._attributes(_full(name), mine, its)
        yield from self._tensors(self.model.state_dict(), self.again.state_dict())
        if [n for n, _ in self.model.named_parameters()] != [n for n, _ in self.again.named_parameters()]:
            yield "some parameters are shared in the model but would be built apart, or the other way round"

    def _attributes(self, name: str, mine: nn.Module, its: nn.Module) -> Iterator[str]:
        """Differences between two modules in anything but saved tensors and children."""
        own, other = ({k: v for k, v in vars(m).items() if k not in IGNORED} for m in (mine, its))
        for key in sorted(own.keys() | other.keys()):
            if key not in own or key not in other or not self._same(own[key], other[key]):
                yield f"{name}.{key} is not what it would be built as"
        for key in mine._non_persistent_buffers_set | its._non_persistent_buffers_set:
            if not self._same(mine._buffers.get(key), its._buffers.get(key)):
                yield f"{name}.{key} is a buffer that is not saved, and not what it would be built as"
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            if len(getattr(mine, kind)) != len(getattr(its, kind)):
                yield f"{name} has hooks that it would be built without"

    def _tensors(self, mine: Tensors, its: Tensors) -> Iterator[str]:
        """Differences in the names, shapes and precisions of what is saved."""
        floating = {t.dtype for t in mine.values() if t.is_floating_point()}
        for name in sorted(mine.keys() | its.keys()):
            own, other = mine.get(name), its.get(name)
            if own is None or other is None or own.shape != other.shape:
                now, then = ("not there" if t is None else f"of shape {tuple(t.shape)}" for t in (own, other))
                yield f"model.{name} is {now}, but would be built as {then}"
            elif own.dtype != other.dtype and not (
                own.is_floating_point() and other.is_floating_point() and len(floating) == 1
            ):
                yield f"model.{name} is {own.dtype}, but would be built as {other.dtype}"

    def _same(self, a: Any, b: Any) -> bool:
        """Whether two values mean the same, each within its own model."""
        if a is b or (id(a), id(b)) in self.begun:
            return True
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            places = self.places[0].get(id(a)), self.places[1].get(id(b))
            hidden = places[0] is None and has_tensors(a)  # its weights are not saved
            return type(a) is type(b) and places[0] == places[1] and not hidden
        if type(a) is not type(b):
            return False
        if isinstance(a, Tensor):
            return _same_values(a.detach().cpu(), b.detach().cpu())
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(self._same, a, b))
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(self._same(a[k], b[k]) for k in a)
        if isinstance(a, partial):
            return self._same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
        if isinstance(a, types.MethodType):
            return self._same((a.__func__, a.__self__), (b.__func__, b.__self__))
        if isinstance(a, types.FunctionType):  # made by a constructor, of the same text
            return a.__code__ == b.__code__ and self._same(_captured(a), _captured(b))
        if hasattr(a, "__dict__") and not isinstance(a, type):
            self.begun.add((id(a), id(b)))  # objects may refer to each other
            own, other = vars(a), vars(b)
            lazily = isinstance(a, Distribution)  # distributions add attributes as they are read
            return (lazily or own.keys() == other.keys()) and all(
                self._same(own[k], other[k]) for k in own.keys() & other.keys()
            )
        equal = a == b
        return bool(equal.all() if hasattr(equal, "all") else equal or (a != a and b != b))


def _captured(function: types.FunctionType) -> tuple[Any, ...]:
    """Defaults and closure of a function."""
    return function.__defaults__, [cell.cell_contents for cell in function.__closure__ or ()]


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal at the precision of either."""
    return a.shape == b.shape and (torch.equal(a, b.to(a.dtype)) or torch.equal(a.to(b.dtype), b))


def _full(name: str) -> str:
    return f"model.{name}" if name else "model"
