"""Labels on a scene's grid: rasters of any grid, colours, polygons, and every way not to fit."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject

from rsdistill.errors import LabelError
from rsdistill.geo.burning import BurnOptions, scan_fields
from rsdistill.geo.classes import IGNORE, ClassTable, LandClass
from rsdistill.geo.labels import find_labels, open_labels, scan_classes
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(2, "land", "#4daf4a", (2, 7))), (0,))
UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)
WHOLE = Window(0, 0, 12, 16)


@pytest.fixture
def scene(write_raster):
    with open_scene(write_raster("scene.tif", np.zeros((3, 12, 16), np.uint8))) as opened:
        yield opened


def drawn(height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(1).choice([0, 1, 2, 7], (1, height, width)).astype(np.uint8)


def expected(values: np.ndarray) -> np.ndarray:
    return np.select([values == 1, (values == 2) | (values == 7)], [0, 1], IGNORE)


def test_labels_on_the_same_grid_are_copied(write_raster, scene):
    values = drawn()
    for place in ({}, {"crs": None, "transform": None}):
        with open_labels(write_raster("label.tif", values, **place), scene, TABLE) as labels:
            assert labels.how == "copied"
            assert np.array_equal(labels.read(WHOLE), expected(values[0]))
            assert np.array_equal(labels.read(Window(3, 4, 5, 6)), expected(values[0])[3:8, 4:10])
            assert labels.areas().tolist() == [(values == 1).sum(), (values == 2).sum() + (values == 7).sum()]


@pytest.mark.parametrize(
    "transform",
    [
        Affine(1, 0, 500_000, 0, -1, 4_000_000),
        Affine(4, 0, 499_990, 0, -4, 4_000_010),
        Affine(2, 0, 500_001, 0, -2, 3_999_999),
        Affine(2, 0, 500_000, 0, 2, 4_000_000 - 24),
    ],
    ids=["finer", "coarser", "half a pixel off", "south up"],
)
def test_other_grids_are_brought_by_the_nearest_pixel(write_raster, scene, transform):
    values = drawn(40, 40) if transform.e < 0 else drawn()
    with open_labels(write_raster("label.tif", values, transform=transform, nodata=255), scene, TABLE) as labels:
        assert labels.how == "resampled"
        found = labels.read(WHOLE)
        part = labels.read(Window(5, 6, 4, 3))
    assert np.array_equal(part, found[5:9, 6:9])
    for row, col in np.ndindex(12, 16):
        x, y = ~transform @ (UP @ (col + 0.5, row + 0.5))
        if min(abs(x - round(x)), abs(y - round(y))) < 1e-6:
            continue  # exactly between two pixels: either is nearest
        inside = 0 <= x < values.shape[2] and 0 <= y < values.shape[1]
        assert found[row, col] == (expected(values[0])[int(y), int(x)] if inside else IGNORE)


def test_another_crs_is_brought_home(write_raster, scene):
    blocks = np.kron(np.array([[1, 2], [2, 1]], np.uint8), np.ones((30, 40), np.uint8))
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:32633", "EPSG:4326", 500_000, 4_000_000 - 24, 500_032, 4_000_000)
    transform = rasterio.transform.from_bounds(west, south, east, north, 80, 60)
    with open_labels(write_raster("label.tif", blocks, crs="EPSG:4326", transform=transform), scene, TABLE) as labels:
        found, areas = labels.read(WHOLE), labels.areas()
    reference = np.zeros((12, 16), np.uint8)
    reproject(
        blocks,
        reference,
        src_crs="EPSG:4326",
        src_transform=transform,
        dst_crs="EPSG:32633",
        dst_transform=UP,
        resampling=Resampling.nearest,
    )
    assert (found == expected(reference)).mean() > 0.99
    assert areas.sum() == pytest.approx(192, rel=0.03)


def test_labels_elsewhere_on_earth_are_refused(write_raster, scene):
    far = write_raster("label.tif", drawn(), transform=Affine(2, 0, 600_000, 0, -2, 4_000_000))
    with pytest.raises(LabelError, match="lies nowhere on its scene"):
        open_labels(far, scene, TABLE)


def test_another_size_without_a_crs_is_refused(write_raster, scene):
    with pytest.raises(LabelError, match="40 x 40 pixels, its scene 12 x 16"):
        open_labels(write_raster("label.tif", drawn(40, 40), crs=None, transform=None), scene, TABLE)


def test_colours_are_classes(write_raster, scene):
    index = np.random.default_rng(0).integers(0, 2, (12, 16))
    colors = np.array([one.rgb for one in TABLE.classes], np.uint8)[index].transpose(2, 0, 1)
    with open_labels(write_raster("label.tif", colors), scene, TABLE) as labels:
        assert np.array_equal(labels.read(WHOLE), index)
    with pytest.raises(LabelError, match="2 bands"):
        open_labels(write_raster("label.tif", colors[:2]), scene, TABLE)


def test_an_unknown_value_is_named_with_file_and_window(write_raster, scene):
    values = drawn()
    values[0, 5, 5] = 99
    with (
        open_labels(write_raster("label.tif", values), scene, TABLE) as labels,
        pytest.raises(LabelError, match=r"label.tif, rows 4 to 7, columns 0 to 15: label value 99 \(1 pixels\)"),
    ):
        labels.read(Window(4, 0, 4, 16))


def polygons(path: Path, shapes: list, crs: str = "EPSG:32633", **fields) -> Path:
    geopandas.GeoDataFrame(fields, geometry=shapes, crs=crs).to_file(path, engine="pyogrio")
    return path


def box(left: int, top: int, right: int, bottom: int) -> shapely.Polygon:
    """A box given in pixels of the scene."""
    return shapely.box(*(UP @ (left, bottom)), *(UP @ (right, top)))


def test_polygons_are_burnt_and_later_ones_win(tmp_path: Path, scene):
    path = polygons(tmp_path / "a.gpkg", [box(0, 0, 8, 8), box(4, 4, 12, 12)], kind=["building", "7"])
    with open_labels(path, scene, TABLE, BurnOptions(field="kind", background="land")) as labels:
        found = labels.read(WHOLE)
        assert labels.areas().tolist() == [64, 192 - 64]
    truth = np.ones((12, 16), int)
    truth[:8, :8] = 0
    truth[4:12, 4:12] = 1
    assert np.array_equal(found, truth)
    with open_labels(path, scene, TABLE, BurnOptions(burn="1")) as labels:
        whole = labels.read(WHOLE)
        assert ((whole == 0).sum(), (whole == IGNORE).sum()) == (112, 80)
        assert np.array_equal(labels.read(Window(2, 3, 9, 9)), whole[2:11, 3:12])
        assert labels.areas().tolist() == [128, 0]


def test_polygons_in_another_crs_and_self_crossing_ones_are_taken(tmp_path: Path, scene):
    bow = shapely.Polygon([UP @ point for point in ((0, 0), (8, 8), (8, 0), (0, 8))])
    frame = geopandas.GeoDataFrame({"class_id": [1, 2.0]}, geometry=[bow, box(8, 0, 16, 12)], crs="EPSG:32633").to_crs("EPSG:4326")
    frame.to_file(tmp_path / "a.geojson", engine="pyogrio")
    with open_labels(tmp_path / "a.geojson", scene, TABLE) as labels:
        found = labels.read(WHOLE)
    assert (found[:, 8:] == 1).all()
    assert (found == 0).sum() == pytest.approx(32, abs=8)


def test_spikes_of_polygons_are_burnt_nowhere(tmp_path: Path, scene):
    spiked = shapely.Polygon([UP @ point for point in ((0, 0), (4, 0), (4, 2.5), (14, 2.5), (4, 2.5), (4, 4), (0, 4))])
    with open_labels(polygons(tmp_path / "a.gpkg", [spiked], class_id=[1]), scene, TABLE) as labels:
        assert np.array_equal(labels.read(WHOLE) == 0, np.pad(np.ones((4, 4), bool), ((0, 8), (0, 12))))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"kind": ["building", "barn"]}, BurnOptions(field="kind"), "class 'barn' \\(1 polygons\\)"),
        ({"kind": ["building", "land"]}, BurnOptions(field="knd"), "no field 'knd'; did you mean 'kind'"),
        ({"kind": ["building", "land"]}, BurnOptions(), "does not say its polygons' class"),
    ],
)
def test_polygons_without_a_known_class_are_refused(tmp_path: Path, scene, fields, options, message):
    path = polygons(tmp_path / "a.gpkg", [box(0, 0, 4, 4), box(4, 4, 8, 8)], **fields)
    with pytest.raises(LabelError, match=message):
        open_labels(path, scene, TABLE, options)


def test_what_has_no_area_is_refused(tmp_path: Path, scene):
    points = polygons(tmp_path / "points.gpkg", [shapely.Point(500_001, 3_999_999)], class_id=[1])
    with pytest.raises(LabelError, match="no polygon"):
        open_labels(points, scene, TABLE)
    (tmp_path / "broken.geojson").write_text("{")
    with pytest.raises(LabelError, match="cannot read"):
        open_labels(tmp_path / "broken.geojson", scene, TABLE)


def test_polygons_of_a_scene_without_a_place_are_in_pixels(write_raster, tmp_path: Path):
    path = tmp_path / "a.geojson"
    path.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"class_id": 1}, "geometry": {"type": "Polygon",'
        ' "coordinates": [[[2, -1], [5, -1], [5, -3], [2, -3], [2, -1]]]}}]}'
    )
    with open_scene(write_raster("b.tif", np.zeros((1, 6, 8), np.uint8), crs=None, transform=None)) as nowhere:
        found = open_labels(path, nowhere, TABLE).read(Window(0, 0, 6, 8))
    assert np.argwhere(found == 0).tolist() == [[row, col] for row in (1, 2) for col in (2, 3, 4)]


def test_labels_are_found_by_name(tmp_path: Path):
    for name in ("a.tif", "b.tif", "a_label.tif", "labels/a.gpkg", "labels/b_label.tif", "labels/b.txt", "town.geojson"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    scenes = [tmp_path / "a.tif", tmp_path / "b.tif"]
    assert find_labels(scenes) == [tmp_path / "a_label.tif", None]
    assert find_labels(scenes, [tmp_path / "labels"]) == [tmp_path / "labels/a.gpkg", tmp_path / "labels/b_label.tif"]
    assert find_labels(scenes, [tmp_path / "town.geojson"]) == [tmp_path / "town.geojson"] * 2
    assert find_labels(scenes[:1], [tmp_path / "labels/b_label.tif"]) == [tmp_path / "labels/b_label.tif"]
    with pytest.raises(LabelError, match="does not exist"):
        find_labels(scenes, [tmp_path / "nowhere"])
    (tmp_path / "a_label.gpkg").touch()
    with pytest.raises(LabelError, match="two labels"):
        find_labels(scenes)


def test_classes_are_read_off_the_labels(write_raster, tmp_path: Path):
    table = scan_classes([write_raster("l.tif", drawn(), nodata=0)])
    assert (table.ids, table.names) == ((1, 2, 7), ("class 1", "class 2", "class 7"))
    with pytest.raises(LabelError, match="no class numbers"):
        scan_classes([write_raster("rgb.tif", np.zeros((3, 4, 4), np.uint8))])
    with pytest.raises(LabelError, match="values from 0 to 99"):
        scan_classes([write_raster("many.tif", np.arange(100, dtype=np.uint8).reshape(1, 10, 10))])
    path = polygons(tmp_path / "a.gpkg", [box(0, 0, 4, 4)] * 4, kind=["10", "9", "barn", None])
    assert scan_fields([path], BurnOptions(field="kind")) == ["9", "10", "barn"]
    assert scan_fields([path], BurnOptions(burn="building", background="rest")) == ["rest", "building"]


@pytest.mark.parametrize("size", [(12, 16), (24, 32)], ids=["copied", "resampled"])
def test_nodata_that_is_a_class_is_that_class(write_raster, scene, size):
    table = ClassTable((LandClass(0, "land", "#4daf4a"), LandClass(1, "building", "#e41a1c")))
    values = np.random.default_rng(0).integers(0, 2, (1, *size)).astype(np.uint8)
    step = Affine(24 / size[0], 0, 500_000, 0, -24 / size[0], 4_000_000)
    source = write_raster("label.tif", values, nodata=0, transform=step)
    with open_labels(source, scene, table) as labels:
        assert np.isin(labels.read(WHOLE), (0, 1)).all()
        assert labels.areas().sum() == 12 * 16
    with open_labels(source, scene, ClassTable(table.classes[1:])) as labels:
        assert set(np.unique(labels.read(WHOLE))) == {0, IGNORE}


def test_a_colour_of_a_class_is_no_nodata(write_raster, scene):
    table = ClassTable((LandClass(1, "land", "#000000"), LandClass(2, "building", "#e41a1c")))
    values = np.zeros((3, 12, 16), np.uint8)
    values[:, 3] = np.array([[0xE4], [0x1A], [0x1C]])
    with open_labels(write_raster("label.tif", values, nodata=0), scene, table) as labels:
        found = labels.read(WHOLE)
    assert (found[3] == 1).all()
    assert (np.delete(found, 3, axis=0) == 0).all()


def test_polygons_that_lie_nowhere_on_the_scene_are_refused(tmp_path, scene):
    far = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:32633")
    far.to_file(tmp_path / "far.gpkg")
    with pytest.raises(LabelError, match="lies nowhere"):
        open_labels(tmp_path / "far.gpkg", scene, TABLE)
    around = [shapely.box(400_000, 3_000_000, 400_009, 3_000_009), shapely.box(600_000, 5_000_000, 600_009, 5_000_009)]
    geopandas.GeoDataFrame({"class_id": [1, 1]}, geometry=around, crs="EPSG:32633").to_file(tmp_path / "around.gpkg")
    with open_labels(tmp_path / "around.gpkg", scene, TABLE, BurnOptions(background="land")) as labels:
        assert (labels.read(WHOLE) == 1).all()
