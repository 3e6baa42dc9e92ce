"""The context of a scene while it is mapped: made small once, encoded once, cut for every tile.

The global branch sees windows of the context of at most :data:`WINDOW` pixels a side, which for most scenes is all of it. Where it is not,
each window is read with a margin, and a tile is decoded from the window that owns its middle. The windows start on whole cells of the
coarsest map, so that they cut the encoder's grid where a pass over the whole context would. Tiles come from top to bottom: the context is
streamed beside them, each row of the scene once, and only one row of windows is held.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdistill.batches import Segmentation
from rsdistill.geo.context import area_mean, context_grid
from rsdistill.geo.windows import Plan, Window, plan
from rsdistill.inference.canvas_store import CanvasStore
from rsdistill.inference.reading import RowBuffer, Rows, Source
from rsdistill.inference.symmetries import UPRIGHT, Turn, turned
from rsdistill.models.context import Canvas
from rsdistill.models.ginet import GINet
from rsdistill.models.network import Network

WINDOW = 1024
"""Largest side, in context pixels, of what the global branch sees at once: 8192 pixels of the scene at a ratio of 8."""
MARGIN = 128
"""Context pixels around a tile that its window of the context holds at least, unless the card says otherwise."""
CELL = 32
"""Side in context pixels of the coarsest map's cells."""
CHUNK_ROWS = 64
"""Context rows that are made at once."""

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
        ratio: int,
        margin: int | None = None,
        window: int = WINDOW,
        store: CanvasStore | None = None,
    ) -> None:
        """Draw up the windows; nothing is read before the first tile.

        Args:
            model: a network that needs context, in eval mode.
            scene: what is mapped.
            bands: 1-based bands that the network takes, in its order.
            to_image: normalises the context as it normalises tiles.
            ratio: scene pixels along the side of one context pixel.
            margin: context pixels around a tile that its window holds at least, :data:`MARGIN` by default.
            window: largest side in context pixels of what the global branch sees at once, unless the margin asks for more.
            store: where canvases are shared with other processes that map parts of the scene.
        """
        self._store = store
        self._model = cast(GINet, model)
        self._scene, self._bands, self._to_image, self._ratio = scene, bands, to_image, ratio
        self._margin, self._largest = MARGIN if margin is None else margin, window
        self._windows: ContextWindows | None = None
        self._rows: RowBuffer | None = None
        self._top = 0
        self._canvases: dict[tuple[tuple[int, int], Turn], Canvas] = {}

    def decode(self, image: Tensor, windows: Sequence[Window], turn: Turn = UPRIGHT) -> Segmentation:
        """Return the network's answer for (N, C, T, T) normalised tiles whose upper left pixels lie where those of ``windows`` do.

        Tiles that were turned are decoded from the context of the whole scene turned likewise.
        """
        size = (image.shape[-2], image.shape[-1]) if turn[0] % 2 == 0 else (image.shape[-1], image.shape[-2])
        tiles = [Window(window.row, window.col, *size) for window in windows]
        if self._windows is None:
            self._windows = ContextWindows.over(self._scene, self._ratio, self._margin, size, self._largest)
        places = [self._windows.owner(tile) for tile in tiles]
        logits: list[Tensor] = [torch.empty(0)] * len(tiles)
        features: list[Tensor] = [torch.empty(0)] * len(tiles)
        for place in sorted(set(places)):
            members = [number for number, its in enumerate(places) if its == place]
            box = turned_boxes(self._windows.boxes(place, [tiles[number] for number in members]), *turn).to(image.device)
            first = torch.zeros(len(members), dtype=torch.int64, device=image.device)
            answer = self._model.decode(image[members], self._canvas(self._windows, place, turn), box, first)
            for number, own, map_ in zip(members, answer.logits, answer.features, strict=True):
                logits[number], features[number] = own, map_
        return Segmentation(torch.stack(logits), torch.stack(features))

    def _canvas(self, windows: "ContextWindows", place: tuple[int, int], turn: Turn) -> Canvas:
        """Return the canvas of the window at ``place``, made when it is first asked for; those of rows above are let go."""
        if (place, turn) not in self._canvases:
            self._canvases = {other: canvas for other, canvas in self._canvases.items() if other[0][0] == place[0]}
            self._canvases[place, turn] = self._kept(windows, place, turn)
        return self._canvases[place, turn]

    def _kept(self, windows: "ContextWindows", place: tuple[int, int], turn: Turn) -> Canvas:
        """Return a canvas from the store, made of no pixels but its own where it is not there; without a store it is made in any case."""
        window = windows.window(place)
        if self._store is None:
            return self._encoded(*self._pixels(window, windows.height), turn)
        device = next(self._model.parameters()).device
        read = partial(context_pixels, self._scene, self._bands, self._ratio, window)
        return self._store.get("-".join(map(str, (*place, *map(int, turn)))), device, lambda: self._encoded(*read(), turn))

    def _encoded(self, values: NDArray[Any], valid: NDArray[np.bool_], turn: Turn) -> Canvas:
        image, known = self._to_image(turned(values, *turn)[None], turned(valid, *turn)[None])
        return self._model.encode_context(image, known)

    def _pixels(self, window: Window, height: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the context's pixels in ``window``; where it lies above an earlier one, the scene is read anew."""
        if self._rows is None or window.row < self._top:
            self._rows = RowBuffer(context_rows(self._scene, self._bands, self._ratio, window.row), height)
        self._top = window.row
        rows = self._rows.slide(window.row, window.stop[0])
        cols = slice(window.col, window.stop[1])
        return rows.image[..., cols], rows.valid[:, cols]


class ContextWindows:
    """Where the global branch looks: windows of the context on whole cells of its coarsest map, each the owner of the tiles in its core."""

    def __init__(self, cells: Plan, size: tuple[int, int], ratio: int) -> None:
        self._cells, self._size, self._ratio = cells, size, ratio
        self.height = min(size[0], cells.tile[0] * CELL)
        """Context rows that one window has at most."""

    @classmethod
    def over(cls, scene: Source, ratio: int, margin: int, tile: tuple[int, int], window: int) -> "ContextWindows":
        """Lay windows over the context of ``scene`` so that ``margin`` context pixels around every tile are seen.

        Args:
            scene: what is mapped.
            ratio: scene pixels along the side of one context pixel.
            margin: context pixels around a tile.
            tile: (height, width) of the tiles in scene pixels.
            window: largest side of a window in context pixels; larger where the margin would leave too little of it.
        """
        grid = context_grid(scene.grid, ratio)
        rim = ceil((margin + max(tile) / ratio / 2) / CELL)
        largest = max(window // CELL, 4 * rim)
        cells = plan(ceil(grid.height / CELL), ceil(grid.width / CELL), largest, rim)
        return cls(cells, (grid.height, grid.width), ratio)

    def window(self, place: tuple[int, int]) -> Window:
        """Return the context pixels of the window at ``place``, in row and column of windows."""
        read = self._cells.placement(*place).read
        row, col = read.row * CELL, read.col * CELL
        stop_row, stop_col = (min(stop * CELL, side) for stop, side in zip(read.stop, self._size, strict=True))
        return Window(row, col, stop_row - row, stop_col - col)

    def owner(self, tile: Window) -> tuple[int, int]:
        """Return the place of the window whose core holds the middle of ``tile``, a window of the scene."""
        side = self._ratio * CELL
        row, col = (tile.row + tile.height / 2) / side, (tile.col + tile.width / 2) / side
        return _owner(self._cells.rows, row), _owner(self._cells.cols, col)

    def boxes(self, place: tuple[int, int], tiles: Sequence[Window]) -> Tensor:
        """Return the (N, 4) top, left, bottom, right of ``tiles`` in [0, 1] of the window at ``place``."""
        window = self.window(place)
        edges = torch.tensor([[tile.row, tile.col, *tile.stop] for tile in tiles], dtype=torch.float64) / self._ratio
        origin, side = edges.new_tensor([window.row, window.col] * 2), edges.new_tensor([window.height, window.width] * 2)
        return ((edges - origin) / side).float()


def context_pixels(scene: Source, bands: Sequence[int], ratio: int, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
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


def turned_boxes(boxes: Tensor, quarters: int, mirrored: bool) -> Tensor:
    """Return (N, 4) top, left, bottom, right in [0, 1] as they lie when what they are boxes of was mirrored, then turned."""
    top, left, bottom, right = boxes.unbind(1)
    if mirrored:
        left, right = 1 - right, 1 - left
    for _ in range(quarters):
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    return torch.stack([top, left, bottom, right], dim=1)


def _owner(spans: Sequence[tuple[int, int, int]], place: float) -> int:
    return next((index for index, (_, _, stop) in enumerate(spans) if place < stop), len(spans) - 1)
