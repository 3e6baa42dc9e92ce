"""Outlines of regions: a raster of region ids becomes polygons whose corners are whole pixel coordinates.

Every boundary is walked with its region on the right, so shells run clockwise on the screen and holes the other way. On one line of the
pixel lattice the edges that run the same way do not overlap: the k-th start belongs to the k-th end, and sorting finds all edges of a
strip at once, without walking. GDAL's polygonizer gives the same outlines; its polygons reach Python one dictionary at a time.
"""

from typing import Literal, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from rsdistill.outputs.collecting import uncollected
from rsdistill.outputs.regions import merge

Direction = Literal["right", "down", "left", "up"]
Corners = dict[tuple[Direction, Direction], NDArray[np.int64]]
"""Lattice points, counted row by row, where a boundary that came in the first direction goes on in the second."""


class _Edges(NamedTuple):
    """Horizontal edges: those to the right first, then those to the left, each in lattice order."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    rightward: int


@uncollected()
def trace(region: NDArray[np.int32], wanted: NDArray[np.bool_], first_row: int = 0) -> NDArray[np.object_]:
    """Return the polygon of every wanted region, in the order of their ids.

    Args:
        region: (h, w) ids 0…n−1 of 4-connected regions.
        wanted: (n,) True for the regions to trace.
        first_row: of the raster, where it is part of a larger one.

    Returns:
        Valid polygons in pixel coordinates: x is the column and y the row of pixel edges.
    """
    width = region.shape[1] + 1
    corners = _corners(region, wanted)
    edges = _horizontal_edges(corners)
    if not len(edges.start):
        return np.empty(0, object)
    following = _following(corners, edges, region.shape[0] + 1, width)
    return _assemble(edges, following, _region_right_of(edges, region), width, first_row)


def _corners(region: NDArray[np.int32], wanted: NDArray[np.bool_]) -> Corners:
    """Find where boundaries turn. Of the four pixels around a lattice point, a region has one (it turns right there), three (left), or two.

    Two that touch by their corners only are two right turns, unless they are one region: it surrounds something there, whose boundary
    must not touch the outer one along the same ring, so it takes two left turns instead.
    """
    ids = np.where(wanted[region], region, -1)
    ids = np.pad(ids, 1, constant_values=-1)
    a, b, c, d = ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]
    up, down, left, right = a != b, c != d, a != c, b != d
    falling = (a == d) & up & left
    rising = (b == c) & up & right
    turns: dict[tuple[Direction, Direction], NDArray[np.bool_]] = {
        ("up", "right"): down & right & ~falling & (d >= 0),
        ("right", "down"): down & left & ~rising & (c >= 0),
        ("down", "left"): up & left & ~falling & (a >= 0),
        ("left", "up"): up & right & ~rising & (b >= 0),
        ("down", "right"): ((up & right & ~left & ~down) | falling) & (a >= 0),
        ("left", "down"): ((right & down & ~up & ~left) | rising) & (b >= 0),
        ("up", "left"): ((down & left & ~right & ~up) | falling) & (a >= 0),
        ("right", "up"): ((left & up & ~down & ~right) | rising) & (b >= 0),
    }
    return {turn: np.flatnonzero(where) for turn, where in turns.items()}


def _horizontal_edges(corners: Corners) -> _Edges:
    starts, ends = [], []
    for way in ("right", "left"):
        starts.append(np.sort(np.concatenate([corners["up", way], corners["down", way]])))
        ends.append(np.sort(np.concatenate([corners[way, "up"], corners[way, "down"]])))
    return _Edges(np.concatenate(starts), np.concatenate(ends), len(starts[0]))


def _following(corners: Corners, edges: _Edges, height: int, width: int) -> NDArray[np.int64]:
    """Return for every horizontal edge the next one along the boundary, which the vertical edge between them leads to."""
    following = np.empty(len(edges.start), np.int64)
    for way in ("down", "up"):
        leaving, before = _find(edges.end, edges.rightward, corners["right", way], corners["left", way])
        arriving, after = _find(edges.start, edges.rightward, corners[way, "right"], corners[way, "left"])
        first, second = (np.argsort(points % width * height + points // width) for points in (leaving, arriving))
        following[before[first]] = after[second]
    return following


def _find(
    points: NDArray[np.int64], rightward: int, right: NDArray[np.int64], left: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the wanted points of edges to the right and to the left, and the numbers of those edges."""
    numbers = np.searchsorted(points[:rightward], right), rightward + np.searchsorted(points[rightward:], left)
    return np.concatenate([right, left]), np.concatenate(numbers)


def _region_right_of(edges: _Edges, region: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the region of every horizontal edge: below one that runs to the right, above one that runs to the left."""
    row, col = np.divmod(edges.start, region.shape[1] + 1)
    row[edges.rightward :] -= 1
    col[edges.rightward :] -= 1
    return region[row, col]


def _assemble(edges: _Edges, following: NDArray[np.int64], region: NDArray[np.int32], width: int, first_row: int) -> NDArray[np.object_]:
    """Chain edges into rings and rings into polygons."""
    count = len(following)
    ring = merge(count, np.arange(count), following)
    row, start, end = edges.start // width, edges.start % width, edges.end % width
    first = np.unique(ring, return_index=True)[1]
    hole = np.bincount(ring, weights=(end - start) * row) > 0
    order = np.lexsort((hole, region[first]))  # shell first, then the region's holes
    _chain(following, first[order])
    path = csr_array((np.ones(count, np.int8), following, np.arange(count + 1)))
    edge = breadth_first_order(path, first[order[0]], return_predecessors=False)
    sizes = np.bincount(ring)[order]
    points = np.empty((2 * count, 2))
    points[0::2, 0], points[1::2, 0] = start[edge], end[edge]
    points[0::2, 1] = points[1::2, 1] = first_row + row[edge]
    ends = np.cumsum(2 * sizes)
    closed = np.insert(points, ends, points[ends - 2 * sizes], axis=0)
    rings = np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])
    polygons = np.append(np.flatnonzero(~hole[order]), len(order))
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, (rings, polygons)))


def _chain(following: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
    """Open every ring before its first edge and let its last edge lead to the next ring: one path through all of them."""
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    following[before[firsts]] = np.roll(firsts, -1)
