"""How a map is cut into rectangles that can be made apart, byte for byte as if it were made in one piece.

A rectangle is made of whole *cells*. Where each pixel belongs to one window (``core``), cells are the cores of windows that pass the
network together, so that no window is run twice and none in other company. Where windows are blended, those on both sides of a cut are
needed by both: cells are then whole rows of windows, cut where a single window lies across.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Plan, Window
from rsdistill.inference.blending import Blend

BLOCK = 512
"""Cuts through windows lie on multiples of this where they can."""
EMPTY_COST = 0.02
"""Of a cell without data, relative to one that passes the network: it is read only."""


Holds = Callable[[Sequence[int], Sequence[int]], NDArray[np.bool_]]
"""Says of the cells between borders of rows and of columns whether there is anything to map in each; may err."""


def cut(plan: Plan, area: Window, blend: Blend, *, batch: int, count: int, holds_data: Holds) -> list[Window | None]:
    """Cut ``area`` into ``count`` rectangles of about the same work, by halves, from the upper left to the lower right.

    Args:
        plan: windows over the whole scene.
        area: what is mapped.
        blend: how windows overlap.
        batch: windows of one row that pass the network at once.
        count: of rectangles.
        holds_data: says which cells there is anything to map in.

    Returns:
        Rectangles that cover ``area`` once; None for each that there is no cell left for.
    """
    rows = _within(_row_cuts(plan, blend), area.row, area.stop[0])
    cols = _within(_col_cuts(plan, blend, batch), area.col, area.stop[1])
    costs = np.outer(np.diff(rows), np.diff(cols)).astype(np.float64) * np.where(holds_data(rows, cols), 1, EMPTY_COST)
    return [_window(part, rows, cols) for part in _divided(costs, Window(0, 0, *costs.shape), np.array(rows), np.array(cols), count)]


def _row_cuts(plan: Plan, blend: Blend) -> list[int]:
    if blend == "core":
        return [stop for _, _, stop in plan.rows[:-1]]
    return [_alone(*spans, plan.tile[0]) for spans in zip(plan.rows, plan.rows[1:], plan.rows[2:], strict=False)]


def _col_cuts(plan: Plan, blend: Blend, batch: int) -> list[int]:
    return [stop for _, _, stop in plan.cols[batch - 1 : -1 : batch]] if blend == "core" else []


def _alone(before: tuple[int, int, int], own: tuple[int, int, int], after: tuple[int, int, int], size: int) -> int:
    """Return where to cut through a window: on a multiple of :data:`BLOCK` that its neighbours do not see, or in the middle of its core."""
    first, stop = before[0] + size, after[0]
    aligned = -(-first // BLOCK) * BLOCK
    return aligned if first <= aligned <= stop else (own[1] + own[2]) // 2


def _within(cuts: Sequence[int], start: int, stop: int) -> list[int]:
    return [start, *(place for place in cuts if start < place < stop), stop]


def _divided(costs: NDArray[np.float64], part: Window, rows: NDArray[np.int_], cols: NDArray[np.int_], count: int) -> list[Window]:
    """Return ``count`` rectangles of cells; those past the last cell have no height."""
    if count == 1 or part.height * part.width <= 1:
        return [part, *[Window(part.row, part.col, 0, 0)] * (count - 1)]
    sides = rows[part.stop[0]] - rows[part.row], cols[part.stop[1]] - cols[part.col]
    down = part.width == 1 or (part.height > 1 and sides[0] >= sides[1])
    line = costs[part.slices].sum(axis=1 if down else 0)
    first = count // 2
    place = _place(line, line_cells=part.width if down else part.height, first=first, rest=count - first)
    if down:
        halves = part._replace(height=place), part._replace(row=part.row + place, height=part.height - place)
    else:
        halves = part._replace(width=place), part._replace(col=part.col + place, width=part.width - place)
    return _divided(costs, halves[0], rows, cols, first) + _divided(costs, halves[1], rows, cols, count - first)


def _place(line: NDArray[np.float64], *, line_cells: int, first: int, rest: int) -> int:
    """Return after which line to cut so that ``first`` of ``first + rest`` shares lie before it, and each share has a cell if it can."""
    least, greatest = -(-first // line_cells), len(line) - -(-rest // line_cells)
    places = np.arange(1, len(line))
    possible = places[(places >= least) & (places <= greatest)]
    places = possible if len(possible) else places
    shares = np.cumsum(line)[places - 1] / line.sum()
    return int(places[np.abs(shares - first / (first + rest)).argmin()])


def _window(part: Window, rows: Sequence[int], cols: Sequence[int]) -> Window | None:
    if 0 in part[2:]:
        return None
    top, left, bottom, right = rows[part.row], cols[part.col], rows[part.stop[0]], cols[part.stop[1]]
    return Window(top, left, bottom - top, right - left)
