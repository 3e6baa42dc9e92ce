"""``info``: what a file is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling

from rsdistill.commands import info as module
from rsdistill.commands.info import info
from rsdistill.errors import CheckpointError, ConfigError, SceneError, TileSetError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter

TABLE = ClassTable((LandClass(1, "building", "#e41a1c"), LandClass(4, "water", "#377eb8")))


def write_scene(path: Path, height: int = 700, width: int = 900) -> Path:
    values = np.random.default_rng(0).integers(1, 255, (3, height, width), dtype=np.uint8)
    values[:, :, : width // 4] = 0
    how: dict[str, Any] = {"height": height, "width": width, "count": 3, "dtype": "uint8", "nodata": 0, "crs": CRS.from_epsg(32640)}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    with rasterio.open(path, "w", driver="GTiff", transform=Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000), **how, **layout) as file:
        file.write(values)
        for band, name in enumerate(("red", "green", "blue"), start=1):
            file.set_band_description(band, name)
        file.build_overviews([2, 4], Resampling.average)
    return path


def test_a_scene_is_described(tmp_path: Path) -> None:
    result = info(write_scene(tmp_path / "scene.tif"))
    facts = json.loads(json.dumps(result.data))
    assert facts["kind"] == "scene"
    assert (facts["height"], facts["width"], facts["dtype"], facts["crs"]) == (700, 900, "uint8", "EPSG:32640")
    assert facts["band_names"] == ["red", "green", "blue"]
    assert facts["pixel_size"] == [0.5, 0.5]
    assert facts["bounds"] == [500_000, 2_799_650, 500_450, 2_800_000]
    assert facts["valid_share"] == 0.75
    assert facts["overviews"] == [2, 4]
    assert facts["predict"]["windows"] == 1
    assert result.paths == ()
    shown = dict(result.tables[0].rows)
    assert shown["band names"] == "red, green, blue"
    assert "rotated" in shown
    assert "path" not in shown


def test_a_large_scene_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_PIXELS", 1000)
    monkeypatch.setattr(module, "SAMPLE_SIDE", 64)
    facts = info(write_scene(tmp_path / "scene.tif")).data
    assert facts["valid_share_is_sampled"]
    assert facts["valid_share"] == pytest.approx(0.75, abs=0.1)


def test_a_scene_without_georeference_says_so(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "plain.tif", "w", driver="GTiff", height=30, width=40, count=1, dtype="uint8") as file:
        file.write(np.ones((1, 30, 40), np.uint8))
    facts = info(tmp_path / "plain.tif").data
    assert facts["crs"] is None
    assert facts["pixel_size"] is None
    assert any("no CRS" in note for note in facts["notes"])


def test_a_mask_names_its_classes(tmp_path: Path) -> None:
    with LabelRasterWriter(tmp_path / "mask.tif", Grid(20, 30, CRS.from_epsg(32640), Affine(1, 0, 0, 0, -1, 0)), TABLE) as writer:
        writer.write(0, np.zeros((20, 30), np.uint8))
    result = info(tmp_path / "mask.tif")
    assert result.data["kind"] == "mask"
    assert result.data["classes"] == TABLE.to_card()
    assert result.tables[1].rows[1] == ("water", "4", "#377eb8")


def test_a_class_table(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text(TABLE.to_toml(), encoding="utf-8")
    assert info(tmp_path / "classes.toml").data["classes"][1] == {"id": 4, "name": "water", "color": "#377eb8", "sources": [4]}


def test_a_model_is_found_in_the_workspace_and_read_without_torch(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    card = {"format_version": 1, "arch": "linear", "classes": TABLE.to_card(), "bands": [1, 2], "mean": [0, 0], "std": [1, 1]}
    weights = {"weight": np.zeros((2, 2, 1, 1), np.float32), "bias": np.zeros(2, np.float32)}
    save_file(weights, tmp_path / "student.safetensors", metadata={"rsdistill": json.dumps({**card, "method": "kd"})})
    facts = info("student", work=tmp_path).data
    assert (facts["kind"], facts["arch"], facts["method"], facts["bands"]) == ("model", "linear", "kd", [1, 2])
    code = f"import sys, rsdistill; rsdistill.info({str(tmp_path / 'student.safetensors')!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_not_there_or_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model teacher"):
        info("teacher", work=tmp_path)
    with pytest.raises(SceneError, match=r"none.tif"):
        info(tmp_path / "none.tif")
    with pytest.raises(TileSetError):
        info(tmp_path)


def test_the_colours_of_a_mask_are_no_cause_for_advice(tmp_path):
    table = ClassTable((LandClass(1, "land", "#00ff00"), LandClass(2, "water", "#0000ff")))
    with LabelRasterWriter(tmp_path / "m.tif", Grid(8, 8, CRS.from_epsg(32633), Affine(2, 0, 0, 0, -2, 0)), table) as writer:
        writer.write(0, np.zeros((8, 8), np.uint8))
    facts = info(tmp_path / "m.tif").data
    assert facts["kind"] == "mask"
    assert not any("intensities" in note for note in facts["notes"])


def test_a_model_is_measured_where_that_is_asked_for(tmp_path: Path) -> None:
    from rsdistill.models import ModelCard, build_network, save_model

    card: dict[str, Any] = {"arch": "linear", "bands": [1, 2], "mean": [0.0, 0.0], "std": [1.0, 1.0], "classes": TABLE.to_card()}
    save_model(tmp_path / "m.safetensors", build_network("linear", {}, 2, 2), ModelCard(**card))
    facts = info(tmp_path / "m.safetensors", measure=True).data
    assert facts["parameters"] == 6
    assert facts["gmacs"] == pytest.approx(4 * 512**2 / 1e9)
    assert facts["tiles_per_second"] > 0
    assert "gmacs" not in info(tmp_path / "m.safetensors").data


def test_an_exported_graph_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exported graph"):
        info(tmp_path / "m.onnx", measure=True)
