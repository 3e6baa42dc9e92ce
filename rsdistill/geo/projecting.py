"""Points from one CRS to another, and the refusal where no way leads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what GDAL's own errors become; rasterio.errors does not offer it
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

from rsdistill.errors import InputError, SceneError

Coordinates = Sequence[float] | NDArray[np.float64]


def project(source: CRS, target: CRS, x: Coordinates, y: Coordinates, *, refusal: type[InputError] = SceneError, what: object = "") -> Any:
    """Return x and y of points in another CRS.

    Args:
        source: the points' CRS.
        target: the CRS wanted.
        x: the points' first coordinates.
        y: the points' second coordinates.
        refusal: the error to raise.
        what: the file whose CRS it is, for the message.

    Raises:
        InputError: no way is known between the two, as from a site's local plane.
    """
    try:
        return transform(source, target, x, y)
    except (CPLE_BaseError, RasterioError) as error:
        named = f"{what}: " if what else ""
        message = f"{named}no way is known between the CRS {_name(source)} and {_name(target)}"
        raise refusal(message, hint="give both the same CRS (gdal_edit.py -a_srs), or warp one of them") from error


def _name(crs: CRS) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else f"'{crs.to_wkt()[:60]}…'"
