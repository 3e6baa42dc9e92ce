"""Areas and lengths on Earth."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from rsdistill.geo.windows import Grid
from rsdistill.outputs.measuring import Measure

BOX = np.array([shapely.box(2, 3, 7, 5)], object)
"""5 columns by 2 rows of pixels."""


@pytest.mark.parametrize(
    ("crs", "transform", "area", "perimeter"),
    [
        (32640, Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000), 2.5, 7),
        (32640, Affine(0.5, 0, 500_000, 0, 0.5, 2_800_000), 2.5, 7),
        (32640, Affine.translation(5e5, 2e6) @ Affine.rotation(30) @ Affine.scale(2, -3), 60, 32),
        (2227, Affine(10, 0, 6e6, 0, -10, 2e6), 1000 * 0.30480060960121924**2, 140 * 0.30480060960121924),
        (None, Affine.identity(), 10, 14),
    ],
)
def test_planar_grids(crs: int | None, transform: Affine, area: float, perimeter: float) -> None:
    measure = Measure(Grid(100, 100, None if crs is None else CRS.from_epsg(crs), transform))
    assert measure.area(BOX) == pytest.approx(area)
    assert measure.perimeter(BOX) == pytest.approx(perimeter, rel=1e-6)
    assert measure.pixel_area == pytest.approx(area / 10)
    assert measure.unit == ("px" if crs is None else "m")


@pytest.mark.parametrize("latitude", [-89.0, -33.0, 0.0, 52.0, 71.0])
def test_a_geographic_grid_measures_on_the_ellipsoid(latitude: float) -> None:
    """Against pyproj's geodesic polygon with edges so short that a parallel and a geodesic cannot be told apart."""
    measure = Measure(Grid(100, 100, CRS.from_epsg(4326), Affine(1e-3, 0, 179.998, 0, -1e-3, latitude)))
    geod = pyproj.Geod(ellps="WGS84")
    lon, lat = shapely.get_coordinates(shapely.segmentize(measure.to_world(BOX), 1e-4)).T
    area, perimeter = geod.polygon_area_perimeter(lon, lat)
    assert measure.area(BOX)[0] == pytest.approx(abs(area), rel=1e-6)
    assert measure.perimeter(BOX)[0] == pytest.approx(perimeter, rel=1e-6)


def test_the_earth_has_its_size() -> None:
    measure = Measure(Grid(180, 360, CRS.from_epsg(4326), Affine(1, 0, -180, 0, -1, 90)))
    assert measure.area(np.array([shapely.box(0, 0, 360, 180)], object))[0] == pytest.approx(510_065_621_724_000, rel=1e-9)


def test_world_and_back() -> None:
    measure = Measure(Grid(100, 100, CRS.from_epsg(32640), Affine.translation(5e5, 2e6) @ Affine.rotation(30) @ Affine.scale(2, -3)))
    assert shapely.equals_exact(measure.to_pixels(measure.to_world(BOX)), BOX, 1e-6).all()
    plain = Measure(Grid(100, 100, None, Affine.identity()))
    assert plain.to_world(BOX)[0].bounds == (2, -5, 7, -3)
