"""How large pixels are on the ground."""

import numpy as np

from rsdistill.geo.windows import Grid

METRES_A_DEGREE = 111_320.0


def ground_size(grid: Grid) -> tuple[float, float] | None:
    """Return the height and width of a pixel in metres, at the middle of ``grid``; None where the CRS knows no metres."""
    if grid.crs is None or not (grid.crs.is_geographic or grid.crs.is_projected):
        return None
    if not grid.crs.is_geographic:
        factor = float(grid.crs.linear_units_factor[1])
        return grid.pixel_size[0] * factor, grid.pixel_size[1] * factor
    a, b, _, d, e, _ = grid.transform[:6]
    shrink = float(np.cos(np.radians((grid.transform @ (grid.width / 2, grid.height / 2))[1])))
    return METRES_A_DEGREE * float(np.hypot(b * shrink, e)), METRES_A_DEGREE * float(np.hypot(a * shrink, d))
