"""Where a raster seems to hold data, by its header."""

import numpy as np
import pytest
import rasterio

from rsdistill.geo.occupancy import Occupancy, block_sizes
from rsdistill.geo.resampling import ResampledScene
from rsdistill.geo.scenes import open_scene


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
        found = holds(range(0, 513, 128), range(0, 641, 128))
        assert np.array_equal(found, np.outer([1, 1, 0, 0], [1, 1, 1, 0, 0]).astype(bool))
        assert holds([200, 500], [300, 600]).tolist() == [[True]]
        assert holds([256, 512], [0, 640]).tolist() == [[False]]
        coarse = ResampledScene(scene, 4.0)
        assert Occupancy(coarse)([100, 128, 256], [100, 128]).tolist() == [[True], [False]]


@pytest.mark.parametrize("nodata", [None, 0])
def test_where_the_file_does_not_tell_everything_counts(tmp_path, image, nodata):
    """Without compression all blocks are of one size; without nodata, zeros are data."""
    compress = {"compress": "deflate"} if nodata is None else {}
    path = write(tmp_path / "s.tif", image, nodata=nodata, tiled=True, blockxsize=128, blockysize=128, **compress)
    with open_scene(path) as scene:
        assert Occupancy(scene)([400, 410], [500, 510]).all()


@pytest.mark.parametrize("profile", [{"bigtiff": "yes"}, {"endianness": "big"}, {"tiled": False, "blockysize": 7}, {"bigtiff": "no"}])
def test_sizes_of_blocks_are_those_that_gdal_tells(tmp_path, image, profile):
    how = {"nodata": 0, "tiled": True, "compress": "deflate"} | profile
    path = write(tmp_path / "s.tif", image, **how, **({"blockxsize": 64, "blockysize": 64} if how["tiled"] else {}))
    with rasterio.open(path) as file:
        height, width = file.block_shapes[0]
        places = [(row, col) for row in range(-(-file.height // height)) for col in range(-(-file.width // width))]
        told = [int(file.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1) or 0) for row, col in places]
    assert block_sizes(path, len(told)).tolist() == told


def test_what_is_no_tiff_or_cut_short_tells_no_sizes(tmp_path, image):
    path = write(tmp_path / "s.tif", image, nodata=0, tiled=True, compress="deflate")
    content = path.read_bytes()
    assert block_sizes(path, 10_000) is None
    for bad in (b"", b"II", b"GIF89a" + content[6:], content[:8] + b"\xff" * 8, content[:200]):
        path.write_bytes(bad)
        assert block_sizes(path, 6) is None
    assert block_sizes(tmp_path / "gone.tif", 1) is None
