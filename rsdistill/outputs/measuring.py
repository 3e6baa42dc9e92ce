"""Areas and lengths on Earth of polygons in pixel coordinates."""

from dataclasses import dataclass
from functools import cached_property
from math import isclose

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from rsdistill.geo.burning import pixel_plane
from rsdistill.geo.windows import Grid


@dataclass(frozen=True)
class Measure:
    """What the pixel coordinates of ``grid`` mean on Earth."""

    grid: Grid

    @property
    def unit(self) -> str:
        """``m``, or ``px`` where no CRS is known."""
        return "m" if self.grid.georeferenced else "px"

    @property
    def plane(self) -> Affine:
        """From pixels to the grid's CRS; to (column, −row) where it has neither CRS nor transform, as QGIS shows such rasters."""
        return pixel_plane(self.grid)

    def to_world(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """Return the shapes on :attr:`plane`."""
        return np.asarray(shapely.transform(shapes, self._world))

    def to_pixels(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """Return shapes in the grid's CRS in pixel coordinates."""
        inverse = ~self.plane
        return np.asarray(shapely.transform(shapes, lambda points: _affine(inverse, points)))

    def area(self, shapes: NDArray[np.object_]) -> NDArray[np.float64]:
        """Area in m², or in pixels where no CRS is known.

        In a geographic CRS it is the area on the ellipsoid, by its authalic latitude: exact for edges along meridians and parallels.
        """
        if self._geographic:
            return np.asarray(shapely.area(shapely.transform(shapes, self._equal_area)))
        return np.asarray(shapely.area(shapes)) * abs(self.grid.transform.determinant) * self._factor**2

    def perimeter(self, shapes: NDArray[np.object_]) -> NDArray[np.float64]:
        """Length of all rings in m, or in pixels where no CRS is known; geodesic in a geographic CRS."""
        if not self._geographic:
            height, width = self.grid.pixel_size
            square = height == width and isclose(abs(self.grid.transform.determinant), height * width)
            return np.asarray(shapely.length(shapes) * height if square else shapely.length(self.to_world(shapes))) * self._factor
        points, ring = shapely.get_coordinates(shapely.get_rings(shapes), return_index=True)
        owner = shapely.get_rings(shapes, return_index=True)[1][ring]
        lon, lat = (self._world(points) * np.degrees(self._factor)).T
        same = ring[1:] == ring[:-1]
        lengths = self._ellipsoid.inv(lon[:-1][same], lat[:-1][same], lon[1:][same], lat[1:][same])[2]
        return np.bincount(owner[1:][same], weights=lengths, minlength=len(shapes)).astype(np.float64)

    @cached_property
    def pixel_area(self) -> float:
        """Area of the pixel in the middle of the grid."""
        row, col = self.grid.height // 2, self.grid.width // 2
        return float(self.area(np.array([shapely.box(col, row, col + 1, row + 1)], object))[0])

    @property
    def _geographic(self) -> bool:
        return self.grid.crs is not None and bool(self.grid.crs.is_geographic)

    @property
    def _factor(self) -> float:
        """Metres, or radians, in a unit of the CRS."""
        return 1.0 if self.grid.crs is None else float(self.grid.crs.units_factor[1])

    @cached_property
    def _ellipsoid(self) -> pyproj.Geod:
        return pyproj.CRS.from_wkt(self.grid.crs.to_wkt()).get_geod()  # type: ignore[union-attr,return-value]  # asked for geographic CRSs only

    def _world(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        return _affine(self.plane, points)

    def _equal_area(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixel coordinates → metres of the ellipsoid's cylindrical equal-area projection (Snyder 1987, equations 10-1, 10-2 and 3-12)."""
        longitude, latitude = (self._world(points) * self._factor).T
        sine, squared = np.sin(latitude), self._ellipsoid.es
        e = np.sqrt(squared)
        q = sine / (1 - squared * sine**2) + (np.arctanh(e * sine) / e if e else sine)
        return self._ellipsoid.a * np.stack([longitude, (1 - squared) * q / 2], axis=1)


def _affine(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c, d, e, f = transform[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
