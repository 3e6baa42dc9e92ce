"""Connected regions of a class raster: which pixels make one polygon, strip by strip and across the cuts between strips."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

IGNORE = 255
"""Class index of pixels that belong to no region."""


class Strip(NamedTuple):
    """Whole rows of a mask."""

    row: int
    labels: NDArray[np.uint8]
    """(h, W) class index 0…K−1, or 255 where there is no data."""
    confidence: NDArray[np.float32] | None = None
    """(h, W) in [0, 1]; NaN where there is none."""


Strips = Callable[[], Iterable[Strip]]
"""A way to read a mask from the top; it may be read more than once."""


def label_regions(labels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number the 4-connected regions of equal value: (h, W) ids 0…n−1, regions of 255 included.

    Runs of equal pixels along the rows are the nodes of a graph, and runs that touch in neighbouring rows its edges: a tenth of the
    pixels or fewer, and the number of classes does not matter.
    """
    starts = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=starts[:, 1:])
    run = np.cumsum(starts, dtype=np.int32).reshape(labels.shape) - 1
    meeting = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    return merge(run[-1, -1] + 1, run[:-1][meeting], run[1:][meeting])[run]


def merge(count: int, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int32]:
    """Return for each of ``count`` nodes the number of its connected component, given the two ends of every edge."""
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int32)


def class_of_regions(region: NDArray[np.int32], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class index of every region."""
    classes = np.empty(int(region.max()) + 1, np.uint8)
    classes[region.ravel()] = labels.ravel()
    return classes


def sums(region: NDArray[Any], values: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Return for each of ``count`` regions the sum of its values."""
    return np.bincount(region, weights=values, minlength=count).astype(np.float64)
