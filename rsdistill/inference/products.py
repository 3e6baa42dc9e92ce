"""From finished strips to files: masks, confidence and probabilities while strips come, polygons and pictures from the finished mask."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.geo.classes import ClassTable
from rsdistill.geo.windows import Grid, Window
from rsdistill.inference.blending import INVALID, Strip
from rsdistill.inference.scores import Floats
from rsdistill.outputs import WRITERS
from rsdistill.outputs.cog import Compression
from rsdistill.outputs.geotiff import FloatRasterWriter, LabelRasterWriter

FILL_ROWS = 512
"""Rows without data that are written at once above and below what is mapped."""
COUNT_ROWS = 32
"""Rows whose classes are counted at once."""


@dataclass(frozen=True)
class Products:
    """The files that one scene becomes."""

    outs: tuple[Path, ...]
    """Masks, polygons and pictures, by suffix."""
    confidence: Path | None = None
    probabilities: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (*self.outs, *(path for path in (self.confidence, self.probabilities) if path))

    @property
    def absolute(self) -> "Products":
        """The same files by paths that mean the same in every folder."""
        shares = (path and path.absolute() for path in (self.confidence, self.probabilities))
        return Products(tuple(path.absolute() for path in self.outs), *shares)

    def of_kind(self, kind: str) -> list[Path]:
        """Return those of ``outs`` that are a raster, polygons or a picture."""
        return [path for path in self.outs if WRITERS[path.suffix.lower()] == kind]


@dataclass(frozen=True)
class Look:
    """How files are written."""

    compress: Compression = "deflate"
    creation_options: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    min_area: float = 0.0
    simplify: float = 0.0
    aoi: Any = None
    """Area in the scene's CRS (a shapely geometry) that polygons are clipped to."""
    overwrite: bool = False


def write_products(
    strips: Iterable[Strip], grid: Grid, table: ClassTable, products: Products, look: Look, *, scene: Path | None = None
) -> list[int]:
    """Write the files of one scene and return the count of pixels of each class; each file appears whole or not at all.

    Args:
        strips: cover ``grid`` from top to bottom, counted from its corner.
        grid: of the masks.
        table: ids, names and colours.
        products: files to write.
        look: how to write them.
        scene: raster on ``grid`` that pictures show beneath the classes.

    Raises:
        DiskError: a file cannot be written.
    """
    rasters = products.of_kind("raster")
    with ExitStack() as stack:
        mask = rasters[0] if rasters else temporary_mask(stack, products.outs)
        counts = _write_rasters(strips, grid, table, rasters or [mask], products, look)
        write_drawn(mask, table, products, look, scene)
    return counts


def framed(strips: Iterable[Strip], area: Window, frame: Window, classes: int) -> Generator[Strip, None, None]:
    """Yield ``strips`` of ``area`` as strips of ``frame``, a window around it; what lies between has no data."""
    if area == frame:
        yield from strips
        return
    place = area.relative_to(frame)
    like: Strip | None = None
    done = 0
    for strip in strips:
        like = like or strip
        yield from _blank(like, done, place.row + strip.row, frame.width, classes)
        done = place.row + strip.row + strip.labels.shape[0]
        sides = (place.col, frame.width - place.stop[1])
        yield Strip(
            place.row + strip.row,
            np.pad(strip.labels, ((0, 0), sides), constant_values=INVALID),
            _widened(strip.confidence, sides),
            _widened(strip.probabilities, sides),
        )
    if like is not None:
        yield from _blank(like, done, frame.height, frame.width, classes)


def _write_rasters(
    strips: Iterable[Strip], grid: Grid, table: ClassTable, masks: Sequence[Path], products: Products, look: Look
) -> list[int]:
    how: dict[str, Any] = {
        "compress": look.compress,
        "creation_options": look.creation_options,
        "tags": look.tags,
        "overwrite": look.overwrite,
    }
    counts = np.zeros(len(table), np.int64)
    with ExitStack() as stack:
        labels = [stack.enter_context(LabelRasterWriter(mask, grid, table, **how)) for mask in masks]
        confidence = products.confidence and stack.enter_context(FloatRasterWriter(products.confidence, grid, **how))
        odds = products.probabilities and stack.enter_context(FloatRasterWriter(products.probabilities, grid, table.names, **how))
        for strip in strips:
            counts += count_classes(strip.labels, len(table))
            for writer in labels:
                writer.write(strip.row, strip.labels)
            if confidence and strip.confidence is not None:
                confidence.write(strip.row, strip.confidence)
            if odds and strip.probabilities is not None:
                odds.write(strip.row, strip.probabilities)
            del strip  # not kept while the next one is filled
    return counts.tolist()


def count_classes(labels: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return the (classes,) count of each class index among (h, w) labels.

    A comparison for each class, on rows that stay in the processor's cache: ``bincount`` makes eight bytes of each pixel first, and takes
    eight times as long for six classes.
    """
    counts = np.zeros(classes, np.int64)
    for top in range(0, len(labels), COUNT_ROWS):
        rows = labels[top : top + COUNT_ROWS]
        counts += [np.count_nonzero(rows == number) for number in range(classes)]
    return counts


def write_drawn(mask: Path, table: ClassTable, products: Products, look: Look, scene: Path | None) -> None:
    """Write what is made from a finished mask."""
    for path in products.of_kind("polygons"):
        from rsdistill.outputs.polygons import write_polygons

        how: dict[str, Any] = {"min_area": look.min_area, "simplify": look.simplify or None}
        write_polygons(mask, path, table, confidence=products.confidence, aoi=look.aoi, **how)
    for path in products.of_kind("picture"):
        from rsdistill.outputs.quicklook import draw_quicklook

        draw_quicklook(mask, path, table, scene=scene)


def temporary_mask(stack: ExitStack, outs: Sequence[Path]) -> Path:
    """Return the name of a mask that nobody asked for, on the disk that takes the results; it goes when ``stack`` closes."""
    folder = outs[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    return Path(stack.enter_context(TemporaryDirectory(prefix=f".{outs[0].stem}.", dir=folder))) / "mask.tif"


def _blank(like: Strip, row: int, stop: int, width: int, classes: int) -> Iterator[Strip]:
    """Yield rows without data that carry what ``like`` carries."""
    for first in range(row, stop, FILL_ROWS):
        shape = (min(FILL_ROWS, stop - first), width)
        yield Strip(
            first,
            np.full(shape, INVALID, np.uint8),
            None if like.confidence is None else np.full(shape, np.nan, np.float32),
            None if like.probabilities is None else np.full((classes, *shape), np.nan, np.float32),
        )


def _widened(values: Floats | None, sides: tuple[int, int]) -> Floats | None:
    if values is None:
        return None
    return np.pad(values, (*[(0, 0)] * (values.ndim - 1), sides), constant_values=np.nan)
