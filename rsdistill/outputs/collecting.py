"""Python's garbage collector, held while geometries are made by the ten thousand.

None of them is part of a cycle, and each few hundred start a search for cycles through everything that the process has loaded: beside
torch, a third of the time of polygons.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the collector in a block, or in a function where it is the decorator."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
