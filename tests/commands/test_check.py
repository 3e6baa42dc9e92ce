"""``check``: every kind of file is opened as the long run would, and what is wrong is said with its file."""

import json
import sqlite3

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from shapely.geometry import box

from rsdistill.commands.check import check, kind_of
from rsdistill.errors import CheckpointError, ClassTableError, InputError, SceneError, TileSetError
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import FORMAT_VERSION, SceneEntry, TileSetCard, write_card
from rsdistill.models import ModelCard, build_network, save_model


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_land_cover(tmp_path_factory.mktemp("drawn"), size=256, seed=1)


def write(path, pixels, *, crs="EPSG:32633", transform=None, **profile):
    bands = pixels[None] if pixels.ndim == 2 else pixels
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    place = transform or Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=place, **shape, **profile) as file:
        file.write(bands)
    return path


def noise(count=3, side=64):
    return np.random.default_rng(0).integers(30, 200, (count, side, side), np.uint8)


def model(path, arch="linear", **card):
    network = build_network(arch, {}, 3, 2)
    classes = [{"id": i, "name": f"class {i}", "color": "#112233"} for i in range(2)]
    usual = {"arch": arch, "classes": classes, "bands": (1, 2, 3), "mean": (1.0,) * 3, "std": (1.0,) * 3}
    save_model(path, network, ModelCard(**{**usual, **card}))
    return path


def notes_of(result, path):
    return next(one["notes"] for one in result.data["checked"] if one["path"] == str(path))


def test_a_fit_set_of_files(drawn):
    result = check([drawn.scene, drawn.classes], labels=[drawn.labels])
    assert set(result.paths) == set(drawn)
    assert not result.failures
    assert notes_of(result, drawn.scene) == []
    (share,) = notes_of(result, drawn.labels)
    assert share.endswith("% labelled")
    assert notes_of(result, drawn.classes) == ["7 classes"]
    assert {one["kind"] for one in result.data["checked"]} == {"scene", "label", "class table"}


def test_kinds_by_name(tmp_path):
    names = {"a.tif": "scene", "a_label.tif": "label", "a.gpkg": "label", "c.csv": "class table", "m.safetensors": "model", "m.pt": "model"}
    assert {name: kind_of(tmp_path / name) for name in names} == names
    assert kind_of(tmp_path) == "tile set"


def test_a_folder_stands_for_what_is_in_it(tmp_path):
    write(tmp_path / "a.tif", noise())
    write(tmp_path / "a_label.tif", np.ones((64, 64), np.uint8))
    result = check(tmp_path)
    assert [path.name for path in result.paths] == ["a.tif", "a_label.tif"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scene"):
        check(tmp_path / "empty")


def test_rows_that_cannot_be_decoded(tmp_path):
    path = write(tmp_path / "cut.tif", noise(side=256), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(SceneError, match=r"cut\.tif"):
        check(path)


def test_headers_alone_do_not_read_pixels(tmp_path):
    path = write(tmp_path / "cut.tif", noise(side=256), tiled=True, blockxsize=64, blockysize=64)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert check(path, headers=True).paths == (path,)
    with pytest.raises(SceneError):
        check(path)


def test_one_bad_of_many_is_listed(tmp_path, drawn):
    text = tmp_path / "text.tif"
    text.write_text("hello")
    result = check([drawn.scene, text, tmp_path / "gone.tif"])
    assert result.paths == (drawn.scene,)
    assert [failure.split(" (")[0] for failure in result.failures] == [
        f"{text} is not a raster: it begins with b'hello'",
        f"{tmp_path / 'gone.tif'} does not exist",
    ]
    assert [row[2] for row in result.tables[0].rows] == ["fit", "bad", "bad"]
    json.dumps(result.data)


def test_notes_on_legal_but_costly_scenes(tmp_path):
    plain = write(tmp_path / "plain.tif", noise(), crs=None)
    turned = write(tmp_path / "turned.tif", noise(), transform=Affine.rotation(20))
    flat = write(tmp_path / "flat.tif", np.concatenate([noise(2), np.full((1, 64, 64), 7, np.uint8)]))
    rows = write(tmp_path / "rows.tif", noise(1, 64).repeat(80, axis=2), blockysize=1)
    empty = write(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
    result = check([plain, turned, flat, rows, empty])
    assert notes_of(result, plain) == ["no CRS: results are in pixel coordinates"]
    assert notes_of(result, turned)[0].startswith("rotated")
    assert notes_of(result, flat) == ["band 3 is 7 everywhere"]
    assert notes_of(result, rows)[0].startswith("stored in blocks of 1 x 5120")
    assert notes_of(result, empty) == ["nodata everywhere"]


def test_nodata_that_is_not_declared(tmp_path):
    pixels = noise()
    pixels[:, :, :6] = 255
    silent = write(tmp_path / "silent.tif", pixels)
    assert "--nodata 255" in notes_of(check(silent), silent)[0]
    assert notes_of(check(silent, nodata=[255]), silent) == []
    assert notes_of(check(write(tmp_path / "full.tif", noise())), tmp_path / "full.tif") == []


def test_label_value_outside_the_table(tmp_path, drawn):
    values = np.ones((64, 64), np.uint8)
    values[40, 50] = 99
    label = write(tmp_path / "a_label.tif", values)
    result = check([label, drawn.classes])
    assert result.paths == (drawn.classes,)
    assert "label value 99 (1 pixels)" in result.failures[0]
    assert str(label) in result.failures[0]


def test_labels_are_held_against_their_scene(tmp_path, drawn):
    scene = write(tmp_path / "a.tif", noise())
    away = write(tmp_path / "a_label.tif", np.ones((64, 64), np.uint8), transform=Affine(0.5, 0, 900_000, 0, -0.5, 5_000_000))
    result = check([scene, drawn.classes])
    assert "lies nowhere on its scene" in result.failures[0]
    away.unlink()
    coarse = write(tmp_path / "a_label.tif", np.full((16, 16), 3, np.uint8), transform=Affine(2, 0, 300_000, 0, -2, 5_000_000))
    notes = notes_of(check([scene, drawn.classes]), coarse)
    assert notes == ["resampled on its scene's grid", "100% labelled", "without water, trees, cropland, bare soil, sealed, building"]


def test_labels_without_a_class_table_are_listed(tmp_path):
    label = write(tmp_path / "a_label.tif", np.repeat(np.array([[2], [5]], np.uint8), 8, axis=1))
    assert notes_of(check(label), label) == ["class 2, class 5; name a class table to check them"]


def test_labels_that_say_nothing(tmp_path, drawn):
    label = write(tmp_path / "a_label.tif", np.zeros((64, 64), np.uint8))
    (failure,) = check([label, drawn.classes]).failures
    assert "labels no pixel" in failure


def test_vector_labels(tmp_path, drawn):
    scene = write(tmp_path / "a.tif", noise())
    polygons = tmp_path / "a.geojson"
    frame = geopandas.GeoDataFrame({"kind": ["trees"]}, geometry=[box(300_000, 4_999_980, 300_016, 5_000_000)], crs="EPSG:32633")
    frame.to_file(tmp_path / "b.gpkg")
    assert notes_of(check(tmp_path / "b.gpkg"), tmp_path / "b.gpkg") == ["1 polygons; name a class table to check their classes"]
    frame.to_crs("EPSG:4326").to_file(polygons)
    fit = check([scene, drawn.classes], labels=[polygons], label_field="kind")
    assert notes_of(fit, polygons)[:2] == ["burnt on its scene's grid", "31% labelled"]
    unfit = check([scene, drawn.classes], labels=[polygons])
    assert "does not say its polygons' class" in unfit.failures[0]


def test_class_tables(tmp_path):
    table = tmp_path / "classes.csv"
    table.write_text("id,name,color\n1,road,#112233\n300,roof,#112233\n")
    assert notes_of(check(table), table) == ["2 classes", "ids from 255 on: masks are uint16", "#112233 stands for several classes"]
    table.write_text("id,name,color\n1,road,red\n")
    with pytest.raises(ClassTableError, match=r"classes\.csv"):
        check(table)


def test_models(tmp_path):
    fit = model(tmp_path / "m.safetensors")
    assert notes_of(check(fit), fit) == ["linear, 3 bands, 2 classes"]
    pickle = tmp_path / "m.pt"
    torch.save({"a": 1}, pickle)
    with pytest.raises(CheckpointError, match="pickle"):
        check(pickle)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(fit.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a whole"):
        check(cut, headers=True)


def test_scenes_are_held_against_models(tmp_path):
    scene = write(tmp_path / "a.tif", noise(2))
    wide = write(tmp_path / "wide.tif", noise().astype(np.uint16))
    coarse = write(tmp_path / "coarse.tif", noise())
    net = model(tmp_path / "m.safetensors", dtype="uint8", pixel_size=0.25)
    result = check([scene, wide, coarse, net])
    assert set(result.paths) == {coarse, net}
    assert "a.tif has 2 bands" in result.failures[0]
    assert "m.safetensors reads bands 1, 2, 3" in result.failures[0]
    assert "is uint16" in result.failures[1]
    assert notes_of(result, coarse) == [
        f"{coarse} has pixels of 0.5 m, {net} was trained on 0.25 m: expect a worse map (--pixel-size resamples)"
    ]


def tile_set(folder, scene, *, pixels=(10, 10)):
    with open_scene(scene) as opened:
        entry = SceneEntry(
            name=scene.stem, path=str(scene), label=None, context="c.tif", context_label=None, height=opened.grid.height,
            width=opened.grid.width, split=None, fingerprint=opened.fingerprint,
        )  # fmt: skip
    classes = tuple({"id": i, "name": f"class {i}", "color": "#112233"} for i in range(2))
    card = TileSetCard(
        format_version=FORMAT_VERSION, tile=32, overlap=0, classes=classes, ignore=(), bands=(1, 2, 3), band_names=(None,) * 3,
        mean=(1.0,) * 3, std=(1.0,) * 3, dtype="uint8", nodata=None, pixel_size=None, context_ratio=8, split_by="block", seed=0,
        versions={}, scenes=(entry,), class_pixels={"train": pixels, "val": (5, 5), "test": (0, 0)},
    )  # fmt: skip
    folder.mkdir()
    write_card(folder, card)
    (folder / "c.tif").touch()
    with sqlite3.connect(folder / "tiles.gpkg") as database:
        database.execute("CREATE TABLE tiles (fid INTEGER PRIMARY KEY, scene, row, col, height, width, split, labelled)")
        database.execute("INSERT INTO tiles VALUES (1, ?, 0, 0, 32, 32, 'train', 1)", (scene.stem,))
    database.close()
    return folder


def test_tile_sets(tmp_path):
    scene = write(tmp_path / "a.tif", noise())
    tiles = tile_set(tmp_path / "tiles", scene, pixels=(10, 0))
    assert notes_of(check(tiles), tiles) == ["1 tiles", "no training pixel of class 1"]
    write(scene, noise()[::-1])
    assert "a has changed since it was tiled: tile again" in notes_of(check(tiles), tiles)
    (tiles / "c.tif").unlink()
    with pytest.raises(TileSetError, match=r"c\.tif"):
        check(tiles)


def test_tile_set_that_cannot_train(tmp_path):
    tiles = tile_set(tmp_path / "tiles", write(tmp_path / "a.tif", noise()), pixels=(0, 0))
    with pytest.raises(TileSetError, match="no labelled training pixel"):
        check(tiles)


def test_a_workspace_is_its_tile_set_and_models(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    tile_set(work / "tiles", write(tmp_path / "a.tif", noise()))
    model(work / "student.safetensors")
    (work / "student.curves.png").touch()
    kinds = {record["path"]: record["kind"] for record in check(work, headers=True).data["checked"]}
    assert kinds == {str(work / "student.safetensors"): "model", str(work / "tiles"): "tile set"}
