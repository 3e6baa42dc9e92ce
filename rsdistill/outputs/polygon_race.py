"""Polygons in the benchmark: from a mask to a GeoPackage, beside what it costs to drain GDAL's own polygonizer and keep nothing."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import NamedTuple

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes

from rsdistill.geo.classes import ClassTable
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter
from rsdistill.outputs.polygons import write_polygons

CELL = 16
"""Side of the squares whose borders are frayed."""


class PolygonRace(NamedTuple):
    """What was found; times are CPU seconds."""

    seconds: float
    drain_seconds: float
    polygons: int
    expected: int
    """Regions that GDAL finds, connected by edges."""
    invalid: int
    area_error: float
    """Of all polygons together, relative to the valid pixels'."""


def draw_regions(path: Path, size: int) -> tuple[Path, ClassTable]:
    """Write a mask of some ten thousand ragged regions, unless it is there; return it and its classes."""
    classes = [{"id": number, "name": f"class {number}", "color": "#808080"} for number in range(1, 5)]
    table = ClassTable.from_card(classes, ())
    if not path.exists():
        rng = np.random.default_rng(0)
        cells = rng.integers(0, 4, (size // CELL, size // CELL)).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
        rows, cols = np.indices(cells.shape) + rng.integers(-1, 2, (2, *cells.shape))
        ragged = cells[rows.clip(0, len(cells) - 1), cols.clip(0, len(cells) - 1)]
        with LabelRasterWriter(path, Grid(size, size, CRS.from_epsg(32633), Affine(1, 0, 4e5, 0, -1, 5e6)), table) as writer:
            writer.write(0, ragged)
    return path, table


def race(mask: Path, table: ClassTable) -> PolygonRace:
    """Vectorise ``mask``, which has a CRS in metres, and count what GDAL finds in it."""
    with TemporaryDirectory() as folder:
        start = process_time()
        write_polygons(mask, Path(folder) / "p.gpkg", table)
        seconds = process_time() - start
        geometry = shapely.from_wkb(pyogrio.raw.read(Path(folder) / "p.gpkg", layer="p", columns=[])[2])
    with rasterio.open(mask) as file:
        values, transform = file.read(1), file.transform
        known = values != file.nodata
    start = process_time()
    expected = sum(1 for _ in shapes(values, mask=known, connectivity=4, transform=transform))
    drained = process_time() - start
    area = float(known.sum()) * abs(transform.determinant)
    error = abs(float(np.sum(shapely.area(geometry))) - area) / max(area, 1.0)
    return PolygonRace(seconds, drained, len(geometry), expected, int((~shapely.is_valid(geometry)).sum()), error)
