"""The papers' datasets, each on a tiny tree in its own layout: scenes, labels, classes and splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torchgeo.datasets

from rsdistill.commands.tile import tile
from rsdistill.data.presets import PRESETS, open_preset
from rsdistill.errors import ConfigError, LabelError
from rsdistill.geo.tile_index import load_tile_set

SIDE = 64
FORMATS = {".tif": "GTiff", ".jpg": "JPEG", ".png": "PNG"}


@pytest.fixture(autouse=True)
def _without_place():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def image(path: Path, values: Any = None, bands: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(0).integers(1, 255, (bands, SIDE, SIDE)).astype(np.uint8)
    with rasterio.open(path, "w", driver=FORMATS[path.suffix], count=len(values), height=SIDE, width=SIDE, dtype="uint8") as dataset:
        dataset.write(values)


def halves(first: Any, second: Any) -> np.ndarray:
    """A label whose left half is one value or colour, and its right half another."""
    values = np.empty((len(first), SIDE, SIDE), np.uint8)
    values[:, :, : SIDE // 2], values[:, :, SIDE // 2 :] = np.reshape(first, (-1, 1, 1)), np.reshape(second, (-1, 1, 1))
    return values


BUILDING, TREE = (0, 0, 255), (0, 255, 0)


def potsdam(root: Path) -> None:
    for name in ("2_10", "2_11", "6_7", "5_15"):
        image(root / "4_Ortho_RGBIR" / f"top_potsdam_{name}_RGBIR.tif", bands=4)
        image(root / "5_Labels_all" / f"top_potsdam_{name}_label.tif", halves(BUILDING, TREE))


def vaihingen(root: Path) -> None:
    for area in (1, 11, 6):
        image(root / "top" / f"top_mosaic_09cm_area{area}.tif")
        image(root / f"top_mosaic_09cm_area{area}.tif", halves(BUILDING, TREE))


def deepglobe(root: Path) -> None:
    for folder, number in (("training_data", 1), ("training_data", 2), ("test_data", 3)):
        image(root / "data" / folder / "images" / f"{number}_sat.jpg")
        image(root / "data" / folder / "masks" / f"{number}_mask.png", halves((0, 255, 255), (0, 0, 0)))


def inria(root: Path) -> None:
    for name in ("austin5", "austin6", "tyrol-w12"):
        image(root / "AerialImageDataset" / "train" / "images" / f"{name}.tif")
        image(root / "AerialImageDataset" / "train" / "gt" / f"{name}.tif", halves((255,), (0,)))


def gid15(root: Path) -> None:
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        image(root / "GID" / "img_dir" / split / f"{name}.tif")
        if split != "test":
            image(root / "GID" / "ann_dir" / split / f"{name}_15label.png", halves((1,), (15,)))


def loveda(root: Path) -> None:
    for split, area, number in (("Train", "Urban", 1), ("Train", "Rural", 2), ("Val", "Rural", 3), ("Test", "Urban", 4)):
        image(root / split / area / "images_png" / f"{number}.png")
        if split != "Test":
            image(root / split / area / "masks_png" / f"{number}.png", halves((2,), (0,)))


def landcoverai(root: Path) -> None:
    for name in ("M-33-20-D-c-4-2", "N-34-1"):
        image(root / "images" / f"{name}.tif")
        image(root / "masks" / f"{name}.tif", halves((1,), (0,)))


def whdld(root: Path) -> None:
    for name in ("wh0001", "wh0002"):
        image(root / "Images" / f"{name}.jpg")
        image(root / "ImagesPNG" / f"{name}.png", halves((1,), (6,)))


TREES = {"potsdam": potsdam, "vaihingen": vaihingen, "deepglobe": deepglobe, "inria": inria, "gid15": gid15, "loveda": loveda,
         "landcoverai": landcoverai, "whdld": whdld}  # fmt: skip
FACTS = {
    "potsdam": ({"top_potsdam_2_10_RGBIR": "train", "top_potsdam_5_15_RGBIR": "test"}, 6, ("building", "tree")),
    "vaihingen": ({"top_mosaic_09cm_area1": "train", "top_mosaic_09cm_area6": "test"}, 6, ("building", "tree")),
    "deepglobe": ({"1_sat": "train", "3_sat": "test"}, 6, ("urban land",)),
    "inria": ({"austin5": "val", "austin6": "train", "tyrol-w12": "train"}, 2, ("background", "building")),
    "gid15": ({"a": "train", "b": "val", "c": "test"}, 15, ("industrial land", "pond")),
    "loveda": ({"1": "train", "2": "train", "3": "val", "4": "test"}, 7, ("building",)),
    "landcoverai": ({"N-34-1": None}, 5, ("background", "building")),
    "whdld": ({"wh0001": None}, 6, ("building", "water")),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_dataset_becomes_a_tile_set(tmp_path: Path, name: str):
    TREES[name](tmp_path / "root")
    splits, classes, present = FACTS[name]
    scenes, table, rule = open_preset(name, tmp_path / "root")
    assert splits.items() <= {scene.path.stem: scene.split for scene in scenes}.items()
    assert len(table) == classes
    assert rule
    tile(dataset=name, root=tmp_path / "root", work=tmp_path, tile=32)
    tile_set = load_tile_set(tmp_path / "tiles")
    wanted = {scene.path.stem: scene.split for scene in scenes if scene.split in ("val", "test") and scene.label}
    for entry in tile_set.card.scenes:
        assert entry.split == wanted.get(entry.name, entry.split)
        assert entry.label
    seen = {kind for counts in tile_set.card.class_pixels.values() for kind, count in zip(table.names, counts, strict=True) if count}
    assert seen == set(present)


def test_facts_agree_with_torchgeo():
    assert PRESETS["potsdam"].table().find("car").color == "#ffff00"
    assert len(torchgeo.datasets.Potsdam2D.splits["train"]) == 24
    assert set(PRESETS["loveda"].table().names) == set(torchgeo.datasets.LoveDA.classes) - {"no-data"}
    assert [name.replace(" ", "_") for name in PRESETS["gid15"].table().names] == list(torchgeo.datasets.GID15.classes[1:])
    assert PRESETS["landcoverai"].table().find("road").id == 4
    assert PRESETS["inria"].table().find("building").sources == (255,)


def test_lists_name_the_split(tmp_path: Path):
    deepglobe(tmp_path)
    for split, number in (("train", 3), ("val", 1), ("test", 2)):
        (tmp_path / f"{split}.txt").write_text(f"{number}_sat.jpg\n")
    scenes, _, _ = open_preset("deepglobe", tmp_path, "glnet")
    assert {scene.path.name[0]: scene.split for scene in scenes} == {"1": "val", "2": "test", "3": "train"}
    (tmp_path / "val.txt").unlink()
    with pytest.raises(ConfigError, match=r"1_sat.jpg is in none of train.txt"):
        open_preset("deepglobe", tmp_path, "lists")


def test_the_official_split_of_landcoverai_is_of_chips(tmp_path: Path):
    for number, split in enumerate(("train", "val", "test")):
        image(tmp_path / "output" / f"M-33-20-D-c-4-2_{number}.jpg")
        image(tmp_path / "output" / f"M-33-20-D-c-4-2_{number}_m.png", halves((4,), (0,)))
        (tmp_path / f"{split}.txt").write_text(f"M-33-20-D-c-4-2_{number}\n")
    scenes, _, _ = open_preset("landcoverai", tmp_path, "official")
    assert [scene.split for scene in scenes] == ["train", "val", "test"]
    assert all(scene.label and scene.label.name.endswith("_m.png") for scene in scenes)
    (tmp_path / "output").rename(tmp_path / "chips")
    with pytest.raises(ConfigError, match=r"looked for .*output"):
        open_preset("landcoverai", tmp_path, "official")


def test_coloured_labels_of_whdld_are_read_by_their_colours(tmp_path: Path):
    image(tmp_path / "Images" / "a.jpg")
    image(tmp_path / "ImagesPNG" / "a.png", halves((255, 0, 0), (128, 128, 128)))
    tile(dataset="whdld", root=tmp_path, work=tmp_path / "w", tile=32)
    counts = load_tile_set(tmp_path / "w" / "tiles").card.class_pixels
    assert [sum(pixels) > 0 for pixels in zip(*counts.values(), strict=True)] == [True, False, False, False, True, False]


def test_a_wrong_root_says_what_was_looked_for(tmp_path: Path):
    for name, preset in PRESETS.items():
        with pytest.raises(ConfigError, match="no scene of") as caught:
            open_preset(name, tmp_path)
        assert str(tmp_path / preset.layouts[0]) in str(caught.value)
        assert "--root" in caught.value.hint


def test_wrong_names_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'potsdam'"):
        open_preset("postdam", tmp_path)
    with pytest.raises(ConfigError, match="no protocol 'oficial'; did you mean 'official'"):
        open_preset("inria", tmp_path, "oficial")
    with pytest.raises(ConfigError, match="from --root"):
        tile(dataset="inria", work=tmp_path)
    with pytest.raises(ConfigError, match="from --root"):
        tile(["a.tif"], dataset="inria", root=tmp_path, work=tmp_path)


def test_a_dataset_without_its_labels_is_refused(tmp_path: Path):
    image(tmp_path / "Images" / "a.jpg")
    with pytest.raises(LabelError, match="has a label"):
        tile(dataset="whdld", root=tmp_path, work=tmp_path / "w")
