"""Rasters of a tile set: what is written reads back, or the writer says so."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from rsdistill.errors import DiskError
from rsdistill.geo.windows import Grid, Window
from rsdistill.geo.writing import RasterWriter

GRID = Grid(300, 270, CRS.from_epsg(32633), Affine(2, 0, 500_000, 0, -2, 4_000_000))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", "int32"])
def test_windows_come_back_with_mask_names_and_place(tmp_path: Path, dtype: str):
    values = np.random.default_rng(0).integers(0, 100, (2, 300, 270)).astype(dtype)
    valid = np.random.default_rng(1).random((300, 270)) < 0.5
    path = tmp_path / "a.tif"
    with RasterWriter(path, GRID, bands=2, dtype=dtype, names=("red", None), masked=True) as writer:
        for window in (Window(0, 0, 256, 270), Window(256, 0, 44, 270)):
            writer.write(window, values[:, *window.slices], valid[window.slices])
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), values)
        assert np.array_equal(dataset.dataset_mask() > 0, valid)
        assert dataset.descriptions == ("red", None)
        assert (dataset.crs, dataset.transform) == (GRID.crs, GRID.transform)
    assert not list(tmp_path.glob("*.msk"))


def test_a_palette_colours_values(tmp_path: Path):
    path = tmp_path / "a.tif"
    with RasterWriter(path, GRID, bands=1, dtype="uint8", nodata=255, palette={3: (10, 20, 30)}) as writer:
        writer.write(GRID.window, np.full((1, 300, 270), 3, np.uint8))
    with rasterio.open(path) as dataset:
        assert dataset.colormap(1)[3] == (10, 20, 30, 255)
        assert dataset.nodata == 255


def test_pixels_that_do_not_read_back_are_an_error(tmp_path: Path):
    path = tmp_path / "a.tif"
    writer = RasterWriter(path, GRID, bands=1, dtype="uint8")
    writer.write(GRID.window, np.random.default_rng(0).integers(0, 255, (1, 300, 270)).astype(np.uint8))
    writer._dataset.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DiskError, match="does not read back"):
        writer.__exit__(None, None, None)
