"""A scene at another pixel size: exact means, exact lines, the same pixels in every window."""

import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsdistill.errors import ConfigError
from rsdistill.geo.resampling import ResampledScene
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window

TURNED = Affine(1.6, 1.2, 4e5, 1.2, -1.6, 5e6)
"""Pixels of 2 m on a turned grid."""


def scene_of(path, image, transform=TURNED, nodata=None):
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype, "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **shape) as file:
        file.write(image)
    return open_scene(path)


def noise(height, width, dtype=np.float32):
    return np.random.default_rng(height).integers(1, 200, (2, height, width)).astype(dtype)


def test_whole_factors_are_area_means(tmp_path):
    image = noise(40, 60)
    with ResampledScene(scene_of(tmp_path / "s.tif", image), 8.0) as scene:
        assert (scene.grid.height, scene.grid.width) == (10, 15)
        assert scene.grid.transform @ (15, 10) == pytest.approx(TURNED @ (60, 40))
        values, valid = scene.read(scene.grid.window, [2, 1])
    np.testing.assert_allclose(values, image[::-1].reshape(2, 10, 4, 15, 4).mean((2, 4)), rtol=1e-6)
    assert valid.all()


def test_the_same_size_changes_nothing(tmp_path):
    image = noise(23, 31, np.uint8)
    with ResampledScene(scene_of(tmp_path / "s.tif", image), 2.0) as scene:
        assert np.array_equal(scene.read(scene.grid.window, [1, 2])[0], image)
        assert scene.grid.transform == TURNED


def test_smaller_pixels_lie_on_the_lines_between_larger_ones(tmp_path):
    ramp = np.arange(30, dtype=np.float32) * 10
    with ResampledScene(scene_of(tmp_path / "s.tif", np.broadcast_to(ramp, (1, 8, 30)).copy()), 0.5) as scene:
        values, _ = scene.read(scene.grid.window, [1])
    places = (np.arange(120) + 0.5) / 4 - 0.5
    np.testing.assert_allclose(values[0, 5], np.interp(places, np.arange(30), ramp), atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.floats(0.5, 9), height=st.integers(5, 60), width=st.integers(5, 60), data=st.data())
def test_a_window_is_that_part_of_the_whole(tmp_path, size, height, width, data):
    image = noise(height, width, np.uint8)
    image[:, height // 3 : height // 2, 2:5] = 0
    with ResampledScene(scene_of(tmp_path / "s.tif", image, nodata=0), size) as scene:
        grid = scene.grid
        row, col = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
        window = Window(row, col, data.draw(st.integers(1, grid.height - row)), data.draw(st.integers(1, grid.width - col)))
        whole, known = scene.read(grid.window, [1, 2])
        part, valid = scene.read(window, [1, 2])
        assert np.array_equal(part, whole[:, *window.slices])
        assert np.array_equal(valid, known[window.slices])
        assert (whole[:, known] >= 1).all(), "invalid pixels add nothing to a mean"
        assert (whole[:, ~known] == 0).all()


def test_half_of_the_weight_must_be_valid(tmp_path):
    image = np.full((1, 4, 8), 50, np.uint8)
    image[0, :, 0], image[0, :, 2:4], image[0, :, 4:7] = 0, 0, 0
    with ResampledScene(scene_of(tmp_path / "s.tif", image, nodata=0), 8.0) as scene:
        values, valid = scene.read(scene.grid.window, [1])
    assert valid.tolist() == [[False, False]]
    image[0, :, 0] = 90
    with ResampledScene(scene_of(tmp_path / "s.tif", image, nodata=0), 8.0) as scene:
        values, valid = scene.read(scene.grid.window, [1])
    assert valid.tolist() == [[True, False]]
    assert values.tolist() == [[[70, 0]]]


def test_it_opens_again_and_pickles(tmp_path):
    with ResampledScene(scene_of(tmp_path / "s.tif", noise(20, 20)), 3.0) as scene:
        pixels = scene.read(scene.grid.window, [1])[0]
        for other in (scene.reopen(), pickle.loads(pickle.dumps(scene))):
            with other:
                assert np.array_equal(other.read(other.grid.window, [1])[0], pixels)


def test_pixels_larger_than_the_scene_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="smaller than one pixel"):
        ResampledScene(scene_of(tmp_path / "s.tif", noise(5, 5)), 100.0)
