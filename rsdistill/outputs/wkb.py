"""Well-known binary of many polygons at once: the bytes that go into files, made by array operations without an object a polygon."""

from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from rsdistill.outputs.collecting import uncollected

_HEADER = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4")])
"""Of a polygon and its first ring; the others have the last field alone."""
_LITTLE_ENDIAN, _POLYGON = 1, 3
_COUNT_BYTES, _POINT_BYTES = 4, 16


@dataclass(frozen=True)
class Wkb:
    """Polygons as ISO well-known binary, one after the other."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    """Where each begins, and where the last ends."""

    def __len__(self) -> int:
        return len(self.offsets) - 1


@uncollected()
def to_wkb(polygons: NDArray[np.object_], transform: Affine) -> Wkb:
    """Return ``polygons`` transformed, with shells counter-clockwise and holes clockwise as OGC's Simple Features want them.

    Args:
        polygons: (n,) non-empty polygons.
        transform: from their coordinates to those of the file.
    """
    if not len(polygons):
        return Wkb(np.empty(0, np.uint8), np.zeros(1, np.int64))
    _, points, offsets = shapely.to_ragged_array(polygons)
    rings, outlines = (np.asarray(one, np.int64) for one in offsets)
    sizes, counts = np.diff(rings), np.diff(outlines)
    shell = np.zeros(len(sizes), bool)
    shell[outlines[:-1]] = True
    turned = (_area_signs(points, rings) * np.sign(transform.determinant) > 0) != shell
    first = np.where(shell, _HEADER.itemsize, _COUNT_BYTES)
    is_point = np.repeat(np.tile([False, True], len(sizes)), np.stack([first, _POINT_BYTES * sizes], axis=1).ravel())
    data = np.empty(len(is_point), np.uint8)
    data[is_point] = _placed(points[_order(rings, turned)], transform).view(np.uint8).ravel()
    data[~is_point] = _headers(shell, np.repeat(counts, counts), sizes)
    ends = np.cumsum(first + _POINT_BYTES * sizes)
    return Wkb(data, np.append(0, ends[outlines[1:] - 1]))


def _area_signs(points: NDArray[np.float64], rings: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each ring the sign of the area around which it runs: positive where x turns to y.

    Coordinates are counted from each ring's first point, so that far from the origin no figure is lost.
    """
    x, y = (points - np.repeat(points[rings[:-1]], np.diff(rings), axis=0)).T
    cross = np.zeros(len(points))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross[rings[1:] - 1] = 0  # from one ring to the next
    return np.sign(np.add.reduceat(cross, rings[:-1]))


def _order(rings: NDArray[np.int64], turned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the order of points in which rings that are ``turned`` run backwards."""
    order = np.arange(rings[-1])
    sizes = np.diff(rings)
    backwards = np.repeat(turned, sizes)
    order[backwards] = np.repeat(rings[:-1] + rings[1:] - 1, sizes)[backwards] - order[backwards]
    return order


def _placed(points: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    a, b, c, d, e, f = transform[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1).astype("<f8")


def _headers(shell: NDArray[np.bool_], rings: NDArray[np.int64], points: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the bytes that stand before the points of each ring, one ring after the other."""
    headers = np.empty(len(points), _HEADER)
    headers["order"], headers["kind"], headers["rings"], headers["points"] = _LITTLE_ENDIAN, _POLYGON, rings, points
    table = headers.view(np.uint8).reshape(len(points), -1)
    wanted = np.broadcast_to(shell[:, None], table.shape).copy()
    wanted[:, -_COUNT_BYTES:] = True
    return table[wanted]
