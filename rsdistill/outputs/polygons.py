"""Polygons of a mask: one for each connected region of a class, with names, colours, areas and confidence, in bounded memory."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray

from rsdistill.errors import ConfigError, MaskError
from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.geo.files import atomic, refuse_existing
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.windows import Grid
from rsdistill.outputs.measuring import Measure
from rsdistill.outputs.regions import Strip
from rsdistill.outputs.sieving import sieve
from rsdistill.outputs.simplifying import simplify_coverage
from rsdistill.outputs.stitching import Polygons, whole_polygons
from rsdistill.outputs.styles import add_layer_style, class_style
from rsdistill.outputs.vectors import DRIVERS, GEOMETRY, Columns, write_vectors

STRIP_PIXELS = 1 << 22
"""Pixels that are worked on at once: some 200 MB on the noisiest mask."""


def write_polygons(
    mask: Path,
    path: Path,
    table: ClassTable,
    *,
    min_area: float = 0,
    simplify: float | None = None,
    confidence: Path | None = None,
    aoi: shapely.Geometry | None = None,
    layer: str | None = None,
) -> int:
    """Turn the mask into polygons, with their style inside the file (GeoPackage) or beside it; return how many there are.

    The polygons are valid, cover the valid pixels without gap or overlap, and are the same however the mask is read. A file that stands
    under the name is replaced.

    Args:
        mask: label raster of class ids.
        path: file to make; its suffix (.gpkg, .fgb, .geojson, .parquet) picks the format. GeoJSON is in longitude and latitude.
        table: the mask's classes.
        min_area: smaller regions go to the neighbour with which they share the longest border; m², or pixels where no CRS is known.
        simplify: straighten outlines, each common border once: about the side of the details that go, in metres (or pixels). All
            polygons are then in memory at once.
        confidence: raster of confidence on the same grid, averaged over each polygon.
        aoi: polygons are clipped to this area, which is in the mask's CRS.
        layer: name of the layer; by default the file's stem.

    Raises:
        ConfigError: another suffix.
        MaskError: the mask holds ids that the table does not, or the confidence lies on another grid.
        DiskError: the file could not be written whole.
    """
    if path.suffix not in DRIVERS:
        raise ConfigError(f"{path} names no format of polygons", hint="suffixes: " + " ".join(DRIVERS))
    refuse_existing([path], overwrite=True)
    layer = layer or path.stem
    with open_scene(mask) as labels:
        measure = Measure(labels.grid)
        strips = partial(read_strips, labels, table, confidence)
        if min_area > 0:
            strips = partial(sieve, strips, min_area / measure.pixel_area)
        polygons = whole_polygons(strips())
        if simplify:
            polygons = simplify_coverage(polygons, simplify / measure.pixel_area**0.5)
        if aoi is not None:
            polygons = clip(polygons, measure.to_pixels(np.array([aoi], object))[0])
        with atomic(path) as made:
            count = write_vectors(made, layer, labels.grid.crs, (to_columns(some, table, measure, confidence) for some in polygons))
            if path.suffix == ".gpkg":
                add_layer_style(made, layer, class_style(table), column=GEOMETRY)
    if path.suffix != ".gpkg":
        with atomic(path.with_suffix(".qml")) as made:
            made.write_text(class_style(table), encoding="utf-8")
    return count


def read_strips(mask: Scene, table: ClassTable, confidence: Path | None = None) -> Iterator[Strip]:
    """Yield the class indices of a mask from the top, and their confidence where it is given.

    Raises:
        MaskError: an id that the table does not hold, or a confidence on another grid.
    """
    shares = _Confidence(confidence, mask.grid) if confidence else None
    for window, values, valid in mask.strips([1], max(1, min(512, STRIP_PIXELS // mask.grid.width))):
        ids = values[0]
        unknown = np.setdiff1d(ids[valid], [*table.ids, table.nodata])
        if len(unknown):
            raise MaskError(f"{mask.path} holds the value {unknown[0]}, which is no class", hint="give the class table it was made with")
        index = np.where(valid, table.from_ids(np.where(valid, ids, table.nodata)), np.uint8(IGNORE))
        yield Strip(window.row, index, shares.read(window.row, window.height) if shares else None)
