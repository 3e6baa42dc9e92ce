"""Bands that stand in another order: read by their names, from the tile set to the mask."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from safetensors.numpy import save_file

from rsdistill.commands.predict import predict
from rsdistill.commands.tile import tile
from rsdistill.data.dataset import TileReader
from rsdistill.errors import ConfigError, SceneError
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.reporting import Silent

PLACE = {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(2, 0, 500_000, 0, -2, 4_000_000)}
CLASSES = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]


class Listening(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


def write(path: Path, order: tuple[str, ...], colors: dict[str, np.ndarray], **place: object) -> Path:
    """A scene whose bands are called and ordered as ``order``; a name with a colon is called what follows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = [colors[name.partition(":")[0]] for name in order]
    height, width = bands[0].shape
    with rasterio.open(path, "w", count=len(bands), height=height, width=width, dtype="uint8", **{**PLACE, **place}) as file:
        for number, (name, band) in enumerate(zip(order, bands, strict=True), start=1):
            file.write(band, number)
            file.set_band_description(number, name.rpartition(":")[2])
    return path


def colors(size: tuple[int, int] = (64, 64), seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.integers(low, low + 99, size).astype(np.uint8) for name, low in (("red", 1), ("green", 60), ("blue", 120))}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A linear model of blue and red, in this order, that answers the brighter one."""
    card = {"format_version": 1, "arch": "linear", "classes": CLASSES, "bands": [1, 2], "band_names": ["blue", "red"]}
    card |= {"mean": [100, 100], "std": [50, 50]}
    weights = {"weight": np.array([[0, 1], [1, 0]], np.float32)[:, :, None, None], "bias": np.zeros(2, np.float32)}
    save_file(weights, tmp_path / "m.safetensors", metadata={"rsdistill": json.dumps(card)})
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("order", [("blue", "red"), ("red", "blue"), ("red", "green", "blue")])
def test_a_model_finds_its_bands_by_name(tmp_path: Path, model: Path, order):
    seen, heard = colors(), Listening()
    scene = write(tmp_path / "s.tif", order, seen)
    predict(scene, model=model, out=[tmp_path / "m.tif"], work=tmp_path, progress=heard)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), np.where(seen["red"] >= seen["blue"], 1, 2))
    assert sum("by their names" in text for text in heard.said) == (order[:2] != ("blue", "red"))


def test_names_that_do_not_tell_are_warned_of_and_half_of_them_refused(tmp_path: Path, model: Path):
    seen, heard = colors(), Listening()
    scene = write(tmp_path / "s.tif", ("blue:B2", "red:B4"), seen)
    predict(scene, model=model, out=[tmp_path / "m.tif"], work=tmp_path, progress=heard)
    with rasterio.open(tmp_path / "m.tif") as mask:
        assert np.array_equal(mask.read(1), np.where(seen["red"] >= seen["blue"], 1, 2))
    assert [text for text in heard.warned if "B2, B4" in text and "blue, red" in text]
    half = write(tmp_path / "half.tif", ("red", "blue:B2"), seen)
    with pytest.raises(SceneError, match="no band called 'blue'"):
        predict(half, model=model, out=[tmp_path / "h.tif"], work=tmp_path)
    predict(half, model=model, out=[tmp_path / "h.tif"], work=tmp_path, bands=(2, 1))
    with rasterio.open(tmp_path / "h.tif") as mask:
        assert np.array_equal(mask.read(1), np.where(seen["red"] >= seen["blue"], 1, 2))


@pytest.mark.parametrize("bands", [("blue", "red"), ()])
def test_a_tile_set_reads_each_scene_by_name(tmp_path: Path, bands):
    truth = []
    for number, order in enumerate([("blue", "red", "green"), ("red", "green", "blue")]):
        seen = colors((128, 128), number)
        place = {"transform": Affine(2, 0, 500_000 + 1000 * number, 0, -2, 4_000_000)}
        write(tmp_path / "s" / f"{number}.tif", order, seen, **place)
        write(tmp_path / "s" / f"{number}_label.tif", ("red",), {"red": 1 + (seen["red"] > seen["blue"])}, **place)
        truth.append(np.stack([seen[name] for name in bands or ("blue", "red", "green")]))
    heard = Listening()
    tile([tmp_path / "s"], work=tmp_path, tile=64, bands=bands, progress=heard)
    tiles = load_tile_set(tmp_path / "tiles")
    assert tiles.card.band_names == (bands or ("blue", "red", "green"))
    assert [tiles.card.bands_of(0), tiles.card.bands_of(1)] == ([(1, 2), (3, 1)] if bands else [(1, 2, 3), (3, 1, 2)])
    assert sum("taken by name" in text for text in heard.said) == 1
    reader = TileReader(tiles)
    for one in tiles.tiles:
        pixels, _, _ = reader.read(one)
        assert np.array_equal(pixels, truth[one.scene][:, *one.window.slices])
    training = [truth[one.scene][:, *one.window.slices].reshape(len(truth[0]), -1) for one in tiles.of_split("train")]
    assert np.allclose(tiles.card.mean, np.concatenate(training, axis=1).mean(axis=1))


def test_scenes_without_a_crs_are_warned_of_once(tmp_path: Path, model: Path):
    for name in ("a", "b"):
        write(tmp_path / "s" / f"{name}.tif", ("blue", "red"), colors(), crs=None)
    heard = Listening()
    predict(tmp_path / "s", model=model, out=[tmp_path / "masks"], work=tmp_path, progress=heard)
    assert len([text for text in heard.warned if "CRS" in text]) == 1
    with rasterio.open(tmp_path / "masks" / "b.tif") as mask:
        assert mask.crs is None


def test_a_word_that_is_no_device_is_wrong_usage(tmp_path: Path, model: Path):
    scene = write(tmp_path / "s.tif", ("blue", "red"), colors())
    with pytest.raises(ConfigError, match="unknown device 'foo'"):
        predict(scene, model=model, out=[tmp_path / "m.tif"], work=tmp_path, device="foo")


def test_compression_has_an_option_of_its_own(tmp_path: Path, model: Path):
    scene = write(tmp_path / "s.tif", ("blue", "red"), colors())
    with pytest.raises(ConfigError, match="COMPRESS") as caught:
        predict(scene, model=model, out=[tmp_path / "m.tif"], work=tmp_path, co={"COMPRESS": "ZSTD"})
    assert "--compress zstd" in caught.value.hint


def test_a_url_is_named_as_it_was_given(tmp_path: Path, model: Path):
    with pytest.raises(SceneError, match=r"https://example\.com/s\.tif is remote"):
        predict("https://example.com/s.tif", model=model, out=[tmp_path / "m.tif"], work=tmp_path)
