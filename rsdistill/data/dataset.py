"""Tile set → batches: step t of a run is a function of the seed and t alone, so neither workers nor an interruption can change it."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rsdistill.batches import IGNORE, Batch, Context, Groups
from rsdistill.data.pools import CONTEXT_SIDE, Pool, split_labelled, thumbnail_window
from rsdistill.errors import TileSetError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.context import THUMBNAIL, thumbnail
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Window

OPEN_FILES = 64
"""Rasters that one reader keeps open, and context images that it remembers."""
THUMBNAIL_ROWS = 64
"""Rows of a thumbnail that are made at once."""


class Share(NamedTuple):
    """Part ``number`` of ``of`` equal parts of every step's batch: what one process sees of it, or one of its passes."""

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> range:
        """Return which of ``count`` groups it takes: the parts lie one after the other, and together they are all."""
        each = count // self.of
        return range(self.number * each, (self.number + 1) * each)

    def divided(self, parts: int) -> "list[Share]":
        """Return the ``parts`` smaller shares that this one is made of."""
        return [Share(self.number * parts + part, self.of * parts) for part in range(parts)]


WHOLE = Share()


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
    context_side: int = CONTEXT_SIDE
    """Side of a context image, in context pixels."""
    thumbnail_from: int = 0
    """Scenes with a side longer than so many pixels also show their thumbnail; 0: none does."""

    def divides(self, parts: int) -> bool:
        """Return whether a batch falls into so many equal shares."""
        return self.contexts % parts == 0 and self.unlabelled % parts == 0


def open_source(tile_set: TileSet, index: int) -> Scene:
    """Open scene ``index`` of a tile set as it was opened for tiling."""
    card = tile_set.card
    return open_scene(tile_set.path(card.scenes[index].path), nodata=card.nodata, allow_vrt=card.allow_vrt, allow_remote=card.allow_remote)


def read_index(raster: Scene, window: Window, table: ClassTable) -> NDArray[np.uint8]:
    """Return the (h, w) class index of a label raster's window, IGNORE where it has none."""
    ids, known = raster.read(window, (1,))
    return table.to_index(np.where(known, ids[0], table.nodata))


Kind = Literal["path", "label", "context", "context_label"]
"""Field of a scene's entry that names a raster."""


def _unwatched(_file: str) -> None:
    pass


class TileReader:
    """Reads tiles and contexts of a tile set; keeps the last rasters open, and is cheap to send to a worker process."""

    def __init__(self, tile_set: TileSet) -> None:
        self.tile_set = tile_set
        self.card = tile_set.card
        self.reading: Callable[[str], None] = _unwatched
        """Told of each file before it is read, and of '' when a batch is done."""
        self._rasters: OrderedDict[tuple[int, Kind], Scene] = OrderedDict()
        self._contexts: OrderedDict[tuple[int, Window], tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.uint8]]] = OrderedDict()
        self._thumbnails: dict[int, tuple[NDArray[np.generic], NDArray[np.bool_]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rasters": OrderedDict(), "_contexts": OrderedDict(), "_thumbnails": {}}

    def read(self, tile: Tile) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.uint8]]:
        """Return (C, T, T) pixels in the card's dtype, (T, T) valid, (T, T) label index; short tiles are filled with invalid pixels."""
        side = self.card.tile
        pixels, valid = self._open(tile.scene, "path").read(tile.window, self.card.bands_of(tile.scene))
        label = np.full(valid.shape, IGNORE, np.uint8)
        if tile.labelled:
            label = read_index(self._open(tile.scene, "label"), tile.window, self.tile_set.table)
            label[~valid] = IGNORE
        short = (side - tile.window.height, side - tile.window.width)
        if any(short):
            rim = ((0, short[0]), (0, short[1]))
            pixels, valid, label = np.pad(pixels, ((0, 0), *rim)), np.pad(valid, rim), np.pad(label, rim, constant_values=IGNORE)
        return pixels.astype(self.card.dtype, copy=False), valid, label

    def context(self, index: int, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_], NDArray[np.uint8]]:
        """Return (C, h, w) pixels, (h, w) valid and (h, w) label index of a window of the context raster of scene ``index``."""
        key = (index, window)
        if key not in self._contexts:
            pixels, valid = self._open(index, "context").read(window, range(1, len(self.card.bands) + 1))
            label = np.full(valid.shape, IGNORE, np.uint8)
            if self.card.scenes[index].context_label is not None:
                label = read_index(self._open(index, "context_label"), window, self.tile_set.table)
            self._contexts[key] = (pixels, valid, label)
            while len(self._contexts) > OPEN_FILES:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def thumbnail(self, index: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Return the (C, h, w) thumbnail of scene ``index`` and its (h, w) validity, made of its context raster when first asked for."""
        if index not in self._thumbnails:
            raster, bands = self._open(index, "context"), range(1, len(self.card.bands) + 1)
            height, width, step = raster.grid.height, raster.grid.width, THUMBNAIL_ROWS * THUMBNAIL
            rows = (Window(row, 0, min(step, height - row), width) for row in range(0, height, step))
            self._thumbnails[index] = thumbnail(raster.read(window, bands) for window in rows)
        return self._thumbnails[index]

    def context_fingerprint(self, index: int) -> str:
        """Return a digest of the context raster of scene ``index``."""
        return self._open(index, "context").fingerprint

    def _open(self, index: int, kind: Kind) -> Scene:
        """Return a raster of scene ``index``: the scene itself, or what the tile set made of it."""
        name = getattr(self.card.scenes[index], kind)
        self.reading(name)
        key = (index, kind)
        if key not in self._rasters:
            self._rasters[key] = open_source(self.tile_set, index) if kind == "path" else open_scene(self.tile_set.path(name))
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
        labelled, unlabelled = split_labelled(tile_set.of_split("train"), labels_fraction, tile_set.card.seed)
        if not labelled:
            raise TileSetError(f"{tile_set.folder} has no labelled training tile", hint="label more scenes, or move fewer to validation")
        self.labelled = Pool(labelled, tile_set)
        self.unlabelled = Pool(unlabelled, tile_set)
        self._filling = self.unlabelled if len(unlabelled) or not composition.unlabelled else self.labelled.without_labels()

    def __getitem__(self, step: int) -> Batch:
        return self.part(step, WHOLE)

    def part(self, step: int, share: Share) -> Batch:
        """Return the share of the batch of ``step``; the groups of all shares together are those of the whole batch."""
        make, groups = self.composition, self._groups(step, share)
        tiles = [pool.tiles[position] for pool, _, positions, _ in groups for position in positions]
        places = [int(pool.tiles.place[position]) for pool, _, positions, _ in groups for position in positions]
        batch = collate(self.reader, tiles, [window for *_, window in groups], make)
        numbers = torch.tensor([number for _, number, _, _ in groups])
        if not make.with_context:
            numbers = (numbers[:, None] * make.tiles + torch.arange(make.tiles)).flatten()
        whole = (make.contexts + make.unlabelled) * (1 if make.with_context else make.tiles)
        return batch._replace(place=torch.tensor(places), groups=Groups(numbers, whole))

    def tiles_of(self, step: int) -> list[Tile]:
        """Return the tiles of the whole batch of ``step``; nothing is read."""
        return [pool.tiles[position] for pool, _, positions, _ in self._groups(step, WHOLE) for position in positions]

    def _groups(self, step: int, share: Share) -> list[tuple[Pool, int, list[int], Window]]:
        """Return the groups of a share: where they are drawn from, their number in the batch, their tiles and their context window."""
        make = self.composition
        groups = [(self.labelled, row, *self._draw(self.labelled, step, row, make.contexts, 0)) for row in share.rows(make.contexts)]
        return groups + [
            (self._filling, make.contexts + row, *self._draw(self._filling, step, row, make.unlabelled, 1))
            for row in share.rows(make.unlabelled)
        ]

    def _draw(self, pool: Pool, step: int, row: int, rows: int, kind: int) -> tuple[list[int], Window]:
        return pool.draw(step * rows + row, self.composition.tiles, (self.seed, kind), self.composition.context_side)


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
        context=_context(reader, tiles, windows, make) if make.with_context else None,
        box_in_scene=torch.tensor(boxes, dtype=torch.float32),
    )


def _context(reader: TileReader, tiles: Sequence[Tile], windows: Sequence[Window], make: Composition) -> Context:
    """Read one square context image for each group; what lies beyond the scene is invalid."""
    side = max(max(window.height, window.width) for window in windows)
    bands, ratio = len(reader.card.bands), reader.card.context_ratio
    image = torch.zeros(len(windows), bands, side, side)
    valid = torch.zeros(len(windows), side, side, dtype=torch.bool)
    label = torch.full((len(windows), side, side), IGNORE, dtype=torch.uint8)
    owners = tiles[:: make.tiles]
    for m, (owner, window) in enumerate(zip(owners, windows, strict=True)):
        pixels, known, classes = reader.context(owner.scene, window)
        image[m, :, : window.height, : window.width] = torch.from_numpy(pixels.astype(np.float32))
        valid[m, : window.height, : window.width] = torch.from_numpy(known)
        if owner.labelled:
            label[m, : window.height, : window.width] = torch.from_numpy(classes)
    index = torch.arange(len(windows)).repeat_interleave(make.tiles)
    squares = [Window(*tile.window[:2], reader.card.tile, reader.card.tile) for tile in tiles]  # short tiles are filled to the card's side
    boxes = [_box(square, windows[m], side, ratio) for square, m in zip(squares, index.tolist(), strict=True)]
    wider = _thumbnails(reader, [owner.scene for owner in owners], windows, side, make.thumbnail_from) if make.thumbnail_from else None
    return Context(image, valid, torch.tensor(boxes, dtype=torch.float32), index, label, wider)


def _thumbnails(reader: TileReader, scenes: Sequence[int], windows: Sequence[Window], context: int, threshold: int) -> Context | None:
    """Read one square of the thumbnail around each context image of ``context`` pixels a side; one of a smaller scene stays invalid."""
    sizes = [(reader.card.scenes[scene].height, reader.card.scenes[scene].width) for scene in scenes]
    shown = [m for m, size in enumerate(sizes) if max(size) > threshold]
    if not shown:
        return None
    views = {m: thumbnail_window(windows[m], reader.thumbnail(scenes[m])[1].shape) for m in shown}
    side = max(max(view.height, view.width) for view in views.values())
    image = torch.zeros(len(scenes), len(reader.card.bands), side, side)
    valid, box = torch.zeros(len(scenes), side, side, dtype=torch.bool), torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(len(scenes), 1)
    for m, view in views.items():
        pixels, known = reader.thumbnail(scenes[m])
        image[m, :, : view.height, : view.width] = torch.from_numpy(pixels[:, *view.slices].astype(np.float32))
        valid[m, : view.height, : view.width] = torch.from_numpy(known[view.slices])
        square = Window(windows[m].row, windows[m].col, context, context)
        box[m] = torch.tensor(_box(square, view, side, THUMBNAIL))
    return Context(image, valid, box, torch.arange(len(scenes)))


def _box(inner: Window, outer: Window, side: int, ratio: int) -> list[float]:
    """Return top, left, bottom, right of ``inner`` in [0, 1] of a square of ``side`` pixels, ``ratio`` times its own, from ``outer`` on."""
    origin = (outer.row, outer.col) * 2
    return [(edge / ratio - start) / side for edge, start in zip((*inner[:2], *inner.stop), origin, strict=True)]


def normalise(batch: Batch, mean: Tensor, std: Tensor, device: torch.device) -> Batch:
    """Return ``batch`` on ``device`` as networks want it: (raw − mean) / std, 0 where invalid, labels int64."""

    def scaled(image: Tensor, valid: Tensor) -> Tensor:
        return ((sent(image).float() - mean[:, None, None]) / std[:, None, None]) * valid[:, None]

    def seen(context: Context) -> Context:
        known = sent(context.valid)
        label = None if context.label is None else sent(context.label).long()
        wider = None if context.wider is None else seen(context.wider)
        return Context(scaled(context.image, known), known, sent(context.box), sent(context.index), label, wider)

    def sent(part: Tensor) -> Tensor:
        return part.to(device, non_blocking=True)

    mean, std = sent(mean), sent(std)
    context = None if batch.context is None else seen(batch.context)
    valid = sent(batch.valid)
    box = None if batch.box_in_scene is None else sent(batch.box_in_scene)
    return Batch(scaled(batch.image, valid), sent(batch.label).long(), valid, sent(batch.labelled), context, box, batch.place, batch.groups)
