"""A tile set's files under construction: labels brought to the scenes' grids, statistics, context and chips, chunk by chunk."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.geo.context import area_mean, context_grid, context_window, majority
from rsdistill.geo.labels import Labels
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.tile_index import TileRow
from rsdistill.geo.windows import Grid, Window
from rsdistill.geo.writing import STRIP, RasterWriter
from rsdistill.reporting import Task

_CHUNK_WIDTH, _CHUNK_BYTES = 4096, 128 << 20
"""Most columns that are worked on at a time, and what they may take: memory grows neither with a scene's width nor with its bands."""


def chunk_width(pixel_bytes: int) -> int:
    """Columns of a chunk whose pixels take so many bytes, all bands together; a multiple of the context's ratio."""
    return max(64, min(_CHUNK_WIDTH, _CHUNK_BYTES // (STRIP * pixel_bytes) // 64 * 64))


def count_chunks(scene: Scene, bands: Sequence[int]) -> int:
    """Chunks that a scene is worked on in."""
    return ceil(scene.grid.height / STRIP) * ceil(scene.grid.width / _width(scene, bands))


def _width(scene: Scene, bands: Sequence[int]) -> int:
    return chunk_width(len(bands) * np.dtype(scene.dtype).itemsize)


def read_chunks(scene: Scene, bands: Sequence[int], task: Task) -> Iterator[tuple[Window, NDArray[Any], NDArray[np.bool_]]]:
    """Yield (window, (C, h, w) values, (h, w) valid) of the scene, each pixel once; corners lie on the context grid."""
    height, width, wide = scene.grid.height, scene.grid.width, _width(scene, bands)
    for row in range(0, height, STRIP):
        for col in range(0, width, wide):
            window = Window(row, col, min(STRIP, height - row), min(wide, width - col))
            yield window, *scene.read(window, bands)
            task.advance()


class Tally:
    """What the tiles of one scene hold: valid pixels, and pixels of each class."""

    def __init__(self, windows: Sequence[Window], classes: int) -> None:
        self.valid = np.zeros(len(windows), np.int64)
        """(N,)"""
        self.classes = np.zeros((len(windows), classes), np.int64)
        """(N, K)"""
        self._windows = _Windows(windows)

    def add(self, chunk: Window, index: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        """Count the (h, w) class index and validity of a chunk of the scene."""
        for i, part in self._windows.within(chunk):
            self.valid[i] += np.count_nonzero(valid[part.slices])
            self.classes[i] += _histogram(index[part.slices], self.classes.shape[1])


def align(
    scene: Scene, bands: Sequence[int], labels: Labels | None, table: ClassTable, tally: Tally, path: Path, task: Task
) -> NDArray[np.int64]:
    """Write the labels on the scene's grid (class ids; nodata where there is none), and count what the tiles hold.

    Returns:
        (K,) pixels of each class in the whole scene.

    Raises:
        SceneError, LabelError: rows cannot be read, or labels hold an unknown value.
    """
    totals = np.zeros(len(table), np.int64)
    if labels is None:
        for chunk, _, valid in read_chunks(scene, bands, task):
            tally.add(chunk, np.full(valid.shape, IGNORE, np.uint8), valid)
        return totals
    with label_raster(path, scene.grid, table) as writer:
        for chunk, _, valid in read_chunks(scene, bands, task):
            index = labels.read(chunk)
            totals += _histogram(index, len(table))
            index[~valid] = IGNORE
            writer.write(chunk, table.to_ids(index)[None])
            tally.add(chunk, index, valid)
    return totals


def label_raster(path: Path, grid: Grid, table: ClassTable) -> RasterWriter:
    """A raster of class ids under construction, in the table's colours where its type allows a palette."""
    palette = {one.id: one.rgb for one in table.classes} if table.dtype == "uint8" else None
    return RasterWriter(path, grid, bands=1, dtype=table.dtype, nodata=table.nodata, names=("class",), palette=palette)


class BandStatistics:
    """Mean and variance of each band, gathered chunk by chunk in float64 (Chan, Golub and LeVeque's pairwise update)."""

    def __init__(self, bands: int) -> None:
        self._count = 0
        self._mean, self._squares = np.zeros(bands), np.zeros(bands)

    def add(self, values: NDArray[Any], where: NDArray[np.bool_]) -> None:
        """Take the pixels of (C, h, w) values where ``where`` is True."""
        count = int(np.count_nonzero(where))
        if not count:
            return
        total = self._count + count
        for band, layer in enumerate(values):
            pixels = layer[where].astype(np.float64)
            mean = pixels.mean()
            step = mean - self._mean[band]
            self._squares[band] += np.square(pixels - mean).sum() + step * step * self._count * count / total
            self._mean[band] += step * count / total
        self._count = total

    def join(self, other: "BandStatistics") -> None:
        """Take all pixels that ``other`` has taken."""
        total = self._count + other._count
        if not total:
            return
        step = other._mean - self._mean
        self._squares += other._squares + step * step * (self._count * other._count / total)
        self._mean += step * (other._count / total)
        self._count = total

    @property
    def mean(self) -> tuple[float, ...]:
        """Per band."""
        return tuple(self._mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Per band; 1 where a band does not vary."""
        deviation = np.sqrt(self._squares / max(1, self._count))
        return tuple(np.where(deviation > 0, deviation, 1.0).tolist())


class Summary(NamedTuple):
    """Where a scene's context goes, and what it is made from."""

    context: Path
    aligned: Path | None
    """Label raster on the scene's grid."""
    majority: Path


def summarise(
    scene: Scene,
    bands: Sequence[int],
    dtype: str,
    training: Sequence[Window],
    table: ClassTable,
    files: Summary,
    statistics: BandStatistics,
    task: Task,
) -> None:
    """Write a scene's context, and the majority labels of its training tiles; take their valid pixels, each once, into ``statistics``."""
    grid, windows = context_grid(scene.grid), _Windows(training)
    names = [scene.descriptions[band - 1] for band in bands]
    with ExitStack() as stack:
        context = stack.enter_context(RasterWriter(files.context, grid, bands=len(bands), dtype=dtype, names=names, masked=True))
        label = stack.enter_context(open_scene(files.aligned)) if files.aligned else None
        small = stack.enter_context(label_raster(files.majority, grid, table)) if files.aligned else None
        for chunk, values, valid in read_chunks(scene, bands, task):
            inside = np.zeros(valid.shape, bool)
            for _, part in windows.within(chunk):
                inside[part.slices] = True
            statistics.add(values, inside & valid)
            context.write(context_window(chunk), *area_mean(values.astype(dtype, copy=False), valid))
            if label is not None and small is not None:
                index = _read_ids(label, chunk, table)
                index[~inside] = IGNORE
                small.write(context_window(chunk), table.to_ids(majority(index, len(table)))[None])


def cut_chips(
    scene: Scene, bands: Sequence[int], dtype: str, rows: Iterable[TileRow], table: ClassTable, aligned: Path | None, folder: Path
) -> None:
    """Cut a scene's tiles into georeferenced files for other tools: ``<split>/images/`` and ``<split>/labels/``."""
    names = [scene.descriptions[band - 1] for band in bands]
    with ExitStack() as stack:
        label = stack.enter_context(open_scene(aligned)) if aligned else None
        for row in rows:
            grid, name = scene.grid[row.window], f"{row.scene}_r{row.window.row:06d}_c{row.window.col:06d}.tif"
            places = {kind: folder / row.split / kind / name for kind in ("images", "labels")}
            for place in places.values():
                place.parent.mkdir(parents=True, exist_ok=True)
            values, valid = scene.read(row.window, bands)
            with RasterWriter(places["images"], grid, bands=len(bands), dtype=dtype, names=names, masked=not valid.all()) as writer:
                writer.write(grid.window, values.astype(dtype, copy=False), valid)
            if label is not None and row.labelled:
                with label_raster(places["labels"], grid, table) as writer:
                    writer.write(grid.window, table.to_ids(_read_ids(label, row.window, table))[None])


def _read_ids(label: Scene, window: Window, table: ClassTable) -> NDArray[np.uint8]:
    """(h, w) class index of an aligned label raster."""
    ids, known = label.read(window, (1,))
    return table.from_ids(np.where(known, ids[0], table.nodata))


def _histogram(index: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """(K,) pixels of each class."""
    return np.bincount(index.ravel(), minlength=IGNORE + 1)[:classes]


class _Windows:
    """Windows that are asked again and again which of them meet a chunk."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows
        self._edges = np.array([(*window[:2], *window.stop) for window in windows], np.int64).reshape(-1, 4).T

    def within(self, chunk: Window) -> Iterator[tuple[int, Window]]:
        """(position, the part inside the chunk, counted from its corner) of every window that meets it."""
        top, left, bottom, right = self._edges
        meets = (top < chunk.stop[0]) & (bottom > chunk.row) & (left < chunk.stop[1]) & (right > chunk.col)
        for i in np.flatnonzero(meets).tolist():
            yield i, self._windows[i].intersection(chunk).relative_to(chunk)
