"""The engine: rows read ahead, cut into windows, run through a network, collected into strips; memory grows with width × tile only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.windows import Placement, Plan, Window, plan
from rsdistill.inference.backends import Backend
from rsdistill.inference.blending import Blend, Blender, CoreKeeper, Strip, Wanted, accumulator
from rsdistill.inference.reading import RowBuffer, Source, prefetch, read_rows
from rsdistill.reporting import SILENT, Progress, Task

Within = Callable[[Window], NDArray[np.bool_]]
"""Says which pixels of a window of the scene are to be mapped."""
READ_AHEAD = 2
"""Chunks of rows that are decoded while the network works."""


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
    wanted = Wanted(confidence, probabilities)
    collect = accumulator(job.plan, job.area, backend.classes, wanted, blend)
    network = backend if wanted.scores or blend != "core" else backend.labels
    events = _events(scene, job, bands, within, collect.reach, stats)
    with progress.task(f"map {scene.grid.height} x {scene.grid.width}", len(job)) as task:
        yield from _collected(_groups(events, batch), network, collect, stats, task)


def _collected(
    groups: Iterable[list["Tile | RowDone"]],
    network: Callable[..., NDArray[Any]],
    collect: CoreKeeper | Blender,
    stats: Stats,
    task: Task,
) -> Iterator[Strip]:
    """Run each group of tiles through the network and yield the strips that are then finished."""
    for group in groups:
        outputs = iter(_run(network, [event for event in group if isinstance(event, Tile)], stats))
        for event in group:
            if isinstance(event, Tile):
                collect.add(event.placement, next(outputs), event.keep)
                task.advance(skipped=stats.skipped)
                continue
            task.advance(event.skipped)
            if (strip := collect.finish(event.row)) is not None:
                yield strip


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
    scene: Source, job: Job, bands: Sequence[int], within: Within | None, reach: Callable[[Placement], Window], stats: Stats
) -> Iterator[Tile | RowDone]:
    """Yield the tiles with something to map, row of windows by row, and the end of each row."""
    seen = job.seen
    with closing(prefetch(read_rows(scene, seen, bands), READ_AHEAD)) as stream:
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
                if keep[reach(placement).relative_to(origin).slices].any():
                    pixels = placement.read.relative_to(origin).slices
                    yield _tile(placement, job.plan.tile, band.image[:, *pixels], band.valid[pixels], keep[pixels])
                else:
                    skipped += 1
                    stats.skipped += 1
            yield RowDone(row, skipped)


def _tile(placement: Placement, size: tuple[int, int], image: NDArray[Any], valid: NDArray[np.bool_], keep: NDArray[np.bool_]) -> Tile:
    """Copy a window out of the row buffer; mirror it up to the size that the network's stride asks for where the scene is smaller."""
    beyond = ((0, size[0] - valid.shape[0]), (0, size[1] - valid.shape[1]))
    return Tile(placement, np.pad(image, ((0, 0), *beyond), "reflect"), np.pad(valid, beyond, "reflect"), keep.copy())


def _groups(events: Iterable[Tile | RowDone], batch: int) -> Iterator[list[Tile | RowDone]]:
    """Group events, in order, so that ``batch`` tiles go through the network at once.

    A row of windows ends its batch: which tiles share one then depends on nothing above, and a run that goes on from some row makes the
    same batches, and so the same bytes, as one that began at the top.
    """
    group: list[Tile | RowDone] = []
    for event in events:
        group.append(event)
        if len(group) == batch or isinstance(event, RowDone):
            yield group
            group = []


def _run(network: Callable[..., NDArray[Any]], tiles: Sequence[Tile], stats: Stats) -> Iterable[NDArray[Any]]:
    """Return each tile's output, (K, T, T) logits or (T, T) labels."""
    if not tiles:
        return ()
    images, valid = np.stack([tile.image for tile in tiles]), np.stack([tile.valid for tile in tiles])
    start = perf_counter()
    outputs = network(images, valid, [tile.placement.read for tile in tiles])
    stats.network_seconds += perf_counter() - start
    return outputs
