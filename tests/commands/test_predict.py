"""``predict`` as a person uses it: files in, files out, every pixel checked against a linear model computed by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rsdistill.commands.predict import predict
from rsdistill.config import read_toml
from rsdistill.errors import CheckpointError, ConfigError, DeviceError, MemoryLimitError, OutputExistsError, SceneError
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Window, plan
from rsdistill.inference.loading import Choice
from rsdistill.models import ModelCard, build_network, save_model

CLASSES = [{"id": 3, "name": "water", "color": "#0000ff"}, {"id": 7, "name": "land", "color": "#00ff00"}, {"id": 1, "name": "roof"}]
IDS = np.array([3, 7, 1] + [0] * 252 + [255], np.uint8)
NORTH_UP = Affine(2, 0, 400_000, 0, -2, 5_000_000)
MEAN, STD = np.array([100.0, 80.0], np.float32), np.array([30.0, 60.0], np.float32)
WEIGHT = np.array([[1.0331, -2.0177], [-1.5023, 0.5311], [0.2519, 1.0741]], np.float32)  # crooked: scores of two bytes never tie
BIAS = np.array([0.5173, 0.0126, -0.2511], np.float32)


class Heard:
    """A progress that remembers what was said."""

    def __init__(self):
        self.messages, self.warnings = [], []

    def message(self, text):
        self.messages.append(text)

    def warn(self, text):
        self.warnings.append(text)

    def task(self, name, total=None):
        from rsdistill.reporting import SILENT

        return SILENT.task(name, total)


def card(**extra):
    return {
        "format_version": 1,
        "arch": "linear",
        "classes": [{"color": "#888888", **entry} for entry in CLASSES],
        "bands": [1, 2],
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
        **extra,
    }


@pytest.fixture
def work(tmp_path):
    """A workspace whose student is a linear model that was written by hand."""
    folder = tmp_path / "work"
    folder.mkdir()
    write_linear(folder / "student.safetensors")
    return folder


def write_linear(path, **extra):
    save_file({"weight": WEIGHT[:, :, None, None], "bias": BIAS}, path, metadata={"rsdistill": json.dumps(card(**extra))})
    return path


def write_scene(path, image, *, transform=NORTH_UP, crs="EPSG:32633", nodata=None, **profile):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"photometric": "minisblack", **profile}  # GDAL takes a fourth byte band for alpha otherwise
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype, "nodata": nodata}
    if not transform.is_identity:
        profile["transform"] = transform
    with rasterio.open(path, "w", driver="GTiff", crs=crs, **shape, **profile) as file:
        file.write(image)
    return path


def noise(height, width, bands=2, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (bands, height, width)).astype(dtype)


def by_hand(image, valid=None):
    """The mask that a linear model makes of two bands."""
    scaled = (image[:2].astype(np.float32) - MEAN[:, None, None]) / STD[:, None, None]
    logits = np.tensordot(WEIGHT.astype(np.float64), scaled.astype(np.float64), 1) + BIAS[:, None, None]
    ids = IDS[logits.argmax(0)]
    return ids if valid is None else np.where(valid, ids, np.uint8(255))


def read(path, band=1):
    with rasterio.open(path) as file:
        return file.read(band)


def test_the_mask_is_the_linear_map_on_the_scene_s_own_grid(tmp_path, work):
    image = noise(150, 210, seed=3)
    scene = write_scene(tmp_path / "scene.tif", image)
    result = predict(scene, out=[tmp_path / "mask.tif"], work=work)
    assert result.paths == (tmp_path / "mask.tif",)
    with rasterio.open(tmp_path / "mask.tif") as mask, rasterio.open(scene) as origin:
        assert (mask.crs, mask.transform, mask.shape) == (origin.crs, origin.transform, origin.shape)
        assert (mask.dtypes, mask.nodata) == (("uint8",), 255)
        assert mask.colormap(1)[3] == (0, 0, 255, 255)
        assert mask.tags()["RSDISTILL_COMMAND"] == "predict"
        assert np.array_equal(mask.read(1), by_hand(image))
    beside = {"mask.tif", "mask.tif.aux.xml", "mask.qml", "mask.run.toml", "scene.tif", "work"}
    assert {path.name for path in tmp_path.iterdir()} == beside
    (data,) = result.data["scenes"]
    assert data["classes"] == {entry["name"]: int((by_hand(image) == entry["id"]).sum()) for entry in CLASSES}
    assert data["valid_pixels"] == 150 * 210


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 140),
    width=st.integers(1, 140),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    transform=st.sampled_from(
        [NORTH_UP, Affine(1.5, 0.7, 4e5, 0.7, -1.5, 5e6), Affine(2, 0.9, 4e5, 0, -2, 5e6), Affine(2, 0, 4e5, 0, 2, 5e6), Affine.identity()]
    ),
    tiled=st.booleans(),
    tile=st.integers(1, 90),
    nodata=st.sampled_from([None, 0, 9]),
    seed=st.integers(0, 50),
)
def test_every_shape_grid_type_and_nodata_is_exact(tmp_path, work, height, width, dtype, transform, tiled, tile, nodata, seed):
    image = noise(height, width, dtype=dtype, seed=seed) % 12
    valid = np.ones((height, width), bool)
    if nodata is not None:
        valid = ~(image == nodata).all(0)
    blocks = {"tiled": True, "blockxsize": 32, "blockysize": 16} if tiled else {}
    crs = None if transform.is_identity else "EPSG:32633"
    scene = write_scene(tmp_path / "s.tif", image, transform=transform, nodata=nodata, crs=crs, **blocks)
    predict(scene, out=[tmp_path / "m.tif"], work=work, tile=tile, overwrite=True)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.transform == transform
        assert np.array_equal(mask.read(1), by_hand(image, valid))


def test_nan_infinity_alpha_mask_and_given_nodata_are_no_data(tmp_path, work):
    image = noise(40, 50, dtype=np.float32)
    image[0, 3, 4], image[1, 5, 6] = np.nan, np.inf
    scene = write_scene(tmp_path / "nan.tif", image)
    predict(scene, out=[tmp_path / "m.tif"], work=work)
    valid = np.isfinite(image).all(0)
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(np.where(valid, image, 0), valid))

    image = noise(40, 50)
    image[:, :7] = 77
    predict(write_scene(tmp_path / "u.tif", image), out=[tmp_path / "m.tif"], work=work, nodata=[77], overwrite=True)
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image, ~(image == 77).all(0)))

    opaque = np.where(np.arange(50) > 20, 255, 0).astype(np.uint8)
    four = np.concatenate([noise(40, 50, 3), np.broadcast_to(opaque, (1, 40, 50))])
    scene = write_scene(tmp_path / "rgba.tif", four, photometric="rgb", alpha="yes")
    predict(scene, out=[tmp_path / "m.tif"], work=work, overwrite=True)
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(four, np.broadcast_to(opaque > 0, (40, 50))))


def test_a_scene_without_data_becomes_a_mask_without_data(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", np.zeros((2, 30, 40), np.uint8), nodata=0)
    result = predict(scene, out=[tmp_path / "m.tif"], work=work)
    assert (read(tmp_path / "m.tif") == 255).all()
    assert result.data["scenes"][0]["skipped"] == result.data["scenes"][0]["windows"] == 1


def test_bytes_do_not_depend_on_batch_or_threads(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(120, 130))
    made = set()
    choices = [{}, {"batch": 7, "tile": 32}, {"threads": 1, "tile": 50, "margin": 9}, {"blend": "hann", "tile": 48}]
    for number, options in enumerate(choices):
        out = tmp_path / str(number) / "m.tif"
        predict(scene, out=[out], work=work, **options)
        made.add(out.read_bytes())
    assert len(made) == 1


def test_confidence_and_probabilities(tmp_path, work):
    image = noise(60, 70)
    image[:, :5] = 0
    scene = write_scene(tmp_path / "s.tif", image, nodata=0)
    sure, odds = tmp_path / "c.tif", tmp_path / "p.tif"
    result = predict(scene, out=[tmp_path / "m.tif"], confidence=sure, probabilities=odds, work=work)
    assert result.paths == (tmp_path / "m.tif", sure, odds)
    scaled = (image - MEAN[:, None, None]) / STD[:, None, None]
    logits = np.tensordot(WEIGHT, scaled, 1) + BIAS[:, None, None]
    expected = np.exp(logits) / np.exp(logits).sum(0)
    with rasterio.open(odds) as file:
        assert file.descriptions == ("water", "land", "roof")
        np.testing.assert_allclose(file.read(masked=True)[:, 5:] * file.scales[0], expected[:, 5:], atol=0.6 / 254)
        assert file.read(masked=True)[:, :5].mask.all()
    with rasterio.open(sure) as file:
        np.testing.assert_allclose(file.read(1)[5:] * file.scales[0], expected.max(0)[5:], atol=0.6 / 254)


def test_polygons_and_pictures_need_no_mask_of_their_own(tmp_path, work):
    image = np.kron(noise(6, 8, seed=4), np.ones((1, 10, 10), np.uint8))
    scene = write_scene(tmp_path / "s.tif", image)
    predict(scene, out=[tmp_path / "out" / "m.gpkg", tmp_path / "out" / "m.png"], work=work)
    frame = geopandas.read_file(tmp_path / "out" / "m.gpkg", layer="m")
    ids, counts = np.unique(by_hand(image), return_counts=True)
    areas = frame.assign(area=frame.area).groupby("class_id").area.sum().to_dict()
    assert areas == dict(zip(ids, counts * 4.0, strict=True))
    assert (tmp_path / "out" / "m.png").read_bytes()[1:4] == b"PNG"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"m.gpkg", "m.png", "m.run.toml"}


def test_several_scenes_into_a_folder_or_by_stem(tmp_path, work):
    images = {name: noise(20, 30, seed=seed) for seed, name in enumerate(["a", "b"])}
    scenes = [write_scene(tmp_path / "in" / f"{name}.tif", image) for name, image in images.items()]
    predict(scenes, out=[tmp_path / "masks"], work=work)
    predict(tmp_path / "in", out=[str(tmp_path / "named" / "{stem}_map.tif")], work=work)
    for name, image in images.items():
        assert np.array_equal(read(tmp_path / "masks" / f"{name}.tif"), by_hand(image))
        assert np.array_equal(read(tmp_path / "named" / f"{name}_map.tif"), by_hand(image))
    with pytest.raises(ConfigError, match="several scenes"):
        predict(scenes, out=[tmp_path / "m.tif"], work=work)
    with pytest.raises(ConfigError, match="both become"):
        predict([scenes[0], write_scene(tmp_path / "else" / "a.tif", images["b"])], out=[tmp_path / "x"], work=work)


def test_of_several_scenes_the_bad_one_is_named_and_the_others_mapped(tmp_path, work):
    good = write_scene(tmp_path / "good.tif", noise(20, 20))
    bad = write_scene(tmp_path / "bad.tif", noise(20, 20, bands=1))
    result = predict([bad, good], out=[tmp_path / "masks"], work=work)
    assert result.paths == (tmp_path / "masks" / "good.tif",)
    assert len(result.failures) == 1
    assert "bad.tif has 1 bands" in result.failures[0]


def test_a_window_is_that_part_of_the_scene(tmp_path, work):
    image = noise(90, 80)
    scene = write_scene(tmp_path / "s.tif", image)
    predict(scene, out=[tmp_path / "m.tif"], work=work, window=(20, 30, 40, 50))
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), by_hand(image)[20:60, 30:80])
        assert mask.transform == NORTH_UP @ Affine.translation(30, 20)
    for window in [(0, 0, 91, 10), (-1, 0, 5, 5), (0, 0, 0, 5)]:
        with pytest.raises(ConfigError, match="not inside"):
            predict(scene, out=[tmp_path / "m.tif"], work=work, window=window, overwrite=True)
    with pytest.raises(ConfigError, match="four numbers"):
        predict(scene, work=work, window=(1, 2, 3))


@pytest.mark.parametrize("transform", [NORTH_UP, Affine(1.5, 0.7, 4e5, 0.7, -1.5, 5e6)])
def test_only_the_area_of_interest_is_mapped(tmp_path, work, transform):
    image = noise(90, 80)
    scene = write_scene(tmp_path / "s.tif", image, transform=transform)
    circle = shapely.Point(40.3, 50.2).buffer(17)
    outline = shapely.transform(circle, lambda points: np.stack(transform @ points.T, axis=1))
    aoi = tmp_path / "aoi.gpkg"
    geopandas.GeoDataFrame(geometry=[outline], crs="EPSG:32633").to_crs(4326).to_file(aoi)
    result = predict(scene, out=[tmp_path / "m.tif"], work=work, aoi=aoi, tile=16)
    rows, cols = np.mgrid[:90, :80] + 0.5
    inside = (cols - 40.3) ** 2 + (rows - 50.2) ** 2
    got = read(tmp_path / "m.tif")
    near = np.abs(inside**0.5 - 17) < 0.3
    assert np.array_equal(got[~near], by_hand(image, inside < 17**2)[~near])
    assert result.data["scenes"][0]["windows"] < 20

    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:32633").to_file(tmp_path / "far.gpkg")
    with pytest.raises(ConfigError, match="meets the scene"):
        predict(scene, out=[tmp_path / "x.tif"], work=work, aoi=tmp_path / "far.gpkg")
    assert not (tmp_path / "x.tif").exists()


def test_spikes_and_lines_of_an_area_of_interest_are_no_area(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(90, 80))
    spiked = shapely.Polygon([(10, 10), (30, 10), (30, 20.5), (70, 20.5), (30, 20.5), (30, 30), (10, 30)])
    both = shapely.GeometryCollection([shapely.box(40, 40, 50, 60), shapely.LineString([(0, 70.5), (80, 70.5)]), shapely.Point(60.5, 60.5)])
    outlines = shapely.transform([spiked, both], lambda points: np.stack(NORTH_UP @ points.T, axis=1))
    geopandas.GeoDataFrame(geometry=outlines, crs="EPSG:32633").to_file(tmp_path / "aoi.gpkg")
    predict(scene, out=[tmp_path / "m.tif"], work=work, aoi=tmp_path / "aoi.gpkg")
    expected = np.zeros((90, 80), bool)
    expected[10:30, 10:30] = expected[40:60, 40:50] = True
    assert np.array_equal(read(tmp_path / "m.tif") != 255, expected)


@pytest.mark.parametrize("how", [{}, {"workers": 2}], ids=["by itself", "workers"])
def test_a_map_of_nothing_is_warned_of_and_an_area_beside_the_scene_refused(tmp_path, work, how):
    scene, areas = write_scene(tmp_path / "s.tif", noise(40, 40)), {"small": (3.1, 3.1, 3.3, 3.3), "beside": (40, 0, 50, 20)}
    for name, box in areas.items():
        outline = shapely.transform(shapely.box(*box), lambda points: np.stack(NORTH_UP @ points.T, axis=1))
        geopandas.GeoDataFrame(geometry=[outline], crs="EPSG:32633").to_file(tmp_path / f"{name}.gpkg")
    heard = Heard()
    predict(scene, out=[tmp_path / "m.tif"], work=work, aoi=tmp_path / "small.gpkg", progress=heard, **how)
    assert any("no pixel was mapped" in text for text in heard.warnings)
    with pytest.raises(ConfigError, match="meets the scene"):
        predict(scene, out=[tmp_path / "n.tif"], work=work, aoi=tmp_path / "beside.gpkg", **how)


def test_bands_by_number_and_name(tmp_path, work):
    image = noise(20, 30, bands=4)
    scene = write_scene(tmp_path / "s.tif", image)
    with rasterio.open(scene, "r+") as file:
        file.descriptions = ("nir", "green", "red", "blue")
    heard = Heard()
    predict(scene, out=[tmp_path / "m.tif"], work=work, progress=heard)
    assert "4 bands; bands 1, 2 are read" in heard.messages[0]
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image))
    predict(scene, out=[tmp_path / "m.tif"], work=work, bands=["blue", "2"], overwrite=True)
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image[[3, 1]]))
    with pytest.raises(ConfigError, match=r"3 bands are named, .* reads 2"):
        predict(scene, work=work, bands=[1, 2, 3])
    with pytest.raises(SceneError, match=r"no band called 'gren'; did you mean 'green'"):
        predict(scene, work=work, bands=["gren", "red"])


def test_what_does_not_fit_the_model_is_refused_with_both_values(tmp_path, work):
    with pytest.raises(SceneError, match=r"has 1 bands, .*reads bands 1, 2"):
        predict(write_scene(tmp_path / "one.tif", noise(9, 9, bands=1)), work=work)
    model = write_linear(work / "bytes.safetensors", dtype="uint8")
    with pytest.raises(SceneError, match=r"is uint16, .* was trained on uint8"):
        predict(write_scene(tmp_path / "deep.tif", noise(9, 9, dtype=np.uint16)), work=work, model=model)
    scene = write_scene(tmp_path / "nowhere.tif", noise(9, 9), crs=None)
    with pytest.raises(SceneError, match="no CRS"):
        predict(scene, work=work, require_crs=True)


@pytest.mark.parametrize(("size", "warned"), [(2.0, False), (2.3, False), (2.5, True), (1.6, True)])
def test_another_pixel_size_only_warns(tmp_path, work, size, warned):
    model = write_linear(work / "sized.safetensors", pixel_size=[size, size])
    heard = Heard()
    predict(write_scene(tmp_path / "s.tif", noise(9, 9)), out=[tmp_path / "m.tif"], work=work, model=model, progress=heard)
    assert any("was trained on" in warning for warning in heard.warnings) is warned


def test_pixel_sizes_in_degrees_are_compared_in_metres(tmp_path, work):
    model = write_linear(work / "sized.safetensors", pixel_size=[2.0, 2.0])
    for size, warned in ((2 / 111_320, False), (1e-4, True)):
        heard = Heard()
        square = Affine(size / np.cos(np.radians(60)), 0, 10, 0, -size, 60)
        scene = write_scene(tmp_path / "s.tif", noise(9, 9), transform=square, crs="EPSG:4326")
        predict(scene, out=[tmp_path / "m.tif"], work=work, model=model, progress=heard, overwrite=True)
        assert bool(heard.warnings) is warned


def test_models_are_found_by_name_and_missing_ones_named(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(9, 9))
    predict(scene, out=[tmp_path / "m.tif"], work=work, model="student")
    with pytest.raises(CheckpointError, match="holds student"):
        predict(scene, out=[tmp_path / "n.tif"], work=work, model="teacher")
    with pytest.raises(CheckpointError, match="no model"):
        predict(scene, out=[tmp_path / "n.tif"], work=tmp_path / "empty")


def test_results_are_not_replaced_and_scenes_never(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(9, 9))
    before = scene.read_bytes()
    (tmp_path / "m.tif").write_text("precious")
    with pytest.raises(OutputExistsError):
        predict(scene, out=[tmp_path / "m.tif"], work=work)
    assert (tmp_path / "m.tif").read_text() == "precious"
    (tmp_path / "link.tif").symlink_to(scene)
    (tmp_path / "hard.tif").hardlink_to(scene)
    for name in ("s.tif", "link.tif", "hard.tif"):
        with pytest.raises(OutputExistsError, match="scene"):
            predict(scene, out=[tmp_path / name], work=work, overwrite=True)
    assert scene.read_bytes() == before


def test_bad_options_are_refused_before_anything_is_written(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(30, 30))
    for error, options in [
        (ConfigError, {"out": [tmp_path / "m.jpg"]}),
        (ConfigError, {"out": [tmp_path / "a.tif", tmp_path / "a.tif"]}),
        (ConfigError, {"out": [tmp_path / "m.tif"], "tile": 8, "margin": 4}),
        (ConfigError, {"out": [tmp_path / "m.tif"], "co": {"INTERLEAVE": "PIXEL"}}),
        (DeviceError, {"out": [tmp_path / "m.tif"], "device": "cuda:99"}),
        (ConfigError, {"out": [tmp_path / "m.tif"], "confidence": tmp_path / "c.gpkg"}),
    ]:
        with pytest.raises(error):
            predict(scene, work=work, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"s.tif", "work"}


def test_a_scene_that_breaks_halfway_leaves_nothing(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(2000, 300), compress="deflate", tiled=True, blockxsize=256, blockysize=256)
    content = scene.read_bytes()
    scene.write_bytes(content[:300] + content[300 : len(content) // 2])
    with pytest.raises(SceneError):
        predict(scene, out=[tmp_path / "m.tif", tmp_path / "m.gpkg"], work=work)
    assert {path.name for path in tmp_path.iterdir()} == {"s.tif", "work"}


def test_the_run_file_repeats_the_run(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(50, 50))
    predict(scene, out=[tmp_path / "m.tif"], work=work, tile=32, margin=3)
    first = (tmp_path / "m.tif").read_bytes()
    options = read_toml(tmp_path / "m.run.toml")
    assert options.pop("command") == "predict"
    assert options["tile"] == 32
    predict(**options | {"overwrite": True})
    assert (tmp_path / "m.tif").read_bytes() == first


def test_a_teacher_maps_with_the_scene_s_context(tmp_path):
    import torch

    torch.manual_seed(0)
    light = {"encoder": "mobilenetv4_conv_small_035", "dim": 8, "hidden": 8}
    network = build_network("ginet", light, bands=2, classes=3)
    save_model(tmp_path / "teacher.safetensors", network, ModelCard(**card(arch="ginet", tile=64, margin=8)))
    image = noise(150, 130)
    image[:, :, 60:] = 0
    scene = write_scene(tmp_path / "s.tif", image, nodata=0)
    predict(scene, out=[tmp_path / "m.tif"], work=tmp_path, model="teacher", tile=64)
    mask = read(tmp_path / "m.tif")
    assert np.array_equal(mask == 255, np.broadcast_to(np.arange(130) >= 60, (150, 130)))
    predict(scene, out=[tmp_path / "t.tif"], work=tmp_path, model="teacher", tile=64, tta="d4")
    assert np.array_equal(read(tmp_path / "t.tif") == 255, mask == 255)


def test_turned_windows_change_nothing_for_a_model_of_pixels(tmp_path, work):
    image = noise(70, 50)
    scene = write_scene(tmp_path / "s.tif", image)
    predict(scene, out=[tmp_path / "m.tif"], work=work, tta="d4", tile=32)
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image))


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_every_backend_makes_the_same_map(tmp_path, backend):
    pytest.importorskip("onnxscript")
    pytest.importorskip(backend.replace("onnx", "onnxruntime"))
    import torch

    torch.manual_seed(0)
    save_model(tmp_path / "student.safetensors", build_network("tiny", {}, bands=2, classes=3), ModelCard(**card(arch="tiny", margin=8)))
    image = np.kron(noise(20, 26), np.ones((1, 7, 5), np.uint8))
    image[:, 30:60, :40] = 0
    scene = write_scene(tmp_path / "s.tif", image, nodata=0)
    heard = Heard()
    predict(scene, out=[tmp_path / "torch.tif"], work=tmp_path, tile=64)
    result = predict(scene, out=[tmp_path / "other.tif"], work=tmp_path, tile=64, backend=backend, progress=heard)
    assert (read(tmp_path / "torch.tif") == read(tmp_path / "other.tif")).mean() > 0.999
    assert result.data["scenes"][0]["backend"] == backend
    assert f"{backend} float32" in heard.messages[-1]
    with pytest.raises(ConfigError, match="runs on the processor"):
        predict(scene, out=[tmp_path / "x.tif"], work=tmp_path, backend=backend, device="cuda")


def test_the_backend_is_chosen_once_told_and_kept(tmp_path, work, monkeypatch):
    scene = write_scene(tmp_path / "s.tif", noise(200, 50))
    tried = []

    def fastest(trials):
        tried.append(trials)
        return next(trial for trial in trials if trial.choice == ("torch", "bf16"))

    monkeypatch.setattr("rsdistill.inference.choosing.fastest", fastest)
    monkeypatch.setattr("rsdistill.inference.choosing.candidates", lambda *_, **__: [Choice("torch", "bf16")])
    heard = Heard()
    result = predict([scene], out=[tmp_path / "m.tif"], work=work, backend="auto", progress=heard)
    assert len(tried) == 1
    assert "backend torch bf16" in heard.messages[0]
    assert result.data["scenes"][0]["precision"] == "bf16"
    options = read_toml(tmp_path / "m.run.toml")
    assert (options["backend"], options["precision"]) == ("torch", "bf16")

    real = Scene.read

    def torn(self, window, bands):
        if window.row >= 100:
            raise KeyboardInterrupt
        return real(self, window, bands)

    monkeypatch.setattr("rsdistill.inference.reading.CHUNK_ROWS", 20)
    monkeypatch.setattr("rsdistill.inference.choosing.samples", lambda *_: [])
    monkeypatch.setattr("rsdistill.inference.mapping.samples", lambda *_: [])
    monkeypatch.setattr(Scene, "read", torn)
    with pytest.raises(KeyboardInterrupt):
        predict(scene, out=[tmp_path / "n.tif"], work=work, backend="auto", tile=16)
    monkeypatch.setattr(Scene, "read", real)
    journal = tmp_path / ".n.tif.journal"
    journal.write_bytes(journal.read_bytes().replace(b'"precision": "float32"', b'"precision": "bf16"'))  # what another machine had chosen
    heard = Heard()
    again = predict(scene, out=[tmp_path / "n.tif"], work=work, backend="auto", tile=16, resume=True, progress=heard)
    assert again.data["scenes"][0]["precision"] == "bf16"
    assert any("earlier run" in message for message in heard.messages)
    assert len(tried) == 1


def test_windows_shrink_to_the_memory_that_is_allowed(tmp_path, work):
    image = noise(700, 600)
    scene, heard = write_scene(tmp_path / "s.tif", image), Heard()
    result = predict(scene, out=[tmp_path / "m.tif"], work=work, max_memory=6, progress=heard)
    assert "windows of 256 pixels in place of 1024" in heard.messages[0]
    assert result.data["scenes"][0]["windows"] == 9
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image))
    assert read_toml(tmp_path / "m.run.toml")["tile"] == 256
    with pytest.raises(MemoryLimitError, match="--max-memory allows 1"):
        predict(scene, out=[tmp_path / "n.tif"], work=work, max_memory=1)
    assert not list(tmp_path.glob("*n.tif*")), "refused by what is known before anything is made"


def test_shards_of_an_array_do_not_each_choose(tmp_path, work):
    with pytest.raises(ConfigError, match="each task would choose for itself"):
        predict("s.tif", work=work, shard="1/2", backend="auto")


def test_an_exported_model_maps_without_torch(tmp_path, work):
    pytest.importorskip("onnxscript")
    from rsdistill.commands.export import export

    export(work / "student.safetensors", out=tmp_path / "m.onnx", tile=32)
    image = noise(75, 50)
    image[:, 40:] = 0
    scene = write_scene(tmp_path / "s.tif", image, nodata=0)
    script = (
        "import sys; from rsdistill.commands.predict import predict; "
        f"predict({str(scene)!r}, out=[{str(tmp_path / 'm.tif')!r}], model={str(tmp_path / 'm.onnx')!r}, blend='hann', margin=4); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image, np.broadcast_to(np.arange(75)[:, None] < 40, (75, 50))))
    with pytest.raises(ConfigError, match="takes tiles of 32 pixels, not 64"):
        predict(scene, out=[tmp_path / "n.tif"], model=tmp_path / "m.onnx", tile=64)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(3000, 200), tiled=True, blockxsize=64, blockysize=64)
    wanted = {"tile": 48, "blend": "hann", "margin": 8}
    paths = [tmp_path / "m.tif", tmp_path / "c.tif"]
    predict(scene, out=paths[:1], confidence=paths[1], work=work, **wanted)
    undisturbed = [path.read_bytes() for path in paths]
    journal, resumed = tmp_path / ".m.tif.journal", 0
    script = (
        "import sys; from rsdistill.commands.predict import predict; "
        f"predict({str(scene)!r}, out=[{str(paths[0])!r}], confidence={str(paths[1])!r}, work={str(work)!r}, overwrite=True, resume=True, "
        f"**{wanted!r})"
    )
    for kept in (1, 60_000, 120_000):  # bytes in the journal at which the run is shot
        run = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
        while run.poll() is None and not (journal.exists() and journal.stat().st_size > kept):
            time.sleep(0.001)
        run.kill()
        run.wait()
        resumed += journal.exists()
    heard = Heard()
    predict(scene, out=paths[:1], confidence=paths[1], work=work, overwrite=True, resume=True, progress=heard, **wanted)
    assert resumed >= 2
    assert any("rows were mapped by an earlier run" in message for message in heard.messages)
    assert [path.read_bytes() for path in paths] == undisturbed
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("last", ["run_text", "Journal.__exit__"])
def test_a_run_killed_when_its_mask_already_stood_goes_on_without_leave_to_overwrite(tmp_path, work, last):
    scene, mask = write_scene(tmp_path / "s.tif", noise(200, 50)), tmp_path / "m.tif"
    script = (
        "import os, signal; import rsdistill.inference.run_files as files, rsdistill.inference.journal as journal; "
        "from rsdistill.commands.predict import predict; from rsdistill.inference.journal import Journal; real = files.run_text; "
        f"kill = lambda *given: os.kill(os.getpid(), signal.SIGKILL) if os.path.exists({str(mask)!r}) else real(*given); "
        f"{'files' if last == 'run_text' else 'journal'}.{last} = kill; "
        f"predict({str(scene)!r}, out=[{str(mask)!r}], work={str(work)!r}, tile=16)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    stood = mask.read_bytes()
    assert (tmp_path / "m.run.toml").exists() is (last != "run_text")
    with pytest.raises(OutputExistsError):
        predict(scene, out=[mask], work=work, tile=16)
    predict(scene, out=[mask], work=work, tile=16, resume=True)
    assert mask.read_bytes() == stood
    assert {path.name for path in tmp_path.glob("*m.*")} == {"m.tif", "m.tif.aux.xml", "m.qml", "m.run.toml"}
    (tmp_path / ".m.tif.journal").write_bytes(b"{}\n")
    with pytest.raises(OutputExistsError):
        predict(scene, out=[mask], work=work, tile=20, resume=True)
    assert mask.read_bytes() == stood, "the journal of another map gives no leave to replace this one"


@pytest.mark.parametrize("how", [{}, {"workers": 2}], ids=["by itself", "workers"])
def test_scenes_that_an_earlier_run_finished_are_kept_by_resume(tmp_path, work, how):
    """As long as scene, model and options are what they were; what is left over is mapped, and then nothing is."""
    scenes = [write_scene(tmp_path / f"{name}.tif", noise(60, 50, seed=seed)) for seed, name in enumerate("ab")]
    out = tmp_path / "masks" / "{stem}.tif"
    predict(scenes[0], out=[out], work=work, tile=16)
    stood, heard = (tmp_path / "masks" / "a.tif").stat(), Heard()
    result = predict(scenes, out=[out], work=work, tile=16, resume=True, progress=heard, **how)
    assert result.paths == (tmp_path / "masks" / "a.tif", tmp_path / "masks" / "b.tif")
    assert [one["scene"] for one in result.data["scenes"]] == [str(scenes[1])]
    assert [one["scene"] for one in result.data["finished"]] == [str(scenes[0])]
    assert f"{scenes[0]}: finished by an earlier run" in heard.messages
    assert np.array_equal(read(tmp_path / "masks" / "b.tif"), by_hand(noise(60, 50, seed=1)))
    assert predict(scenes, out=[out], work=work, tile=16, resume=True, **how).data["scenes"] == []
    assert (tmp_path / "masks" / "a.tif").stat() == stood
    with pytest.raises(OutputExistsError):
        predict(scenes, out=[out], work=work, tile=16, **how)


def test_what_was_chosen_for_a_finished_scene_is_kept_for_those_left(tmp_path, work, monkeypatch):
    scenes = [write_scene(tmp_path / f"{name}.tif", noise(60, 50, seed=seed)) for seed, name in enumerate("ab")]
    how = {"out": [tmp_path / "masks"], "work": work, "tile": 16}
    predict(scenes[0], **how | {"out": [tmp_path / "masks" / "a.tif"]})
    monkeypatch.setattr("rsdistill.inference.choosing.fastest", lambda *_: pytest.fail("nothing is to be tried out again"))
    (told,) = predict(scenes, backend="auto", resume=True, **how | {"out": [tmp_path / "masks" / "{stem}.tif"]}).data["scenes"]
    assert (told["backend"], told["precision"]) == ("torch", "float32")


@pytest.mark.parametrize("change", ["options", "scene", "model", "file", "run file"])
def test_resume_does_not_take_the_results_of_something_else_for_its_own(tmp_path, work, change):
    scene, out, how = write_scene(tmp_path / "s.tif", noise(60, 50)), tmp_path / "m.tif", {"tile": 16}
    picture = tmp_path / "m.png"
    predict(scene, out=[out, picture], work=work, **how)
    assert predict(scene, out=[out, picture], work=work, resume=True, **how).data["scenes"] == []
    if change == "options":
        how["tile"] = 20
    elif change == "scene":
        later = (tmp_path / "m.run.toml").stat().st_mtime_ns + 1
        os.utime(scene, ns=(later, later))
    elif change == "model":
        how["model"] = write_linear(tmp_path / "other.safetensors")
        os.utime(how["model"], ns=(0, 0))
    elif change == "file":
        picture.unlink()
    else:
        (tmp_path / "m.run.toml").write_text("command =")
    with pytest.raises(OutputExistsError):
        predict(scene, out=[out, picture], work=work, resume=True, **how)


def test_resume_starts_anew_when_scene_or_options_changed(tmp_path, work, monkeypatch):
    scene = write_scene(tmp_path / "s.tif", noise(200, 50))
    from rsdistill.geo.scenes import Scene

    real = Scene.read

    def torn(self, window, bands):
        if window.row >= 100:
            raise KeyboardInterrupt
        return real(self, Window(window.row, window.col, window.height, window.width), bands)

    for change in ("scene", "options", "nothing"):
        monkeypatch.setattr(Scene, "read", torn)
        monkeypatch.setattr("rsdistill.inference.reading.CHUNK_ROWS", 20)
        with pytest.raises(KeyboardInterrupt):
            predict(scene, out=[tmp_path / "m.tif"], work=work, tile=16, overwrite=True)
        monkeypatch.setattr(Scene, "read", real)
        image = noise(200, 50, seed=change == "scene")
        if change == "scene":
            write_scene(scene, image)
        heard = Heard()
        tile = 20 if change == "options" else 16
        predict(scene, out=[tmp_path / "m.tif"], work=work, tile=tile, overwrite=True, resume=True, progress=heard)
        assert any("earlier run" in message for message in heard.messages) is (change == "nothing")
        assert np.array_equal(read(tmp_path / "m.tif"), by_hand(image))
        write_scene(scene, noise(200, 50))


def test_a_scene_is_resampled_when_asked(tmp_path, work):
    image = np.kron(noise(30, 40), np.ones((1, 4, 4), np.uint8))
    scene = write_scene(tmp_path / "s.tif", image)
    model = write_linear(work / "coarse.safetensors", pixel_size=8.0)
    heard = Heard()
    predict(scene, out=[tmp_path / "m.tif"], work=work, model=model, pixel_size=8, progress=heard)
    assert heard.warnings == []
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert mask.transform == NORTH_UP @ Affine.scale(4)
        assert np.array_equal(mask.read(1), by_hand(image[:, ::4, ::4]))


def test_a_rehearsal_tells_what_it_would_take_and_writes_nothing(tmp_path, work):
    scene = write_scene(tmp_path / "s.tif", noise(300, 200))
    options = {"tile": 64, "margin": 8, "probabilities": tmp_path / "p.tif"}
    result = predict(scene, out=[tmp_path / "m.tif"], work=work, dry_run=True, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"s.tif", "work"}
    assert result.paths == ()
    (told,) = result.data["scenes"]
    assert told["forward_passes"] == told["windows"]
    done = predict(scene, out=[tmp_path / "m.tif"], work=work, **options).data["scenes"][0]
    assert told["windows"] == done["windows"]
    assert told["overlap_factor"] == pytest.approx(done["overlap_factor"])
    assert told["seconds"] > 0
    assert told["memory_bytes"] > 200 * 64 * 3
    assert told["disk_bytes"] >= sum(path.stat().st_size for path in (tmp_path / "m.tif", tmp_path / "p.tif")) / 2


def test_a_rehearsal_counts_the_windows_that_hold_data(tmp_path, work):
    """And tells so much of results that stand already."""
    image = np.zeros((2, 300, 200), np.uint8)
    image[:, 130:170, 20:60] = noise(40, 40)
    scene = write_scene(tmp_path / "s.tif", image, nodata=0, tiled=True, blockxsize=16, blockysize=16, sparse_ok=True)
    options = {"work": work, "out": [tmp_path / "m.tif"], "tile": 64, "margin": 8}
    done = predict(scene, **options).data["scenes"][0]
    (told,) = predict(scene, dry_run=True, **options).data["scenes"]
    assert 0 < done["windows"] - done["skipped"] <= told["forward_passes"] < told["windows"] / 2
    (turned,) = predict(scene, dry_run=True, tta="d4", **options).data["scenes"]
    assert turned["forward_passes"] == 8 * told["forward_passes"]


def test_a_rehearsal_of_shards_tells_what_each_would_take(tmp_path, work):
    options = {"work": work, "out": [tmp_path / "m.tif"], "tile": 64, "margin": 8}
    scene = write_scene(tmp_path / "s.tif", noise(300, 200))
    (whole,) = predict(scene, dry_run=True, **options).data["scenes"]
    shards = [predict(scene, dry_run=True, shard=f"{index}/3", **options).data["scenes"][0] for index in (1, 2, 3)]
    for name in ("windows", "forward_passes"):
        assert sum(told[name] for told in shards) == whole[name]
    assert all(0 < told["windows"] < whole["windows"] and told["disk_bytes"] < whole["disk_bytes"] for told in shards)
    one = write_scene(tmp_path / "one.tif", noise(30, 30))
    (nothing,) = predict(one, dry_run=True, shard="2/2", **options).data["scenes"]
    assert (nothing["windows"], nothing["seconds"]) == (0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"s.tif", "one.tif", "work"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sparse_scene_of_two_gigapixels_takes_the_memory_of_a_low_one(tmp_path, work):
    """A network of one convolution on scenes of 20 000 columns, one square, one five times as high: the same memory within 5 %.

    Both are long enough for reader, network and writers to have met in many orders: what each of them holds at that moment is the peak. It
    differs from run to run by a tenth of what is above imports, so medians of five are compared. The whole process must hold the 5 %;
    what is above imports should too, and does not always.
    """
    script = (
        "import sys; from pathlib import Path; from rsdistill.inference.contestants import memory; import torch; "
        "from rsdistill.commands.predict import predict; scene, warm, out, work = sys.argv[1:]; "
        "predict(warm, out=[out], work=work, overwrite=True); before = memory(peak=False); "
        "found = predict(scene, out=[out], work=work, overwrite=True).data['scenes'][0]; "
        "peak = memory(peak=True); print(peak - before, peak, found['windows'], found['skipped'], found['valid_pixels'])"
    )
    warm = write_scene(tmp_path / "warm.tif", noise(256, 256))
    peaks = []
    for height in (20_000, 100_000):
        path = tmp_path / f"s{height}.tif"
        layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True, "compress": "deflate", "BIGTIFF": "YES"}
        place = {"crs": "EPSG:32633", "transform": NORTH_UP, "nodata": 0}
        with rasterio.open(path, "w", driver="GTiff", height=height, width=20_000, count=2, dtype="uint8", **layout, **place) as file:
            for row in range(0, height - 1024, 6144):  # islands of data
                file.write(noise(1024, 1024), window=rasterio.windows.Window(row % 18_000, row, 1024, 1024))
        run = [sys.executable, "-W", "ignore", "-c", script, path, warm, tmp_path / "m.tif", work]
        run = [str(part) for part in run]
        done = [subprocess.run(run, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]) for _ in range(5)]
        peak, whole, windows, skipped, valid = sorted([int(figure) for figure in one.stdout.split()] for one in done)[2]
        assert valid == len(range(0, height - 1024, 6144)) * 1024 * 1024
        assert windows >= height // 1024 * 20
        assert skipped > 0.8 * windows
        peaks.append((peak, whole))
        (told,) = predict(path, out=[tmp_path / "m.tif"], work=work, overwrite=True, dry_run=True).data["scenes"]
        side = plan(height, 20_000, 1024, 0, 1).tile[0]
        assert peak < told["memory_bytes"] + 4 * 5 * side**2 * 2, "what is told before is not less than what is taken"
    above, whole = (high / low for low, high in zip(*peaks, strict=True))
    assert 0.95 < whole < 1.05
    assert 0.85 < above < 1.15
    if not 0.95 < above < 1.05:
        pytest.xfail(f"{100 * above - 100:+.0f} % above imports; the goal is 5")
