"""Which part of a scene is to be mapped: polygons of interest, burnt a window at a time."""

from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from rsdistill.errors import ConfigError
from rsdistill.geo.burning import pixel_plane, read_polygons
from rsdistill.geo.windows import Grid, Window


class Interest:
    """The pixels of a scene whose middle lies in one of some polygons."""

    def __init__(self, source: Path, grid: Grid) -> None:
        """Read the polygons of a vector file.

        Raises:
            LabelError: the file cannot be read or holds no polygon.
            ConfigError: none of its polygons meets the scene.
        """
        to_pixels = ~pixel_plane(grid)
        frame = read_polygons(source, grid)
        # In pixels of the scene, so that bounds and boxes are those of windows on any grid, turned ones included.
        matrix = [to_pixels.a, to_pixels.b, to_pixels.d, to_pixels.e, to_pixels.c, to_pixels.f]
        self._outlines = frame.geometry.to_numpy()
        polygons = [_moved(polygon, matrix) for polygon in self._outlines]
        scene = shapely.box(0, 0, grid.width, grid.height)
        inside = [polygon for polygon in polygons if polygon.intersects(scene) and not polygon.touches(scene)]
        self._polygons = np.array(inside, dtype=object)
        if not len(self._polygons):
            raise ConfigError(f"no polygon of {source} meets the scene", hint="are both in the right place and CRS?")
        left, top, right, bottom = shapely.intersection(shapely.box(*shapely.total_bounds(self._polygons)), scene).bounds
        row, col = min(floor(top), grid.height - 1), min(floor(left), grid.width - 1)
        self.window = Window(row, col, max(1, ceil(bottom) - row), max(1, ceil(right) - col))
        """The smallest window of the scene around the polygons."""

    def __call__(self, window: Window) -> NDArray[np.bool_]:
        """Return the (h, w) pixels of ``window`` that are of interest."""
        near = self._polygons[self._tree.query(_box(window))]
        inside = np.zeros((window.height, window.width), np.uint8)
        if len(near):
            shift = Affine.translation(window.col, window.row)
            rasterio.features.rasterize(list(near), out=inside, transform=shift, default_value=1)
        return inside.view(bool)

    def meets(self, window: Window) -> bool:
        """Return whether some polygon meets ``window``."""
        return bool(len(self._tree.query(_box(window), predicate="intersects")))

    @cached_property
    def geometry(self) -> Any:
        """All polygons as one, in the scene's CRS."""
        return shapely.union_all(self._outlines)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._polygons)


def area_of_interest(source: Path, grid: Grid) -> Any:
    """Return the polygons of a vector file as one, in the CRS of ``grid``.

    Raises:
        LabelError: the file cannot be read or holds no polygon.
    """
    return shapely.union_all(read_polygons(source, grid).geometry.to_numpy())


def _box(window: Window) -> Any:
    return shapely.box(window.col, window.row, window.stop[1], window.stop[0])


def _moved(polygon: Any, matrix: list[float]) -> Any:
    a, b, d, e, c, f = matrix
    return shapely.transform(polygon, lambda points: points @ np.array([[a, d], [b, e]]) + np.array([c, f]))
