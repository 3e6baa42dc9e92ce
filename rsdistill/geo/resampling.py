"""A scene seen at another pixel size: area means where pixels grow, straight lines between pixel middles where they shrink."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy.sparse import csr_array

from rsdistill.errors import ConfigError
from rsdistill.geo.opening import MAX_PIXELS
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Grid, Window

SOURCE_ROWS = 512
"""Rows of the scene, about, that are resampled at once."""


class ResampledScene(Scene):
    """A scene on a grid of the same corners and another pixel size.

    Each pixel is a fixed weighted mean of valid pixels of the scene, whatever window it is read in, and valid where they have at least
    half of the weight.
    """

    def __init__(self, scene: Scene, pixel_size: float) -> None:
        """Lay pixels of about ``pixel_size`` (in units of the CRS) over ``scene``, a whole number of them.

        Raises:
            ConfigError: the scene is smaller than half a pixel.
        """
        self._native, self._wanted = scene, pixel_size
        rows, cols = scene.grid.pixel_size
        height, width = round(scene.grid.height * rows / pixel_size), round(scene.grid.width * cols / pixel_size)
        if min(height, width) < 1:
            raise ConfigError(f"{scene.path} is smaller than one pixel of {pixel_size:g}", hint="pixel sizes are in units of its CRS")
        if height * width > MAX_PIXELS:
            size = f"{height} x {width} pixels of {pixel_size:g}"
            raise ConfigError(f"{scene.path} would become {size}", hint="pixel sizes are in units of its CRS")
        self._factors = scene.grid.height / height, scene.grid.width / width
        scale = Affine.scale(self._factors[1], self._factors[0])
        self._grid = Grid(height, width, scene.grid.crs, scene.grid.transform @ scale)
        super().__init__(scene.path, **scene._options)

    @property
    def grid(self) -> Grid:
        """The grid of pixels of the new size."""
        return self._grid

    @property
    def block_shape(self) -> tuple[int, int]:
        """One row: there are no blocks to be kept whole."""
        return 1, self._grid.width

    def reopen(self) -> Scene:
        """As of a scene."""
        return ResampledScene(self._native.reopen(), self._wanted)

    def close(self) -> None:
        """As of a scene."""
        self._native.close()
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return ResampledScene, (self._native, self._wanted)

    def read(self, window: Window, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As of a scene."""
        step = max(1, int(SOURCE_ROWS / self._factors[0]))
        tops = range(window.row, window.stop[0], step)
        parts = [self._rows(Window(top, window.col, min(step, window.stop[0] - top), window.width), bands) for top in tops]
        return np.concatenate([values for values, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])

    def _rows(self, window: Window, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        native = self._native.grid
        top, rows = _weights(window.row, window.height, self._factors[0], native.height)
        left, cols = _weights(window.col, window.width, self._factors[1], native.width)
        values, valid = self._native.read(Window(top, left, rows.shape[1], cols.shape[1]), bands)
        share = rows @ valid.astype(np.float64) @ cols.T
        sums = np.stack([rows @ band.astype(np.float64) @ cols.T for band in values])  # invalid pixels are 0 there
        known = share >= 0.5 - 1e-9
        mean = np.where(known, sums / np.where(known, share, 1), 0)
        if np.issubdtype(values.dtype, np.integer):
            mean = np.rint(mean)
        return mean.astype(values.dtype), known


def _weights(first: int, count: int, factor: float, length: int) -> tuple[int, csr_array]:
    """Return where the source pixels begin that some target pixels are made of, and the weight of each, summing to 1 a target pixel.

    Args:
        first: of the target pixels.
        count: of the target pixels.
        factor: source pixels a target pixel.
        length: source pixels there are.
    """
    target = np.arange(first, first + count)
    if factor > 1:
        start, stop = target * factor, np.minimum((target + 1) * factor, length)
    else:  # a box of one source pixel around the target's middle: its overlaps are the weights of linear interpolation
        middle = (target + 0.5) * factor
        start, stop = middle - 0.5, middle + 0.5
    reach = ceil(max(factor, 1)) + 1
    source = np.floor(start).astype(np.int64)[:, None] + np.arange(reach)
    overlap = np.clip(np.minimum(source + 1, stop[:, None]) - np.maximum(source, start[:, None]), 0, None)
    inside = np.clip(source, 0, length - 1)  # beyond the edge, the edge goes on
    low, high = int(inside.min()), int(inside[overlap > 1e-12].max()) + 1
    overlap[overlap <= 1e-12] = 0
    inside = np.minimum(inside, high - 1)
    overlap /= overlap.sum(1, keepdims=True)
    place = (np.repeat(np.arange(count), reach), (inside - low).ravel())
    return low, csr_array((overlap.ravel(), place), shape=(count, high - low))
