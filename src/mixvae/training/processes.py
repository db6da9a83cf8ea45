"""What the processes of one training do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from lightning_fabric import Fabric

Result = TypeVar("Result")


@contextmanager
def errors_once(fabric: Fabric) -> Iterator[None]:
    """Let the first process tell what all of them refuse; the others end in silence."""
    try:
        yield
    except (ValueError, OSError):
        if fabric.is_global_zero:
            raise
        raise SystemExit(2) from None


def first_alone(fabric: Fabric, act: Callable[[], Result]) -> Result:
    """Do something in the first process only; the others get its result, or end with it in silence."""
    outcome: tuple[bool, Any] = (False, None)
    if fabric.is_global_zero:
        try:
            outcome = (True, act())
        except (ValueError, OSError) as error:
            fabric.broadcast((False, None))
            raise error from None
    done, result = fabric.broadcast(outcome)
    if not done:
        raise SystemExit(2)
    return cast(Result, result)
