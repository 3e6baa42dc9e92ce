"""A rotated scene written anew with north up, pixel by pixel from its nearest neighbour."""

from math import ceil
from pathlib import Path

import numpy as np
from affine import Affine

from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Grid, Window
from rsdistill.geo.writing import STRIP, RasterWriter


def north_up(grid: Grid) -> Grid:
    """The least grid without rotation that holds ``grid``, with pixels as large as its own."""
    x, y = zip(*(grid.transform @ corner for corner in ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))), strict=True)
    rows, cols = grid.pixel_size
    height, width = ceil((max(y) - min(y)) / rows - 1e-6), ceil((max(x) - min(x)) / cols - 1e-6)
    return Grid(height, width, grid.crs, Affine(cols, 0, min(x), 0, -rows, max(y)))


def write_north_up(scene: Scene, path: Path) -> None:
    """Write all bands but alpha of ``scene`` on its north-up grid; pixels that it does not reach are masked.

    Every pixel keeps a value that the scene holds (no interpolation), so nodata and classes stay what they are. Memory is bounded:
    squares of 512 pixels are looked up one at a time.

    Raises:
        DiskError: the file does not read back.
        SceneError: the scene cannot be read.
    """
    grid, bands = north_up(scene.grid), scene.color_bands
    names = [scene.descriptions[band - 1] for band in bands]
    with RasterWriter(path, grid, bands=len(bands), dtype=scene.dtype, names=names, masked=True) as writer:
        for row in range(0, grid.height, STRIP):
            for col in range(0, grid.width, STRIP):
                window = Window(row, col, min(STRIP, grid.height - row), min(STRIP, grid.width - col))
                _copy(scene, writer, grid, window)


def _copy(scene: Scene, writer: RasterWriter, grid: Grid, window: Window) -> None:
    """Look up every pixel of ``window`` in the scene."""
    cols, rows = np.meshgrid(np.arange(window.width) + window.col + 0.5, np.arange(window.height) + window.row + 0.5)
    a, b, c, d, e, f = (~scene.grid.transform @ grid.transform)[:6]
    source_cols, source_rows = (np.floor(part).astype(np.int64) for part in (a * cols + b * rows + c, d * cols + e * rows + f))
    inside = (source_rows >= 0) & (source_rows < scene.grid.height) & (source_cols >= 0) & (source_cols < scene.grid.width)
    values = np.zeros((len(scene.color_bands), window.height, window.width), dtype=scene.dtype)
    valid = np.zeros((window.height, window.width), dtype=bool)
    if inside.any():
        source_rows, source_cols = source_rows[inside], source_cols[inside]
        top, left = int(source_rows.min()), int(source_cols.min())
        part = Window(top, left, int(source_rows.max()) + 1 - top, int(source_cols.max()) + 1 - left)
        pixels, known = scene.read(part, scene.color_bands)
        values[:, inside] = pixels[:, source_rows - top, source_cols - left]
        valid[inside] = known[source_rows - top, source_cols - left]
    writer.write(window, values, valid)
