"""Polygons of a mask: one for each connected region of a class, with names, colours, areas and confidence, in bounded memory."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray

from rsdistill.errors import ConfigError, MaskError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic, refuse_existing
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.windows import Grid, Window
from rsdistill.outputs.masks import read_mask
from rsdistill.outputs.measuring import Measure
from rsdistill.outputs.regions import Strip
from rsdistill.outputs.sieving import sieve
from rsdistill.outputs.simplifying import Corners, simplify_coverage, with_all_nodes
from rsdistill.outputs.stitching import Polygons, whole_polygons
from rsdistill.outputs.styles import CLASS_FIELD, add_layer_style, categories, class_style, own_style, qml
from rsdistill.outputs.vectors import DRIVERS, Columns, write_vectors
from rsdistill.outputs.wkb import Wkb, to_wkb

STRIP_PIXELS = 1 << 22
"""Pixels that are worked on at once: some 200 MB on the noisiest mask."""
_NO_START = " `~!@#$%^&*()+-={}|[]\\:\";'<>?,./"
"""What GDAL lets no layer of a GeoPackage begin with."""


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

    They are valid, cover the valid pixels without gap or overlap, and do not depend on how the mask is read. What stands there is replaced.

    Args:
        mask: label raster of class ids.
        path: file to make; its suffix (.gpkg, .fgb, .geojson, .parquet) picks the format. GeoJSON is in longitude and latitude: for
            its polygons to share every vertex, the mask is read twice and the places of all corners are held.
        table: the mask's classes.
        min_area: smaller regions go to the neighbour with which they share the longest border; m², or pixels where no CRS is known.
        simplify: side of the details that go from outlines, each border once, in metres (or pixels); all polygons are then in memory.
        confidence: raster of confidence on the same grid, averaged over each polygon.
        aoi: polygons are clipped to this area, in the mask's CRS.
        layer: name of the layer; by default the file's stem, without signs that none may begin with.

    Raises:
        ConfigError: another suffix.
        MaskError: the mask holds ids that the table does not, or the confidence lies on another grid.
        DiskError: the file could not be written whole.
    """
    if path.suffix not in DRIVERS:
        raise ConfigError(f"{path} names no format of polygons", hint="suffixes: " + " ".join(DRIVERS))
    refuse_existing([path], overwrite=True)
    layer = layer or path.stem.lstrip(_NO_START) or "polygons"
    with open_scene(mask) as labels:
        measure = Measure(labels.grid)
        strips = partial(read_strips, labels, table, confidence)
        strips = partial(sieve, strips, min_area / measure.pixel_area) if min_area > 0 else strips
        polygons = whole_polygons(strips())
        if simplify:
            polygons = simplify_coverage(polygons, simplify / measure.pixel_area**0.5)
        elif path.suffix == ".geojson" and labels.grid.crs is not None:
            polygons = noded(polygons, Corners.of(some.shapes for some in whole_polygons(strips())))
        if aoi is not None:
            polygons = clip(polygons, measure.to_pixels(np.array([aoi], object))[0])
        with atomic(path) as made:
            columns = (to_columns(some, table, measure, confidence=confidence is not None) for some in polygons)
            count = write_vectors(made, layer, labels.grid.crs, columns, final=path)
            if path.suffix == ".gpkg":
                add_layer_style(made, layer, class_style(table))
            _write_style(path, table)
    return count


def restyle_polygons(path: Path, table: ClassTable, *, layer: str | None = None) -> None:
    """Give polygons the colours and names of ``table`` in QGIS; the columns that each polygon carries stay as they are.

    Args:
        path: file of polygons, as :func:`write_polygons` makes it.
        table: the wanted names and colours.
        layer: layer of a GeoPackage; by default its only one.

    Raises:
        MaskError: a GeoPackage without such a layer.
    """
    if path.suffix != ".gpkg":
        _write_style(path, table)
        return
    try:
        layers = [str(name) for name, geometry in pyogrio.list_layers(path) if geometry]
    except pyogrio.errors.DataSourceError:
        raise MaskError(f"{path} is no GeoPackage", hint="name a file that rsdistill predict wrote") from None
    if layer is None and len(layers) == 1:
        layer = layers[0]
    if layer not in layers:
        wanted = f"layer '{layer}'" if layer else "one layer of polygons"
        raise MaskError(f"{path} has not {wanted} but: {', '.join(layers) or 'none'}", hint="name one with --layer")
    add_layer_style(path, layer, class_style(table))


def _write_style(path: Path, table: ClassTable) -> None:
    """Write the style beside polygons: that of a mask too where one of this name has its style there, and else of nothing but them."""
    if path.suffix == ".gpkg":  # holds its own
        return
    beside = path.with_suffix(".qml")
    of_mask = "rasterrenderer" in own_style(beside)
    with atomic(beside) as made:
        made.write_text(qml(categories(table) if of_mask else (), categories(table)), encoding="utf-8")


def read_strips(mask: Scene, table: ClassTable, confidence: Path | None = None) -> Iterator[Strip]:
    """Yield the class indices of a mask from the top, and their confidence where it is given.

    Raises:
        MaskError: a value that is no class, or a confidence on another grid.
    """
    opened: AbstractContextManager[Scene | None] = open_confidence(confidence, mask.grid) if confidence else nullcontext()
    height = max(1, STRIP_PIXELS // mask.grid.width)
    with opened as shares:
        for window, labels in read_mask(mask, table):
            figures = read_shares(shares, window) if shares else None
            for row in range(0, window.height, height):
                rows = slice(row, row + height)
                yield Strip(window.row + row, labels[rows], None if figures is None else figures[rows])


def open_confidence(path: Path, grid: Grid) -> Scene:
    """Open a raster of confidence.

    Raises:
        MaskError: it has not the mask's size and place.
    """
    scene = open_scene(path)
    if (scene.grid.height, scene.grid.width) != (grid.height, grid.width) or not scene.grid.transform.almost_equals(grid.transform):
        raise MaskError(f"the confidence {path} does not lie on the mask's grid", hint="both come from one run of rsdistill predict")
    return scene


def read_shares(scene: Scene, window: Window) -> NDArray[np.float32]:
    """Read figures between 0 and 1: (h, w), NaN where there is none."""
    values, valid = scene.read(window, [1])
    return np.where(valid, values[0], np.float32(np.nan)).astype(np.float32)


def noded(polygons: Iterable[Polygons], corners: Corners) -> Iterator[Polygons]:
    """Yield the polygons with every corner of another that lies on their edges: what is straight in one projection is not in another."""
    for some in polygons:
        yield some._replace(shapes=with_all_nodes(some.shapes, corners))


def clip(polygons: Iterable[Polygons], area: shapely.Geometry) -> Iterator[Polygons]:
    """Yield what of the polygons lies in ``area``, pieces as polygons of their own; a batch that is left empty is yielded too."""
    shapely.prepare(area)
    for some in polygons:
        cut = ~shapely.covers(area, some.shapes)
        shapes = some.shapes.copy()
        shapes[cut] = shapely.intersection(shapes[cut], area)
        pieces, owner = shapely.get_parts(shapes, return_index=True)
        areal = shapely.area(pieces) > 0
        owner = owner[areal]
        yield Polygons(pieces[areal], some.classes[owner], some.confidence[owner])


def to_columns(some: Polygons, table: ClassTable, measure: Measure, *, confidence: bool) -> tuple[Wkb, Columns]:
    """Return shapes in the mask's CRS, and the columns that go with them."""
    area, length = ("area_m2", "perimeter_m") if measure.unit == "m" else ("area_px", "perimeter_px")
    columns: Columns = {
        CLASS_FIELD: np.array(table.ids, np.int32)[some.classes],
        "class_name": np.array(table.names, object)[some.classes],
        "color": np.array(table.colors, object)[some.classes],
        area: measure.area(some.shapes),
        length: measure.perimeter(some.shapes),
    }
    if confidence:
        columns["confidence"] = some.confidence
    return to_wkb(some.shapes, measure.plane), columns
