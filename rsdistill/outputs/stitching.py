"""Whole polygons from strips: regions that a cut between strips divides are put together again, exactly, once nothing more can follow."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from rsdistill.outputs.regions import IGNORE, Strip, class_of_regions, label_regions, merge
from rsdistill.outputs.tracing import trace


class Polygons(NamedTuple):
    """Some of a mask's polygons, each with its class and what its pixels say."""

    shapes: NDArray[np.object_]
    """In pixel coordinates: x is the column, y the row of pixel edges."""
    index: NDArray[np.uint8]
    """Class index 0…K−1."""
    confidence: NDArray[np.float64]
    """Mean over the pixels that have one; NaN where none has."""


class _Regions(NamedTuple):
    """What is known of regions, or of what they were put together to; ``of`` (n,) is used as in numpy's indexing."""

    index: NDArray[np.uint8]
    total: NDArray[np.float64]
    count: NDArray[np.int64]

    @classmethod
    def of_strip(cls, region: NDArray[np.int32], strip: Strip) -> Self:
        index = class_of_regions(region, strip.index)
        if strip.confidence is None:
            return cls(index, np.zeros(len(index)), np.zeros(len(index), np.int64))
        known = np.isfinite(strip.confidence)
        total = np.bincount(region[known], weights=strip.confidence[known], minlength=len(index))
        return cls(index, total, np.bincount(region[known], minlength=len(index)))

    def merged(self, other: "_Regions", whole: NDArray[np.int32]) -> "_Regions":
        """Put these and the other regions together: ``whole`` is the number of what each belongs to."""
        index = np.empty(int(whole.max()) + 1, np.uint8)
        index[whole] = np.concatenate([self.index, other.index])
        total = np.bincount(whole, weights=np.concatenate([self.total, other.total]))
        count = np.bincount(whole, weights=np.concatenate([self.count, other.count])).astype(np.int64)
        return type(self)(index, total, count)

    def at(self, chosen: NDArray[np.integer]) -> "_Regions":
        return type(self)(*(values[chosen] for values in self))


def whole_polygons(strips: Iterable[Strip]) -> Iterator[Polygons]:
    """Yield the polygons of a mask, after every strip those that are complete; the result does not depend on the strips' heights.

    In memory are one strip, and the parts of the polygons that reach its last row.
    """
    held = _Regions(np.empty(0, np.uint8), np.empty(0), np.empty(0, np.int64))
    parts, owner = np.empty(0, object), np.empty(0, np.int32)
    bottom: NDArray[np.int32] | None = None
    for strip in strips:
        region = label_regions(strip.index)
        found = _Regions.of_strip(region, strip)
        wanted = found.index != IGNORE
        traced = shapely.transform(trace(region, wanted), lambda points, row=strip.row: points + (0, row))
        above = np.empty(0, np.int32) if bottom is None else bottom
        below = region[0, : len(above)] + len(held.index)
        meeting = held.index[above] == found.index[region[0, : len(above)]]
        whole = merge(len(held.index) + len(found.index), above[meeting], below[meeting])
        everything = held.merged(found, whole)
        parts = np.concatenate([parts, traced])
        owner = np.concatenate([whole[owner], whole[len(held.index) + np.flatnonzero(wanted)]])
        reaching, bottom = np.unique(whole[len(held.index) + region[-1]], return_inverse=True)
        open_ = np.zeros(len(everything.index), bool)
        open_[reaching] = True
        yield _joined(parts[~open_[owner]], owner[~open_[owner]], everything)
        held, parts = everything.at(reaching), parts[open_[owner]]
        owner = np.searchsorted(reaching, owner[open_[owner]]).astype(np.int32)
    yield _joined(parts, owner, held)


def _joined(parts: NDArray[np.object_], owner: NDArray[np.int32], regions: _Regions) -> Polygons:
    """Put the parts of each owner together."""
    order = np.argsort(owner, kind="stable")
    owners, first, count = np.unique(owner[order], return_index=True, return_counts=True)
    shapes = parts[order][first]
    divided = np.flatnonzero(count > 1)
    if len(divided):
        union = [shapely.union_all(parts[order[first[i] : first[i] + count[i]]]) for i in divided]
        shapes[divided] = without_straight_corners(np.array(union, object))
    chosen = regions.at(owners)
    with np.errstate(invalid="ignore"):
        return Polygons(shapes, chosen.index, chosen.total / chosen.count)


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
