"""Where a raster seems to hold data, told from its header alone: a block that is stored in next to nothing holds nodata.

Good enough to share work out evenly, and for nothing else: a block of one colour is as small as an empty one.
"""

from math import ceil

import numpy as np
from rasterio.enums import MaskFlags

from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import is_remote
from rsdistill.geo.windows import Window

EMPTY_SHARE = 0.01
"""Of a block's pixels in bytes: a block that takes less is taken for empty."""


class Occupancy:
    """Which windows of a scene seem to hold data; all of them where the file does not tell."""

    def __init__(self, scene: Scene) -> None:
        """Read the sizes of the blocks of ``scene``, a GeoTIFF that has nodata, a mask or an alpha band."""
        dataset = scene._open()[0]
        self._filled = np.ones((1, 1), bool)
        height, width = dataset.block_shapes[0]
        self._factors = scene.grid.height, scene.grid.width
        may_be_empty = (
            any(value is not None for value in scene.nodata)
            or len(scene.color_bands) < scene.count
            or MaskFlags.per_dataset in dataset.mask_flag_enums[0]
        )
        if dataset.driver != "GTiff" or is_remote(scene.path) or not may_be_empty:
            return
        rows, cols = ceil(dataset.height / height), ceil(dataset.width / width)
        together = dataset.count if str(dataset.interleaving) == "Interleaving.pixel" else 1
        least = EMPTY_SHARE * height * width * together * np.dtype(dataset.dtypes[0]).itemsize
        sizes = [int(dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1) or 0) for row in range(rows) for col in range(cols)]
        self._filled = np.array(sizes).reshape(rows, cols) > least
        # blocks are counted in pixels of the file, windows in those of the scene, which may be resampled
        self._factors = height * scene.grid.height / dataset.height, width * scene.grid.width / dataset.width

    def __call__(self, window: Window) -> bool:
        """Return whether ``window`` touches a block that seems to hold data."""
        rows, cols = (
            slice(int(first / size), ceil(stop / size)) for first, stop, size in zip(window[:2], window.stop, self._factors, strict=True)
        )
        return bool(self._filled[rows, cols].any())
