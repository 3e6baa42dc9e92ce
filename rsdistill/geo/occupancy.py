"""Where a raster seems to hold data, told from its header alone: a block that is stored in next to nothing holds nodata.

Good enough to share work out evenly and to foretell it, and for nothing else: a block of one colour is as small as an empty one.
"""

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags

from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import is_remote

EMPTY_SHARE = 0.01
"""Of a block's pixels in bytes: a block that takes less is taken for empty."""


STRIP_SIZES, TILE_SIZES = 279, 325
"""TIFF's tags of the bytes that each block takes."""
NUMBERS = {3: "u2", 4: "u4", 16: "u8"}
"""TIFF's types of whole numbers that sizes are stored in."""


class Occupancy:
    """Which cells of a grid over a scene seem to hold data; all of them where the file does not tell."""

    def __init__(self, scene: Scene) -> None:
        """Read the sizes of the blocks of ``scene``, a GeoTIFF that has nodata, a mask or an alpha band."""
        dataset = scene._open()[0]
        filled = np.ones((1, 1), bool)
        height, width = dataset.block_shapes[0]
        self._factors: tuple[float, float] = (scene.grid.height, scene.grid.width)
        may_be_empty = (
            any(value is not None for value in scene.nodata)
            or len(scene.color_bands) < scene.count
            or MaskFlags.per_dataset in dataset.mask_flag_enums[0]
        )
        if dataset.driver == "GTiff" and not is_remote(scene.path) and may_be_empty:
            shape = ceil(dataset.height / height), ceil(dataset.width / width)
            together = dataset.count if str(dataset.interleaving) == "Interleaving.pixel" else 1
            sizes = block_sizes(scene.path, prod(shape))
            if sizes is not None:
                filled = sizes.reshape(shape) > EMPTY_SHARE * height * width * together * np.dtype(dataset.dtypes[0]).itemsize
                # blocks are counted in pixels of the file, cells in those of the scene, which may be resampled
                self._factors = height * scene.grid.height / dataset.height, width * scene.grid.width / dataset.width
        self._above = np.pad(filled.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
        """Filled blocks above and to the left of each border between blocks: a large scene has millions of cells to ask about."""

    def __call__(self, rows: Sequence[int], cols: Sequence[int]) -> NDArray[np.bool_]:
        """Return whether each cell between neighbouring borders, in pixels, touches a block that seems to hold data.

        Args:
            rows: R + 1 borders from top to bottom.
            cols: C + 1 borders from left to right.

        Returns:
            (R, C).
        """
        top, left = (np.floor(np.asarray(cuts[:-1]) / size).astype(int) for cuts, size in zip((rows, cols), self._factors, strict=True))
        bottom, right = (np.ceil(np.asarray(cuts[1:]) / size).astype(int) for cuts, size in zip((rows, cols), self._factors, strict=True))
        bottom, right = (np.minimum(last, size - 1) for last, size in zip((bottom, right), self._above.shape, strict=True))
        upto, above = self._above[bottom], self._above[top]
        found: NDArray[np.bool_] = upto[:, right] - upto[:, left] - above[:, right] + above[:, left] > 0
        return found


def block_sizes(path: Path, count: int) -> NDArray[np.int64] | None:
    """Return the bytes that each of the first ``count`` blocks of a TIFF takes, 0 for those that are not stored.

    GDAL tells one at a time, as text, which takes a minute for the millions of blocks of a mosaic. None where the file is unlike what
    TIFF 6.0 and BigTIFF describe.
    """
    try:
        with path.open("rb") as file:
            return _sizes(file, count)
    except (OSError, ValueError, KeyError):
        return None


def _sizes(file: BinaryIO, count: int) -> NDArray[np.int64] | None:
    order = {b"II": "<", b"MM": ">"}[file.read(2)]
    (version,) = _read(file, f"{order}H")
    big = version == 43
    (place,) = _read(file, f"{order}HHQ")[2:] if big else _read(file, f"{order}I")
    file.seek(place)
    (entries,) = _read(file, f"{order}Q" if big else f"{order}H")
    for _ in range(min(entries, 1 << 12)):
        tag, kind, found = _read(file, f"{order}HHQ" if big else f"{order}HHI")
        here, room = file.tell(), 8 if big else 4
        if tag not in (STRIP_SIZES, TILE_SIZES):
            file.seek(here + room)
            continue
        number = np.dtype(order + NUMBERS[kind])
        if found < count:
            return None
        if found * number.itemsize > room:
            file.seek(*_read(file, f"{order}Q" if big else f"{order}I"))
        return np.frombuffer(file.read(count * number.itemsize), number, count).astype(np.int64)
    return None


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    shape = Struct(form)
    content = file.read(shape.size)
    if len(content) < shape.size:
        raise ValueError("the file is cut short")
    return shape.unpack(content)
