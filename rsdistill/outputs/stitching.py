"""Whole polygons from strips: regions that a cut between strips divides are put together again, exactly, once nothing more can follow."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from rsdistill.outputs.collecting import uncollected
from rsdistill.outputs.regions import IGNORE, Strip, class_of_regions, label_regions, merge, sums
from rsdistill.outputs.tracing import trace


class Polygons(NamedTuple):
    """Some of a mask's polygons, each with its class and what its pixels say."""

    shapes: NDArray[np.object_]
    """In pixel coordinates: x is the column, y the row of pixel edges."""
    classes: NDArray[np.uint8]
    """Class index 0…K−1."""
    confidence: NDArray[np.float64]
    """Mean over the pixels that have one; NaN where none has."""


class _Regions(NamedTuple):
    """What is known of some regions, one value each."""

    classes: NDArray[np.uint8]
    total: NDArray[np.float64]
    """Sum of their confidences."""
    known: NDArray[np.float64]
    """Pixels that have a confidence."""

    @classmethod
    def of_strip(cls, region: NDArray[np.int32], strip: Strip) -> Self:
        classes = class_of_regions(region, strip.labels)
        if strip.confidence is None:
            return cls(classes, np.zeros(len(classes)), np.zeros(len(classes)))
        known = np.isfinite(strip.confidence)
        region, figures = region[known], strip.confidence[known]
        return cls(classes, sums(region, figures, len(classes)), sums(region, np.ones(len(region)), len(classes)))

    def merged(self, other: "_Regions", whole: NDArray[np.int32]) -> "_Regions":
        """Put these and the other regions together: ``whole`` is the number of what each belongs to."""
        classes = np.empty(int(whole.max()) + 1, np.uint8)
        classes[whole] = np.concatenate([self.classes, other.classes])
        total = sums(whole, np.concatenate([self.total, other.total]), len(classes))
        return type(self)(classes, total, sums(whole, np.concatenate([self.known, other.known]), len(classes)))

    def at(self, chosen: NDArray[Any]) -> "_Regions":
        return type(self)(*(values[chosen] for values in self))


def whole_polygons(strips: Iterable[Strip]) -> Iterator[Polygons]:
    """Yield the polygons of a mask, after every strip those that are complete; the result does not depend on the strips' heights.

    In memory are one strip, and the parts of the polygons that reach its last row.
    """
    held = _Regions(np.empty(0, np.uint8), np.empty(0), np.empty(0))
    parts, owner = np.empty(0, object), np.empty(0, np.int32)
    bottom: NDArray[Any] | None = None
    for strip in strips:
        region = label_regions(strip.labels)
        found = _Regions.of_strip(region, strip)
        wanted = found.classes != IGNORE
        traced = trace(region, wanted, strip.row)
        above = np.empty(0, np.int32) if bottom is None else bottom
        below = region[0, : len(above)] + len(held.classes)
        meeting = held.classes[above] == found.classes[region[0, : len(above)]]
        whole = merge(len(held.classes) + len(found.classes), above[meeting], below[meeting])
        everything = held.merged(found, whole)
        parts = np.concatenate([parts, traced])
        owner = np.concatenate([whole[owner], whole[len(held.classes) + np.flatnonzero(wanted)]])
        reaching, bottom = np.unique(whole[len(held.classes) + region[-1]], return_inverse=True)
        open_ = np.zeros(len(everything.classes), bool)
        open_[reaching] = True
        yield _joined(parts[~open_[owner]], owner[~open_[owner]], everything)
        held, parts = everything.at(reaching), parts[open_[owner]]
        owner = np.searchsorted(reaching, owner[open_[owner]]).astype(np.int32)
    yield _joined(parts, owner, held)


@uncollected()
def _joined(parts: NDArray[np.object_], owner: NDArray[np.int32], regions: _Regions) -> Polygons:
    """Put the parts of each owner together."""
    order = np.argsort(owner, kind="stable")
    owners, first, count = np.unique(owner[order], return_index=True, return_counts=True)
    shapes = parts[order][first]
    divided = np.flatnonzero(count > 1)
    if len(divided):
        shapes[divided] = _unions([parts[order[first[i] : first[i] + count[i]]] for i in divided])
    chosen = regions.at(owners)
    with np.errstate(invalid="ignore"):
        return Polygons(shapes, chosen.classes, chosen.total / chosen.known)


def _unions(divided: list[NDArray[np.object_]]) -> NDArray[np.object_]:
    """Return the union of each polygon's parts.

    No hole of a part reaches a cut: what lies in it would be open to the other side, and its border part of the shell. So holes are kept
    as they are, and shells alone are joined.
    """
    parts = np.concatenate(divided)
    whole = np.repeat(np.arange(len(divided)), [len(some) for some in divided])
    shells = [shapely.polygons(shapely.get_exterior_ring(some)) for some in divided]
    joined = without_straight_corners(np.array([shapely.union_all(some) for some in shells], object))
    rings, owner = shapely.get_rings(joined, return_index=True)
    inner, part = shapely.get_rings(parts, return_index=True)
    hole = np.concatenate([[False], part[1:] == part[:-1]])
    owners = np.concatenate([owner, whole[part[hole]]])
    order = np.argsort(owners, kind="stable")
    ring = np.concatenate([rings, inner[hole]])[order]
    points, ends = shapely.get_coordinates(ring), np.cumsum(shapely.get_num_points(ring))
    outlines = np.searchsorted(owners[order], np.arange(len(divided) + 1))
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (np.append(0, ends), outlines)))


def without_straight_corners(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Remove the corners of axis-parallel polygons at which the outline goes straight on."""
    kind, points, (rings, outlines) = shapely.to_ragged_array(polygons)
    level = points[:-1, 1] == points[1:, 1]
    before = np.empty(len(points), bool)
    before[1:] = level
    before[rings[:-1]] = level[rings[1:] - 2]
    last = rings[1:] - 1
    turning = np.empty(len(points), bool)
    turning[:-1] = before[:-1] != level
    turning[last] = False
    kept = np.flatnonzero(turning)
    sizes = np.add.reduceat(turning, rings[:-1]).astype(np.int64)
    ends = np.cumsum(sizes)
    closed = np.insert(points[kept], ends, points[kept[ends - sizes]], axis=0)
    offsets = np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])
    return np.asarray(shapely.from_ragged_array(kind, closed, (offsets, outlines)))
