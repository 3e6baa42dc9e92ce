"""Label values that are no class ids: known from the class table to the evaluation of a model, and of a mask by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from safetensors.numpy import save_file

from rsdistill.commands.evaluate import evaluate
from rsdistill.commands.predict import predict
from rsdistill.commands.style import style
from rsdistill.commands.tile import tile
from rsdistill.data.dataset import TileReader
from rsdistill.errors import TileSetError
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.models.checkpoints import build_network
from rsdistill.training.run import card_for

PLACE = {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 4_000_000)}
TABLE = 'ignore = [0]\n[[class]]\nid = 9\nname = "roof"\nsources = [7]\n[[class]]\nid = 1\nname = "land"\nsources = [2, 3]\n'


def write(path: Path, values: np.ndarray) -> Path:
    with rasterio.open(path, "w", count=len(values), height=256, width=256, dtype="uint8", **PLACE) as file:
        file.write(values)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene whose roofs are bright, its label beside it in the values 7, 2, 3 and 0, and the class table."""
    random = np.random.default_rng(0)
    label = np.kron(random.choice([2, 3, 7], (16, 16)), np.ones((16, 16))).astype(np.uint8)
    (tmp_path / "classes.toml").write_text(TABLE)
    bright = (100 * (label == 7) + random.integers(1, 50, label.shape)).astype(np.uint8)
    label[:5] = 0
    write(tmp_path / "s_label.tif", label[None])
    return write(tmp_path / "s.tif", bright[None])


def brightness_model(work: Path) -> Path:
    """A linear model with the card that training gives, which calls bright pixels roofs."""
    tiles = load_tile_set(work / "tiles")
    card = card_for(tiles, build_network("linear", {}, 1, 2), "linear", method="ce", seed=0)
    card = card.model_copy(update={"mean": (75.0,), "std": (1.0,)})
    weights = {"weight": np.array([1, -1], np.float32)[:, None, None, None], "bias": np.zeros(2, np.float32)}
    save_file(weights, work / "student.safetensors", metadata={"rsdistill": card.model_dump_json()})
    return work / "student.safetensors"


def test_a_model_and_its_mask_know_the_values_of_the_labels(scene: Path, tmp_path: Path):
    work = tmp_path / "work"
    tile([scene], work=work, tile=64)
    tiles = load_tile_set(work / "tiles")
    counts = np.bincount(TileReader(tiles).read(tiles.tiles[5])[2].ravel(), minlength=256)
    assert counts[:2].min() > 0
    assert not counts[2:].any()
    brightness_model(work)
    assert evaluate(work=work, out=tmp_path / "split").data["miou"] == 1
    assert evaluate(scene, work=work, labels=[tmp_path / "s_label.tif"], out=tmp_path / "scene").data["miou"] == 1
    mask = tmp_path / "mask.tif"
    predict(scene, work=work, out=[mask])
    for number, name in enumerate(("work", "nowhere")):
        found = evaluate(mask=[mask], work=tmp_path / name, labels=[tmp_path / "s_label.tif"], out=tmp_path / str(number))
        assert found.data["miou"] == 1
    style(mask)
    assert evaluate(mask=[mask], work=tmp_path / "nowhere", labels=[mask], out=tmp_path / "itself").data["pixel_accuracy"] == 1
    assert json.loads((work / "tiles" / "tileset.json").read_text())["classes"][0]["sources"] == [7]


def test_gdal_reads_what_a_mask_says_of_labels(scene: Path, tmp_path: Path):
    work = tmp_path / "work"
    tile([scene], work=work, tile=64)
    brightness_model(work)
    predict(scene, work=work, out=[tmp_path / "m" / "mask.tif"])
    with rasterio.open(tmp_path / "m" / "mask.tif") as mask:
        assert mask.tags(ns="RSDISTILL_LABELS")["ignore"].split()[0] == "0"
        assert mask.tags(ns="RSDISTILL_LABELS")["sources_9"].split()[0] == "7"


def test_a_tile_set_without_any_label_to_learn_from_is_refused(scene: Path, tmp_path: Path):
    write(tmp_path / "s_label.tif", np.zeros((1, 256, 256), np.uint8))
    with pytest.raises(TileSetError, match=r"no training tile of .* holds a label"):
        tile([scene], work=tmp_path / "work")
    tile([scene], work=tmp_path / "work", unlabelled=True)
