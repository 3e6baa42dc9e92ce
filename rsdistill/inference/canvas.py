"""The context of a scene while it is mapped: made small once, encoded once, cut for every tile.

The global branch sees windows of the context of at most :data:`WINDOW` pixels a side, which for most scenes is all of it. Where it is not,
each window is read with a margin, and a tile is decoded from the window that owns its middle. The windows start on whole cells of the
coarsest map, so that they cut the encoder's grid where a pass over the whole context would. Tiles come from top to bottom: the context is
streamed beside them, each row of the scene once. Only one row of windows is held, of each no more than its tiles read, and that in half
precision: at 50 000 pixels a side and 128 channels, about half a gigabyte.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdistill.batches import Context, Segmentation
from rsdistill.geo.context import THUMBNAIL, area_mean, context_grid, thumbnail
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas_store import CanvasStore
from rsdistill.inference.context_windows import ContextWindows, Place, in_groups, turned_boxes
from rsdistill.inference.reading import RowBuffer, Rows, Source
from rsdistill.inference.symmetries import UPRIGHT, Turn, turned
from rsdistill.models.context import Canvas
from rsdistill.models.ginet import GINet
from rsdistill.models.network import Network
from rsdistill.models.thumbnail import Surroundings

WINDOW = 1024
"""Largest side, in context pixels, of what the global branch sees at once: 8192 pixels of the scene at a ratio of 8."""
MARGIN = 128
"""Context pixels around a tile that its window of the context holds at least, unless the card says otherwise."""
CHUNK_ROWS = 64
"""Context rows that are made at once."""

Pixels = tuple[NDArray[Any], NDArray[np.bool_]]
"""(C, h, w) values and their (h, w) validity."""
ToImage = Callable[[NDArray[Any], NDArray[np.bool_]], tuple[Tensor, Tensor]]
"""Turns raw (N, C, h, w) pixels and their (N, h, w) validity into a normalised image and a validity on the network's device."""


class SceneCanvas:
    """The context of one scene, from which tiles that come from top to bottom are decoded."""

    def __init__(
        self,
        model: Network,
        scene: Source,
        bands: Sequence[int],
        to_image: ToImage,
        *,
        margin: int | None = None,
        window: int = WINDOW,
        folder: Path | None = None,
    ) -> None:
        """Draw up the windows; nothing is read before the first tile.

        Args:
            model: a network that needs context, in eval mode.
            scene: what is mapped.
            bands: 1-based bands that the network takes, in its order.
            to_image: normalises the context as it normalises tiles.
            margin: context pixels around a tile that its window holds at least, :data:`MARGIN` by default.
            window: largest side in context pixels of what the global branch sees at once, unless the margin asks for more.
            folder: where canvases are shared with other processes that map parts of the scene.
        """
        self._store = CanvasStore(folder) if folder else None
        self._model = cast(GINet, model)
        self._scene, self._bands, self._to_image, self._ratio = scene, bands, to_image, self._model.args.context_ratio
        self._margin, self._largest = MARGIN if margin is None else margin, window
        self._windows: ContextWindows | None = None
        self._rows: RowBuffer | None = None
        self._top = 0
        self._canvases: dict[tuple[Place, Turn], Canvas] = {}
        self._thumbnails: dict[Turn, Surroundings | None] = {}

    def decode(self, image: Tensor, windows: Sequence[Window], turn: Turn = UPRIGHT) -> Segmentation:
        """Return the network's answer for (N, C, T, T) normalised tiles whose upper left pixels lie where those of ``windows`` do.

        Tiles that were turned are decoded from the context of the whole scene turned likewise.
        """
        size = (image.shape[-2], image.shape[-1]) if turn[0] % 2 == 0 else (image.shape[-1], image.shape[-2])
        tiles = [Window(window.row, window.col, *size) for window in windows]
        if self._windows is None:
            grid = context_grid(self._scene.grid, self._ratio)
            self._windows = ContextWindows.over((grid.height, grid.width), self._ratio, self._margin, size, self._largest)
        laid = self._windows
        places = [laid.owner(tile) for tile in tiles]

        def answer(members: list[int]) -> Segmentation:
            place = places[members[0]]
            box = laid.boxes(place, [tiles[number] for number in members], turn).to(image.device)
            first = torch.zeros(len(members), dtype=torch.int64, device=image.device)
            return self._model.decode(image[members], self._canvas(laid, place, turn), box, first)

        return in_groups(places, answer)

    def _canvas(self, windows: ContextWindows, place: Place, turn: Turn) -> Canvas:
        """Return what is kept of the window at ``place``, made when it is first asked for; those of rows above are let go."""
        if (place, turn) not in self._canvases:
            self._canvases = {other: canvas for other, canvas in self._canvases.items() if other[0][0] == place[0]}
            self._canvases[place, turn] = self._kept(windows, place, turn)
        return self._canvases[place, turn]

    def _kept(self, windows: ContextWindows, place: Place, turn: Turn) -> Canvas:
        """Return a canvas from the store, made of no pixels but its own where it is not there; without a store it is made in any case."""
        window = windows.window(place)
        if self._store is None:
            return self._encoded(windows, place, self._pixels(window, windows.height), turn)
        device = next(self._model.parameters()).device
        read = partial(context_pixels, self._scene, self._bands, self._ratio, window)
        name = "-".join(map(str, (*place, *map(int, turn))))
        return self._store.get(name, device, lambda: self._encoded(windows, place, read(), turn))

    def _encoded(self, windows: ContextWindows, place: Place, pixels: Pixels, turn: Turn) -> Canvas:
        image, known = self._image(pixels, turn)
        canvas = self._model.encode_context(image, known, self._surroundings(windows.window(place), turn))
        if len(windows) == 1:
            return canvas
        return self._model.canvas_part(canvas, *windows.kept(place, turn), half=True)

    def _image(self, pixels: Pixels, turn: Turn) -> tuple[Tensor, Tensor]:
        values, valid = pixels
        return self._to_image(turned(values, *turn)[None], turned(valid, *turn)[None])

    def _surroundings(self, window: Window, turn: Turn) -> Surroundings | None:
        """Return what a window of the context sees of the thumbnail, which takes a pass over the scene when it is first asked for."""
        threshold, grid = self._model.thumbnail_from, self._scene.grid
        if not threshold or max(grid.height, grid.width) <= threshold:
            return None
        if turn not in self._thumbnails:
            values, valid = self._thumbnail()
            image, known = self._image((values, valid), turn)
            whole = Context(image, known, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.zeros(1, dtype=torch.int64))
            self._thumbnails[turn] = self._model.surroundings(whole)
        around, context = self._thumbnails[turn], context_grid(grid, self._ratio)
        size = torch.tensor([-(-side // THUMBNAIL) * THUMBNAIL for side in (context.height, context.width)] * 2)
        box = turned_boxes(torch.tensor([[*window[:2], *window.stop]]) / size, *turn)
        return None if around is None else around._replace(box=box)

    def _thumbnail(self) -> Pixels:
        def made() -> Pixels:
            return thumbnail((rows.image, rows.valid) for rows in context_rows(self._scene, self._bands, self._ratio, 0))

        return made() if self._store is None else self._store.pixels("thumbnail", made)

    def _pixels(self, window: Window, height: int) -> Pixels:
        """Return the context's pixels in ``window``; where it lies above an earlier one, the scene is read anew."""
        if self._rows is None or window.row < self._top:
            self._rows = RowBuffer(context_rows(self._scene, self._bands, self._ratio, window.row), height)
        self._top = window.row
        rows = self._rows.slide(window.row, window.stop[0])
        cols = slice(window.col, window.stop[1])
        return rows.image[..., cols], rows.valid[:, cols]


def context_pixels(scene: Source, bands: Sequence[int], ratio: int, window: Window) -> Pixels:
    """Return the (C, h, w) context and its (h, w) validity in ``window``; no other part of the scene is read."""
    left, right = window.col * ratio, min(window.stop[1] * ratio, scene.grid.width)
    parts = []
    with scene.reopen() as own:
        for row in range(window.row, window.stop[0], CHUNK_ROWS):
            top, bottom = row * ratio, min(min(row + CHUNK_ROWS, window.stop[0]) * ratio, scene.grid.height)
            parts.append(area_mean(*own.read(Window(top, left, bottom - top, right - left), bands), ratio))
    return np.concatenate([values for values, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])


def context_rows(scene: Source, bands: Sequence[int], ratio: int, first: int) -> Iterator[Rows]:
    """Yield the rows of a scene's context from context row ``first`` on, each the area mean of all its pixels."""
    step = CHUNK_ROWS * ratio
    with scene.reopen() as own:
        for row in range(first * ratio, scene.grid.height, step):
            window = Window(row, 0, min(step, scene.grid.height - row), scene.grid.width)
            yield Rows(row // ratio, *area_mean(*own.read(window, bands), ratio))
