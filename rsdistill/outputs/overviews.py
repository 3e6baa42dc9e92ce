"""Overviews of class rasters by majority: pixel for pixel those of GDAL's MODE, at a small part of its cost.

GDAL makes each level from the one before it. A pixel of a level stands for 2 x 2 pixels, and for one row or column more, shared with its
neighbour, where the number of rows or columns is odd. It takes the class that is most common there, among equally common ones the one
whose last pixel comes first in reading order, and holds no data only where none of them does. Where the number of rows is odd, GDAL forgets
the shared row at the edges of the chunks that it works in; the levels made here know no chunks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow

BLOCK = 512
"""Side of the blocks of the levels' files."""
AT_ONCE = 2048
"""Columns of a level that are made at once, in one row of blocks."""


def halved(values: NDArray[Any], nodata: int | None) -> NDArray[Any]:
    """Return the next level of (H, W) classes: (max(1, H // 2), max(1, W // 2)).

    Nearly all places lie inside one class; only the others are counted.
    """
    rows, cols = (_steps(length) for length in values.shape)
    pixels = [values[row, col] for row in rows for col in cols]
    made = pixels[0].copy()
    places = np.divmod(np.flatnonzero(_mixed(values, pixels)), made.shape[1])  # a boolean index costs ten times as much
    made[places] = _most_common(np.stack([some[places] for some in pixels]), nodata)
    return made


def _mixed(values: NDArray[Any], pixels: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Return where the pixels of a place are not all the same; two that lie side by side are compared as one number where that can be."""
    if values.shape[0] % 2 or values.shape[1] % 2:
        first, mixed = np.ascontiguousarray(pixels[0]), np.zeros(pixels[0].shape, bool)
        for others in pixels[1:]:
            mixed |= np.ascontiguousarray(others) != first
        return mixed
    pairs = np.ascontiguousarray(values).view(f"u{2 * values.itemsize}")
    upper, bits = pairs[::2], 8 * values.itemsize
    return (upper != pairs[1::2]) | (upper >> bits != upper & (2**bits - 1))


def level_sizes(height: int, width: int, block: int, most: int | None = None) -> list[tuple[int, int]]:
    """Return height and width of each level, down to one that fits in a block; of ``most`` levels where that is given.

    These are the sizes that GDAL's COG driver chooses.
    """
    sizes: list[tuple[int, int]] = []
    while max(height, width) > (block if most is None else 1) and len(sizes) != most:
        height, width = max(1, height // 2), max(1, width // 2)
        sizes.append((height, width))
    return sizes


@contextmanager
def majority_levels(raster: str | Path, beside: Path, block: int, most: int | None = None) -> Iterator[list[Path]]:
    """Make the levels of a raster of one band, yield their files, largest first, and remove them at the end.

    A raster of any size takes the memory of a few blocks, and disk for a third of its pixels, run-length encoded.

    Args:
        raster: the raster, or a virtual one by its XML.
        beside: the levels' names begin with this one's.
        block: side of the blocks of the file that the levels are made for.
        most: number of levels; None for as many as it takes to fit in a block.
    """
    with rasterio.open(raster) as file:
        sizes = level_sizes(file.height, file.width, block, most)
    files = [beside.with_name(f"{beside.name}.level{number}") for number in range(1, len(sizes) + 1)]
    try:
        for larger, smaller, size in zip([raster, *files], files, sizes, strict=False):
            _make_level(larger, smaller, size)
        yield files
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _make_level(larger: str | Path, smaller: Path, size: tuple[int, int]) -> None:
    """Write the level after ``larger`` to ``smaller``, a few blocks at a time, and read it back: a full disk swallows writes."""
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "packbits", "sparse_ok": True, "bigtiff": "if_safer"}
    parts = list(_parts(*size))
    with rasterio.open(larger) as source:
        nodata = None if source.nodata is None else int(source.nodata)
        shape = {"height": size[0], "width": size[1], "count": 1, "dtype": source.dtypes[0], "nodata": nodata}
        sums = []
        with rasterio.open(smaller, "w", driver="GTiff", **shape, **layout) as level:
            for part in parts:
                values = halved(source.read(1, window=_under(part, source)), nodata)
                level.write(values, 1, window=part)
                sums.append(crc32(values.data))
    with rasterio.open(smaller) as level:
        if any(crc32(level.read(1, window=part).data) != expected for part, expected in zip(parts, sums, strict=True)):
            raise OSError(f"{smaller} reads back other pixels than were written")


def _parts(height: int, width: int) -> Iterator[RasterWindow]:
    """Yield the windows in which a level is made: whole blocks, in reading order."""
    for row in range(0, height, BLOCK):
        for col in range(0, width, AT_ONCE):
            yield RasterWindow(col, row, min(AT_ONCE, width - col), min(BLOCK, height - row))


def _under(part: RasterWindow, source: Any) -> RasterWindow:
    """Return the window of ``source`` that a window of its next level is made from."""
    height = min(2 * part.height + source.height % 2, source.height)
    width = min(2 * part.width + source.width % 2, source.width)
    return RasterWindow(2 * part.col_off, 2 * part.row_off, width, height)


def _steps(length: int) -> list[slice]:
    """Return which of ``length`` pixels come first, second and, where the length is odd, third in each place of the next level."""
    places = max(1, length // 2)
    return [slice(first, first + 2 * places - 1, 2) for first in range(min(length, 2 + length % 2))]


def _most_common(pixels: NDArray[Any], nodata: int | None) -> NDArray[Any]:
    """Return the value among each column's that first reaches the highest count, top to bottom; (N, places) pixels become (places,)."""
    best = pixels[0].copy()
    most = np.ones(len(best), np.uint8) if nodata is None else (best != nodata).astype(np.uint8)
    for number, values in enumerate(pixels[1:], start=1):
        seen = (pixels[:number] == values).sum(0, dtype=np.uint8) + np.uint8(1)
        if nodata is not None:
            seen *= values != nodata
        np.copyto(best, values, where=seen > most)
        np.maximum(most, seen, out=most)
    return best
