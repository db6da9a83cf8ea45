"""What this machine is, how much memory there is, and one-line refusals, before allocation, of what cannot fit into it.

Every estimate is a lower bound on what is needed at once: what is refused could not have worked, and what is not
refused may still be too much. Imports nothing of mixvae, and no torch until a model is built.
"""

from __future__ import annotations

import math
import os
import platform
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

GIB = 2**30
OBJECT = 1024
"""Minimum overhead of a parameter in bytes, besides its values: a Python object and a torch one."""
LARGE = 2**28
"""Models with at least this many bytes of parameters are measured before they are built."""
UNLIMITED = 2**60
"""Limits of this size or more count as no limit."""
_together: ContextVar[int] = ContextVar("together", default=2)
"""Fewest copies of its weights that a model in use needs: a second for gradients, or for the file it is read from."""


class TooLarge(ValueError):
    """The request is valid, but cannot be met on this machine."""


@cache
def machine() -> str:
    """This machine in words: architecture, processor where the system names it, and system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    named = [platform.machine(), model or platform.processor(), platform.platform()]
    return ", ".join(dict.fromkeys(filter(None, named)))


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less under a cgroup or `ulimit -v`."""
    limits = [*_physical(), *_cgroups(), *_rlimit()]
    return min((limit for limit in limits if limit > 0), default=UNLIMITED)


def _physical() -> Iterator[int]:
    """Memory of the machine, if the system reports it."""
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return


def _rlimit() -> Iterator[int]:
    """What `ulimit -v` allows."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft


def _cgroups(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What control groups allow: this process's own and all above it, in version 1 or 2."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inner = base / path.lstrip("/")
        for folder in (inner, *(p for p in inner.parents if p == base or base in p.parents)):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                yield int(text)


def gib(number: float) -> str:
    """Bytes in GiB, as errors show them."""
    value = number / GIB if number < 2**1000 else float("inf")
    if value < 10:
        return f"{value:.2f} GiB"
    return f"{value:.1f} GiB" if value < 1e6 else f"{value:.1e} GiB" if value < float("inf") else "over 1e+290 GiB"


def check(needed: int, what: str, remedy: str, limit: int | None = None) -> None:
    """Refuse what needs more memory than there is.

    Args:
        needed: least bytes that are needed at once.
        what: what needs the memory.
        remedy: how to need less.
        limit: bytes available; this process's memory by default.

    Raises:
        TooLarge: it does not fit.
    """
    there = memory() if limit is None else limit
    if needed > there:
        raise TooLarge(f"{what} needs at least {gib(needed)} of memory, but only {gib(there)} is available: {remedy}")


def check_count(number: int, most: int, what: str, remedy: str) -> None:
    """Refuse a number that would fit into memory but take impractically long.

    Args:
        number: how many are requested.
        most: how many are allowed.
        what: what they are.
        remedy: what to do instead.

    Raises:
        TooLarge: there are too many.
    """
    if number > most:
        raise TooLarge(f"{what} are at most {most:,}, which already take long; got {short(number)}: {remedy}")


def short(value: object, most: int = 80) -> str:
    """A value as errors show it, however large it is."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def device_memory(device: Any) -> int:
    """Bytes of memory of a torch device."""
    import torch

    device = torch.device(device)
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()


def size_of(module: Any) -> int:
    """Bytes of a module's parameters and buffers, including the objects that hold them; tied ones count once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    return sum(OBJECT + (0 if hasattr(t, "cls_to_become") else t.numel() * t.element_size()) for t in tensors)


@contextmanager
def together(copies: int) -> Iterator[None]:
    """Within the block, count the weights of a model this many times, as a training holds that many copies."""
    token = _together.set(copies)
    try:
        yield
    finally:
        _together.reset(token)


def make(build: Callable[[], Any], copies: int, what: str) -> list[Any]:
    """Make `copies` modules, unless the first shows that all of them cannot fit into memory.

    Args:
        build: makes one.
        copies: how many.
        what: what they are, for the error.

    Raises:
        TooLarge: they do not fit.
    """
    made = []
    for _ in range(copies):
        made.append(build())
        if len(made) == 1 and hasattr(made[0], "parameters"):
            needed = _together.get() * copies * size_of(made[0])
            check(needed, f"a model of {short(copies)} {what}", "give fewer or smaller ones")
    return made


def built_mixture(build: Callable[[], Any], components: int, latent: int, shape: Sequence[int]) -> Any:
    """Build a model of known sizes, unless it cannot fit into memory.

    Args:
        build: builds it.
        components: number of components S.
        latent: latent size D.
        shape: event shape of the data.

    Raises:
        TooLarge: it cannot fit.
    """
    what = f"a model of {short(components)} components, latent size {short(latent)} and data of shape {_shape(shape)}"
    remedy = "give fewer components, a smaller latent size or smaller layers"
    one = math.prod(shape) + 2 * max(components, 1) * latent  # an example, and means and variances of its components
    check(4 * one, what, remedy)
    return built(build, what, remedy)


def built(build: Callable[[], Any], what: str, remedy: str) -> Any:
    """Build a model, unless it cannot fit into memory.

    Large models are first built without memory, on torch's device `meta`, as far as possible: filling gigabytes with
    random weights only to refuse the rest would take minutes.

    Args:
        build: builds it.
        what: what it is, for the error.
        remedy: how to need less.

    Raises:
        TooLarge: it cannot fit.
    """
    import torch

    state = torch.get_rng_state()
    try:
        with guarding(what, remedy, pause=LARGE):
            return build()
    except _Pause:
        pass
    try:
        with torch.device("meta"), guarding(what, remedy):
            build()
    except TooLarge:
        raise
    except Exception:  # noqa: BLE001, S110  (what needs actual values cannot be built this way)
        pass
    torch.set_rng_state(state)
    with guarding(what, remedy):
        return build()


class _Pause(BaseException):
    """Signals that a model has become large; not an error in the classes that it is made of."""


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(short, shape))})"


@contextmanager
def guarding(what: str, remedy: str, *, pause: int = UNLIMITED) -> Iterator[None]:
    """Refuse tensors that cannot fit into memory before they are allocated, and parameters that together cannot.

    Args:
        what: what is being made.
        remedy: how to need less.
        pause: bytes of parameters at which `_Pause` is raised.

    Raises:
        TooLarge: a tensor, or all parameters so far, need more than there is.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.overrides import TorchFunctionMode

    most, alive, total = memory(), set[int](), 0
    shaped = {torch.empty, torch.ones, torch.zeros, torch.rand, torch.randn, torch.full, torch.eye}
    new = {torch.Tensor.new_empty, torch.Tensor.new_ones, torch.Tensor.new_zeros, torch.Tensor.new_full}

    class Sizes(TorchFunctionMode):
        """Checks the sizes of what is about to be allocated."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in shaped or func in new:
                sizes = args[1:] if func in new else args
                sizes = sizes[:1] if func in (torch.full, torch.Tensor.new_full) else sizes
                sizes = sizes or kwargs.get("size", ())
                check(_bytes(func, sizes, kwargs.get("dtype")), what, remedy, most)
            return func(*args, **kwargs)

    def note(module: Any, name: str, parameter: Any) -> None:
        nonlocal total
        del module, name
        if parameter is None or id(parameter) in alive or hasattr(parameter, "cls_to_become"):
            return
        size, key = OBJECT + parameter.numel() * parameter.element_size(), id(parameter)
        alive.add(key)
        total += size
        weakref.finalize(parameter, forget, key, size).atexit = False
        check(_together.get() * total, what, remedy, most)
        if total > pause:
            raise _Pause

    def forget(key: int, size: int) -> None:
        nonlocal total
        alive.discard(key)
        total -= size

    def _bytes(func: Any, sizes: Any, dtype: Any) -> int:
        flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
        numbers = [int(n) for n in flat if isinstance(n, int)]
        if func is torch.eye:
            numbers = numbers * 2 if len(numbers) == 1 else numbers
        product = dtype.itemsize if dtype is not None else torch.get_default_dtype().itemsize
        for number in numbers:
            product *= max(0, number)
        return product

    handle = register_module_parameter_registration_hook(note)
    try:
        with Sizes():
            yield
    finally:
        handle.remove()
