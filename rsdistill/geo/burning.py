"""Polygons burnt into class indices on a scene's grid."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from rsdistill.errors import LabelError, nearest
from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.geo.windows import Grid, Window

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")
"""Suffixes of the vector files that are read."""
_OWN_FIELD = "class_id"
"""The field that rsdistill's own polygons hold."""
_AREAL = (3, 6)
"""shapely's type numbers of Polygon and MultiPolygon."""
_COLLECTION = 7
"""And of GeometryCollection."""


@dataclass(frozen=True)
class BurnOptions:
    """How polygons become classes."""

    field: str | None = None
    """Field that holds class ids, label values or names; default ``class_id`` where there is one."""
    burn: str | None = None
    """Class (id or name) of every polygon, for a file of one class."""
    background: str | None = None
    """Class (id or name) of pixels outside all polygons; default: no label."""


class BurntLabels:
    """Polygons of a vector file, burnt in their order: later ones win. A pixel belongs to the polygon that holds its centre."""

    how = "burnt"

    def __init__(self, source: Path, grid: Grid, table: ClassTable, options: BurnOptions) -> None:
        self.source, self._grid, self._table = source, grid, table
        self._transform = pixel_plane(grid)
        self._fill = IGNORE if options.background is None else _index(table, options.background)
        frame = read_polygons(source, grid)
        if not shapely.box(*frame.total_bounds).intersects(_outline(self._transform, grid.height, grid.width)):
            raise LabelError(f"{source} lies nowhere on its scene", hint="check the CRS and extent of both")
        index = _class_indices(source, frame, table, options)
        labelled = index != IGNORE
        self._shapes, self._index = frame.geometry.to_numpy()[labelled], index[labelled]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class indices (h, w) of a window inside the scene; the background, or 255, outside all polygons."""
        transform = self._transform @ Affine.translation(window.col, window.row)
        outline = _outline(transform, window.height, window.width)
        hits = np.sort(self._tree.query(outline, predicate="intersects"))
        if not len(hits):
            return np.full((window.height, window.width), self._fill, np.uint8)
        pairs = [(self._shapes[i], int(self._index[i])) for i in hits]
        burnt = rasterize(pairs, (window.height, window.width), fill=self._fill, transform=transform, dtype="uint8")
        return np.asarray(burnt, np.uint8)

    def areas(self) -> NDArray[np.float64]:
        """Per class, the polygons' area inside the scene, in scene pixels; polygons of one class that overlap count twice."""
        inside = shapely.intersection(self._shapes, _outline(self._transform, self._grid.height, self._grid.width))
        totals = np.bincount(self._index, weights=shapely.area(inside), minlength=len(self._table)) / abs(self._transform.determinant)
        if self._fill != IGNORE:
            totals[self._fill] += self._grid.height * self._grid.width - totals.sum()
        return np.asarray(totals)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self._shapes)


def pixel_plane(grid: Grid) -> Affine:
    """The transform that vector coordinates are in: the grid's, or (column, −row) where it has none, as QGIS shows such rasters."""
    return Affine.scale(1, -1) if grid.transform.is_identity and not grid.georeferenced else grid.transform


def read_polygons(source: Path, grid: Grid | None = None) -> Any:
    """Read a vector file as a GeoDataFrame of valid polygons, in the CRS of ``grid`` where one is given.

    Raises:
        LabelError: it cannot be read, or holds no polygon.
    """
    import geopandas  # a seventh of a second, which commands that read no polygons need not wait for

    try:
        frame = geopandas.read_parquet(source) if source.suffix == ".parquet" else geopandas.read_file(source)
    except (RuntimeError, OSError, ValueError, ImportError, shapely.errors.ShapelyError) as error:  # pyogrio's are RuntimeErrors
        raise LabelError(f"cannot read {source}: {str(error).splitlines()[0]}", hint="is it a vector file? ogrinfo tells more") from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f"{source} has no geometry", hint="labels are polygons")
    if grid is not None and grid.crs is not None and frame.crs is not None:
        frame = frame.to_crs(grid.crs.to_wkt())
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    shapes = np.array(shapely.make_valid(frame.geometry.to_numpy()), dtype=object)
    mixed = np.flatnonzero(shapely.get_type_id(shapes) == _COLLECTION)
    shapes[mixed] = [_area_of(shape) for shape in shapes[mixed]]
    frame = frame.assign(geometry=shapes)
    areal = np.isin(shapely.get_type_id(shapes), _AREAL) & ~shapely.is_empty(shapes)
    if not areal.any():
        raise LabelError(f"{source} holds no polygon", hint="points and lines have no area; buffer them first")
    return frame[areal].reset_index(drop=True)


def _area_of(shape: Any) -> Any:
    """Return what has an area in a collection, which is also what a polygon with a spike is made into; burnt lines would be pixels."""
    parts = shapely.get_parts(shapely.get_parts(shape))  # the first time, polygons of several parts come as one
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), _AREAL)])


def scan_fields(sources: Sequence[Path], options: BurnOptions) -> list[str]:
    """The classes that vector files name: of the field's values, or the one that is burnt; the background comes first.

    Raises:
        LabelError: a file cannot be read, or does not say its polygons' class.
    """
    names = {options.burn} if options.burn is not None else set()
    for source in sources if options.burn is None else ():
        names |= {name for name in field_values(source, read_polygons(source), options.field) if name is not None}
    ordered = sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    background = options.background
    return ordered if background is None or background in names else [background, *ordered]


def field_values(source: Path, frame: Any, field: str | None) -> list[str | None]:
    """The class field's value of every polygon as text (3.0 is "3"); None where it is empty.

    Raises:
        LabelError: there is no such field.
    """
    fields = [name for name in frame.columns if name != frame.geometry.name]
    wanted = field or (_OWN_FIELD if _OWN_FIELD in fields else None)
    if wanted is None:
        raise LabelError(
            f"{source} does not say its polygons' class", hint=f"--label-field ({', '.join(fields) or 'none here'}) or --burn CLASS"
        )
    if wanted not in fields:
        raise LabelError(f"{source} has no field '{wanted}'{nearest(wanted, fields)}", hint="fields: " + (", ".join(fields) or "none"))
    values = [None if value is None or value != value else value for value in frame[wanted].tolist()]
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return [None if value is None else str(value) for value in whole]


def _class_indices(source: Path, frame: Any, table: ClassTable, options: BurnOptions) -> NDArray[np.uint8]:
    if options.burn is not None:
        return np.full(len(frame), _index(table, options.burn), np.uint8)
    known: dict[str, int] = {str(value): IGNORE for value in table.ignore}
    for index, one in enumerate(table.classes):
        known |= {one.name: index, **{str(value): index for value in one.sources}}
    named = field_values(source, frame, options.field)
    unknown = Counter(name for name in named if name is not None and name not in known)
    if unknown:
        name, count = unknown.most_common(1)[0]
        raise LabelError(
            f"{source}: class '{name}' ({count} polygons) is not in the class table{nearest(name, table.names)}",
            hint="add it to a class's sources, or to ignore",
        )
    return np.array([IGNORE if name is None else known[name] for name in named], np.uint8)


def _index(table: ClassTable, name: str) -> int:
    return table.classes.index(table.find(name))


def _outline(transform: Affine, height: int, width: int) -> shapely.Polygon:
    return shapely.Polygon([transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))])
