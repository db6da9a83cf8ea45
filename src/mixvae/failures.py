"""Errors that other people's code raises, told in one line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

LARGEST = 2**63
"""What whole numbers stay below."""


class Failed(RuntimeError):
    """Work that had begun and could not be ended, for no fault of what was asked for; what is done stays."""


def said(error: BaseException) -> str:
    """First line of an error, led by its type unless that is as general as the words are plain."""
    first = next(iter(str(error).strip().splitlines()), "")
    name = type(error).__name__
    return first if first and type(error) in (ValueError, RuntimeError) else f"{name}: {first}" if first else name


def called(make: Callable[..., object], **arguments: object) -> str:
    """How a class or function was called, such as `Adam(lr=0.1)`, in at most a line."""
    if isinstance(make, partial):
        return called(make.func, **(make.keywords | arguments))
    name = getattr(make, "__name__", type(make).__name__)
    return textwrap.shorten(f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})", 160, placeholder=" …)")


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn whatever a class or function of the user's raises into a `ValueError` of one line.

    A `ValueError` or `OSError` passes as it is: it says what was wrong already.

    Args:
        what: what could not be done.

    Raises:
        ValueError: the block raised; its error is the cause.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        raise ValueError(f"{what}: {said(error)}") from error


def at_least(least: float, **values: float | None) -> None:
    """Refuse numbers that are too small, too large for 63 bits, infinite or not numbers; None passes.

    Args:
        least: the smallest that is right.
        values: the numbers by name.

    Raises:
        ValueError: one is wrong.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
        if value >= LARGEST:
            raise ValueError(f"{name} must be {'finite' if isinstance(value, float) else 'below 2**63'}; got {value}")
