"""Where a raster seems to hold data, by its header."""

import numpy as np
import pytest
import rasterio

from rsdistill.geo.occupancy import Occupancy
from rsdistill.geo.resampling import ResampledScene
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window


def write(path, image, **profile):
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=rasterio.Affine(2, 0, 0, 0, -2, 0), **shape, **profile
    ) as file:
        file.write(image)
    return path


@pytest.fixture
def image():
    image = np.random.default_rng(0).integers(1, 256, (3, 512, 640)).astype(np.uint8)
    image[:, 256:, :] = 0
    image[:, :, 384:] = 0
    return image


@pytest.mark.parametrize("layout", [{"interleave": "pixel"}, {"interleave": "band"}, {"sparse_ok": True}, {"compress": "lzw"}])
def test_empty_blocks_are_told_from_full_ones(tmp_path, image, layout):
    path = write(tmp_path / "s.tif", image, nodata=0, tiled=True, blockxsize=128, blockysize=128, **{"compress": "deflate", **layout})
    with open_scene(path) as scene:
        holds = Occupancy(scene)
        found = np.array([[holds(Window(row, col, 128, 128)) for col in range(0, 640, 128)] for row in range(0, 512, 128)])
        assert np.array_equal(found, np.outer([1, 1, 0, 0], [1, 1, 1, 0, 0]).astype(bool))
        assert holds(Window(200, 300, 300, 300))
        assert not holds(Window(256, 0, 256, 640))
        coarse = ResampledScene(scene, 4.0)
        assert Occupancy(coarse)(Window(100, 100, 28, 28))
        assert not Occupancy(coarse)(Window(128, 0, 128, 320))


@pytest.mark.parametrize("nodata", [None, 0])
def test_where_the_file_does_not_tell_everything_counts(tmp_path, image, nodata):
    """Without compression all blocks are of one size; without nodata, zeros are data."""
    compress = {"compress": "deflate"} if nodata is None else {}
    path = write(tmp_path / "s.tif", image, nodata=nodata, tiled=True, blockxsize=128, blockysize=128, **compress)
    with open_scene(path) as scene:
        assert Occupancy(scene)(Window(400, 500, 10, 10))
