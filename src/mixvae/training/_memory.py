"""Memory of a process that allocates the same large tensors at every step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step instead of returning it to the system.

    glibc returns blocks over 32 MB immediately, and every step of a convolutional model on the CPU then waits for the
    system to hand out and clear the same pages again: a third of the step. Other C libraries are left alone. The
    process keeps its peak memory until it ends.

    Returns:
        Whether the settings were accepted.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, 2**26)))
