"""Which tiles a step shows: an endless seeded order of places, their neighbours, and the context windows around them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.context import THUMBNAIL
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.tiles import Tile, Tiles
from rsdistill.geo.windows import Window

CONTEXT_SIDE = 512
"""Longest side of a context image in context pixels; larger scenes are seen through windows of this size."""


class Pool:
    """Tiles to draw from: one pass over all of them in seeded order, then the next pass in another order."""

    def __init__(self, tiles: Sequence[Tile], tile_set: TileSet) -> None:
        self.tiles = Tiles.of(tiles)
        self.tile_set = tile_set
        self._by_place = np.lexsort((self.tiles.window[:, 0], self.tiles.scene)).astype(np.int32)
        self._scenes = self.tiles.scene[self._by_place]
        self._rows = self.tiles.window[self._by_place, 0]
        self._order: tuple[tuple[int, ...], NDArray[np.int64]] = ((), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.tiles)

    def without_labels(self) -> "Pool":
        """The same tiles with their labels hidden."""
        return Pool(self.tiles.without_labels(), self.tile_set)

    def draw(self, position: int, count: int, seed: tuple[int, int], side: int = CONTEXT_SIDE) -> tuple[list[int], Window]:
        """Return the tile at ``position`` of the endless order, ``count`` − 1 neighbours in its context window, and that window.

        The window is of ``side``, see :meth:`context_window`.
        """
        epoch, place = divmod(position, len(self.tiles))
        key = (*seed, epoch)
        if self._order[0] != key:
            self._order = (key, np.random.default_rng(key).permutation(len(self.tiles)))
        anchor = int(self._order[1][place])
        random = np.random.default_rng((*seed, 1, position))
        window = self.context_window(self.tiles[anchor], random, side)
        if count == 1:
            return [anchor], window
        near = self._near(anchor, window)
        others = random.choice(near, count - 1, replace=len(near) < count - 1) if len(near) else np.full(count - 1, anchor)
        return [anchor, *others.tolist()], window

    def context_window(self, tile: Tile, random: np.random.Generator, side: int = CONTEXT_SIDE) -> Window:
        """Return a window of the context raster, in context pixels, that holds the tile: all of it where the scene is small.

        Its sides are ``side``, or two sides of the tile where those are longer: the tile has a neighbourhood then.
        """
        ratio, entry = self.tile_set.card.context_ratio, self.tile_set.card.scenes[tile.scene]
        starts, sides = [], []
        for pixels, start, extent in zip((entry.height, entry.width), tile.window[:2], tile.window[2:], strict=True):
            cells = -(-pixels // ratio)
            length = min(cells, max(side, -(-2 * extent // ratio)))
            low, high = -(-(start + extent) // ratio) - length, start // ratio
            starts.append(int(random.integers(max(0, low), max(0, low, min(high, cells - length)) + 1)))
            sides.append(length)
        return Window(starts[0], starts[1], sides[0], sides[1])

    def _near(self, anchor: int, context: Window) -> NDArray[np.int64]:
        """Return the positions of the other tiles that lie wholly in a context window, rising."""
        whole = Window(*(self.tile_set.card.context_ratio * part for part in context))
        scene = self.tiles.scene[anchor]
        first, last = np.searchsorted(self._scenes, [scene, scene + 1])
        rows = self._rows[first:last]
        top, bottom = np.searchsorted(rows, [whole.row, whole.stop[0]])
        found = self._by_place[first + top : first + bottom]
        start, size = self.tiles.window[found, :2], self.tiles.window[found, 2:]
        inside = ((start >= whole[:2]) & (start + size <= whole.stop)).all(1)
        return np.sort(found[inside & (found != anchor)]).astype(np.int64)


def thumbnail_window(context: Window, size: tuple[int, int]) -> Window:
    """Return a window of a scene's thumbnail, in its pixels, with a window of the context in its middle: all of it where it is small.

    Args:
        context: in context pixels.
        size: (height, width) of the thumbnail.
    """
    sides = [min(length, CONTEXT_SIDE) for length in size]
    middles = [(start + extent // 2) // THUMBNAIL for start, extent in zip(context[:2], context[2:], strict=True)]
    row, col = (max(0, min(middle - side // 2, length - side)) for middle, side, length in zip(middles, sides, size, strict=True))
    return Window(row, col, sides[0], sides[1])


def split_labelled(tiles: Sequence[Tile], fraction: float, seed: int) -> tuple[Tiles, Tiles]:
    """Return (labelled, unlabelled) tiles, with all but ``fraction`` of the labelled ones moved to the unlabelled, labels hidden.

    A smaller share of the same ``seed`` is a part of a larger one.
    """
    every = Tiles.of(tiles)
    labelled, unlabelled = every.pick(every.labelled), every.pick(~every.labelled)
    kept = np.zeros(len(labelled), bool)
    order = np.random.default_rng((seed, 2)).permutation(len(labelled))
    kept[order[: max(1, round(fraction * len(labelled)))]] = True
    return labelled.pick(kept), Tiles.joined([unlabelled, labelled.pick(~kept).without_labels()])
