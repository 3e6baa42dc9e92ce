"""The tile set on disk: what is written is read, and what is damaged is named."""

import json
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import geopandas
import pytest
from affine import Affine
from geopandas.testing import assert_geodataframe_equal
from pyarrow.parquet import ParquetFile
from rasterio.crs import CRS

from rsdistill.errors import TileSetError
from rsdistill.geo import tile_index, tiles
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.tile_index import SceneEntry, TileRow, TileSetCard, index_path, load_tile_set, nearby_path, write_card, write_index
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Grid, Window

TABLE = ClassTable((LandClass(4, "building", "#e41a1c"), LandClass(2, "land", "#4daf4a")), (0,))
UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)
GRIDS = {"a": Grid(64, 96, CRS.from_epsg(32633), UP), "b": Grid(64, 64, CRS.from_epsg(4326), Affine(1e-5, 0, 15, 0, -1e-5, 36))}
ROWS = [
    TileRow("a", Window(0, 0, 64, 64), "train", True, 1.0, (0.25, 0.5)),
    TileRow("a", Window(0, 32, 64, 64), "val", True, 0.5, (0.0, 1.0)),
    TileRow("b", Window(0, 0, 64, 64), "train", False, 1.0, (0.0, 0.0)),
]


def card(scene: Path) -> TileSetCard:
    entries = tuple(
        SceneEntry(
            name=name, path=str(scene), nearby="../scene.tif", label=None, context=f"context/{name}.tif", context_label=None,
            height=grid.height, width=grid.width, split=None, fingerprint="0",
        )
        for name, grid in GRIDS.items()
    )  # fmt: skip
    return TileSetCard(
        format_version=1, tile=64, overlap=0, classes=tuple(TABLE.to_card()), ignore=(0,), bands=(1, 2, 3), band_names=(None,) * 3,
        mean=(1.0,) * 3, std=(1.0,) * 3, dtype="uint8", nodata=None, pixel_size=(2, 2), context_ratio=8, split_by="block", seed=0,
        versions={}, scenes=entries, class_pixels={"train": (1, 2), "val": (0, 1), "test": (0, 0)},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiles"
    made.mkdir()
    (tmp_path / "scene.tif").touch()
    write_index(made, ROWS, GRIDS, TABLE)
    write_card(made, card(tmp_path / "scene.tif"))
    return made


def test_what_is_written_is_read(folder: Path):
    tile_set = load_tile_set(folder)
    assert tile_set.tiles == tuple(Tile("ab".index(row.scene), row.window, row.split, row.labelled) for row in ROWS)
    assert tile_set.of_split("val") == tile_set.tiles[1:2]
    assert tile_set.table.ids == TABLE.ids
    assert tile_set.card == card(folder.parent / "scene.tif")


def test_gis_programs_see_footprints_where_the_tiles_are(folder: Path):
    frame = geopandas.read_file(folder / "tiles.gpkg", layer="tiles", engine="pyogrio")
    assert frame.crs.to_epsg() == 32633
    assert frame.geometry[1].bounds == (500_064, 4_000_000 - 128, 500_192, 4_000_000)
    assert frame.geometry[2].within(geopandas.GeoSeries.from_xy([15], [36], crs=4326).to_crs(32633)[0].buffer(200))
    assert frame["class_4"].tolist() == [0.25, 0, 0]
    assert frame["split"].tolist() == ["train", "val", "train"]
    assert list(frame.columns[:8]) == ["scene", "row", "col", "height", "width", "split", "labelled", "valid"]


def test_without_a_crs_footprints_are_in_pixels(tmp_path: Path):
    write_index(tmp_path, ROWS[:2], {"a": Grid(64, 96, None, Affine.identity())}, TABLE)
    frame = geopandas.read_file(tmp_path / "tiles.gpkg", engine="pyogrio")
    assert frame.crs is None
    assert frame.geometry[1].bounds == (32, -64, 96, 0)


def test_a_split_may_be_edited_by_hand(folder: Path):
    edit(folder, "UPDATE tiles SET split = 'test' WHERE col = 32")
    assert [tile.window.col for tile in load_tile_set(folder).of_split("test")] == [32]


def edit(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "tiles.gpkg")) as database, database:
        for trigger in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{trigger[0]}"')  # they need functions that only GDAL brings
        database.execute(statement)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE tiles SET split = 'dev' WHERE col = 32", "split 'dev'"),
        ("UPDATE tiles SET scene = 'c' WHERE col = 32", "scene 'c'"),
        ("UPDATE tiles SET width = 65 WHERE col = 32", "outside its scene 'a'"),
        ("DELETE FROM tiles", "holds no tile"),
        ("ALTER TABLE tiles RENAME TO other", "is damaged"),
    ],
)
def test_an_index_that_cannot_be_is_named(folder: Path, statement, message):
    edit(folder, statement)
    with pytest.raises(TileSetError, match=message):
        load_tile_set(folder)


def test_a_card_that_cannot_be_is_named(folder: Path, tmp_path: Path):
    with pytest.raises(TileSetError, match=r"holds no tileset.json") as caught:
        load_tile_set(tmp_path)
    assert "--tiles" in caught.value.hint
    path = folder / "tileset.json"
    content = json.loads(path.read_text())
    for text, message in {
        "{": "cannot read",
        "[" * 100_000: "cannot read",
        "[]": "format version None",
        json.dumps({**content, "format_version": 2}): "format version 2, not 1",
        json.dumps({**content, "tile": "wide"}): "is damaged: tile",
        json.dumps({key: value for key, value in content.items() if key != "mean"}): "is damaged: mean",
    }.items():
        path.write_text(text)
        with pytest.raises(TileSetError, match=message):
            load_tile_set(folder)


@pytest.fixture
def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same tiles in an index as it is written for millions."""
    (folder / "tiles.gpkg").unlink()
    monkeypatch.setattr(tile_index, "MOST_ROWS", 2)
    monkeypatch.setattr(tiles, "CHUNK", 2)
    monkeypatch.setattr(tile_index, "CHUNK", 2)
    write_index(folder, ROWS, GRIDS, TABLE)
    return folder


def test_an_index_of_millions_is_geoparquet_and_reads_the_same(large: Path):
    assert index_path(large) == large / "tiles.parquet"
    assert not (large / "tiles.gpkg").exists()
    assert load_tile_set(large).tiles == tuple(Tile("ab".index(row.scene), row.window, row.split, row.labelled) for row in ROWS)
    frame = geopandas.read_parquet(large / "tiles.parquet")
    assert frame.crs.to_epsg() == 32633
    assert frame.geometry[1].bounds == (500_064, 4_000_000 - 128, 500_192, 4_000_000)
    assert frame["class_4"].tolist() == [0.25, 0, 0]


def test_an_index_is_written_part_by_part(folder: Path, large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert ParquetFile(large / "tiles.parquet").num_row_groups == 2
    monkeypatch.setattr(tile_index, "MOST_ROWS", 3)
    write_index(tmp_path, ROWS, GRIDS, TABLE)
    package = geopandas.read_file(tmp_path / "tiles.gpkg", layer="tiles", engine="pyogrio")
    parquet = geopandas.read_parquet(large / "tiles.parquet")
    assert_geodataframe_equal(package, parquet, check_dtype=False)


def test_writing_an_index_takes_memory_for_a_part_of_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [TileRow("a", Window(0, 0, 64, 64), "train", True, 1.0, (0.25, 0.5))] * 40_000
    monkeypatch.setattr(tile_index, "MOST_ROWS", 2)
    write_index(tmp_path, rows[:3], GRIDS, TABLE)  # what is imported counts for nothing
    peaks = []
    for chunk in (40_000, 2_000):
        monkeypatch.setattr(tile_index, "CHUNK", chunk)
        monkeypatch.setattr(tiles, "CHUNK", chunk)
        tracemalloc.start()
        write_index(tmp_path, rows, GRIDS, TABLE)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 3


@pytest.mark.parametrize("damage", ["cut", "columns", "other"])
def test_a_damaged_index_of_millions_is_named(large: Path, damage: str):
    path = large / "tiles.parquet"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "other":
        path.write_bytes(b"GeoParquet it is not")
    else:
        geopandas.read_parquet(path).drop(columns="split").to_parquet(path)
    with pytest.raises(TileSetError, match=r"tiles\.parquet is damaged"):
        load_tile_set(large)


def test_a_missing_index_is_named(folder: Path):
    (folder / "tiles.gpkg").unlink()
    with pytest.raises(TileSetError, match=r"tiles.gpkg is missing"):
        load_tile_set(folder)


def test_a_moved_scene_is_found_beside_the_moved_tile_set(folder: Path, tmp_path: Path):
    scene = tmp_path / "scene.tif"
    tile_set = load_tile_set(folder)
    assert tile_set.path(str(scene)) == scene
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    scene.rename(moved / "scene.tif")
    folder.rename(moved / "tiles")
    tile_set = load_tile_set(moved / "tiles")
    assert tile_set.path(str(scene)).resolve() == moved / "scene.tif"
    (moved / "scene.tif").unlink()
    with pytest.raises(TileSetError, match="is gone"):
        tile_set.path(str(scene))


def test_the_way_to_a_scene_is_relative(tmp_path: Path):
    assert nearby_path(tmp_path / "scenes" / "a.tif", tmp_path / "work" / "tiles") == "../../scenes/a.tif"
