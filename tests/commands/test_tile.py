"""``tile`` from files to a tile set: what is in it, and what is refused before anything is written."""

import json
import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from rsdistill.commands.tile import tile
from rsdistill.config import run_options
from rsdistill.errors import ConfigError, InputError, LabelError, OutputExistsError, RsdistillError, SceneError, TileSetError
from rsdistill.geo.context import area_mean, majority
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.reporting import Silent

UP = Affine(2, 0, 500_000, 0, -2, 4_000_000)
CLASSES = 'ignore = [0]\n[[class]]\nid = 1\nname = "land"\n[[class]]\nid = 7\nname = "water"\nsources = [2, 7]\n'


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def write(path: Path, values: np.ndarray, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": UP, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **profile) as dataset:
            dataset.write(values)
    return path


def draw(folder: Path, name: str, size: tuple[int, int] = (300, 260), seed: int = 0, left: float = 500_000, **profile: Any) -> Path:
    """A scene whose label beside it says which pixels are bright (values 1, 2, and a few 0)."""
    random = np.random.default_rng(seed)
    cells = random.integers(1, 3, (size[0] // 20 + 1, size[1] // 20 + 1)).astype(np.uint8)
    label = np.kron(cells, np.ones((20, 20), np.uint8))[: size[0], : size[1]]
    label[:3] = 0
    values = (random.integers(0, 60, (3, *size)) + 100 * (label == 2) + 1).astype(np.uint8)
    place = {"transform": Affine(2, 0, left, 0, -2, 4_000_000), **profile}
    write(folder / f"{name}_label.tif", label[None], **{key: place[key] for key in ("transform", "crs") if key in place})
    (folder / "classes.toml").write_text(CLASSES)
    return write(folder / f"{name}.tif", values, **place)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw(tmp_path / "scenes", "a")


def test_one_scene_with_defaults_becomes_a_tile_set(scene: Path, tmp_path: Path):
    progress = Listening()
    result = tile([scene], work=tmp_path / "work", progress=progress)
    folder = tmp_path / "work" / "tiles"
    assert result.paths == (folder,)
    tile_set = load_tile_set(folder)
    card = tile_set.card
    assert card.tile == 64
    assert "64 pixels" in " ".join(progress.said)
    assert len(tile_set.of_split("val")) >= 3
    assert len(tile_set.of_split("train")) >= 12
    listed = ["classes.toml", "context", "labels", "tiles.gpkg", "tiles.png", "tileset.json"]
    assert sorted(entry.name for entry in folder.iterdir()) == listed
    assert result.data["tiles"] == {split: len(tile_set.of_split(split)) for split in ("train", "val", "test")}
    assert (card.bands, card.dtype, card.pixel_size, card.split_by) == ((1, 2, 3), "uint8", (2, 2), "block")
    json.dumps(result.data)


def test_tiles_cover_the_scene_and_splits_share_no_pixel(scene: Path, tmp_path: Path):
    tile([scene], work=tmp_path, tile=64, overlap=16, test=0.2)
    owner, tile_set = np.full((300, 260), -1), load_tile_set(tmp_path / "tiles")
    for rank, split in enumerate(("train", "val", "test")):
        assert tile_set.of_split(split)
        for one in tile_set.of_split(split):
            assert np.isin(owner[one.window.slices], (-1, rank)).all()
            owner[one.window.slices] = rank
    assert (owner >= 0).all()


def test_statistics_are_of_valid_training_pixels_each_once(tmp_path: Path):
    scene = draw(tmp_path / "s", "a", nodata=130)
    tile([scene], work=tmp_path, tile=64, overlap=24)
    tile_set = load_tile_set(tmp_path / "tiles")
    training = np.zeros((300, 260), bool)
    for one in tile_set.of_split("train"):
        training[one.window.slices] = True
    with open_scene(scene) as opened:
        values, valid = opened.read(opened.grid.window, (1, 2, 3))
    pixels = values[:, training & valid].astype(np.float64)
    assert tile_set.card.mean == pytest.approx(pixels.mean(axis=1), rel=1e-9)
    assert tile_set.card.std == pytest.approx(pixels.std(axis=1), rel=1e-9)


def test_aligned_labels_hold_ids_and_context_holds_means_and_training_majorities(tmp_path: Path):
    scene = draw(tmp_path / "s", "a")
    tile([scene], work=tmp_path, bands=(3, 1))
    folder, truth = tmp_path / "tiles", rasterio.open(tmp_path / "s" / "a_label.tif").read(1)
    with rasterio.open(folder / "labels" / "a.tif") as label:
        ids = label.read(1)
        assert np.array_equal(ids, np.select([truth == 1, truth == 2], [1, 7], 255))
        assert (label.nodata, label.crs, label.transform) == (255, rasterio.CRS.from_epsg(32633), UP)
        assert label.colormap(1)[7][:3] == (0xEE, 0x66, 0x77)
    tile_set = load_tile_set(folder)
    inside = np.zeros((300, 260), bool)
    for one in tile_set.of_split("train"):
        inside[one.window.slices] = True
    with rasterio.open(folder / "context" / "a.lab8.tif") as small:
        expected = majority(np.where(inside, np.select([ids == 1, ids == 7], [0, 1], 255), 255).astype(np.uint8), 2)
        assert np.array_equal(small.read(1), np.select([expected == 0, expected == 1], [1, 7], 255))
    with rasterio.open(folder / "context" / "a.ctx8.tif") as context, rasterio.open(scene) as source:
        expected, _ = area_mean(source.read([3, 1]), np.ones((300, 260), bool))
        assert np.array_equal(context.read(), expected)
        assert context.dataset_mask().all()
    assert tile_set.card.bands == (3, 1)


def test_the_index_tells_shares_and_opens_coloured(scene: Path, tmp_path: Path):
    tile([scene], work=tmp_path)
    frame = geopandas.read_file(tmp_path / "tiles" / "tiles.gpkg", layer="tiles", engine="pyogrio")
    truth = rasterio.open(scene.with_name("a_label.tif")).read(1)
    for row in frame.itertuples():
        part = truth[row.row : row.row + row.height, row.col : row.col + row.width]
        assert row.class_1 == pytest.approx((part == 1).mean())
        assert row.class_7 == pytest.approx((part == 2).mean())
        assert row.valid == 1
    styles = geopandas.read_file(tmp_path / "tiles" / "tiles.gpkg", layer="layer_styles", engine="pyogrio")
    assert styles["f_table_name"].tolist() == ["tiles"]
    assert all(f'value="{split}"' in styles["styleQML"][0] for split in ("train", "val", "test"))


def test_scenes_are_split_by_name_and_by_scene(tmp_path: Path):
    scenes = [draw(tmp_path / "s", name, (130, 130), seed, 500_000 + 1000 * seed) for seed, name in enumerate("abcde")]
    tile(scenes, work=tmp_path, val_scenes=("b",), test_scenes=("d",))
    card = load_tile_set(tmp_path / "tiles").card
    assert [entry.split for entry in card.scenes] == ["train", "val", "train", "test", "train"]
    assert [entry.context_label is not None for entry in card.scenes] == [True] * 5
    tile(scenes, work=tmp_path, split_by="scene", overwrite=True)
    assert sorted(entry.split for entry in load_tile_set(tmp_path / "tiles").card.scenes) == ["train"] * 4 + ["val"]


def test_scenes_of_the_same_ground_do_not_leak(tmp_path: Path):
    scenes = [draw(tmp_path / "s", name, (128, 128), 0, left) for name, left in (("a", 500_000), ("b", 500_128), ("c", 501_000))]
    progress = Listening()
    tile(scenes, work=tmp_path, tile=64, val_scenes=("b",), progress=progress)
    tile_set = load_tile_set(tmp_path / "tiles")
    assert {(one.scene, one.window.col) for one in tile_set.of_split("train")} == {(0, 0), (2, 0), (2, 64)}
    assert any("2 tiles left out" in said for said in progress.said)


def test_the_same_seed_gives_the_same_set_and_another_another(scene: Path, tmp_path: Path):
    sets = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        tile([scene], out=tmp_path / name, seed=seed)
        sets.append(load_tile_set(tmp_path / name).tiles)
    assert sets[0] == sets[1] != sets[2]


def test_the_run_file_repeats_the_run(scene: Path, tmp_path: Path):
    tile([scene], work=tmp_path, tile=96, nodata=(3,), val=0.3)
    from rsdistill.commands.tile import TileConfig

    options = run_options(tmp_path / "tiles.run.toml", "tile", TileConfig.model_fields)
    again = TileConfig.of(**options)
    assert (again.tile, again.nodata, again.val, again.scenes) == (96, (3.0,), 0.3, (scene,))


def test_polygons_are_burnt_and_the_change_is_told(tmp_path: Path):
    scene = draw(tmp_path / "s", "a")
    square = shapely.box(500_001, 4_000_000 - 400, 500_201, 4_000_000 - 201)
    polygons = tmp_path / "buildings.geojson"
    geopandas.GeoDataFrame(geometry=[square], crs="EPSG:32633").to_crs("EPSG:4326").to_file(polygons, engine="pyogrio")
    (tmp_path / "s" / "classes.toml").unlink()
    result = tile([scene], labels=[polygons], burn="building", background="rest", work=tmp_path)
    ids = rasterio.open(tmp_path / "tiles" / "labels" / "a.tif").read(1)
    assert (ids == 1).sum() == pytest.approx(100 * 99.5, rel=0.02)
    assert (ids == 0).sum() + (ids == 1).sum() == 300 * 260
    change = result.data["labels"][0]
    assert (change["scene"], change["how"]) == ("a", "burnt")
    assert change["source"]["building"] == pytest.approx(9950, rel=0.01)
    assert change["grid"]["building"] == (ids == 1).sum()
    assert [table.title for table in result.tables] == ["class shares", "labels brought to the scenes' grids"]


def test_chips_are_cut_for_other_tools(scene: Path, tmp_path: Path):
    tile([scene], work=tmp_path, chips=True, tile=128)
    tile_set = load_tile_set(tmp_path / "tiles")
    assert len(list((tmp_path / "tiles" / "chips").glob("*/images/*.tif"))) == len(tile_set.tiles)
    one = tile_set.of_split("val")[0]
    name = f"a_r{one.window.row:06d}_c{one.window.col:06d}.tif"
    chips = tmp_path / "tiles" / "chips" / "val"
    with rasterio.open(scene) as source, rasterio.open(chips / "images" / name) as chip, rasterio.open(chips / "labels" / name) as label:
        rows, cols = one.window.slices
        assert np.array_equal(chip.read(), source.read()[:, rows, cols])
        assert chip.xy(0, 0) == source.xy(one.window.row, one.window.col)
        assert np.array_equal(label.read(), rasterio.open(tmp_path / "tiles" / "labels" / "a.tif").read()[:, rows, cols])


def test_a_scene_without_a_crs_is_taken_in_pixels_with_one_warning(tmp_path: Path):
    scene = draw(tmp_path / "s", "a", crs=None, transform=None)
    progress = Listening()
    tile([scene], work=tmp_path, progress=progress)
    assert [text for text in progress.warned if "CRS" in text] == [f"no CRS, taken in pixel coordinates: {scene}"]
    frame = geopandas.read_file(tmp_path / "tiles" / "tiles.gpkg", layer="tiles", engine="pyogrio")
    assert frame.crs is None
    assert frame.total_bounds.tolist() == [0, -300, 260, 0]
    assert load_tile_set(tmp_path / "tiles").card.pixel_size is None
    with pytest.raises(SceneError, match="has no CRS"):
        tile([scene], work=tmp_path, overwrite=True, require_crs=True)


def test_a_rotated_scene_is_refused_or_written_anew(tmp_path: Path):
    turned = Affine.translation(500_000, 4_000_000) @ Affine.rotation(25) @ Affine.scale(2, -2)
    scene = draw(tmp_path / "s", "a", transform=turned)
    with pytest.raises(SceneError, match="is rotated") as caught:
        tile([scene], work=tmp_path)
    assert "--warp" in caught.value.hint
    tile([scene], work=tmp_path, warp=True)
    tile_set = load_tile_set(tmp_path / "tiles")
    entry = tile_set.card.scenes[0]
    assert entry.path == "scenes/a.tif"
    with open_scene(tile_set.path(entry.path)) as upright, open_scene(tile_set.path(entry.label or "")) as label:
        values, valid = upright.read(upright.grid.window, (1, 2, 3))
        ids, _ = label.read(label.grid.window, (1,))
    assert valid.mean() < 0.9
    assert (ids[0][valid & (values[0] > 62)] != 1).all()
    assert (ids[0][~valid] == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("bands", [1, 13])
def test_types_and_band_counts(tmp_path: Path, dtype: str, bands: int):
    values = np.random.default_rng(0).integers(0, 100, (bands, 140, 130)).astype(dtype)
    scene = write(tmp_path / "a.tif", values)
    write(tmp_path / "a_label.tif", np.ones((1, 140, 130), np.uint8))
    tile([scene], work=tmp_path / "w")
    card = load_tile_set(tmp_path / "w" / "tiles").card
    assert (card.dtype, len(card.mean)) == (dtype, bands)


def test_a_scene_smaller_than_a_tile_is_one_tile(tmp_path: Path):
    scenes = [draw(tmp_path / "s", name, (20, 41), seed, 500_000 + 1000 * seed) for seed, name in enumerate("ab")]
    tile(scenes, work=tmp_path, tile=64, split_by="scene")
    assert [one.window[2:] for one in load_tile_set(tmp_path / "tiles").tiles] == [(20, 41), (20, 41)]


def test_scenes_without_labels_join_as_unlabelled(tmp_path: Path):
    labelled, bare = draw(tmp_path / "s", "a"), draw(tmp_path / "s", "b", seed=1, left=510_000)
    (tmp_path / "s" / "b_label.tif").unlink()
    with pytest.raises(LabelError, match=r"no label for .*b.tif") as caught:
        tile([labelled, bare], work=tmp_path)
    assert "--unlabelled" in caught.value.hint
    tile([labelled, bare], work=tmp_path, unlabelled=True)
    tile_set = load_tile_set(tmp_path / "tiles")
    assert {(one.scene, one.split, one.labelled) for one in tile_set.tiles if one.scene == 1} == {(1, "train", False)}
    assert (tile_set.card.scenes[1].label, tile_set.card.scenes[1].context_label) == (None, None)


def test_bad_scenes_may_be_left_out(tmp_path: Path):
    good, cut, text = draw(tmp_path / "s", "a"), draw(tmp_path / "s", "b", seed=1, left=510_000), tmp_path / "s" / "c.tif"
    text.write_text("not a raster")
    write(tmp_path / "s" / "c_label.tif", np.ones((1, 9, 9), np.uint8))
    cut.write_bytes(cut.read_bytes()[:100_000])
    result = tile([good, cut, text], work=tmp_path, skip_bad=True)
    assert len(result.failures) == 2
    assert [entry.name for entry in load_tile_set(tmp_path / "tiles").card.scenes] == ["a"]
    assert sorted(path.name for path in (tmp_path / "tiles" / "labels").iterdir()) == ["a.tif"]
    with pytest.raises(InputError, match="no scene is left"):
        tile([cut, text], work=tmp_path / "w", skip_bad=True)


def refusals(folder: Path) -> dict[str, tuple[type[RsdistillError], str, dict[str, Any]]]:
    """What is asked for, and the error that says why not."""
    scene = draw(folder, "a")
    turned = draw(folder / "odd", "strange")
    values = rasterio.open(folder / "odd" / "strange_label.tif").read()
    values[0, 100, 100] = 99
    write(folder / "odd" / "strange_label.tif", values)
    empty = draw(folder / "empty", "e")
    write(empty, np.zeros((3, 300, 260), np.uint8), nodata=0)
    return {
        "no scene": (ConfigError, "no scene was named", {"scenes": []}),
        "missing": (SceneError, "does not exist", {"scenes": [folder / "none.tif"], "unlabelled": True}),
        "unknown value": (LabelError, r"strange_label.tif, rows 0 to 299, columns 0 to 259: label value 99", {"scenes": [turned]}),
        "all nodata": (TileSetError, r"no tile for training in .*e.tif: nodata everywhere", {"scenes": [empty]}),
        "band": (SceneError, "has 3 bands, but band 9", {"scenes": [scene], "bands": ("9",)}),
        "class table": (RsdistillError, "nowhere.toml", {"scenes": [scene], "classes": folder / "nowhere.toml"}),
        "labels": (LabelError, "does not exist", {"scenes": [scene], "labels": [folder / "nowhere"]}),
        "overlap": (ConfigError, "overlap 64 is not less than tile 64", {"scenes": [scene], "overlap": 64, "tile": 64}),
        "block": (ConfigError, "block 32 is less than tile 64", {"scenes": [scene], "block": 32, "tile": 64}),
        "tile": (ConfigError, "tile", {"scenes": [scene], "tile": 100}),
        "fractions": (ConfigError, "leave nothing for training", {"scenes": [scene], "val": 0.6, "test": 0.4}),
        "val scene": (ConfigError, "no scene is called 'b'", {"scenes": [scene], "val_scenes": ("b",)}),
        "all val": (TileSetError, "all of them went to validation and test", {"scenes": [scene], "val_scenes": ("a",)}),
        "burn and field": (ConfigError, "exclude each other", {"scenes": [scene], "burn": "x", "label_field": "y"}),
        "option": (ConfigError, "did you mean 'overlap'", {"scenes": [scene], "overlapp": 3}),
    }


def test_refusals_are_one_line_and_leave_nothing(tmp_path: Path):
    for name, (kind, message, options) in refusals(tmp_path / "s").items():
        with pytest.raises(kind, match=message) as caught:
            tile(**{"work": tmp_path / "w", **options})
        assert "\n" not in str(caught.value), name
        assert caught.value.hint, name
        assert not (tmp_path / "w").exists(), name


def test_a_result_is_replaced_only_when_asked(scene: Path, tmp_path: Path):
    tile([scene], work=tmp_path)
    with pytest.raises(OutputExistsError, match="exists"):
        tile([scene], work=tmp_path)
    tile([scene], work=tmp_path, tile=128, overwrite=True)
    assert load_tile_set(tmp_path / "tiles").card.tile == 128
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(OutputExistsError, match="not empty"):
        tile([scene], out=tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_a_scene_too_small_to_split_is_said_aloud(tmp_path: Path):
    progress = Listening()
    tile([draw(tmp_path / "s", "a", (70, 70))], work=tmp_path, tile=64, progress=progress)
    assert any("no labelled tile for val" in text for text in progress.warned)


def test_what_went_wrong_is_what_is_said(tmp_path: Path):
    first, second = (draw(tmp_path / name, "s", seed=number) for number, name in enumerate(("a", "b")))
    with pytest.raises(TileSetError, match="same ground as validation"):
        tile([first, second], work=tmp_path / "w", split_by="scene", val_scenes="b_s")
    with pytest.raises(SceneError, match=r"gone\.tif"):
        tile([first, tmp_path / "gone.tif"], work=tmp_path / "w")
    with pytest.raises(LabelError, match="no label for") as caught:
        tile([first, draw(tmp_path, "other")], labels=[tmp_path / "a" / "s_label.tif"], work=tmp_path / "w")
    assert "repeated" in caught.value.hint
