"""Scenes: what a header says, which pixels hold data, and what is refused."""

import os
import pickle
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from rsdistill.errors import SceneError
from rsdistill.geo.scenes import find_scenes, open_scene
from rsdistill.geo.windows import Window

WHOLE = Window(0, 0, 4, 5)


def numbers(bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    return (np.arange(bands * 20).reshape(bands, 4, 5) + 1).astype(dtype)


def test_a_header_is_told_in_full(write_raster):
    path = write_raster("a.tif", numbers(4, "uint16"), nodata=7, descriptions=("blue", "green", "red", "nir"))
    with open_scene(path) as scene:
        assert (scene.name, scene.count, scene.dtype, scene.grid.height, scene.grid.width) == ("a", 4, "uint16", 4, 5)
        assert scene.grid.crs.to_epsg() == 32633
        assert scene.grid.pixel_size == (2, 2)
        assert scene.descriptions == ("blue", "green", "red", "nir")
        assert scene.nodata == (7, 7, 7, 7)
        assert scene.bands() == (1, 2, 3, 4)
        assert scene.bands(("nir", "3", 2)) == (4, 3, 2)


@pytest.mark.parametrize(("wanted", "message"), [((5,), "has 4 bands, but band 5"), ((0,), "band 0"), (("nri",), "did you mean 'nir'")])
def test_a_band_that_is_not_there_is_named(write_raster, wanted, message):
    path = write_raster("a.tif", numbers(4), descriptions=("blue", "green", "red", "nir"))
    with open_scene(path) as scene, pytest.raises(SceneError, match=message):
        scene.bands(wanted)


def test_a_pixel_is_nodata_where_all_bands_are(write_raster):
    values = numbers()
    values[:, 0, 0] = 0
    values[:2, 0, 1] = 0
    with open_scene(write_raster("a.tif", values, nodata=0)) as scene:
        read, valid = scene.read(WHOLE, (1, 2, 3))
        assert (~valid).sum() == 1
        assert not valid[0, 0]
        assert np.array_equal(read, values)
        assert (~scene.read(WHOLE, (1, 2))[1]).sum() == 2


def test_given_nodata_counts_where_none_is_declared(write_raster):
    values = numbers()
    values[:, 2, 2] = (255, 254, 253)
    path = write_raster("a.tif", values)
    with open_scene(path, nodata=(255, 254, 253)) as scene:
        read, valid = scene.read(WHOLE, (1, 2, 3))
        assert not valid[2, 2]
        assert valid.sum() == 19
        assert (read[:, 2, 2] == 0).all()
    with open_scene(path, nodata=(254,)) as scene:
        assert scene.read(WHOLE, (1, 2, 3))[1].all()
    with pytest.raises(SceneError, match="3 bands, but 2 nodata"):
        open_scene(path, nodata=(1, 2))


@pytest.mark.parametrize("nodata", [-9999, 3.5, float("nan"), 1e30])
def test_nodata_that_no_pixel_can_hold_is_harmless(write_raster, nodata):
    with open_scene(write_raster("a.tif", numbers()), nodata=(nodata,)) as scene:
        assert scene.read(WHOLE, (1, 2, 3))[1].all()


def test_what_is_not_finite_is_invalid(write_raster):
    values = numbers(2, "float32")
    values[0, 1, 1], values[1, 2, 2], values[:, 3, 3] = np.nan, np.inf, -9999
    with open_scene(write_raster("a.tif", values, nodata=-9999)) as scene:
        read, valid = scene.read(WHOLE, (1, 2))
        assert sorted(map(tuple, np.argwhere(~valid).tolist())) == [(1, 1), (2, 2), (3, 3)]
        assert np.isfinite(read).all()


def test_alpha_and_masks_are_heard(write_raster):
    values = numbers(4)
    values[3] = 255
    values[3, 0, 3] = 0
    path = write_raster("alpha.tif", values, photometric="RGB")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    with open_scene(path) as scene:
        assert scene.bands() == (1, 2, 3)
        assert np.argwhere(~scene.read(WHOLE, scene.bands())[1]).tolist() == [[0, 3]]
    mask = np.ones((4, 5), bool)
    mask[3, 4] = False
    with open_scene(write_raster("mask.tif", numbers(), mask=mask)) as scene:
        assert np.array_equal(scene.read(WHOLE, (1,))[1], mask)


def test_scale_and_offset_are_honoured(write_raster):
    path = write_raster("a.tif", numbers(2, "int16"), scales=((0.5, 1), (10, 0)))
    with open_scene(path) as scene:
        assert scene.dtype == "float32"
        read, _ = scene.read(WHOLE, (1, 2))
        assert read.dtype == np.float32
        assert np.array_equal(read[0], numbers(2)[0] * 0.5 + 10)
        assert np.array_equal(read[1], numbers(2)[1])


def test_windows_are_read_where_they_are_even_on_turned_grids(write_raster):
    turned = Affine.translation(100, 200) @ Affine.rotation(30) @ Affine.scale(2, -2)
    for transform in (turned, Affine(2, 0, 0, 0, 2, 0), Affine(-2, 0, 0, 0, -2, 0)):
        with open_scene(write_raster("a.tif", numbers(), transform=transform)) as scene:
            assert np.array_equal(scene.read(Window(1, 2, 3, 2), (2,))[0][0], numbers()[1, 1:4, 2:4])


@pytest.mark.parametrize("window", [Window(0, 0, 5, 5), Window(-1, 0, 2, 2), Window(0, 4, 1, 2), Window(0, 0, 0, 1)])
def test_reading_outside_is_a_mistake(write_raster, window):
    with open_scene(write_raster("a.tif", numbers())) as scene, pytest.raises(ValueError, match="not inside"):
        scene.read(window, (1,))


def test_strips_cover_the_scene(write_raster):
    with open_scene(write_raster("a.tif", numbers())) as scene:
        parts = [(window, values) for window, values, _ in scene.strips((1,), 3)]
    assert [window for window, _ in parts] == [Window(0, 0, 3, 5), Window(3, 0, 1, 5)]
    assert np.array_equal(np.concatenate([values for _, values in parts], axis=1), numbers()[:1])


def test_a_scene_travels_to_other_processes_and_threads(write_raster):
    scene = open_scene(write_raster("a.tif", numbers()), nodata=(1,))
    scene.read(WHOLE, (1,))
    copy = pickle.loads(pickle.dumps(scene))
    assert copy.nodata == (1, 1, 1)
    found = []
    thread = Thread(target=lambda: found.append(scene.reopen().read(WHOLE, (1, 2, 3))[0]))
    thread.start()
    thread.join()
    assert np.array_equal(found[0], scene.read(WHOLE, (1, 2, 3))[0])
    scene.close()
    assert scene.read(WHOLE, (1,))[1].sum() == 19


def test_the_fingerprint_is_of_the_pixels_and_not_of_the_name(write_raster):
    paths = [write_raster(name, numbers() + more) for name, more in (("a.tif", 0), ("b.tif", 0), ("c.tif", 1))]
    marks = [open_scene(path).fingerprint for path in paths]
    assert marks[0] == marks[1] != marks[2]


def test_a_scene_without_a_place_is_taken_in_pixels(write_raster):
    with open_scene(write_raster("a.tif", numbers(), crs=None, transform=None)) as scene:
        assert not scene.grid.georeferenced
        assert scene.grid.transform.is_identity


def test_ground_control_points_alone_are_refused(write_raster):
    points = [rasterio.control.GroundControlPoint(row, col, col * 2.0, row * 3.0) for row, col in ((0, 0), (0, 5), (4, 0), (4, 5))]
    path = write_raster("a.tif", numbers(), crs=None, transform=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = points, rasterio.crs.CRS.from_epsg(4326)
    with pytest.raises(SceneError, match="ground control points") as caught:
        open_scene(path)
    assert "gdalwarp" in caught.value.hint


def test_what_is_no_raster_is_named(tmp_path: Path, write_raster):
    empty, text, html = tmp_path / "empty.tif", tmp_path / "text.tif", tmp_path / "page.tif"
    empty.touch()
    text.write_text("hello")
    html.write_text("<!DOCTYPE html><html>404</html>")
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    cut = write_raster("cut.tif", np.random.default_rng(0).integers(0, 255, (3, 200, 200), dtype=np.uint8))
    cut.write_bytes(cut.read_bytes()[:60000])
    expected = {
        tmp_path / "missing.tif": "does not exist",
        tmp_path: "is a folder",
        empty: "is empty",
        text: "is not a raster",
        html: "is not a raster",
        tmp_path / "pipe.tif": "not a regular file",
        tmp_path / "loop.tif": "cannot read",
        Path("/dev/zero"): "not a regular file",
        Path("https://example.com/a.tif"): "is remote",
        Path("/vsicurl/http://example.com/a.tif"): "is remote",
    }
    for path, message in expected.items():
        with pytest.raises(SceneError, match=message) as caught:
            open_scene(path)
        assert "\n" not in str(caught.value)
        assert caught.value.hint
    with open_scene(cut) as scene, pytest.raises(SceneError, match=r"rows 0 to 199 of .*cut.tif"):
        scene.read(scene.grid.window, (1,))


def test_complex_pixels_are_refused(write_raster):
    with pytest.raises(SceneError, match="complex"):
        open_scene(write_raster("a.tif", numbers(1).astype("complex64")))


def test_scenes_are_found_in_folders_and_labels_are_not_scenes(tmp_path: Path, write_raster):
    for name in ("b.tif", "a.TIF", "a_label.tif", ".hidden.tif"):
        write_raster(name, numbers())
    (tmp_path / "notes.txt").touch()
    said = []

    class Listening:
        def message(self, text: str) -> None:
            said.append(text)

    found = find_scenes([tmp_path, tmp_path / "b.tif"], progress=Listening())
    assert [path.name for path in found] == ["a.TIF", "b.tif"]
    assert len(said) == 1
    assert "a_label.tif" in said[0]
    with pytest.raises(SceneError, match="no scene"):
        find_scenes([tmp_path / "a_label.tif"])
