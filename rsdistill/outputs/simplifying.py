"""Straighter outlines: the borders between polygons are simplified once for both sides, so that no gap and no overlap opens."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from rsdistill.outputs.stitching import Polygons

_BATCH = 1 << 16
_SCALE = 1 << 31
"""More than a raster has rows or columns."""


def simplify_coverage(polygons: Iterable[Polygons], tolerance: float) -> Iterator[Polygons]:
    """Yield the polygons with simpler borders; the outline of them all, against nodata and the scene's rim, stays as it is.

    Args:
        polygons: all polygons of a mask, in pixel coordinates.
        tolerance: the square root of the areas, in pixels, that a corner may cut off (Visvalingam and Whyatt).
    """
    batches = list(polygons)
    classes = np.concatenate([batch.classes for batch in batches])
    confidence = np.concatenate([batch.confidence for batch in batches])
    shapes = np.concatenate([batch.shapes for batch in batches])
    batches.clear()
    shapes = np.asarray(shapely.coverage_simplify(with_all_nodes(shapes), tolerance, simplify_boundary=False))
    for start in range(0, max(1, len(shapes)), _BATCH):
        chosen = slice(start, start + _BATCH)
        yield Polygons(shapes[chosen], classes[chosen], confidence[chosen])


class Corners(NamedTuple):
    """The corners of axis-parallel polygons, as numbers in order: row after row, and column after column."""

    level: NDArray[np.int64]
    upright: NDArray[np.int64]

    @classmethod
    def of(cls, polygons: Iterable[NDArray[np.object_]]) -> Self:
        """Collect those of all batches of polygons."""
        batches: list[NDArray[np.int64]] = [shapely.get_coordinates(some).astype(np.int64) for some in polygons]
        return cls(*(np.unique(np.concatenate([np.unique(_keys(points, along)) for points in batches])) for along in (0, 1)))


def with_all_nodes(polygons: NDArray[np.object_], corners: Corners | None = None) -> NDArray[np.object_]:
    """Add to axis-parallel polygons the corners of others that lie on their edges, so that neighbours share every vertex.

    Where two polygons meet the straight edge of a third, the third has no corner; a simplification or a projection that does not know
    the place would move the border on one side only.

    Args:
        polygons: in pixel coordinates.
        corners: of all polygons where these are but some of them.
    """
    if not len(polygons):
        return polygons
    kind, points, (rings, outlines) = shapely.to_ragged_array(polygons)
    points = points.astype(np.int64)
    before, after = points[:-1], points[1:]
    level = before[:, 1] == after[:, 1]
    level[rings[1:-1] - 1] = False
    upright = ~level
    upright[rings[1:-1] - 1] = False
    added = np.zeros(len(points), np.int64)
    where, found = [], []
    for along, (edges, keys) in enumerate(zip((level, upright), corners or Corners.of([polygons]), strict=True)):
        chosen = np.flatnonzero(edges)
        start, end = (_keys(side[chosen], along) for side in (before, after))
        low, high = np.searchsorted(keys, np.minimum(start, end), "right"), np.searchsorted(keys, np.maximum(start, end), "left")
        added[chosen] = high - low
        edge, step = _count_up(high - low)
        inside = keys[np.where((start < end)[edge], low[edge] + step, high[edge] - 1 - step)]
        where.append(chosen[edge] + 1)
        found.append(np.stack([inside % _SCALE, inside // _SCALE][:: 1 if along == 0 else -1], axis=1))
    order = np.argsort(np.concatenate(where), kind="stable")
    noded = np.insert(points, np.concatenate(where)[order], np.concatenate(found)[order], axis=0)
    shift = np.concatenate([[0], np.cumsum(1 + added)])
    return np.asarray(shapely.from_ragged_array(kind, noded.astype(float), (shift[rings], outlines)))


def _keys(points: NDArray[Any], along: int) -> NDArray[np.int64]:
    """Return the number of each (N, 2) corner, counted along rows (0) or columns (1)."""
    return points[:, 1 - along] * _SCALE + points[:, along]


def _count_up(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for counts [2, 0, 3] the places [0, 0, 2, 2, 2] and the steps [0, 1, 0, 1, 2]."""
    place = np.repeat(np.arange(len(counts)), counts)
    return place, np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
