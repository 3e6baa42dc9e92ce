"""Small regions given to their neighbours: a mask whose regions all have a least area, without holes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.outputs.regions import IGNORE, Strip, Strips, class_of_regions, label_regions, merge

Pairs = NDArray[np.int64]
"""(n, 3): two neighbouring regions and the pixel edges between them."""


class _Graph(NamedTuple):
    """Regions of all strips, and where they meet."""

    classes: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    borders: Pairs
    cuts: Pairs
    """Regions of one class that a cut between strips divides."""


def sieve(strips: Strips, min_pixels: float) -> Iterator[Strip]:
    """Yield the strips with every region of fewer than ``min_pixels`` given to the neighbour with which it shares the longest border.

    The smallest go first, and what has grown enough stays. A region that has only nodata around it stays too. The mask is read twice; in
    memory are the regions, not the pixels.
    """
    graph = _read_graph(strips, min_pixels)
    classes = _settle(graph, min_pixels)
    start = 0
    for strip in strips():
        region = label_regions(strip.labels)
        yield strip._replace(labels=classes[start:][region])
        start += int(region.max()) + 1


def _read_graph(strips: Strips, min_pixels: float) -> _Graph:
    classes, pixels, borders, cuts = [], [], [], []
    start, bottom, last = 0, np.empty(0, np.int64), np.empty(0, np.uint8)
    for strip in strips():
        region = label_regions(strip.labels)
        own_class = class_of_regions(region, strip.labels)
        own_pixels = np.bincount(region.ravel())
        # a region that is large already, or nodata, does not move: borders between two of those are of no interest
        still = (own_class == IGNORE) | (own_pixels >= min_pixels)
        for one, other in ((region[:, :-1], region[:, 1:]), (region[:-1], region[1:])):
            between = (one != other) & ~(still[one] & still[other])
            borders.append(_counted(one[between] + start, other[between] + start))
        classes.append(own_class)
        pixels.append(own_pixels)
        if start:
            top, same = region[0] + start, last == strip.labels[0]
            cuts.append(_counted(bottom[same], top[same]))
            borders.append(_counted(bottom[~same], top[~same]))
        bottom, last = region[-1] + start, strip.labels[-1]
        start += len(own_class)
    nothing = np.empty((0, 3), np.int64)
    return _Graph(np.concatenate(classes), np.concatenate(pixels), np.concatenate([nothing, *borders]), np.concatenate([nothing, *cuts]))


def _settle(graph: _Graph, min_pixels: float) -> NDArray[np.uint8]:
    """Return the class of every region after the small ones went to their neighbours."""
    whole = merge(len(graph.classes), graph.cuts[:, 0], graph.cuts[:, 1])
    classes, pixels, borders = _contracted(graph.classes, graph.pixels, graph.borders, whole)
    while True:
        small = (pixels < min_pixels) & (classes != IGNORE)
        borders = borders[small[borders[:, 0]] | small[borders[:, 1]]]
        if not len(borders):
            return classes[whole]
        goer, goal = _moves(borders, pixels, small)
        classes[goer] = classes[goal]
        alike = classes[borders[:, 0]] == classes[borders[:, 1]]
        step = merge(len(classes), borders[alike, 0], borders[alike, 1])
        classes, pixels, borders = _contracted(classes, pixels, borders, step)
        whole = step[whole]


def _moves(borders: Pairs, pixels: NDArray[np.int64], small: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the regions that go now, and where each goes: small ones that have no smaller neighbour, so that no two neighbours move."""
    region, neighbour, length = np.concatenate([borders, borders[:, [1, 0, 2]]]).T
    rank = np.empty(len(pixels), np.int64)
    rank[np.lexsort((np.arange(len(pixels)), pixels))] = np.arange(len(pixels))
    waiting = ~small
    waiting[region[small[neighbour] & (rank[neighbour] < rank[region])]] = True
    going = ~waiting[region]
    region, neighbour, length = region[going], neighbour[going], length[going]
    best = np.lexsort((-rank[neighbour], -length, region))
    goer, first = np.unique(region[best], return_index=True)
    return goer, neighbour[best][first]


def _contracted(
    classes: NDArray[np.uint8], pixels: NDArray[np.int64], borders: Pairs, step: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], Pairs]:
    """Return the graph in which regions of one number in ``step`` are one; borders with nodata are left out."""
    one, other = step[borders[:, 0]], step[borders[:, 1]]
    new_classes = np.empty(int(step.max()) + 1, np.uint8)
    new_classes[step] = classes
    kept = (one != other) & (new_classes[one] != IGNORE) & (new_classes[other] != IGNORE)
    pairs, where = np.unique(_key(one[kept], other[kept]), return_inverse=True)
    length = np.bincount(where, weights=borders[kept, 2], minlength=len(pairs)).astype(np.int64)
    return new_classes, np.bincount(step, weights=pixels).astype(np.int64), np.stack([pairs >> 32, pairs & 0xFFFFFFFF, length], axis=1)


def _counted(one: NDArray[Any], other: NDArray[Any]) -> Pairs:
    pairs, counts = np.unique(_key(one, other), return_counts=True)
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF, counts], axis=1)


def _key(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]:
    return np.minimum(one, other).astype(np.int64) << 32 | np.maximum(one, other)
