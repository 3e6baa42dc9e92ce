"""Footprints of tiles: windows as polygons, and files of them that are written part by part."""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsdistill.geo.burning import pixel_plane
from rsdistill.geo.projecting import project
from rsdistill.geo.windows import Grid

GEOMETRY = "geometry"


def outlines(grid: Grid, windows: NDArray[np.integer[Any]], crs: CRS | None) -> NDArray[np.object_]:
    """Return the polygons in ``crs`` of (N, 4) windows: row, col, height, width. Without a CRS they are in the grid's own plane."""
    top, left, height, width = windows.T
    col = np.stack([left, left + width, left + width, left], 1).reshape(-1)
    row = np.stack([top, top, top + height, top + height], 1).reshape(-1)
    plane = pixel_plane(grid)
    x, y = plane.a * col + plane.b * row + plane.c, plane.d * col + plane.e * row + plane.f
    if crs is not None and grid.crs != crs:
        x, y = project(grid.crs, crs, x, y)
    return np.asarray(shapely.polygons(np.stack([x, y], 1).reshape(-1, 4, 2)))


def write_frames(path: Path, layer: str, frames: Iterable[Any]) -> None:
    """Write GeoDataFrames of one shape, one after the other, to a GeoPackage or, each a row group, to GeoParquet.

    Raises:
        RuntimeError, OSError, ValueError: the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        if path.suffix == ".parquet":
            with _groups(path) as write:
                for frame in frames:
                    write(frame)
            return
        for number, frame in enumerate(frames):
            frame.to_file(path, layer=layer, driver="GPKG", engine="pyogrio", mode="a" if number else "w")


@contextmanager
def _groups(path: Path) -> Iterator[Any]:
    """Yield what writes a GeoDataFrame as the next row group of GeoParquet 1.1."""
    import pyarrow
    from pyarrow import parquet

    writers: list[parquet.ParquetWriter] = []

    def write(frame: Any) -> None:
        table = pyarrow.Table.from_pandas(frame.to_wkb(), preserve_index=False)
        if not writers:
            column = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": frame.crs and frame.crs.to_json_dict()}
            geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
            writers.append(parquet.ParquetWriter(path, table.schema.with_metadata({"geo": json.dumps(geo)})))
        writers[0].write_table(table.replace_schema_metadata(writers[0].schema.metadata))

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
