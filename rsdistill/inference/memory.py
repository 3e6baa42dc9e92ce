"""What mapping a scene takes in memory, known before it starts: rows, strips, writers, and what a network holds at its fullest."""

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from rsdistill.errors import ConfigError, MemoryLimitError
from rsdistill.geo.caching import cache_for
from rsdistill.geo.scenes import Scene
from rsdistill.inference.blending import Blend, Wanted
from rsdistill.inference.engine import Job
from rsdistill.inference.loading import Model, Windows
from rsdistill.inference.reading import CHUNK_ROWS, chunks_ahead

WRITER_ROWS = 2 * 512
"""Rows that each raster's writer holds: those it collects and those it encodes."""
COPIES = 4
"""Of a batch of windows: those that are cut, stacked, on their way through the network, and waiting to be kept. Of figures: those that
are filled, scaled, rounded and made whole numbers of."""
LEAST_TILE = 128
"""Side below which windows are not made for want of memory."""


def engine_bytes(scene: Scene, job: Job, bands: Sequence[int], classes: int, blend: Blend, wanted: Wanted, batch: int) -> int:
    """Return the most bytes of rows, windows, strips, writers and decoded blocks, without the network's."""
    (height, width), area = job.plan.tile, job.area
    pixel = len(bands) * np.dtype(scene.dtype).itemsize + 1
    planes = 1 + wanted.confidence + classes * wanted.probabilities
    rows = job.seen.width * pixel * (height + (chunks_ahead(job.seen.width, height) + 2) * CHUNK_ROWS)
    windows = COPIES * batch * height * width * (pixel + 1)
    strips = area.width * (height * (2 + COPIES * 4 * (planes - 1)) + WRITER_ROWS * planes)  # two: one is filled, one goes to the journal
    blocks = min(cache_for(scene), scene.grid.height * scene.grid.width * scene.count * np.dtype(scene.dtype).itemsize)
    return rows + windows + strips + blocks + (0 if blend == "core" else area.width * height * (4 * classes + 1))


def network_bytes(model: Model, batch: int, size: tuple[int, int]) -> int:
    """Return the bytes that a network holds at its fullest while a batch of windows passes, but for its parameters; nothing is run.

    Raises:
        ConfigError: it is an exported model, or reads context: then nothing is known before.
    """
    if model.network is None or model.needs_context:
        kind = "an exported model" if model.network is None else "a network that reads the scene's context"
        raise ConfigError(f"{model.path} is {kind}: what it needs is not known before", hint="use --tile instead of --max-memory")
    from rsdistill.inference.counting import most_bytes

    return most_bytes(model.network, batch, len(model.card.bands), size)


def fitting(limit: int, windows: Windows, stride: int, needed: Callable[[int], int]) -> Windows:
    """Return ``windows``, or smaller ones that need at most ``limit`` bytes.

    Args:
        limit: in bytes.
        windows: those that would be used without it.
        stride: sides are multiples of it.
        needed: returns the bytes for windows of some side.

    Raises:
        MemoryLimitError: the smallest windows need more.
    """
    least = max(LEAST_TILE, 4 * windows.margin, stride)
    side = windows.tile
    while (bytes_ := needed(side)) > limit:
        smaller = side // 2 // stride * stride
        if smaller < least:
            message = f"windows of {side} pixels need {ceil(bytes_ / 1e6)} MB, --max-memory allows {limit / 1e6:.0f}"
            raise MemoryLimitError(message, hint="allow more, or map the scene in shards")
        side = smaller
    return Windows(side, windows.margin)
