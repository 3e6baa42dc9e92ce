"""Where tiles lie and what they are for: torchgeo's grid sampler seen as pixel windows, blocks, and the split that shares blocks out.

A scene is cut into blocks that do not overlap, tiles are laid inside a block and never leave it, and whole blocks go to train, val or
test. So no training tile shares a pixel with a validation tile, whatever the overlap of tiles; scenes that show the same ground are
guarded by :func:`spoiled_tiles`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import geopandas
import numpy as np
import pandas as pd
import shapely
import torchgeo.samplers
from numpy.typing import NDArray
from torchgeo.datasets import GeoDataset

from rsdistill.geo.outlines import outline
from rsdistill.geo.tiles import SPLITS, Tile
from rsdistill.geo.windows import Grid, Window

TILE_SIDES = (512, 384, 256, 192, 128, 96, 64)
"""Sides to choose from; all are multiples of 32, the stride of common encoders."""
ENOUGH_TILES = 16
"""Whole tiles that the scenes should hold, so that a split leaves several of each kind."""
BLOCK_TILES = (8, 4, 2, 1)
"""Sides of blocks to choose from, in tiles; the larger a block, the less its neighbour tells about it."""
ENOUGH_BLOCKS = 20
TRIALS = 512
_NOMINAL_CRS = "EPSG:3857"
"""Stands for the plane of pixels; torchgeo wants a CRS."""


class Block(NamedTuple):
    """A rectangle of a scene that goes to one split."""

    scene: int
    window: Window


def choose_tile(sizes: Sequence[tuple[int, int]]) -> int:
    """The largest of :data:`TILE_SIDES` of which scenes of these (height, width) hold :data:`ENOUGH_TILES`, else the smallest."""
    for side in TILE_SIDES:
        if sum((height // side) * (width // side) for height, width in sizes) >= ENOUGH_TILES:
            return side
    return TILE_SIDES[-1]


def choose_block(sizes: Sequence[tuple[int, int]], tile: int) -> int:
    """The largest side of blocks, in pixels, that still cuts scenes of these (height, width) into :data:`ENOUGH_BLOCKS`."""
    for tiles in BLOCK_TILES:
        if sum(len(cut_blocks(height, width, tiles * tile, tile)) for height, width in sizes) >= ENOUGH_BLOCKS:
            return tiles * tile
    return tile


def cut_blocks(height: int, width: int, side: int, tile: int) -> list[Window]:
    """Cut a scene into blocks, row by row; every pixel lies in exactly one.

    Args:
        height: of the scene.
        width: of the scene.
        side: of a block in pixels; the last one of a row or column takes a rest that is too short for a tile, or is as long as the rest.
        tile: side of a tile.
    """
    rows, cols = _cut(height, side, tile), _cut(width, side, tile)
    return [Window(top, left, bottom - top, right - left) for top, bottom in rows for left, right in cols]


def lay_tiles(block: Window, tile: int, overlap: int = 0) -> list[Window]:
    """Lay tiles over a block, row by row from the top; all its pixels are covered and none outside it.

    The last tile of a row or column is moved back into the block, so it may overlap the one before by more than ``overlap``.

    Args:
        block: pixels to cover.
        tile: side of a tile; where the block is shorter, so is the tile.
        overlap: pixels that neighbours share, less than ``tile``.
    """
    places = _sampled(block.height, block.width, tile, tile - overlap)
    low, right = max(0, block.height - tile), max(0, block.width - tile)
    size = min(tile, block.height), min(tile, block.width)
    return [Window(block.row + min(row, low), block.col + min(col, right), *size) for row, col in places]


def share_out(pixels: NDArray[np.int64], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Give every block a split, so that each class is shared out as nearly by ``fractions`` as can be found.

    Of 512 seeded shuffles the best is taken: the one with the least sum over classes and splits of |share of the class − fraction|.

    Args:
        pixels: (N, K) pixels of each class in each block.
        fractions: share of blocks for val and test; at least one block each where it is not 0, and at least one is left for train.
        seed: of the shuffles.

    Returns:
        N splits; blocks without any class are for training, as unlabelled.
    """
    splits = np.full(len(pixels), "train", dtype=object)
    labelled = np.flatnonzero(pixels.sum(axis=1))
    counts, left = [], max(0, len(labelled) - 1)
    for split in SPLITS[1:]:
        wanted = fractions.get(split, 0.0)
        counts.append(min(left, max(1, round(wanted * len(labelled)))) if wanted else 0)
        left -= counts[-1]
    if not sum(counts):
        return splits.tolist()
    shares = pixels[labelled] / np.maximum(pixels.sum(axis=0), 1)
    targets = [count / len(labelled) for count in counts]
    random = np.random.default_rng((seed, len(labelled)))
    best, least = labelled, np.inf
    for _ in range(TRIALS):
        order = random.permutation(len(labelled))
        parts = np.split(order, np.cumsum(counts))
        error = sum(float(np.abs(shares[part].sum(axis=0) - target).sum()) for part, target in zip(parts, targets, strict=False))
        if error < least:
            best, least = order, error
    for split, part in zip(SPLITS[1:], np.split(best, np.cumsum(counts)), strict=False):
        splits[labelled[part]] = split
    return splits.tolist()


def spoiled_tiles(tiles: Sequence[Tile], grids: Sequence[Grid]) -> set[int]:
    """Positions of tiles that show ground which a tile of another scene keeps for a later split (train < val < test).

    Scenes without a CRS are left out, since nobody knows what they show. Tiles that share less than a pixel are let be.
    """
    placed = [i for i, tile in enumerate(tiles) if grids[tile.scene].crs is not None]
    if len({tiles[i].scene for i in placed}) < 2 or len({tiles[i].split for i in placed}) < 2:
        return set()
    common = grids[tiles[placed[0]].scene].crs
    outlines = np.array([outline(grids[tiles[i].scene][tiles[i].window], common) for i in placed])
    tree = shapely.STRtree(outlines)
    first, second = tree.query(outlines, predicate="intersects")
    rank = np.array([SPLITS.index(tiles[i].split) for i in placed])
    scene = np.array([tiles[i].scene for i in placed])
    lost = first[(rank[first] < rank[second]) & (scene[first] != scene[second])]
    return {placed[i] for i in np.unique(lost)}


def _cut(length: int, side: int, tile: int) -> list[tuple[int, int]]:
    count = max(1, (length + side - tile) // side)
    return [(k * side, length if k == count - 1 else (k + 1) * side) for k in range(count)]


@lru_cache(maxsize=256)
def _sampled(height: int, width: int, tile: int, stride: int) -> tuple[tuple[int, int], ...]:
    """(row, col) of tiles, by torchgeo, on the least whole number of strides that covers ``height`` × ``width``.

    On such a plane nothing is left over, which is where torchgeo 0.8 (windows from the south-west corner) and 0.10 (windows around the
    middle) differ; and a plane is never smaller than a tile, which both would skip.
    """
    rows, cols = (tile + stride * max(0, ceil((length - tile) / stride)) for length in (height, width))
    plane = _PixelPlane(rows, cols)
    sampler: Any = getattr(torchgeo.samplers, "GriddedPatchSampler", None) or torchgeo.samplers.GridGeoSampler
    spans = [query[:2] for query in sampler(plane, size=tile, stride=stride)]
    return tuple(sorted((round(rows - y.stop), round(x.start)) for x, y in spans))


class _PixelPlane(GeoDataset):
    """What torchgeo's samplers need to know of ``rows`` × ``cols`` pixels of size 1, whose y axis runs up."""

    def __init__(self, rows: int, cols: int) -> None:
        times = pd.IntervalIndex.from_tuples([(pd.Timestamp(0), pd.Timestamp(1))], closed="both", name="datetime")
        self.index = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, cols, rows)], index=times, crs=_NOMINAL_CRS)
        self._res = (1.0, 1.0)

    def __getitem__(self, query: Any) -> dict[str, Any]:
        raise NotImplementedError("places are laid here, pixels are read elsewhere")
