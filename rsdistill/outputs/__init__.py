"""What leaves the house: label rasters, polygons, styles, quick looks and reports; WRITERS says which suffix becomes what."""

from typing import Literal

Kind = Literal["raster", "polygons", "picture"]

WRITERS: dict[str, Kind] = {
    ".tif": "raster",
    ".tiff": "raster",
    ".gpkg": "polygons",
    ".parquet": "polygons",
    ".fgb": "polygons",
    ".geojson": "polygons",
    ".png": "picture",
}
"""Suffix of a result → what is written: ``geotiff.LabelRasterWriter``, ``polygons.write_polygons`` or ``quicklook.draw_quicklook``."""
