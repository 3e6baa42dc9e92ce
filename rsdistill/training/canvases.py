"""A frozen teacher whose global branch runs once a window of context instead of once a step: what it made is kept on disk.

A teacher sees tiles as they lie in the scene, in whatever way the student is shown them, so its canvases do not change while a student is
trained. The second epoch, a second student and a second method read what the first made. Windows are those of ``predict``, so that the
teacher answers as it will when it maps, and tiles of a batch need not share a context.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsdistill.batches import Batch, Context, Segmentation
from rsdistill.data.dataset import BatchSource, TileReader
from rsdistill.geo.context import THUMBNAIL
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import MARGIN, WINDOW
from rsdistill.inference.canvas_store import CanvasStore
from rsdistill.inference.context_windows import CELL, RIM, ContextWindows, Place, boxes_in, in_groups, whole_cells
from rsdistill.models.card import ModelCard
from rsdistill.models.context import Canvas
from rsdistill.models.ginet import GINet
from rsdistill.models.thumbnail import Surroundings
from rsdistill.reporting import Progress
from rsdistill.training.teachers import Ensemble, Teacher

KEPT = 8
"""Canvases that are held in memory: 15 MB each for a scene of 4096 pixels a side and 128 channels."""
FORM = "1"
"""Of the files; another one makes canvases anew."""


class CanvasTeacher(Teacher):
    """A network that needs context, and takes it from a folder instead of from the batch."""

    def __init__(self, teacher: Teacher, card: ModelCard, mark: str, tile_set: TileSet, folder: Path) -> None:
        """Take over ``teacher``, whose network is a GINet.

        Args:
            teacher: what answers.
            card: its card.
            mark: of its file; another mark makes canvases anew, and so does another context of a scene.
            tile_set: where the tiles of all batches are from.
            folder: of canvases; may hold those of other teachers and other tile sets.
        """
        super().__init__(teacher.network, teacher.scale, teacher.shift)
        self._card, self._mark, self._tiles = card, mark, tile_set.tiles
        self._reader, self._store = TileReader(tile_set), CanvasStore(folder)
        self._held: OrderedDict[tuple[int, Place], Canvas] = OrderedDict()
        self._windows: dict[int, ContextWindows] = {}
        self._digests: dict[int, str] = {}

    @property
    def needs_context(self) -> bool:
        """Never of the batch."""
        return False

    @property
    def thumbnail_from(self) -> int:
        """Never of the batch."""
        return 0

    def forward(self, batch: Batch) -> Segmentation:
        """Return the network's answer for the tiles of ``batch``, known by their places.

        Raises:
            ValueError: the batch does not say where its tiles are.
            DiskError: a canvas cannot be written.
        """
        if batch.place is None:
            raise ValueError("a teacher with kept canvases knows tiles by their place, and this batch gives none")
        image, network = self._own(batch.image, batch.valid), self._ginet
        parts = [self._part(int(place), batch.image.shape[-1]) for place in batch.place]

        def answer(members: list[int]) -> Segmentation:
            first, device = parts[members[0]][0], image.device
            with torch.autocast("cpu", enabled=False):  # which knows no half precision on the processor, where the maps are
                guidance = tuple(
                    torch.cat(maps).to(device) for maps in zip(*(parts[member][0].guidance for member in members), strict=True)
                )
                mask = torch.cat([parts[member][0].mask for member in members]).to(device)
            box = torch.cat([parts[member][1] for member in members])
            return network.decode(image[members], Canvas(guidance, mask, first.logits, first.size), box, torch.arange(len(members)))

        return in_groups([part.size for part, _ in parts], answer)

    def look(self, tiles: Iterable[Tile], progress: Progress) -> None:
        """Make what is missing of the canvases of ``tiles``, so that training need not wait for it.

        Raises:
            DiskError: a canvas cannot be written.
        """
        side = self._reader.card.tile
        wanted = dict.fromkeys((tile.scene, self._laid(tile.scene, side).owner(_square(tile, side))) for tile in tiles)
        with progress.task("look at the scenes", total=len(wanted)) as bar:
            for scene, place in wanted:
                self._canvas(scene, self._laid(scene, side), place)
                bar.advance()

    @property
    def _ginet(self) -> GINet:
        assert isinstance(self.network, GINet)
        return self.network

    def _part(self, place: int, side: int) -> tuple[Canvas, Tensor]:
        """Return what the tile at ``place`` of the tile set reads of its canvas, and the (1, 4) box of the tile in it."""
        tile, ratio = self._tiles[place], self._ginet.args.context_ratio
        square = _square(tile, side)
        windows = self._laid(tile.scene, side)
        owner = windows.owner(square)
        canvas, (rows, cols), window = self._canvas(tile.scene, windows, owner), windows.kept(owner), windows.window(owner)
        own = Window(window.row + rows.start, window.col + cols.start, *canvas.size)
        near = [
            whole_cells(start / ratio - origin - RIM * CELL, stop / ratio - origin + RIM * CELL, length)
            for start, stop, origin, length in zip(square[:2], square.stop, own[:2], own[2:], strict=True)
        ]
        part = self._ginet.canvas_part(canvas, *near)
        there = Window(own.row + near[0].start, own.col + near[1].start, *part.size)
        return part, boxes_in(there, [square], ratio).float()

    def _laid(self, scene: int, side: int) -> ContextWindows:
        if scene not in self._windows:
            entry, ratio = self._reader.card.scenes[scene], self._ginet.args.context_ratio
            margin = MARGIN if self._card.canvas_margin is None else self._card.canvas_margin
            size = (-(-entry.height // ratio), -(-entry.width // ratio))
            self._windows[scene] = ContextWindows.over(size, ratio, margin, (side, side), WINDOW)
        return self._windows[scene]

    def _canvas(self, scene: int, windows: ContextWindows, place: Place) -> Canvas:
        key = (scene, place)
        if key not in self._held:
            name = "-".join([self._digest(scene), *map(str, place)])
            self._held[key] = self._store.get(name, torch.device("cpu"), self._maker(scene, windows, place))
            while len(self._held) > KEPT:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def _digest(self, scene: int) -> str:
        """Return a digest of all that the canvases of ``scene`` depend on."""
        if scene not in self._digests:
            tile_set = self._reader.card
            parts = (FORM, self._mark, self._reader.context_fingerprint(scene), tile_set.dtype, tile_set.tile, WINDOW, MARGIN)
            self._digests[scene] = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:20]
        return self._digests[scene]

    def _maker(self, scene: int, windows: ContextWindows, place: Place) -> Callable[[], Canvas]:
        def make() -> Canvas:
            device = next(self.network.parameters()).device
            window = windows.window(place)
            values, valid, _ = self._reader.context(scene, window)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                around = self._surroundings(scene, window, device)
                canvas = self._ginet.encode_context(*self._normalised(values, valid, device), around)
                return self._ginet.canvas_part(canvas, *windows.kept(place), half=True).to(torch.device("cpu"))

        return make

    def _surroundings(self, scene: int, window: Window, device: torch.device) -> Surroundings | None:
        """Return what a window of the context sees of the scene's thumbnail, None where it has none."""
        entry, threshold = self._reader.card.scenes[scene], self._ginet.thumbnail_from
        if not threshold or max(entry.height, entry.width) <= threshold:
            return None
        values, valid = self._reader.thumbnail(scene)
        box = boxes_in(Window(0, 0, *valid.shape), [window], THUMBNAIL).float()
        image, known = self._normalised(values, valid, device)
        return self._ginet.surroundings(Context(image, known, box, torch.zeros(1, dtype=torch.int64)))

    def _normalised(self, values: NDArray[Any], valid: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
        known = torch.from_numpy(valid)[None].to(device)
        raw = torch.from_numpy(values.astype(np.float32))[None].to(device)
        mean, std = (torch.tensor(numbers, device=device).view(1, -1, 1, 1) for numbers in (self._card.mean, self._card.std))
        return (raw - mean) / std * known[:, None], known


def look_ahead(teachers: Sequence[nn.Module], batches: BatchSource, steps: int, progress: Progress) -> None:
    """Let all teachers that keep canvases make those that ``steps`` steps will ask for."""
    members = [each for teacher in teachers for each in (teacher.members if isinstance(teacher, Ensemble) else [teacher])]
    every = batches.reader.tile_set.of_split("train")
    tiles: Iterable[Tile] = every
    if steps * len(batches.tiles_of(0)) < len(every):
        tiles = [tile for step in range(steps) for tile in batches.tiles_of(step)]
    for teacher in members:
        if isinstance(teacher, CanvasTeacher):
            teacher.look(tiles, progress)


def _square(tile: Tile, side: int) -> Window:
    """Return where a tile lies; a short one is filled to ``side``."""
    return Window(tile.window.row, tile.window.col, side, side)
