"""Where a grid lies on the ground: its outline as a polygon in any CRS."""

import shapely
from rasterio.crs import CRS

from rsdistill.geo.projecting import project
from rsdistill.geo.windows import Grid


def outline(grid: Grid, crs: CRS) -> shapely.Polygon:
    """Return the outline of ``grid`` in ``crs``, drawn in by half a pixel so that neighbours do not touch."""
    corners = [(0.5, 0.5), (grid.width - 0.5, 0.5), (grid.width - 0.5, grid.height - 0.5), (0.5, grid.height - 0.5)]
    x, y = zip(*(grid.transform @ corner for corner in corners), strict=True)
    if grid.crs != crs:
        x, y = project(grid.crs, crs, x, y)
    return shapely.Polygon(zip(x, y, strict=True))
