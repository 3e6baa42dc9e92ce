"""Labels seen on a scene's grid, wherever they come from: rasters on any grid by nearest neighbour, polygons by burning."""

import glob
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from rsdistill.errors import LabelError, SceneError
from rsdistill.geo.burning import VECTOR_SUFFIXES, BurnOptions, BurntLabels
from rsdistill.geo.classes import COLORS, IGNORE, ClassTable, LandClass
from rsdistill.geo.opening import open_sealed, sealed_reading
from rsdistill.geo.projecting import project
from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import RASTER_SUFFIXES, check_source
from rsdistill.geo.windows import Grid, Window

_SAME_PIXEL = 0.01
"""Grids whose corners are closer than this share of a pixel are the same."""
_ANY_PLANE = CRS.from_epsg(3857)
"""Stands for "the same unknown plane" where neither scene nor label has a CRS."""


class Labels(AbstractContextManager["Labels"], Protocol):
    """Labels of one scene on its own grid."""

    source: Path
    how: str
    """What brought them there: copied, resampled or burnt."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class indices (h, w) of a window inside the scene; 255 where there is no label.

        Raises:
            LabelError: a value that the class table does not know; names value, file and window.
        """

    def areas(self) -> NDArray[np.float64]:
        """Per class, the area that the source itself gives it inside the scene, in scene pixels."""


def open_labels(source: Path, scene: Scene, table: ClassTable, options: BurnOptions | None = None) -> Labels:
    """Open the labels in a raster or vector file for a scene.

    Raises:
        LabelError: the file cannot be read as labels, or lies nowhere on the scene.
    """
    if source.suffix.lower() in VECTOR_SUFFIXES:
        return BurntLabels(source, scene.grid, table, options or BurnOptions())
    return RasterLabels(source, scene.grid, table)


def find_labels(scenes: Sequence[Path], places: Sequence[Path] = ()) -> list[Path | None]:
    """The label file of every scene: of the same stem or ``<stem>_label``, in the folders and files given, else beside the scene.

    A single vector file that is given is taken for every scene (a town's polygons cover many), a single raster for a single scene.

    Raises:
        LabelError: a place does not exist, or two files would do for a scene.
    """
    for place in places:
        if not place.exists():
            raise LabelError(f"{place} does not exist", hint="--labels names a folder or files")
    files = [file for place in places for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    if len(places) == 1 and places[0].is_file() and (len(scenes) == 1 or places[0].suffix.lower() in VECTOR_SUFFIXES):
        return [places[0] for _ in scenes]
    return [_find_label(scene, files if places else None) for scene in scenes]


def _find_label(scene: Path, files: Sequence[Path] | None) -> Path | None:
    beside = files is None
    candidates = sorted(scene.parent.glob(f"{glob.escape(scene.stem)}_label.*")) if files is None else files
    stems = (f"{scene.stem}_label",) if beside else (scene.stem, f"{scene.stem}_label")
    readable = [file for file in candidates if file.suffix.lower() in (*RASTER_SUFFIXES, *VECTOR_SUFFIXES)]
    found = [file for file in readable if file.stem in stems and file.resolve() != scene.resolve()]
    if len(found) > 1:
        raise LabelError(f"{scene} has two labels: {found[0]} and {found[1]}", hint="keep one, or name it with --labels")
    return found[0] if found else None


class RasterLabels:
    """A label raster: its own pixels where the grids agree, else the nearest ones.

    One band of whole numbers, or red, green and blue that are colours of the class table.
    """

    def __init__(self, source: Path, grid: Grid, table: ClassTable) -> None:
        self.source, self._grid = source, grid
        try:
            self._raster = Scene(source)
        except SceneError as error:
            raise LabelError(str(error), hint=error.hint) from None
        self._bands = self._raster.color_bands
        if len(self._bands) not in (1, 3):
            raise LabelError(
                f"{source} has {len(self._bands)} bands", hint="labels have one band of class values, or three of class colours"
            )
        self._table = table if len(self._bands) == 1 else _by_color(table)
        if _names_class(
            [self._raster.nodata[band - 1] for band in self._bands], self._table
        ):  # the class table, not the file, says which values mean nothing
            self._raster.nodata = (None,) * self._raster.count
        self._warped: Any = None
        self.how = "copied"
        if not self._pixel_for_pixel():
            self.how = "resampled"
            self._warped = self._warp()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._warped is not None:
            self._warped.close()
            self._opened.close()
        self._raster.close()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """See :class:`Labels`."""
        if self._warped is None:
            values, valid = self._raster.read(window, self._bands)
        else:
            area = rasterio.windows.Window(window.col, window.row, window.width, window.height)
            with sealed_reading(self.source, window):
                values = self._warped.read(self._bands, window=area)
                valid = self._warped.read(self._warped.count, window=area) > 0
        return self._to_index(values, valid, window)

    def areas(self) -> NDArray[np.float64]:
        """See :class:`Labels`."""
        counts = np.zeros(len(self._table))
        inside = self._inside()
        for row in range(inside.row, inside.stop[0], 512):
            window = Window(row, inside.col, min(512, inside.stop[0] - row), inside.width)
            index = self._to_index(*self._raster.read(window, self._bands), window)
            counts += np.bincount(index.ravel(), minlength=256)[: len(self._table)]
        return counts * self._pixel_ratio()

    def _to_index(self, values: NDArray[Any], valid: NDArray[np.bool_], window: Window) -> NDArray[np.uint8]:
        packed = values[0] if len(values) == 1 else (values[0].astype(np.int32) << 16) | (values[1].astype(np.int32) << 8) | values[2]
        index = np.full(valid.shape, IGNORE, np.uint8)
        try:
            index[valid] = self._table.to_index(packed[valid])
        except LabelError as error:
            rows, cols = f"rows {window.row} to {window.stop[0] - 1}", f"columns {window.col} to {window.stop[1] - 1}"
            raise LabelError(f"{self.source}, {rows}, {cols}: {error}", hint=error.hint) from None
        return index

    def _pixel_for_pixel(self) -> bool:
        """True where both grids are one, or where one side has no place on Earth and the sizes agree."""
        ours, theirs = self._grid, self._raster.grid
        same_size = (ours.height, ours.width) == (theirs.height, theirs.width)
        placed = [grid.georeferenced or not grid.transform.is_identity for grid in (ours, theirs)]
        if not all(placed) or ours.georeferenced != theirs.georeferenced:
            if not same_size:
                sizes = f"{theirs.height} x {theirs.width} pixels, its scene {ours.height} x {ours.width}"
                raise LabelError(
                    f"{self.source} has {sizes}, and one of the two has no CRS", hint="give both the same CRS, or the same size"
                )
            return True
        corners = [(0, 0), (ours.width, 0), (0, ours.height)]
        there = [~theirs.transform @ (ours.transform @ corner) for corner in corners]
        near = all(abs(x - col) < _SAME_PIXEL and abs(y - row) < _SAME_PIXEL for (x, y), (col, row) in zip(there, corners, strict=True))
        return same_size and near and _same_crs(ours.crs, theirs.crs)

    def _warp(self) -> Any:
        """A view of the label raster on the scene's grid, with an alpha band that is 0 where it has nothing to say."""
        self._opened = open_sealed(self.source, check_source(self.source))
        if self._inside().height == 0 or self._inside().width == 0:
            raise LabelError(f"{self.source} lies nowhere on its scene", hint="check the CRS and extent of both")
        ours = self._grid
        alpha = len(self._opened.colorinterp) == len(self._bands)
        return WarpedVRT(
            self._opened, src_crs=self._opened.crs or _ANY_PLANE, crs=ours.crs or _ANY_PLANE, transform=ours.transform, height=ours.height,
            width=ours.width, resampling=Resampling.nearest, src_nodata=self._raster.nodata[0], nodata=None, add_alpha=alpha,
        )  # fmt: skip

    def _inside(self) -> Window:
        """The label raster's own pixels that cover the scene."""
        if self._warped is None and self.how == "copied":
            return self._raster.grid.window
        rows, cols = _pixels_of(self._grid, self._raster.grid, self.source)
        top, left, bottom, right = np.floor([rows.min(), cols.min()]).tolist() + np.ceil([rows.max(), cols.max()]).tolist()
        box = Window(int(top), int(left), int(bottom - top), int(right - left))
        return box.intersection(self._raster.grid.window)

    def _pixel_ratio(self) -> float:
        """Scene pixels that one pixel of the label covers, measured on the ground around the scene's middle."""
        if self.how == "copied":
            return 1.0
        rows, cols = _pixels_of(self._grid[_middle(self._grid)], self._raster.grid, self.source)
        x, y = cols[[0, 1, 3]] - cols[0], rows[[0, 1, 3]] - rows[0]
        return float(1.0 / max(abs(x[1] * y[2] - x[2] * y[1]), 1e-12))


def _names_class(nodata: Sequence[float | None], table: ClassTable) -> bool:
    """True where the nodata that every band declares is a label value of a class, or together its colour."""
    if any(value is None or not float(value).is_integer() for value in nodata):
        return False
    packed = 0
    for value in nodata:
        packed = packed << 8 | int(value or 0)
    return any(packed in one.sources for one in table.classes)


def scan_classes(sources: Sequence[Path]) -> ClassTable:
    """A class table of all the values that label rasters hold: 'class 3' for 3, in the raster's own colours where it has a palette.

    Raises:
        LabelError: too many values, a negative one, or none.
    """
    values: set[int] = set()
    colors: dict[int, str] = {}
    for source in sources:
        with Scene(source) as raster:
            if len(raster.color_bands) != 1 or np.dtype(raster.dtype).kind not in "ui":
                raise LabelError(
                    f"{source} holds no class numbers: {len(raster.color_bands)} bands of {raster.dtype}", hint="give --classes"
                )
            colors |= {value: "#{:02x}{:02x}{:02x}".format(*color) for value, color in (raster.palette or {}).items()}
            for _, pixels, valid in raster.strips(raster.color_bands, 512):
                values |= {int(value) for value in np.unique(pixels[0][valid])}
        if len(values) > 64 or min(values, default=0) < 0:
            raise LabelError(
                f"{source} holds {len(values)} values from {min(values)} to {max(values)}", hint="give --classes: what they mean"
            )
    if not values:
        raise LabelError("the labels hold no value at all: " + ", ".join(map(str, sources[:3])), hint="check their nodata")
    default = cycle(COLORS)
    return ClassTable(tuple(LandClass(value, f"class {value}", colors.get(value) or next(default)) for value in sorted(values)))


def _by_color(table: ClassTable) -> ClassTable:
    """The table for label pixels that are colours: red, green and blue packed into one number."""
    classes = tuple(LandClass(one.id, one.name, one.color, (int(one.color[1:], 16),)) for one in table.classes)
    taken = {value for one in classes for value in one.sources}
    return ClassTable(classes, tuple(value for value in table.ignore if value not in taken))


def _pixels_of(grid: Grid, other: Grid, source: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns in ``other`` of the corners of ``grid`` (upper left, upper right, lower right, lower left) and points between."""
    edge = np.linspace(0, 1, 9)
    cols = np.concatenate([[0, 1, 1, 0], edge, np.ones(9), edge, np.zeros(9)]) * grid.width
    rows = np.concatenate([[0, 0, 1, 1], np.zeros(9), edge, np.ones(9), edge]) * grid.height
    x, y = _apply(grid.transform, cols, rows)
    if grid.crs is not None and other.crs is not None and not _same_crs(grid.crs, other.crs):
        x, y = (np.asarray(values) for values in project(grid.crs, other.crs, x, y, refusal=LabelError, what=source))
    cols, rows = _apply(~other.transform, x, y)
    return np.nan_to_num(rows, posinf=0, neginf=0), np.nan_to_num(cols, posinf=0, neginf=0)


def _apply(transform: Affine, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _middle(grid: Grid) -> Window:
    return Window(grid.height // 2, grid.width // 2, 1, 1)


def _same_crs(first: CRS | None, second: CRS | None) -> bool:
    if first is None or second is None:
        return first is second
    return bool(first == second) or (first.to_epsg() is not None and first.to_epsg() == second.to_epsg())
