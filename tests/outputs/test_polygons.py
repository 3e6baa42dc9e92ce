"""Polygon files: what programs find in them."""

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes

from rsdistill.errors import ConfigError, DiskError, MaskError
from rsdistill.geo.burning import pixel_plane
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs import polygons as module
from rsdistill.outputs.geotiff import FloatRasterWriter, LabelRasterWriter
from rsdistill.outputs.polygons import write_polygons

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(4, "water & ice", "#377eb8"), LandClass(7, "Wäldchen", "#4daf4a")))
WIDE = ClassTable((LandClass(3, "a", "#000000"), LandClass(300, "b", "#ffffff"), LandClass(255, "c", "#777777")))
UTM = CRS.from_epsg(32640)
NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000)
SUFFIXES = (".gpkg", ".fgb", ".geojson", ".parquet")
SMALL = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 255]))


def write_mask(path: Path, index: np.ndarray, *, table: ClassTable = TABLE, crs: CRS | None = UTM, transform: Affine = NORTH_UP) -> Path:
    with LabelRasterWriter(path, Grid(*index.shape, crs, transform), table, overwrite=True) as writer:
        writer.write(0, index)
    return path


def read(path: Path) -> Any:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, layer=path.stem)


def lumps(height: int = 120, width: int = 90, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 3, (-(-height // 6), -(-width // 6)), dtype=np.uint8)
    index = np.kron(small, np.ones((6, 6), np.uint8))[:height, :width].copy()
    index[:30, :20] = 255
    return index


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_valid_named_polygons_that_cover_the_valid_area(tmp_path: Path, suffix: str) -> None:
    index = lumps()
    mask = write_mask(tmp_path / "mask.tif", index)
    path = tmp_path / f"mask{suffix}"
    count = write_polygons(mask, path, TABLE)
    frame = read(path)
    assert count == len(frame) == sum(1 for _ in shapes(index, mask=index != 255, connectivity=4))
    assert frame.crs == ("EPSG:4326" if suffix == ".geojson" else "EPSG:32640")
    assert frame.geometry.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    assert shapely.is_ccw(frame.geometry.exterior.to_numpy()).all()
    assert list(frame.columns[:5]) == ["class_id", "class_name", "color", "area_m2", "perimeter_m"]
    assert set(zip(frame.class_id, frame.class_name, frame.color, strict=True)) == {(one.id, one.name, one.color) for one in TABLE.classes}
    sizes = frame.groupby("class_id").area_m2.sum()
    assert sizes.to_dict() == pytest.approx({one: (index == i).sum() / 4 for i, one in enumerate(TABLE.ids)}, rel=1e-9)
    assert frame.to_crs(32640).area.sum() == pytest.approx((index != 255).sum() / 4, rel=1e-6)


@given(
    index=SMALL,
    transform=st.sampled_from([NORTH_UP, Affine(2, 0, 0, 0, 3, 0), Affine.rotation(25) @ Affine.scale(0.3, -0.3), Affine.identity()]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_polygons_burnt_back_are_the_mask(tmp_path: Path, index: np.ndarray, transform: Affine) -> None:
    crs = None if transform.is_identity else UTM
    mask = write_mask(tmp_path / "mask.tif", index, crs=crs, transform=transform)
    write_polygons(mask, tmp_path / "mask.fgb", TABLE)
    frame = read(tmp_path / "mask.fgb")
    pairs = list(zip(frame.geometry, frame.class_id, strict=True))
    plane = pixel_plane(Grid(*index.shape, crs, transform))
    burnt = rasterize(pairs, index.shape, fill=255, transform=plane, dtype="uint8") if pairs else np.full_like(index, 255)
    assert (burnt == TABLE.to_ids(index)).all()


@pytest.mark.parametrize("pixels", [1, 3000, 1 << 22])
def test_polygons_are_gdals_and_cover_the_valid_area_whole_and_simplified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    """In the file, at any height of strips: one polygon a region by (class, area), no gap, no overlap, and as much area after."""
    monkeypatch.setattr(module, "STRIP_PIXELS", pixels)
    index = lumps(300, 200, seed=1)
    index[::7, 100:] = np.random.default_rng(2).integers(0, 3, index[::7, 100:].shape)
    mask, valid = write_mask(tmp_path / "mask.tif", index), float((index != 255).sum())
    ids, pixel = TABLE.to_ids(index), abs(NORTH_UP.determinant)
    gdals = shapes(ids, mask=index != 255, connectivity=4, transform=NORTH_UP)
    expected = Counter((int(value), round(shapely.geometry.shape(one).area / pixel)) for one, value in gdals)
    for simplify, name in ((None, "plain"), (3.0, "simple")):
        write_polygons(mask, tmp_path / f"{name}.gpkg", TABLE, simplify=simplify)
        frame = read(tmp_path / f"{name}.gpkg")
        geometry = frame.geometry.to_numpy()
        assert shapely.is_valid(geometry).all()
        assert shapely.area(geometry).sum() == pytest.approx(valid * pixel, rel=1e-9 if simplify is None else 1e-6)
        assert shapely.area(shapely.union_all(geometry)) == pytest.approx(valid * pixel, rel=1e-9 if simplify is None else 1e-6)
        assert len(frame) == expected.total()
        if simplify is None:
            assert Counter(zip(frame.class_id, np.rint(shapely.area(geometry) / pixel).astype(int).tolist(), strict=True)) == expected


def test_strips_leave_no_trace_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = write_mask(tmp_path / "mask.tif", lumps())

    def listed(pixels: int) -> list[Any]:
        monkeypatch.setattr(module, "STRIP_PIXELS", pixels)
        write_polygons(mask, tmp_path / "mask.gpkg", TABLE, min_area=12)
        frame = read(tmp_path / "mask.gpkg")
        return sorted(zip(frame.class_id, frame.area_m2, shapely.normalize(frame.geometry.to_numpy()).tolist(), strict=True), key=str)

    whole = listed(1 << 22)
    assert listed(90) == whole == listed(700)
    assert min(area for _, area, _ in whole) >= 12


def test_a_geopackage_carries_its_style_and_an_index(tmp_path: Path) -> None:
    write_polygons(write_mask(tmp_path / "mask.tif", lumps()), tmp_path / "land.gpkg", TABLE, layer="land cover")
    with closing(sqlite3.connect(tmp_path / "land.gpkg")) as database:
        rows = database.execute("SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles").fetchall()
        [(column,)] = database.execute("SELECT column_name FROM gpkg_geometry_columns WHERE table_name = 'land cover'").fetchall()
        assert database.execute('SELECT count(*) FROM "rtree_land cover_geom"').fetchone()[0] > 0
    assert rows[0][:3] == ("land cover", column, 1)
    assert "water &amp; ice" in rows[0][3]
    assert pyogrio.list_layers(tmp_path / "land.gpkg")[:, 0].tolist() == ["land cover", "layer_styles"]
    assert not (tmp_path / "land.qml").exists()


@pytest.mark.parametrize("suffix", [".fgb", ".geojson", ".parquet"])
def test_other_formats_have_their_style_beside_them_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    mask = write_mask(tmp_path / "mask.tif", lumps())
    write_polygons(mask, tmp_path / "out" / f"land{suffix}", TABLE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([f"land{suffix}", "land.qml"])
    assert "Wäldchen" in (tmp_path / "out" / "land.qml").read_text(encoding="utf-8")


def test_the_style_of_polygons_alone_says_nothing_of_rasters(tmp_path: Path) -> None:
    """A scene of their name would be drawn as a mask; the mask of their name keeps its colours."""
    mask = write_mask(tmp_path / "mask.tif", lumps())
    write_polygons(mask, tmp_path / "scene.fgb", TABLE)
    write_polygons(mask, tmp_path / "mask.fgb", TABLE)
    assert "rasterrenderer" not in (tmp_path / "scene.qml").read_text()
    assert "rasterrenderer" in (tmp_path / "mask.qml").read_text()
    assert all("renderer-v2" in (tmp_path / f"{name}.qml").read_text() for name in ("scene", "mask"))


@pytest.mark.parametrize("simplify", [None, 30])
def test_in_longitude_and_latitude_neighbours_still_share_their_borders(tmp_path: Path, monkeypatch, simplify: float | None) -> None:
    """A straight line in one projection is none in another: where others end on it, it needs corners too, however the mask is read."""
    index = np.zeros((600, 900), np.uint8)
    index[300:] = 1 + np.arange(900) // 90 % 2
    index[320:330, 90:95] = 0
    mask = write_mask(tmp_path / "mask.tif", index, transform=Affine(1000, 0, 200_000, 0, -1000, 6_000_000))
    for pixels in (1 << 22, 900 * 128):
        monkeypatch.setattr(module, "STRIP_PIXELS", pixels)
        write_polygons(mask, tmp_path / "mask.geojson", TABLE, simplify=simplify)
        found = read(tmp_path / "mask.geojson").geometry.to_numpy()
        assert len(found) == 12
        assert shapely.coverage_is_valid(found)
        whole = shapely.union_all(found)
        assert shapely.area(found).sum() == pytest.approx(whole.area, rel=1e-12)
        assert (whole.geom_type, len(whole.interiors)) == ("Polygon", 0)


def test_geojson_keeps_the_standard(tmp_path: Path) -> None:
    write_polygons(write_mask(tmp_path / "mask.tif", lumps()), tmp_path / "mask.geojson", TABLE)
    content = json.loads((tmp_path / "mask.geojson").read_text(encoding="utf-8"))
    assert "crs" not in content
    longitude, latitude = content["features"][0]["geometry"]["coordinates"][0][0]
    assert (longitude, latitude) == pytest.approx((57, 25.316), abs=0.01)


def test_parquet_says_where_it_lies(tmp_path: Path) -> None:
    from pyarrow import parquet

    write_polygons(write_mask(tmp_path / "mask.tif", lumps()), tmp_path / "mask.parquet", TABLE)
    geo = json.loads(parquet.read_metadata(tmp_path / "mask.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"][geo["primary_column"]]["crs"]["id"] == {"authority": "EPSG", "code": 32640}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_crs_polygons_lie_where_qgis_shows_the_mask_and_count_in_pixels(tmp_path: Path, suffix: str) -> None:
    index = lumps()
    write_polygons(write_mask(tmp_path / "mask.tif", index, crs=None, transform=Affine.identity()), tmp_path / f"mask{suffix}", TABLE)
    frame = read(tmp_path / f"mask{suffix}")
    assert frame.total_bounds.tolist() == [0, -120, 90, 0]
    assert frame.area_px.sum() == (index != 255).sum()
    assert suffix == ".geojson" or frame.crs is None


def test_classes_beyond_a_byte(tmp_path: Path) -> None:
    index = lumps()
    write_polygons(write_mask(tmp_path / "mask.tif", index, table=WIDE), tmp_path / "mask.gpkg", WIDE)
    frame = read(tmp_path / "mask.gpkg")
    assert set(frame.class_id) == {3, 255, 300}
    assert frame.area_m2.sum() == (index != 255).sum() / 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mask_without_data_gives_a_layer_without_polygons(tmp_path: Path, suffix: str) -> None:
    mask = write_mask(tmp_path / "mask.tif", np.full((20, 30), 255, np.uint8))
    assert write_polygons(mask, tmp_path / f"mask{suffix}", TABLE) == 0
    assert len(read(tmp_path / f"mask{suffix}")) == 0


def test_confidence_is_averaged_over_each_polygon(tmp_path: Path) -> None:
    index = lumps()
    grid = Grid(*index.shape, UTM, NORTH_UP)
    figures = np.random.default_rng(1).random(index.shape, dtype=np.float32)
    with FloatRasterWriter(tmp_path / "confidence.tif", grid) as writer:
        writer.write(0, figures)
    write_polygons(write_mask(tmp_path / "mask.tif", index), tmp_path / "mask.gpkg", TABLE, confidence=tmp_path / "confidence.tif")
    frame = read(tmp_path / "mask.gpkg")
    for row in frame.itertuples():
        inside = rasterize([row.geometry], index.shape, transform=NORTH_UP).astype(bool)
        assert row.confidence == pytest.approx(figures[inside].mean(), abs=0.5 / 254)


def test_an_area_of_interest_cuts_exactly_and_simplification_keeps_areas(tmp_path: Path) -> None:
    index = lumps()
    mask = write_mask(tmp_path / "mask.tif", index)
    whole = shapely.box(500_000, 2_800_000 - 60, 500_045, 2_800_000)
    aoi = shapely.difference(whole, shapely.Point(500_030, 2_799_970).buffer(7))
    data = shapely.difference(whole, shapely.box(500_000, 2_800_000 - 15, 500_010, 2_800_000))
    write_polygons(mask, tmp_path / "mask.gpkg", TABLE, aoi=aoi, simplify=2.0)
    frame = read(tmp_path / "mask.gpkg")
    assert frame.geometry.is_valid.all()
    assert set(frame.geom_type) == {"Polygon"}
    assert frame.area.sum() == pytest.approx(shapely.area(shapely.intersection(aoi, data)), rel=1e-9)
    assert frame.area_m2.sum() == pytest.approx(frame.area.sum(), rel=1e-9)
    assert write_polygons(mask, tmp_path / "none.gpkg", TABLE, aoi=shapely.box(0, 0, 1, 1)) == 0


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = write_mask(tmp_path / "mask.tif", lumps())
    with pytest.raises(ConfigError, match=r"no format of polygons"):
        write_polygons(mask, tmp_path / "mask.shp", TABLE)
    with pytest.raises(MaskError, match=r"mask.tif holds 4"):
        write_polygons(mask, tmp_path / "mask.gpkg", ClassTable((TABLE.classes[0], TABLE.classes[2])))
    write_mask(tmp_path / "other.tif", lumps(60, 60))
    with pytest.raises(MaskError, match=r"other.tif does not lie on the mask's grid"):
        write_polygons(mask, tmp_path / "mask.gpkg", TABLE, confidence=tmp_path / "other.tif")
    assert {path.suffix for path in tmp_path.iterdir()} == {".tif", ".xml", ".qml"}
    monkeypatch.setattr(pyogrio, "read_info", lambda *_, **__: {"features": 0})
    with pytest.raises(DiskError, match=r"/mask.gpkg does not hold all"):
        write_polygons(mask, tmp_path / "mask.gpkg", TABLE)
    assert not list(tmp_path.glob("*.gpkg"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MaskError("broken", hint="mend it")])
def test_an_error_on_the_way_stays_itself_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException
) -> None:
    mask = write_mask(tmp_path / "mask.tif", lumps())
    real, calls = module.to_columns, []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(module, "to_columns", failing)
    with pytest.raises(type(error)) as caught:
        write_polygons(mask, tmp_path / "out" / f"land{suffix}", TABLE)
    assert caught.value is error
    assert not (tmp_path / "out").exists(), "nor the folder that was made for it"


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.tif", lumps())
    first = write_polygons(mask, tmp_path / "mask.gpkg", TABLE)
    assert write_polygons(mask, tmp_path / "mask.gpkg", TABLE, min_area=1000) < first
    assert len(pyogrio.list_layers(tmp_path / "mask.gpkg")) == 2


def test_polygons_need_no_torch() -> None:
    code = "import sys, rsdistill.outputs.polygons; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
