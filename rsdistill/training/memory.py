"""What to do when a step does not fit into memory: take it in smaller parts, whose gradients add up to the same step."""

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from rsdistill.data.dataset import Composition, Share
from rsdistill.errors import MemoryLimitError
from rsdistill.inference.exhaustion import ran_out

T = TypeVar("T")


def until_it_fits(work: Callable[[], T], shrink: Callable[[], None]) -> T:
    """Return what ``work`` returns; each time that memory is exhausted, give back what it held, ``shrink``, and do it again."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            traceback.clear_frames(error.__traceback__)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            shrink()


def halved(shares: list[Share], composition: Composition, ranks: int) -> list[Share]:
    """Return the parts that one process takes a step in, half as large and twice as many.

    Raises:
        MemoryLimitError: they cannot be smaller; or there are several processes, which may not part ways in the middle of a step.
    """
    if ranks > 1:
        raise MemoryLimitError(
            "out of memory on one of several devices", hint="halve --batch and double --accumulate, or use a smaller network or tile"
        )
    if not composition.divides(2 * len(shares)):
        size = composition.tiles * (composition.contexts + composition.unlabelled) // len(shares)
        raise MemoryLimitError(
            f"out of memory with {size} tiles at a time", hint="use a smaller network, or tile again with a smaller --tile"
        )
    return [half for share in shares for half in share.divided(2)]
