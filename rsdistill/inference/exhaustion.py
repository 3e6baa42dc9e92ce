"""How allocators say that memory is exhausted, on whatever device."""

import torch

SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "could not create a primitive",
)
"""What allocators say that have no error of their own: the processor's, cuDNN's and cuBLAS's, the C++ library's, oneDNN's."""


def ran_out(error: BaseException) -> bool:
    """Return whether ``error`` says that memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )
