"""The bound of GDAL's cache: never below two rows of blocks."""

import numpy as np
import rasterio

from rsdistill.geo.caching import CACHE_BYTES, bounded_cache, cache_for
from rsdistill.geo.scenes import open_scene


def test_the_cache_holds_two_rows_of_blocks(tmp_path):
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(2, 0, 0, 0, -2, 0)}
    shape = {"count": 3, "height": 600, "width": 40_000, "dtype": "float32", **grid}
    with rasterio.open(tmp_path / "wide.tif", "w", tiled=True, blockxsize=512, blockysize=512, sparse_ok=True, **shape):
        pass
    with open_scene(tmp_path / "wide.tif") as scene:
        assert cache_for(scene) == 2 * 512 * 40_000 * 3 * 4 > CACHE_BYTES
        with bounded_cache(cache_for(scene)):
            assert rasterio.env.getenv()["GDAL_CACHEMAX"] == cache_for(scene)
    with rasterio.open(tmp_path / "small.tif", "w", **shape | {"height": 8, "width": 8}) as file:
        file.write(np.zeros((3, 8, 8), np.float32))
    with open_scene(tmp_path / "small.tif") as scene:
        assert cache_for(scene) == CACHE_BYTES
