"""The C library's heap, told to keep no large array that was freed: otherwise half of a long run's memory is holes between others."""

import contextlib
import ctypes

LARGE = 4 << 20
"""Bytes from which on an array gets pages of its own. A fixed bound: by itself glibc raises it with the arrays that it has seen."""
_M_MMAP_THRESHOLD = -3


def bound_heap() -> None:
    """Set the bound for this process; other C libraries than glibc have no such call, and need none."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
