"""Bad input: exit 2, one line that names the file and a next step, and nothing written; each fault is made for real."""

import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import rasterio
from harness import ended, litter, noise, place_of, write_linear, write_raster

CASES = {}


def case(*says, code=2):
    """Register a fault: a function of (world, folder) that makes it and returns the arguments; ``says`` must stand in the line."""

    def register(make):
        CASES[make.__name__] = (make, says, code)
        return make

    return register


def predict(world, scene, *more, out="m.tif", folder=None):
    return ["predict", scene, "--work", world.work, "--out", (folder or world.root / "out") / out, *more]


@case("gone.tif does not exist")
def a_missing_scene(world, folder):
    return predict(world, folder / "gone.tif", folder=folder)


@case("text.tif is not a raster")
def text_for_a_scene(world, folder):
    (folder / "text.tif").write_text("<html>404</html>")
    return predict(world, folder / "text.tif", folder=folder)


@case("empty.tif is empty")
def an_empty_scene(world, folder):
    (folder / "empty.tif").touch()
    return predict(world, folder / "empty.tif", folder=folder)


@case("pipe.tif is not a regular file")
def a_pipe_for_a_scene(world, folder):
    os.mkfifo(folder / "pipe.tif")
    return predict(world, folder / "pipe.tif", folder=folder)


@case("/dev/zero is not a regular file")
def a_device_for_a_scene(world, folder):
    return ["tile", "/dev/zero", "--unlabelled", "--classes", world.classes, "--out", folder / "tiles"]


@case("dangling.tif does not exist")
def a_dangling_link(world, folder):
    (folder / "dangling.tif").symlink_to(folder / "gone")
    return ["info", folder / "dangling.tif"]


@case("loop.tif", "symbolic links")
def a_loop_of_links(world, folder):
    (folder / "loop.tif").symlink_to(folder / "loop.tif")
    return ["check", folder / "loop.tif"]


@case("is too long", "nnn")
def a_scene_name_that_is_too_long(world, folder):
    return predict(world, folder / ("n" * 300 + ".tif"), folder=folder)


@case("no scene in", "are found by suffix")
def a_folder_without_rasters(world, folder):
    return predict(world, folder, folder=folder)


@case("no scene in", "rename a scene")
def a_scene_that_is_called_a_label(world, folder):
    return predict(world, shutil.copy(world.scene, folder / "north_label.tif"), folder=folder)


@case("backend", "'openvino' or 'auto'")
def a_backend_that_there_is_not(world, folder):
    return predict(world, world.scene, "--backend", "tensorrt", folder=folder)


@case("threads", "less than or equal to 1024")
def threads_that_no_machine_has(world, folder):
    return predict(world, world.scene, "--threads", "20000", folder=folder)


@case("cut.tif", "rows 0 to")
def a_truncated_scene(world, folder):
    content = world.scene.read_bytes()
    (folder / "cut.tif").write_bytes(content[: len(content) // 3])
    return predict(world, folder / "cut.tif", folder=folder)


@case("complex.tif has pixels of type complex64")
def complex_pixels(world, folder):
    return predict(world, write_raster(folder / "complex.tif", noise().astype(np.complex64)), folder=folder)


@case("two.tif has 2 bands", "reads bands 1, 2, 3")
def too_few_bands(world, folder):
    return predict(world, write_raster(folder / "two.tif", noise(2)), folder=folder)


@case("a.tif has bands 1, 2, 3", "b.tif has bands 1, 2", "--bands")
def scenes_whose_bands_differ(world, folder):
    scenes = [write_raster(folder / f"{name}.tif", noise(bands)) for name, bands in (("a", 3), ("b", 2))]
    return ["tile", *scenes, "--unlabelled", "--classes", world.classes, "--out", folder / "tiles"]


@case("nowhere.tif has no CRS", "gdal_edit.py")
def no_crs_where_one_is_required(world, folder):
    return predict(world, write_raster(folder / "nowhere.tif", noise(), crs=None, transform=None), "--require-crs", folder=folder)


@case("nowhere.tif has no CRS", "gdal_edit.py")
def no_crs_where_one_is_required_for_tiles(world, folder):
    scene = write_raster(folder / "nowhere.tif", noise(), crs=None, transform=None)
    return ["tile", scene, "--unlabelled", "--classes", world.classes, "--require-crs", "--out", folder / "tiles"]


def labelled(world, folder, values):
    """Arguments that tile the world's scene with a label raster of ``values``."""
    shutil.copy(world.scene, folder / "s.tif")
    write_raster(folder / "s_label.tif", values, **place_of(world))
    return ["tile", folder / "s.tif", "--classes", world.classes, "--out", folder / "tiles"]


@case("s_label.tif, rows 0 to 255, columns 0 to 255: label value 77 (200 pixels)", "sources")
def a_label_value_outside_the_class_table(world, folder):
    values = np.ones((256, 256), np.uint8)
    values[40:50, 60:80] = 77
    return labelled(world, folder, values)


@case("s_label.tif", "label value -3 (1 pixels)")
def a_negative_label(world, folder):
    values = np.ones((256, 256), np.int16)
    values[9, 9] = -3
    return labelled(world, folder, values)


@case("s_label.tif", "label value 1.5")
def a_label_between_two_classes(world, folder):
    return labelled(world, folder, np.full((256, 256), 1.5, np.float32))


@case("s_label.tif has 2 bands")
def labels_of_two_bands(world, folder):
    return labelled(world, folder, noise(2, 256, 256))


@case("s_label.tif lies nowhere on its scene")
def labels_of_another_place(world, folder):
    arguments = labelled(world, folder, np.ones((256, 256), np.uint8))
    write_raster(folder / "s_label.tif", np.ones((256, 256), np.uint8), crs="EPSG:32633")
    return arguments


@case("s_label.geojson", "ogrinfo")
def a_broken_vector_file(world, folder):
    shutil.copy(world.scene, folder / "s.tif")
    (folder / "s_label.geojson").write_text('{"type": "Feat')
    return ["tile", folder / "s.tif", "--classes", world.classes, "--out", folder / "tiles"]


@case("s_label.geojson", "ogrinfo")
def a_ring_that_does_not_close(world, folder):
    shutil.copy(world.scene, folder / "s.tif")
    ring = [[352010.0, 6169990.0], [352020.0, 6169990.0], [352020.0, 6169980.0], [352011.0, 6169991.0]]
    feature = {"type": "Feature", "properties": {"class_id": 1}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (folder / "s_label.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return ["tile", folder / "s.tif", "--classes", world.classes, "--out", folder / "tiles"]


@case("no label for", "s.tif", "--unlabelled")
def a_scene_without_labels(world, folder):
    shutil.copy(world.scene, folder / "s.tif")
    return ["tile", folder / "s.tif", "--classes", world.classes, "--out", folder / "tiles"]


@case("no tile for training", "s.tif", "nodata everywhere", "--nodata")
def a_training_scene_without_data(world, folder):
    arguments = labelled(world, folder, np.ones((256, 256), np.uint8))
    write_raster(folder / "s.tif", np.zeros((3, 256, 256), np.uint8), nodata=0, **place_of(world))
    return arguments


@case("no labelled training pixel", "tiles")
def training_on_tiles_without_labels(world, folder):
    tiled = ended("tile", world.scene, "--unlabelled", "--labels", folder, "--classes", world.classes, "--out", folder / "tiles", "-q")
    assert tiled.code == 0, tiled.err
    return ["distill", "--method", "ce", "--tiles", folder / "tiles", "--out", folder / "s.safetensors"]


def table(world, folder, text, name="classes.toml"):
    (folder / name).write_text(text)
    return ["tile", world.scene, "--labels", world.labels, "--classes", folder / name, "--out", folder / "tiles"]


@case("classes.toml is not TOML")
def a_class_table_that_is_not_toml(world, folder):
    return table(world, folder, "[[class]\n")


@case("classes.toml", "id 1 stands twice")
def a_class_id_twice(world, folder):
    return table(world, folder, '[[class]]\nid = 1\nname = "a"\n[[class]]\nid = 1\nname = "b"\n')


@case("classes.toml", "colour 'red'", "#rrggbb")
def a_colour_by_name(world, folder):
    return table(world, folder, '[[class]]\nid = 1\nname = "a"\ncolor = "red"\n')


@case("classes.csv", "'x' is not a whole number")
def a_class_id_that_is_no_number(world, folder):
    return table(world, folder, "id,name,color\nx,a,#ffffff\n", "classes.csv")


@case("classes.toml", "longer than")
def a_class_table_of_two_megabytes(world, folder):
    return table(world, folder, "#" * (2 << 20))


@case("unknown key 'tiel'", "run.toml", "did you mean 'tile'?")
def an_unknown_configuration_key(world, folder):
    (folder / "run.toml").write_text("tiel = 512\n")
    return predict(world, world.scene, "--config", folder / "run.toml", folder=folder)


@case("m.tif exists", "--overwrite")
def an_output_that_exists(world, folder):
    (folder / "m.tif").write_text("kept")
    return predict(world, world.scene, folder=folder)


@case("tiles exists", "--overwrite")
def a_tile_set_that_exists(world, folder):
    return ["tile", world.scene, "--labels", world.labels, "--classes", world.classes, "--work", world.work]


@case("is not empty", "never replaced")
def a_folder_of_somebody_else(world, folder):
    (folder / "precious").touch()
    return ["tile", world.scene, "--labels", world.labels, "--classes", world.classes, "--out", folder, "--overwrite"]


@case("--out", "s.tif does not end in .safetensors")
def a_model_named_as_a_raster(world, folder):
    return ["distill", "--work", world.work, "--method", "ce", "--steps", 1, "--out", folder / "s.tif"]


@case("unknown device 'tpu'", "cuda:1")
def a_device_that_is_none(world, folder):
    return predict(world, world.scene, "--device", "tpu", folder=folder)


@case("device 'cuda:99' is not there", "--device cpu", code=3)
def a_device_that_is_not_there(world, folder):
    return predict(world, world.scene, "--device", "cuda:99", folder=folder)


@case("tiles of 32 pixels need", "--max-memory allows 100", "--overlap", code=3)
def tiles_that_would_exhaust_memory(world, folder):
    return [*labelled(world, folder, np.ones((256, 256), np.uint8)), "--tile", 32, "--overlap", 31, "--max-memory", 100]


@case("bands of", "many.tif need", "--bands", code=3)
def bands_that_would_exhaust_memory(world, folder):
    many = write_raster(folder / "many.tif", noise(60))
    return ["tile", many, "--unlabelled", "--classes", world.classes, "--tile", 64, "--max-memory", 1, "--out", folder / "tiles"]


@case("windows of", "--max-memory allows 1", code=3)
def an_evaluation_that_would_exhaust_memory(world, folder):
    return ["evaluate", world.scene, "--labels", world.labels, "--work", world.work, "--max-memory", 1, "--out", folder / "e"]


@case("m.txt is a file", "name a folder")
def a_folder_of_results_named_as_a_file(world, folder):
    (folder / "m.txt").touch()
    return ["evaluate", world.scene, "--labels", world.labels, "--work", world.work, "--out", folder / "m.txt"]


@case("is the scene")
def the_scene_as_output(world, folder):
    (folder / "link.tif").symlink_to(world.scene)
    return predict(world, world.scene, "--overwrite", out="link.tif", folder=folder)


@case("is the scene")
def a_hard_link_to_the_scene_as_output(world, folder):
    shutil.copy(world.scene, folder / "s.tif")
    os.link(folder / "s.tif", folder / "link.tif")
    return predict(world, folder / "s.tif", "--overwrite", out="link.tif", folder=folder)


@case("no writer for '.xyz'", "m.xyz", ".gpkg")
def an_unknown_output_format(world, folder):
    return predict(world, world.scene, out="m.xyz", folder=folder)


@case(".tif is a suffix without a name", "mask.tif")
def an_output_that_is_a_suffix_alone(world, folder):
    return predict(world, world.scene, out=".tif", folder=folder)


@case("is too long", "nnn")
def an_output_name_that_is_too_long(world, folder):
    return predict(world, world.scene, out="n" * 300 + ".tif", folder=folder)


@case("is too long a name", "247 bytes")
def an_output_name_that_leaves_no_room_for_those_beside_it(world, folder):
    return predict(world, world.scene, out="n" * 244 + ".tif", folder=folder)


@case("m.qml is not ours", "--overwrite")
def a_style_of_ones_own_in_the_way(world, folder):
    (folder / "m.qml").write_text('<qgis version="3.34.1-Prizren" styleCategories="AllStyleCategories"/>')
    return predict(world, world.scene, out="m.fgb", folder=folder)


@case("m.run.toml is not ours", "--overwrite")
def a_file_in_the_place_of_the_run_file(world, folder):
    (folder / "m.run.toml").write_text("mine = true")
    return predict(world, world.scene, out="m.tif", folder=folder)


@case("COMPRESS cannot be given", "--compress deflate|zstd")
def a_creation_option_that_has_a_flag(world, folder):
    return predict(world, world.scene, "--co", "COMPRESS=JPEG", folder=folder)


@case("LEVEL cannot be '99'")
def a_creation_option_out_of_range(world, folder):
    return predict(world, world.scene, "--co", "LEVEL=99", folder=folder)


@case("min_area: Input should be a finite number")
def a_least_area_without_end(world, folder):
    return predict(world, world.scene, "--min-area", "inf", folder=folder)


@case("BLOCKSIZE cannot be 'ABC'", "64|128")
def a_creation_option_that_would_exhaust_memory(world, folder):
    return predict(world, world.scene, "--co", "BLOCKSIZE=abc", folder=folder)


@case("would become", "pixel sizes are in units of its CRS")
def a_pixel_size_that_would_exhaust_memory(world, folder):
    return predict(world, world.scene, "--pixel-size", "1e-9", folder=folder)


@case("cannot write", "file/", code=3)
def an_output_below_a_file(world, folder):
    (folder / "file").touch()
    return predict(world, world.scene, out="file/m.tif", folder=folder)


@case("cannot write /dev/full", code=3)
def a_device_as_output(world, folder):
    return predict(world, world.scene, out="/dev/full", folder=folder)


@case("cannot write /proc", code=3)
def an_output_where_nobody_may_write(world, folder):
    return predict(world, world.scene, out="/proc/none/m.tif", folder=folder)


def model(world, folder, *, raw=None, **changes):
    """Arguments that map the world's scene with a model that is broken by ``changes``, or whose file is ``raw``."""
    path = folder / "bad.safetensors"
    write_linear(path, classes=7, weight=changes.pop("weight", None), metadata=changes.pop("metadata", None), card=changes)
    if raw is not None:
        path.write_bytes(raw(path.read_bytes()))
    return ["predict", world.scene, "--model", path, "--out", folder / "m.tif"]


MODELS = {
    "a_pickle": ({"raw": lambda _: pickle.dumps({"weight": 1})}, "is a pickle"),
    "a_cut_model": ({"raw": lambda content: content[:-8]}, "it was cut short"),
    "a_longer_model": ({"raw": lambda content: content + b"x"}, "it was cut short or damaged"),
    "no_model": ({"raw": lambda _: b"\xff" * 100}, "is not a safetensors file"),
    "a_header_of_a_terabyte": ({"raw": lambda _: (1 << 40).to_bytes(8, "little") + b"{}"}, "is not a safetensors file"),
    "a_foreign_model": ({"metadata": {"format": "pt"}}, "no 'rsdistill' card"),
    "another_format_version": ({"format_version": 99}, "format_version 99"),
    "an_unknown_architecture": ({"arch": "os:system"}, "unknown architecture 'os:system'"),
    "an_unknown_option": ({"arch_args": {"width": 2}}, "unknown option 'width'"),
    "an_encoder_that_is_a_path": ({"arch": "ginet", "arch_args": {"encoder": "../../etc"}}, "no encoder '../../etc'"),
    "an_absurd_width": ({"arch": "ginet", "arch_args": {"dim": 10**9}}, "less than or equal to 1024"),
    "one_mean_too_few": ({"mean": [1, 2]}, "mean has 2 values for 3 bands"),
    "a_mean_that_is_not_finite": ({"mean": [1, 2, float("nan")]}, "finite"),
    "no_deviation": ({"std": [0, 1, 1]}, "greater than 0"),
    "no_pixel_size": ({"pixel_size": 0}, "greater than 0"),
    "a_type_that_is_none": ({"dtype": "nonsense"}, "'nonsense' is no type of pixels"),
    "one_class_twice": ({"classes": [{"id": 1, "name": "a"}] * 7}, "not all different"),
    "a_colour_that_is_none": ({"classes": [{"id": i, "name": f"c{i}", "color": "red"} for i in range(7)]}, "colour 'red'"),
    "a_name_that_cannot_be_read": ({"classes": [{"id": i, "name": f"{i}\x1b[2J"} for i in range(7)]}, "no readable name"),
    "a_card_of_brackets": ({"metadata": {"rsdistill": "[" * 100_000}}, "is not JSON"),
    "weights_that_are_not_finite": ({"weight": np.full((7, 3, 1, 1), np.nan, np.float32)}, "not finite"),
    "a_class_too_many": ({"weight": np.ones((8, 3, 1, 1), np.float32)}, "(8, 3, 1, 1)"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_refused_in_one_line(world, tmp_path, name):
    changes, says = MODELS[name]
    check(ended(*model(world, tmp_path, **changes)), 2, ("bad.safetensors", says))
    assert not (tmp_path / "m.tif").exists()


def test_a_class_without_a_colour_gets_one(world, tmp_path):
    entries = [{"id": i, "name": f"c{i}"} for i in range(7)]
    assert ended(*model(world, tmp_path, classes=entries)).code == 0


def change(key, value):
    return lambda card: card.update({key: value})


def change_scene(key, value):
    return lambda card: card["scenes"][0].update({key: value})


TILE_SETS = {
    "no_json": ("", "cannot read"),
    "a_list": ("[]", "format version"),
    "brackets": ("[" * 100_000, "cannot read"),
    "another_version": (change("format_version", 2), "format version 2"),
    "an_unknown_key": (change("extra", 1), "extra"),
    "one_mean_too_few": (change("mean", [1.0]), "mean has 1 values for 3 bands"),
    "no_deviation": (change("std", [0, 0, 0]), "std.0"),
    "an_absurd_tile": (change("tile", 10**9), "tile"),
    "no_type": (change("dtype", "nonsense"), "no type of pixels"),
    "no_ratio": (change("context_ratio", 0), "context_ratio"),
    "no_counts": (change("class_pixels", {}), "class_pixels"),
    "a_class_without_id": (change("classes", [{"x": 1}] * 7), "classes"),
    "no_scene": (change("scenes", []), "tile of scene"),
    "a_label_outside": (change_scene("label", "../../../etc/passwd"), "outside the tile set"),
    "an_absolute_label": (change_scene("label", "/etc/passwd"), "outside the tile set"),
    "a_scene_that_is_gone": (change_scene("path", "/nowhere/s.tif"), ""),
    "a_scene_that_is_a_text": (change_scene("path", "/etc/passwd"), "/etc/passwd is not a raster"),
}


@pytest.mark.parametrize("name", TILE_SETS)
def test_a_bad_tile_set_is_refused_in_one_line(world, tmp_path, name):
    broken, says = TILE_SETS[name]
    shutil.copytree(world.work / "tiles", tmp_path / "tiles")
    card = tmp_path / "tiles" / "tileset.json"
    if isinstance(broken, str):
        card.write_text(broken)
    else:
        content = json.loads(card.read_text())
        content["scenes"][0]["nearby"] = None
        broken(content)
        card.write_text(json.dumps(content))
    check(ended("check", tmp_path / "tiles"), 2, (says, "tiles" if "passwd is" not in says else ""))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_changes_nothing(world, tmp_path, name):
    make, says, code = CASES[name]
    arguments = make(world, tmp_path)
    before = snapshot(tmp_path)
    check(ended(*arguments), code, says)
    assert snapshot(tmp_path) == before
    assert litter(world.root) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "gone.tif", "--work", "{work}"],
        ["predict", "{scene}", "--model", "{classes}"],
        ["tile", "gone.tif", "--unlabelled"],
        ["tile", "{scene}", "--labels", "gone"],
        ["distill", "--work", "gone"],
        ["distill", "--work", "{work}", "--overwrite"],
        ["train-teacher", "--work", "gone"],
        ["export", "gone"],
        ["check", "gone.tif"],
    ],
    ids=" ".join,
)
def test_what_is_missing_is_said_before_torch_is_imported(world, tmp_path, arguments):
    """Seconds of waiting for a word misspelt are a fault of their own."""
    given = [text.format(**{name: str(value) for name, value in world._asdict().items()}) for text in arguments]
    code = f"import sys; from rsdistill.cli import run; code = run({given!r}); sys.exit(code if 'torch' not in sys.modules else 99)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False).returncode == 2


LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1]]'
GEOCENTRIC = "EPSG:4978"


@pytest.mark.parametrize("crs", [LOCAL, GEOCENTRIC])
def test_a_place_that_is_no_map_is_mapped_all_the_same(tmp_path, crs):
    scene = write_raster(tmp_path / "s.tif", noise(), crs=crs)
    write_linear(tmp_path / "m.safetensors", card={"pixel_size": 0.5})
    outs = [option for suffix in (".tif", ".gpkg", ".png") for option in ("--out", tmp_path / f"m{suffix}")]
    run = ended("predict", scene, "--model", tmp_path / "m.safetensors", *outs, "-q")
    assert run.code == 0, run.err


def test_labels_on_a_plane_of_their_own_are_refused(world, tmp_path):
    with rasterio.open(world.labels) as file:
        values, profile = file.read(), file.profile
    with rasterio.open(tmp_path / "l.tif", "w", **profile | {"crs": LOCAL}) as file:
        file.write(values)
    run = ended("tile", world.scene, "--labels", tmp_path / "l.tif", "--classes", world.classes, "--out", tmp_path / "tiles")
    check(run, 2, ("l.tif", "site grid", "same CRS"))
    assert not (tmp_path / "tiles").exists()


def test_an_index_whose_text_is_no_text_is_damaged(world, tmp_path):
    shutil.copytree(world.work / "tiles", tmp_path / "tiles")
    with closing(sqlite3.connect(tmp_path / "tiles" / "tiles.gpkg")) as database:
        database.execute("DROP TRIGGER IF EXISTS rtree_tiles_geom_update1")
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        for name in names:
            database.execute(f"DROP TRIGGER {name}")
        database.execute("UPDATE tiles SET split = CAST(X'ff74' AS TEXT)")
        database.commit()
    check(ended("info", tmp_path / "tiles"), 2, ("tiles.gpkg is damaged",))


def test_an_unknown_method_is_named_before_its_teacher(world):
    check(ended("distill", "--work", world.work, "--method", "mgsda", "--overwrite"), 2, ("mgsda", "mgsad"))


def check(run, code, says):
    """One line, no traceback, the wanted exit code, a hint in brackets, and every word of ``says``."""
    assert (run.code, run.out) == (code, ""), run.err
    assert "Traceback" not in run.err
    assert run.line.startswith("rsdistill: ")
    assert run.line.endswith(")"), "there is no next step"
    assert all(part in run.line for part in says), run.line


def snapshot(folder):
    """Names and contents below a folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    return {str(path): path.read_bytes() if path.is_file() else None for path in files}
