"""The engine: rows read ahead, cut into windows, run through a network, collected into strips; memory grows with width × tile only."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Placement, Plan, Window, plan
from rsdistill.inference.backends import Backend
from rsdistill.inference.blending import Blend, Blender, CoreKeeper, Strip, Wanted, accumulator
from rsdistill.inference.reading import RowBuffer, Source, chunks_ahead, prefetch, read_rows
from rsdistill.reporting import SILENT, Progress, Task

T = TypeVar("T")
Within = Callable[[Window], NDArray[np.bool_]]
"""Says which pixels of a window of the scene are to be mapped."""


@dataclass
class Stats:
    """What a run through a scene did; filled while it goes on."""

    windows: int = 0
    """Windows that were read."""
    skipped: int = 0
    """Of these, windows without a pixel to map: they cost no forward pass."""
    network_seconds: float = 0.0
    """Wall-clock time inside the backend."""
    overlap_factor: float = 1.0
    """Pixels that pass through the network per pixel of the scene, had no window been skipped."""


def strips(
    scene: Source,
    backend: Backend,
    *,
    bands: Sequence[int],
    tile: int,
    margin: int,
    batch: int = 1,
    blend: Blend = "core",
    confidence: bool = False,
    probabilities: bool = False,
    window: Window | None = None,
    within: Within | None = None,
    stats: Stats | None = None,
    progress: Progress = SILENT,
) -> Iterator[Strip]:
    """Map ``scene`` from top to bottom and yield finished strips, of any height, that together cover it once.

    Windows lie on one grid that depends on the scene's size, ``tile`` and ``margin`` alone. So the map of a ``window`` is that part of
    the map of the scene, and neither batches, threads nor the heights of strips change a pixel (but for the rounding inside a network's
    convolutions, which may depend on the batch size).

    Args:
        scene: what is mapped.
        backend: what gives logits for a batch of windows.
        bands: 1-based bands that the network takes, in its order.
        tile: largest window side in pixels; a multiple of ``backend.stride``.
        margin: pixels on each inner side of a window whose result is not trusted, < ``tile`` / 2.
        batch: windows that pass through the network at once.
        blend: ``core`` takes each pixel from the one window that owns it; ``hann`` and ``gaussian`` average all that see it.
        confidence: yield the probability of the label too.
        probabilities: yield the probabilities of all classes too.
        window: the part of the scene that is mapped, all of it by default; strips are counted from its first row and column.
        within: says which pixels get a label; windows without any are skipped.
        stats: filled while the strips are made.
        progress: told of each window.

    Raises:
        ValueError: ``margin`` leaves no core in ``tile``, or ``tile`` is no multiple of the stride.
    """
    job = Job.of(plan(scene.grid.height, scene.grid.width, tile, margin, backend.stride), window or scene.grid.window, blend)
    stats = stats if stats is not None else Stats()
    stats.overlap_factor = job.plan.overlap_factor
    collect = accumulator(job.plan, job.area, backend.classes, wanted := Wanted(confidence, probabilities), blend)
    start = partial(backend.start, scores=wanted.scores or blend != "core")
    asked = collect.reach if blend == "core" else attrgetter("read")  # whether a blended window is run must not depend on ``window``
    # closed here: what failed keeps its frames, and with them the reader, until long after
    events = closing(_events(scene, job, bands, within, asked, stats))
    with events as found, progress.task(f"map {scene.grid.height} x {scene.grid.width}", len(job)) as task:
        yield from _collected(_in_flight(_groups(found, batch), start, backend.ahead, stats), collect, stats, task)


def _collected(
    answered: Iterable[tuple[list["Tile | RowDone"], Iterable[NDArray[Any]]]], collect: CoreKeeper | Blender, stats: Stats, task: Task
) -> Iterator[Strip]:
    """Collect each group's answers, and yield the strips that are then finished."""
    for group, answers in answered:
        outputs = iter(answers)
        for event in group:
            if isinstance(event, Tile):
                collect.add(event.placement, next(outputs), event.keep)
                task.advance(skipped=stats.skipped)
                continue
            task.advance(event.skipped)
            if (strip := collect.finish(event.row)) is not None:
                yield strip
            del strip  # not kept while the next one is filled


@dataclass(frozen=True)
class Job:
    """The windows of a plan that have a say in some area of the scene."""

    plan: Plan
    area: Window
    rows: range
    cols: range

    @classmethod
    def of(cls, windows: Plan, area: Window, blend: Blend) -> "Job":
        """Select the windows whose core (or, when blending, any pixel) lies in ``area``."""
        rows = _touching(windows.rows, windows.tile[0], area.row, area.stop[0], blend)
        return cls(windows, area, rows, _touching(windows.cols, windows.tile[1], area.col, area.stop[1], blend))

    @property
    def seen(self) -> Window:
        """The smallest window around all pixels that these windows read."""
        first = self.plan.placement(self.rows[0], self.cols[0]).read
        last = self.plan.placement(self.rows[-1], self.cols[-1]).read
        return Window(first.row, first.col, last.stop[0] - first.row, last.stop[1] - first.col)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)


class Tile(NamedTuple):
    """One window on its way through the network."""

    col: int
    """Column of the plan that it stands in."""
    placement: Placement
    image: NDArray[Any]
    """(C, T, T) of the plan's tile size, mirrored past the scene's edge."""
    valid: NDArray[np.bool_]
    """(T, T) likewise: where the network sees data."""
    keep: NDArray[np.bool_]
    """(h, w) of the pixels read: which get a label."""


class RowDone(NamedTuple):
    """All windows of one row of the plan have been cut."""

    row: int
    skipped: int


def _touching(spans: Sequence[tuple[int, int, int]], size: int, start: int, stop: int, blend: Blend) -> range:
    reaches = [(first, last) if blend == "core" else (top, top + size) for top, first, last in spans]
    touching = [index for index, (first, last) in enumerate(reaches) if first < stop and last > start]
    return range(touching[0], touching[-1] + 1)


def _events(
    scene: Source, job: Job, bands: Sequence[int], within: Within | None, asked: Callable[[Placement], Window], stats: Stats
) -> Generator[Tile | RowDone, None, None]:
    """Yield the tiles with something to map, row of windows by row, and the end of each; the next row's pixels are decoded meanwhile."""
    seen = job.seen
    with closing(prefetch(read_rows(scene, seen, bands), chunks_ahead(seen.width, job.plan.tile[0]))) as stream:
        buffer = RowBuffer(stream, job.plan.tile[0])
        for row in job.rows:
            first = job.plan.placement(row, job.cols[0]).read
            band = buffer.slide(first.row, first.stop[0])
            origin = Window(first.row, seen.col, first.height, seen.width)
            keep = band.valid if within is None else band.valid & within(origin)
            skipped = 0
            for col in job.cols:
                placement = job.plan.placement(row, col)
                stats.windows += 1
                if keep[asked(placement).relative_to(origin).slices].any():
                    pixels = placement.read.relative_to(origin).slices
                    yield _tile(col, placement, job.plan.tile, band.image[:, *pixels], band.valid[pixels], keep[pixels])
                else:
                    skipped += 1
                    stats.skipped += 1
            yield RowDone(row, skipped)


def _tile(
    col: int, placement: Placement, size: tuple[int, int], image: NDArray[Any], valid: NDArray[np.bool_], keep: NDArray[np.bool_]
) -> Tile:
    """Cut a window out of the row buffer, whose pixels stay as they are until the network has begun with all of its row.

    Which of them get a label is asked later, and so copied.
    """
    return Tile(col, placement, *padded(size, image, valid), keep.copy())


def padded(size: tuple[int, int], image: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return (C, h, w) pixels and their validity, mirrored up to the ``size`` that the stride asks for where the scene is smaller."""
    if valid.shape == size:
        return image, valid
    beyond = ((0, size[0] - valid.shape[0]), (0, size[1] - valid.shape[1]))
    return np.pad(image, ((0, 0), *beyond), "reflect"), np.pad(valid, beyond, "reflect")


def _groups(events: Iterable[Tile | RowDone], batch: int) -> Iterator[list[Tile | RowDone]]:
    """Group events, in order, so that up to ``batch`` tiles go through the network at once.

    Tiles share a batch where their columns of the plan, counted by ``batch``, are the same: that depends on nothing above or beside them,
    and a run that begins at some row, or maps some columns only, makes the same batches, and so the same bytes, as one over everything.
    """
    group: list[Tile | RowDone] = []
    for event in events:
        last = group[-1] if group else None
        if isinstance(event, Tile) and isinstance(last, Tile) and last.col // batch != event.col // batch:
            yield group
            group = []
        group.append(event)
        if isinstance(event, RowDone):
            yield group
            group = []


def _in_flight(
    groups: Iterable[list[Tile | RowDone]], start: Callable[..., Callable[[], NDArray[Any]]], ahead: int, stats: Stats
) -> Iterator[tuple[list[Tile | RowDone], Iterable[NDArray[Any]]]]:
    """Yield each group with its tiles' outputs, (K, T, T) logits or (T, T) labels, while ``ahead`` later ones are under way."""
    waiting: deque[tuple[list[Tile | RowDone], Callable[[], Iterable[NDArray[Any]]]]] = deque()
    for group in groups:
        waiting.append((group, _started([event for event in group if isinstance(event, Tile)], start, stats)))
        if len(waiting) > ahead:
            first, answer = waiting.popleft()
            yield first, _timed(answer, stats)
            del first, answer  # not kept while the next is computed
    for group, answer in waiting:
        yield group, _timed(answer, stats)


def _started(tiles: Sequence[Tile], start: Callable[..., Callable[[], NDArray[Any]]], stats: Stats) -> Callable[[], Iterable[NDArray[Any]]]:
    if not tiles:
        return tuple
    images, valid = _together([tile.image for tile in tiles]), _together([tile.valid for tile in tiles])
    return _timed(lambda: start(images, valid, [tile.placement.read for tile in tiles]), stats)


def _together(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack arrays; one alone is not copied."""
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][np.newaxis]


def _timed(call: Callable[[], T], stats: Stats) -> T:
    begin = perf_counter()
    result = call()
    stats.network_seconds += perf_counter() - begin
    return result
