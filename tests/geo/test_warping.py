"""A turned scene with north up: every pixel is one of the scene's, at its place."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from rsdistill.geo.scenes import open_scene
from rsdistill.geo.warping import north_up, write_north_up


@pytest.mark.parametrize("angle", [30, 90, -120])
def test_every_pixel_is_the_scenes_at_its_place(write_raster, tmp_path: Path, angle: int):
    values = np.arange(2 * 40 * 60, dtype=np.uint16).reshape(2, 40, 60)
    values[:, 5, 5] = 9999
    turned = Affine.translation(500_000, 4_000_000) @ Affine.rotation(angle) @ Affine.scale(2, -2)
    path = tmp_path / "up.tif"
    with open_scene(write_raster("a.tif", values, transform=turned, nodata=9999)) as scene:
        write_north_up(scene, path)
        grid = north_up(scene.grid)
    with open_scene(path) as upright:
        assert upright.grid == grid
        assert not upright.grid.rotated
        found, valid = upright.read(upright.grid.window, (1, 2))
        there = upright.grid.transform
    for row in range(grid.height):
        for col in range(grid.width):
            x, y = ~turned @ (there @ (col + 0.5, row + 0.5))
            inside = 0 <= x < 60 and 0 <= y < 40
            place = int(np.floor(y)), int(np.floor(x))
            if min(abs(x - round(x)), abs(y - round(y))) < 1e-6:
                continue  # on the edge of two pixels
            assert valid[row, col] == (inside and place != (5, 5))
            if valid[row, col]:
                assert found[:, row, col].tolist() == values[:, *place].tolist()
    assert valid.sum() == pytest.approx(2399, rel=0.03)
