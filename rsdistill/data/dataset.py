"""Tile set → batches: step t of a run is a function of the seed and t alone, so neither workers nor an interruption can change it."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rsdistill.batches import IGNORE, Batch, Context
from rsdistill.errors import TileSetError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.tile_index import Tile, TileSet
from rsdistill.geo.windows import Window

CONTEXT_SIDE = 512
"""Longest side of a context image in context pixels; larger scenes are seen through windows of this size."""
OPEN_FILES = 64
"""Rasters that one reader keeps open."""


class Draw(NamedTuple):
    """The tiles of one step: ``groups[m]`` are positions in the pool that share context window ``windows[m]``."""

    groups: tuple[tuple[int, ...], ...]
    windows: tuple[Window | None, ...]


@dataclass(frozen=True)
class Composition:
    """What one batch is made of."""

    contexts: int = 8
    """Groups of tiles; each group shares one context image."""
    tiles: int = 1
    """Tiles in each group."""
    unlabelled: int = 0
    """Groups of unlabelled tiles that follow the labelled ones."""
    with_context: bool = False
    """Whether context images are read."""


def open_source(tile_set: TileSet, index: int) -> Scene:
    """Open scene ``index`` of a tile set as it was opened for tiling."""
    card = tile_set.card
    return open_scene(tile_set.path(card.scenes[index].path), nodata=card.nodata, allow_vrt=card.allow_vrt, allow_remote=card.allow_remote)


def read_index(raster: Scene, window: Window, table: ClassTable) -> NDArray[np.uint8]:
    """Return the (h, w) class index of a label raster's window, IGNORE where it has none."""
    ids, known = raster.read(window, (1,))
    return table.to_index(np.where(known, ids[0], table.nodata))


class TileReader:
    """Reads tiles and contexts of a tile set; keeps the last rasters open, and is cheap to send to a worker process."""

    def __init__(self, tile_set: TileSet) -> None:
        self.tile_set = tile_set
        self.card = tile_set.card
        self._places = {(tile.scene, tile.window): number for number, tile in enumerate(tile_set.tiles)}
        self._rasters: OrderedDict[tuple[int, bool], Scene] = OrderedDict()
        self._contexts: OrderedDict[int, tuple[Tensor, Tensor, Tensor]] = OrderedDict()

    def place(self, tile: Tile) -> int:
        """Return the position of ``tile`` in the tile set."""
        return self._places[tile.scene, tile.window]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rasters": OrderedDict(), "_contexts": OrderedDict()}

    def read(self, tile: Tile) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.uint8]]:
        """Return (C, T, T) pixels in the card's dtype, (T, T) valid, (T, T) label index; short tiles are filled with invalid pixels."""
        side = self.card.tile
        pixels, valid = self._open(tile.scene).read(tile.window, self.card.bands)
        label = np.full(valid.shape, IGNORE, np.uint8)
        if tile.labelled:
            label = read_index(self._open(tile.scene, label=True), tile.window, self.tile_set.table)
            label[~valid] = IGNORE
        short = (side - tile.window.height, side - tile.window.width)
        if any(short):
            rim = ((0, short[0]), (0, short[1]))
            pixels, valid, label = np.pad(pixels, ((0, 0), *rim)), np.pad(valid, rim), np.pad(label, rim, constant_values=IGNORE)
        return pixels.astype(self.card.dtype, copy=False), valid, label

    def context(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (C, h, w) float32 pixels, (h, w) valid and (h, w) label index of the whole context raster of scene ``index``."""
        if index not in self._contexts:
            entry = self.card.scenes[index]
            with open_scene(self.tile_set.path(entry.context)) as raster:
                pixels, valid = raster.read(raster.grid.window, range(1, len(self.card.bands) + 1))
            label = np.full(valid.shape, IGNORE, np.uint8)
            if entry.context_label is not None:
                with open_scene(self.tile_set.path(entry.context_label)) as raster:
                    label = read_index(raster, raster.grid.window, self.tile_set.table)
            self._contexts[index] = (torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(valid), torch.from_numpy(label))
            while len(self._contexts) > OPEN_FILES:
                self._contexts.popitem(last=False)
        return self._contexts[index]

    def _open(self, index: int, *, label: bool = False) -> Scene:
        key = (index, label)
        if key not in self._rasters:
            name = self.card.scenes[index].label if label else None
            self._rasters[key] = open_source(self.tile_set, index) if name is None else open_scene(self.tile_set.path(name))
            while len(self._rasters) > OPEN_FILES:
                self._rasters.popitem(last=False)[1].close()
        self._rasters.move_to_end(key)
        return self._rasters[key]


class BatchSource(Dataset[Batch]):
    """Item t is the raw batch of step t (pixels as in the file, not yet normalised)."""

    def __init__(self, tile_set: TileSet, composition: Composition, *, seed: int, labels_fraction: float = 1.0) -> None:
        self.reader = TileReader(tile_set)
        self.composition = composition
        self.seed = seed
        labelled, unlabelled = split_labelled(tile_set.of_split("train"), labels_fraction, seed)
        if not labelled:
            raise TileSetError(f"{tile_set.folder} has no labelled training tile", hint="label more scenes, or move fewer to validation")
        self.labelled, self.unlabelled = Pool(labelled, tile_set), Pool(unlabelled, tile_set)

    def __getitem__(self, step: int) -> Batch:
        make = self.composition
        groups = [(self.labelled, *self.labelled.draw(step * make.contexts + g, make.tiles, (self.seed, 0))) for g in range(make.contexts)]
        pool = self.unlabelled if len(self.unlabelled) else self.labelled.without_labels()
        groups += [(pool, *pool.draw(step * make.unlabelled + g, make.tiles, (self.seed, 1))) for g in range(make.unlabelled)]
        tiles = [pool.tiles[position] for pool, positions, _ in groups for position in positions]
        windows = [window for _, _, window in groups]
        return collate(self.reader, tiles, windows, make)


class Pool:
    """Tiles to draw from: one pass over all of them in seeded order, then the next pass in another order."""

    def __init__(self, tiles: Sequence[Tile], tile_set: TileSet) -> None:
        self.tiles = tuple(tiles)
        self.tile_set = tile_set
        scenes = np.array([tile.scene for tile in self.tiles], dtype=np.int64)
        self._of_scene = {int(scene): np.flatnonzero(scenes == scene) for scene in np.unique(scenes)}
        self._order: tuple[tuple[int, ...], NDArray[np.int64]] = ((), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.tiles)

    def without_labels(self) -> "Pool":
        """The same tiles with their labels hidden."""
        return Pool([tile._replace(labelled=False) for tile in self.tiles], self.tile_set)

    def draw(self, position: int, count: int, seed: tuple[int, int]) -> tuple[list[int], Window]:
        """Return the tile at ``position`` of the endless order, ``count`` − 1 neighbours in its context window, and that window."""
        epoch, place = divmod(position, len(self.tiles))
        key = (*seed, epoch)
        if self._order[0] != key:
            self._order = (key, np.random.default_rng(key).permutation(len(self.tiles)))
        anchor = int(self._order[1][place])
        random = np.random.default_rng((*seed, 1, position))
        window = self.context_window(self.tiles[anchor], random)
        if count == 1:
            return [anchor], window
        near = [k for k in self._of_scene[self.tiles[anchor].scene] if k != anchor and self._inside(self.tiles[k].window, window)]
        others = random.choice(near, count - 1, replace=len(near) < count - 1) if near else np.full(count - 1, anchor)
        return [anchor, *map(int, others)], window

    def context_window(self, tile: Tile, random: np.random.Generator) -> Window:
        """Return a window of the context raster, in context pixels, that holds the tile: all of it where the scene is small."""
        ratio, entry = self.tile_set.card.context_ratio, self.tile_set.card.scenes[tile.scene]
        starts, sides = [], []
        for length, start, extent in zip((entry.height, entry.width), tile.window[:2], tile.window[2:], strict=True):
            cells = -(-length // ratio)
            side = min(cells, CONTEXT_SIDE)
            low, high = -(-(start + extent) // ratio) - side, start // ratio
            starts.append(int(random.integers(max(0, low), max(0, low, min(high, cells - side)) + 1)))
            sides.append(side)
        return Window(starts[0], starts[1], sides[0], sides[1])

    def _inside(self, tile: Window, context: Window) -> bool:
        ratio = self.tile_set.card.context_ratio
        whole = Window(*(ratio * part for part in context))
        return tile.intersection(whole) == tile


def split_labelled(tiles: Sequence[Tile], fraction: float, seed: int) -> tuple[list[Tile], list[Tile]]:
    """Return (labelled, unlabelled) tiles, with all but ``fraction`` of the labelled ones moved to the unlabelled, labels hidden."""
    labelled = [tile for tile in tiles if tile.labelled]
    unlabelled = [tile for tile in tiles if not tile.labelled]
    keep = max(1, round(fraction * len(labelled))) if labelled else 0
    order = np.random.default_rng((seed, 2)).permutation(len(labelled))
    kept = set(order[:keep].tolist())
    hidden = [tile._replace(labelled=False) for k, tile in enumerate(labelled) if k not in kept]
    return [tile for k, tile in enumerate(labelled) if k in kept], unlabelled + hidden


def collate(reader: TileReader, tiles: Sequence[Tile], windows: Sequence[Window], make: Composition) -> Batch:
    """Read ``tiles`` (``make.tiles`` of them for each context window) into one raw batch."""
    arrays = [reader.read(tile) for tile in tiles]
    scenes = [reader.card.scenes[tile.scene] for tile in tiles]
    boxes = [
        [t.window.row / s.height, t.window.col / s.width, t.window.stop[0] / s.height, t.window.stop[1] / s.width]
        for t, s in zip(tiles, scenes, strict=True)
    ]
    pixels = np.stack([image for image, _, _ in arrays])
    return Batch(
        image=torch.from_numpy(pixels if pixels.dtype in (np.uint8, np.int16) else pixels.astype(np.float32)),
        label=torch.from_numpy(np.stack([label for _, _, label in arrays])),
        valid=torch.from_numpy(np.stack([valid for _, valid, _ in arrays])),
        labelled=torch.tensor([tile.labelled for tile in tiles]),
        context=_context(reader, tiles, windows, make.tiles) if make.with_context else None,
        box_in_scene=torch.tensor(boxes, dtype=torch.float32),
        place=torch.tensor([reader.place(tile) for tile in tiles]),
    )


def _context(reader: TileReader, tiles: Sequence[Tile], windows: Sequence[Window], per_group: int) -> Context:
    """Read one square context image for each group; what lies beyond the scene is invalid."""
    side = max(max(window.height, window.width) for window in windows)
    bands, ratio = len(reader.card.bands), reader.card.context_ratio
    image = torch.zeros(len(windows), bands, side, side)
    valid = torch.zeros(len(windows), side, side, dtype=torch.bool)
    label = torch.full((len(windows), side, side), IGNORE, dtype=torch.uint8)
    for m, window in enumerate(windows):
        pixels, known, classes = reader.context(tiles[m * per_group].scene)
        rows, cols = window.slices
        image[m, :, : window.height, : window.width] = pixels[:, rows, cols]
        valid[m, : window.height, : window.width] = known[rows, cols]
        if tiles[m * per_group].labelled:
            label[m, : window.height, : window.width] = classes[rows, cols]
    index = torch.arange(len(windows)).repeat_interleave(per_group)
    boxes = [_box(tile.window, windows[m], side, ratio) for tile, m in zip(tiles, index.tolist(), strict=True)]
    return Context(image, valid, torch.tensor(boxes, dtype=torch.float32), index, label)


def _box(tile: Window, context: Window, side: int, ratio: int) -> list[float]:
    edges = (tile.row, tile.col, tile.stop[0], tile.stop[1])
    origin = (context.row, context.col) * 2
    return [(edge / ratio - start) / side for edge, start in zip(edges, origin, strict=True)]


def normalise(batch: Batch, mean: Tensor, std: Tensor, device: torch.device) -> Batch:
    """Return ``batch`` on ``device`` as networks want it: (raw − mean) / std, 0 where invalid, labels int64."""

    def scaled(image: Tensor, valid: Tensor) -> Tensor:
        return ((sent(image).float() - mean[:, None, None]) / std[:, None, None]) * valid[:, None]

    def sent(part: Tensor) -> Tensor:
        return part.to(device, non_blocking=True)

    mean, std = sent(mean), sent(std)
    context = batch.context
    if context is not None:
        known = sent(context.valid)
        label = None if context.label is None else sent(context.label).long()
        context = Context(scaled(context.image, known), known, sent(context.box), sent(context.index), label)
    valid = sent(batch.valid)
    box = None if batch.box_in_scene is None else sent(batch.box_in_scene)
    return Batch(scaled(batch.image, valid), sent(batch.label).long(), valid, sent(batch.labelled), context, box, batch.place)


def loader(source: BatchSource, steps: range, workers: int, *, pin_memory: bool = False) -> DataLoader[Batch]:
    """Return a loader of the batches of ``steps``, in order; ``workers`` processes read ahead, 0 reads in this one."""
    return DataLoader(source, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin_memory)
