"""Places of every kind: a map lies on its scene's own grid, exactly; what tiles cannot be cut from is refused with the way out."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from harness import ended, noise, write_linear, write_raster

METRES = Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
GOES = "+proj=geos +h=35785831 +lon_0=-75 +sweep=x +datum=WGS84 +units=m +no_defs"
PLACES = {
    "geographic": ("EPSG:4326", Affine(1e-5, 0, 11.0, 0, -1e-5, 48.0)),
    "across the antimeridian": ("EPSG:4326", Affine(1e-3, 0, 179.98, 0, -1e-3, -17.0)),
    "0 to 360": ("EPSG:4326", Affine(1e-3, 0, 350.0, 0, -1e-3, 10.0)),
    "utm beyond its zone": ("EPSG:32660", Affine(30, 0, 900_000, 0, -30, 5_800_000)),
    "the pole": ("EPSG:3413", Affine(100, 0, -3_200, 0, -100, 3_200)),
    "a custom projection": (GOES, Affine(1_000, 0, -1_000_000, 0, -1_000, 2_000_000)),
    "feet": ("EPSG:2263", Affine(1, 0, 980_000, 0, -1, 200_000)),
    "south up": ("EPSG:32633", Affine(0.5, 0, 300_000, 0, 0.5, 5_000_000)),
    "east to the left": ("EPSG:32633", Affine(-0.5, 0, 300_000, 0, -0.5, 5_000_000)),
    "rotated": ("EPSG:32633", Affine.translation(300_000, 5_000_000) * Affine.rotation(30) * Affine.scale(0.5, -0.5)),
    "sheared": ("EPSG:32633", METRES * Affine.shear(10, 0)),
    "nowhere": (None, None),
}
NO_TILES = {"rotated", "sheared", "south up", "east to the left"}
SIZES = [(1, 1), (1, 300), (300, 1), (31, 33), (64, 64), (65, 65), (127, 131)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return write_linear(path, classes=5)


def classes_of(pixels):
    """What the hand-written model says of every pixel, computed apart from it."""
    weight = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    scores = np.einsum("kc,chw->khw", weight, (pixels.astype(np.float32) - 100) / 50)
    return scores.argmax(0) + 1


@pytest.mark.parametrize("name", PLACES)
def test_a_map_lies_where_its_scene_lies(tmp_path, model, name):
    crs, transform = PLACES[name]
    pixels = noise(height=64, width=80)
    scene = write_raster(tmp_path / "s.tif", pixels, crs=crs, transform=transform)
    run = ended("predict", scene, "--model", model, "--out", tmp_path / "m.tif", "--tile", 32, "-q")
    assert run.code == 0, run.err
    with rasterio.open(tmp_path / "m.tif") as mask, rasterio.open(scene) as source:
        assert mask.crs == source.crs
        assert mask.transform.almost_equals(source.transform, 1e-9)
        assert (mask.read(1) == classes_of(pixels)).all()


@pytest.mark.parametrize("name", PLACES)
def test_tiles_lie_where_their_scene_lies_or_the_way_out_is_named(world, tmp_path, name):
    crs, transform = PLACES[name]
    scene = write_raster(tmp_path / "s.tif", noise(height=128, width=128), crs=crs, transform=transform)
    write_raster(tmp_path / "s_label.tif", np.full((128, 128), 2, np.uint8), crs=crs, transform=transform)
    command = ["tile", scene, "--classes", world.classes, "--tile", 32, "--out", tmp_path / "tiles", "-q"]
    run = ended(*command)
    if run.code:
        assert name in NO_TILES, run.err
        assert (run.code, "--warp" in run.line, "s.tif" in run.line) == (2, True, True), run.err
        run = ended(*command, "--warp")
    assert run.code == 0, run.err
    with rasterio.open(tmp_path / "tiles" / "labels" / "s.tif") as labels:
        found = labels.read(1)
        assert set(np.unique(found)) <= {2, 255}
        assert (found == 2).sum() > 0.9 * 128 * 128


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_size_is_too_small_or_too_odd(tmp_path, model, height, width):
    pixels = noise(height=height, width=width)
    scene = write_raster(tmp_path / "s.tif", pixels)
    run = ended("predict", scene, "--model", model, "--out", tmp_path / "m.tif", "--tile", 64, "-q")
    assert run.code == 0, run.err
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert (mask.read(1) == classes_of(pixels)).all()
