"""Windows of a scene's context: where the global branch looks, which of them owns a tile, and what of each has to be kept."""

from collections.abc import Callable, Hashable, Sequence
from math import ceil, floor

import torch
from torch import Tensor

from rsdistill.batches import Segmentation
from rsdistill.geo.windows import Plan, Window, plan
from rsdistill.inference.symmetries import UPRIGHT, Turn

CELL = 32
"""Side in context pixels of the coarsest map's cells."""
RIM = 2
"""Coarsest cells beside a tile that the interpolation at its border may read, wherever an encoder's cells lie."""

_EXACT = 1e-6
"""Cells by which a rounded edge may be off."""

Place = tuple[int, int]
"""Row and column of a window of the context."""


class ContextWindows:
    """Windows of the context on whole cells of its coarsest map, each the owner of the tiles in its core."""

    def __init__(self, cells: Plan, size: tuple[int, int], ratio: int, reach: int) -> None:
        self._cells, self._size, self._ratio, self._reach = cells, size, ratio, reach
        self.height = min(size[0], cells.tile[0] * CELL)
        """Context rows that one window has at most."""

    @classmethod
    def over(cls, size: tuple[int, int], ratio: int, margin: int, tile: tuple[int, int], window: int) -> "ContextWindows":
        """Lay windows over a context so that ``margin`` context pixels around every tile are seen.

        Args:
            size: (height, width) of the context in its pixels.
            ratio: scene pixels along the side of one context pixel.
            margin: context pixels around a tile.
            tile: (height, width) of the tiles in scene pixels.
            window: largest side of a window in context pixels; larger where the margin would leave too little of it.
        """
        half = max(tile) / ratio / 2
        rim = ceil((margin + half) / CELL)
        cells = plan(ceil(size[0] / CELL), ceil(size[1] / CELL), max(window // CELL, 4 * rim), rim)
        return cls(cells, size, ratio, ceil(half / CELL) + RIM)

    def __len__(self) -> int:
        return len(self._cells)

    def window(self, place: Place) -> Window:
        """Return the context pixels that the global branch sees of the window at ``place``."""
        return self._pixels(self._cells.placement(*place).read)

    def kept(self, place: Place, turn: Turn = UPRIGHT) -> tuple[slice, slice]:
        """Return the rows and columns of the window at ``place``, turned, that its tiles can read: whole cells of the coarsest map."""
        window, (read, core) = self.window(place), self._cells.placement(*place)
        edges = [start - self._reach - first for start, first in zip(core[:2], read[:2], strict=True)]
        edges += [stop + self._reach - first for stop, first in zip(core.stop, read[:2], strict=True)]
        size = torch.tensor([window.height, window.width], dtype=torch.float64).repeat(2)
        top, left, bottom, right = (turned_boxes(torch.tensor([edges]) * CELL / size, *turn)[0] * _turned(size, turn)).tolist()
        height, width = _turned(size, turn)[:2].int().tolist()
        return whole_cells(top, bottom, height), whole_cells(left, right, width)

    def owner(self, tile: Window) -> Place:
        """Return the place of the window whose core holds the middle of ``tile``, a window of the scene."""
        side = self._ratio * CELL
        row, col = (tile.row + tile.height / 2) / side, (tile.col + tile.width / 2) / side
        return _owner(self._cells.rows, row), _owner(self._cells.cols, col)

    def boxes(self, place: Place, tiles: Sequence[Window], turn: Turn = UPRIGHT) -> Tensor:
        """Return the (N, 4) top, left, bottom, right of ``tiles``, turned, in [0, 1] of what is kept of the window at ``place``."""
        window, (rows, cols) = self.window(place), self.kept(place, turn)
        size = torch.tensor([window.height, window.width], dtype=torch.float64).repeat(2)
        origin, extent = torch.tensor([rows.start, cols.start] * 2), torch.tensor([rows.stop - rows.start, cols.stop - cols.start] * 2)
        pixels = turned_boxes(boxes_in(window, tiles, self._ratio), *turn) * _turned(size, turn)
        return ((pixels - origin) / extent).float()

    def _pixels(self, cells: Window) -> Window:
        row, col = cells.row * CELL, cells.col * CELL
        bottom, right = (min(stop * CELL, side) for stop, side in zip(cells.stop, self._size, strict=True))
        return Window(row, col, bottom - row, right - col)


def boxes_in(context: Window, tiles: Sequence[Window], ratio: int) -> Tensor:
    """Return the (N, 4) top, left, bottom, right of ``tiles``, in scene pixels, in [0, 1] of ``context``, in context pixels."""
    edges = torch.tensor([[tile.row, tile.col, *tile.stop] for tile in tiles], dtype=torch.float64) / ratio
    origin, side = edges.new_tensor([context.row, context.col] * 2), edges.new_tensor([context.height, context.width] * 2)
    return (edges - origin) / side


def turned_boxes(boxes: Tensor, quarters: int, mirrored: bool) -> Tensor:
    """Return (N, 4) top, left, bottom, right in [0, 1] as they lie when what they are boxes of was mirrored, then turned."""
    top, left, bottom, right = boxes.unbind(1)
    if mirrored:
        left, right = 1 - right, 1 - left
    for _ in range(quarters):
        top, left, bottom, right = 1 - right, top, 1 - left, bottom
    return torch.stack([top, left, bottom, right], dim=1)


def in_groups(keys: Sequence[Hashable], answer: Callable[[list[int]], Segmentation]) -> Segmentation:
    """Return the answers to all of a batch, whose members are asked together where their keys are equal."""
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    parts = [answer(members) for members in groups.values()]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([number for members in groups.values() for number in members]).argsort()

    def joined(maps: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(maps))[order.to(maps[0].device)]

    logits, features, stages, aux = zip(*parts, strict=True)
    return Segmentation(
        joined(logits), joined(features), tuple(map(joined, zip(*stages, strict=True))), None if aux[0] is None else joined(aux)
    )


def _turned(size: Tensor, turn: Turn) -> Tensor:
    return size if turn[0] % 2 == 0 else size.roll(1)


def whole_cells(start: float, stop: float, side: int) -> slice:
    """Return the pixels from ``start`` to ``stop`` and those up to whole cells around them, none beyond ``side``."""
    return slice(max(0, floor(start / CELL + _EXACT) * CELL), min(side, ceil(stop / CELL - _EXACT) * CELL))


def _owner(spans: Sequence[tuple[int, int, int]], place: float) -> int:
    return next((index for index, (_, _, stop) in enumerate(spans) if place < stop), len(spans) - 1)
