"""Errors raised by other people's code, in one line."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import cast

LARGEST = 2**63
"""Integers must be smaller than this."""


class Failed(RuntimeError):
    """Work that was begun and could not be completed, through no fault of the request; what is done is kept."""


def said(error: BaseException) -> str:
    """First line of an error, preceded by its type unless that is a plain ValueError or RuntimeError."""
    first = next(iter(str(error).strip().splitlines()), "")
    name = type(error).__name__
    return first if first and type(error) in (ValueError, RuntimeError) else f"{name}: {first}" if first else name


def called(make: Callable[..., object], **arguments: object) -> str:
    """How a class or function was called, such as `Adam(lr=0.1)`, in at most one line."""
    if isinstance(make, partial):
        return called(make.func, **(make.keywords | arguments))
    name = getattr(make, "__name__", type(make).__name__)
    return textwrap.shorten(f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})", 160, placeholder=" …)")


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn whatever a user's class or function raises into a one-line `ValueError`.

    A `ValueError` or `OSError` passes unchanged: it already says what was wrong.

    Args:
        what: what failed.

    Raises:
        ValueError: the block raised; its error is the cause.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {said(error)}") from error


def typed(*words: object) -> str:
    """A command of mixvae as it can be typed: words are quoted where a shell would take them apart.

    Example:
        >>> from mixvae._failures import typed
        >>> typed("evaluate", "my run")
        "mixvae evaluate 'my run'"
    """
    return shlex.join(["mixvae", *map(str, words)])


def is_whole(text: str) -> bool:
    """Whether a text is a whole number: only ASCII digits, as others, such as ², may be none for `int`.

    Example:
        >>> from mixvae._failures import is_whole
        >>> [is_whole(text) for text in ("12", "²", "-1", "")]
        [True, False, False, False]
    """
    return text.isascii() and text.isdigit()


def at_least(least: float, **values: Real | float | None) -> None:
    """Refuse numbers that are too small, too large for 63 bits, infinite or not numbers; None passes.

    Args:
        least: the smallest valid number.
        values: the numbers by name.

    Raises:
        ValueError: one is invalid.
    """
    for name, given in values.items():
        if given is None:
            continue
        value = cast("float", given)  # `Real` promises no order
        if isinstance(given, bool) or not isinstance(given, Real) or not value >= least:
            raise ValueError(f"{name} must be at least {least}; got {given}")
        if value >= LARGEST:
            limit = "below 2**63" if isinstance(given, Integral) else "finite"
            raise ValueError(f"{name} must be {limit}; got {given}")
