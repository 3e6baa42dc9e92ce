"""What cutting a tile set takes in memory, known from headers before anything is read."""

import os
from collections.abc import Sequence
from math import ceil

import numpy as np

from rsdistill.data.intake import Intake
from rsdistill.data.tiling import chunk_width
from rsdistill.errors import MemoryLimitError
from rsdistill.geo.writing import STRIP

TILE_BYTES = 4096
"""Of one tile's place, counts and footprint while a set is made; 3.7 kB where 50 625 tiles were cut."""
COPIES = 4
"""Of a chunk: as read, scaled, masked, and what numpy makes on the way."""


def refuse_too_much(intakes: Sequence[Intake], tile: int, overlap: int, megabytes: int | None) -> None:
    """Refuse a tile set that would take more memory than is allowed.

    Args:
        intakes: scenes, with their bands.
        tile: side of a tile.
        overlap: pixels that neighbours share.
        megabytes: what is allowed; None for what the machine has.

    Raises:
        MemoryLimitError: it would; says what takes it.
    """
    tiles = sum(_count(one.size[0], tile, overlap) * _count(one.size[1], tile, overlap) for one in intakes)
    widest = max(intakes, key=_chunk_bytes)
    parts = {
        f"{tiles} tiles of {tile} pixels": (tiles * TILE_BYTES, "a larger --tile or a smaller --overlap makes fewer"),
        f"{len(widest.bands)} bands of {widest.scene.path}": (_chunk_bytes(widest), "choose fewer with --bands"),
    }
    limit, whose = (megabytes * 1_000_000, "--max-memory allows") if megabytes else (_machine_bytes(), "this machine has")
    needed = sum(bytes_ for bytes_, _ in parts.values())
    if needed > limit:
        what, (_, remedy) = max(parts.items(), key=lambda part: part[1][0])
        raise MemoryLimitError(f"{what} need {needed / 1e6:.0f} MB, {whose} {limit / 1e6:.0f}", hint=remedy)


def _count(length: int, tile: int, overlap: int) -> int:
    return 1 + ceil(max(0, length - tile) / (tile - overlap))


def _chunk_bytes(one: Intake) -> int:
    """What a chunk and one stored block of a scene take; a block may be larger than the part of it that is wanted."""
    size = np.dtype(one.scene.dtype).itemsize * len(one.bands)
    width = min(chunk_width(size), one.size[1])
    return COPIES * STRIP * width * size + int(np.prod(one.scene.block_shape)) * size


def _machine_bytes() -> int:
    """Memory of this machine; where the system does not tell, as much as there may be."""
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else 1 << 62
