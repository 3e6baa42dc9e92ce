"""What the C library's heap does with arrays that were freed: keep them, which is fast, or give them back, which is small."""

import contextlib
import ctypes
import mmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LARGE = 4 << 20
"""Bytes from which on an array gets pages of its own where memory is short."""
KEPT = 256 << 20
"""Freed bytes at the heap's end that stay with the process where it is not."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30


def paged(shape: tuple[int, ...], value: float, dtype: DTypeLike) -> NDArray[Any]:
    """Return an array full of ``value`` in pages of its own, outside the heap: it leaves no hole there, whatever is made while it lives."""
    pages = mmap.mmap(-1, max(1, prod(shape) * np.dtype(dtype).itemsize))
    array = np.frombuffer(pages, dtype, prod(shape)).reshape(shape)
    array.fill(value)
    return array


def bound_heap(*, tight: bool) -> None:
    """Set for this process what becomes of large arrays that are freed; other C libraries than glibc have no such call.

    Fresh pages are cleared by the system before they are given out: a network whose maps of each window are given back and asked for
    anew spends much of its time on that. ``tight`` gives them back all the same, so that a long run holds what it needs at its
    fullest and no holes between. Both bounds are fixed; by itself glibc moves them with the arrays that it has seen.
    """
    bounds = {_M_MMAP_THRESHOLD: LARGE} if tight else {_M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: KEPT}
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for name, size in bounds.items():
            ctypes.CDLL(None).mallopt(name, size)
