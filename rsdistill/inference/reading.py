"""Rows of a scene, read ahead in a thread so that decoding never waits for the network, nor the network for it."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Grid, Window
from rsdistill.outputs.behind import one_thread

T = TypeVar("T")

CHUNK_ROWS = 128
"""Rows read at once. Higher blocks are decoded once all the same: the block cache holds a row of them."""
AHEAD_PIXELS = 8 << 20
"""Pixels read ahead at most: the windows of so many keep a network busy while the rows below them are decoded."""


class Source(Protocol):
    """What can be mapped: a scene, or something that looks like one."""

    @property
    def grid(self) -> Grid:
        """Where its pixels lie."""

    @property
    def block_shape(self) -> tuple[int, int]:
        """Height and width of the file's blocks."""

    def read(self, window: Window, bands: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the (C, h, w) pixels and (h, w) validity of ``window``."""

    def reopen(self) -> AbstractContextManager["Source"]:
        """Return the same source with a file handle of its own, for another thread."""


class Rows(NamedTuple):
    """Some whole rows of a column range."""

    row: int
    """The first of them, counted in the scene."""
    image: NDArray[Any]
    """(C, h, w) as the file has it; 0 where not valid."""
    valid: NDArray[np.bool_]
    """(h, w)."""


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield ``items``, drawn in a thread that stays up to ``depth`` of them ahead.

    An error of ``items`` is raised here, in its place. Closing this generator closes ``items``, in the thread that drew them.
    """
    end = object()
    with one_thread() as thread:
        ahead: deque[Future[object]] = deque()
        try:
            ahead.extend(thread.submit(next, items, end) for _ in range(depth))
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, items, end))
                yield cast(T, item)
                del item  # not kept while the next one is waited for
        finally:
            for waiting in ahead:
                waiting.cancel()
            thread.submit(items.close).result()


def chunks_ahead(width: int, height: int) -> int:
    """Return how many chunks of rows are read ahead: a row of windows of that ``height``, less where it is very wide, two at least."""
    return max(2, min(height, AHEAD_PIXELS // width) // CHUNK_ROWS)


def read_rows(scene: Source, area: Window, bands: Sequence[int]) -> Generator[Rows, None, None]:
    """Yield the rows of ``area`` from top to bottom, cut where the file's blocks are cut so that each block is decoded once."""
    step = _chunk_rows(scene.block_shape[0])
    with scene.reopen() as own:
        row, stop = area.row, area.stop[0]
        while row < stop:
            until = min(stop, (row // step + 1) * step)
            yield Rows(row, *own.read(Window(row, area.col, until - row, area.width), bands))
            row = until


def _chunk_rows(block_rows: int) -> int:
    return max(1, CHUNK_ROWS // block_rows) * block_rows if block_rows < CHUNK_ROWS else CHUNK_ROWS


class RowBuffer:
    """A buffer of ``height`` rows that slides down a stream of rows; rows shared by two windows are read once."""

    def __init__(self, stream: Iterator[Rows], height: int) -> None:
        self._stream = stream
        self._height = height
        self._first = self._stop = 0
        self._rest: Rows | None = None
        self._image: NDArray[Any] | None = None
        self._valid: NDArray[np.bool_] | None = None

    def slide(self, top: int, stop: int) -> Rows:
        """Return rows [``top``, ``stop``), at most ``height`` of them; neither bound ever goes back.

        The arrays are views that the next call overwrites.
        """
        image, valid = self._buffers()
        kept = max(0, self._stop - top)
        if kept and top > self._first:
            for plane in (*image, valid):
                plane[:kept] = plane[top - self._first : self._stop - self._first]
        self._first, self._stop = top, top + kept
        while self._stop < stop:
            self._append(stop, image, valid)
        return Rows(top, image[:, : stop - top], valid[: stop - top])

    def _buffers(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if self._image is None or self._valid is None:
            first = self._rest = next(self._stream)
            bands, _, width = first.image.shape
            self._image = np.zeros((bands, self._height, width), first.image.dtype)
            self._valid = np.zeros((self._height, width), bool)
        return self._image, self._valid

    def _append(self, stop: int, image: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Take rows that are still missing from the chunk at hand, and let go of a chunk that is used up."""
        chunk = self._rest if self._rest is not None else next(self._stream)
        end = chunk.row + chunk.valid.shape[0]
        until = min(stop, end)
        if until > self._stop:
            source, target = slice(self._stop - chunk.row, until - chunk.row), slice(self._stop - self._first, until - self._first)
            image[:, target], valid[target] = chunk.image[:, source], chunk.valid[source]
            self._stop = until
        self._rest = chunk if end > stop else None
