"""``bench``: each line is measured, told and kept, on scenes that are too small to judge anything."""

import json
from pathlib import Path

import numpy as np
import pytest

from rsdistill.commands.bench import LINES, bench
from rsdistill.errors import ConfigError, MachineError, OutputExistsError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.scenes import open_scene
from rsdistill.inference.benchmark import repeated
from rsdistill.inference.contestants import FreeBackend, Task
from rsdistill.inference.peers import PEERS, Peer, missing
from rsdistill.inference.race import measure
from rsdistill.outputs.polygon_race import draw_regions, race


def test_lines_become_a_table_and_json(tmp_path):
    result = bench(only=("P2", "S1"), rounds=1, size=256, out=tmp_path / "bench.json", arch="linear")
    assert result.paths == (tmp_path / "bench.json",)
    data = json.loads((tmp_path / "bench.json").read_text())
    assert [line["key"] for line in data["lines"]] == ["P2", "S1"] == [row[0] for row in result.tables[0].rows]
    assert data["lines"][0]["figures"]["factor"] == pytest.approx(1.0, abs=0.05)
    assert data["lines"][0]["met"] is True
    assert 0 < data["lines"][1]["figures"]["seconds"] < 20
    assert data["machine"]["cores"] >= 1
    with pytest.raises(OutputExistsError):
        bench(only=("P2",), out=tmp_path / "bench.json")
    with pytest.raises(ConfigError, match="only"):
        bench(only=("P99",), out=tmp_path / "b.json")


@pytest.mark.parametrize("line", ["P1", "P6", "P7"])
def test_lines_that_map_a_scene(tmp_path, line):
    result = bench(only=(line,), rounds=1, size=256, out=tmp_path / "bench.json", arch="linear")
    (found,) = result.data["lines"]
    assert found["key"] == line
    assert found["figures"]
    if line == "P6":
        assert found["figures"]["core"] == 0, "a network of pixels knows no context"
    if line == "P7":
        assert found["met"]


def test_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    """Contestants run in folders of their own."""
    import torch

    from rsdistill.geo.synthetic import write_land_cover
    from rsdistill.models import ModelCard, build_network, save_model

    write_land_cover(tmp_path, size=128)
    classes = [{"id": k, "name": f"class {k}"} for k in range(1, 3)]
    card = ModelCard(arch="linear", classes=classes, bands=(1, 2, 3), mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.manual_seed(0)
    save_model(tmp_path / "m.safetensors", build_network("linear", {}, bands=3, classes=2), card)
    monkeypatch.chdir(tmp_path)
    result = bench(only=("P1",), rounds=1, model=Path("m.safetensors"), scene=Path("scene.tif"), out=Path("bench.json"))
    assert result.data["lines"][0]["figures"]["wall"] > 0


def test_every_line_has_its_measure():
    assert len(set(LINES)) == len(LINES) == 11


def test_the_free_network_answers_the_same_whatever_it_is_asked():
    free = FreeBackend(3, 32)
    first = free(np.zeros((2, 4, 64, 96), np.uint8), np.ones((2, 64, 96), bool), [])
    assert first.shape == (2, 3, 64, 96)
    assert np.array_equal(first[0], free(np.ones((2, 4, 64, 96), np.uint8), np.ones((2, 64, 96), bool), [])[1])
    assert free(np.zeros((1, 4, 32, 32)), np.ones((1, 32, 32), bool), []).shape == (1, 3, 32, 32)


def test_a_scene_is_repeated(tmp_path):
    from rsdistill.geo.synthetic import write_land_cover

    scene = write_land_cover(tmp_path, size=64).scene
    with open_scene(scene) as one, open_scene(repeated(scene, tmp_path / "r.tif", 700, 150)) as many:
        part, _ = one.read(one.grid.window, [1, 2, 3])
        whole, _ = many.read(many.grid.window, [1, 2, 3])
    assert whole.shape == (3, 700, 150)
    assert np.array_equal(whole, np.tile(part, (1, 11, 3))[:, :700, :150])


def test_polygons_are_counted_beside_gdal(tmp_path):
    mask, table = draw_regions(tmp_path / "r.tif", 256)
    assert isinstance(table, ClassTable)
    found = race(mask, table)
    assert found.polygons == found.expected > 100
    assert (found.invalid, found.area_error) == (0, 0)
    assert min(found.seconds, found.drain_seconds) > 0


def test_a_contestant_that_fails_is_named(tmp_path):
    task = Task("bare", str(tmp_path / "none.tif"), str(tmp_path / "none.safetensors"), str(tmp_path / "o.tif"), 32, 0)
    with pytest.raises(MachineError, match="bare failed"):
        measure(task, Path("none.tif"))


def test_programs_that_are_not_here_say_so(monkeypatch):
    monkeypatch.setitem(PEERS, "nobody", Peer("no_such_program", lambda task: None, free=False))
    monkeypatch.setitem(PEERS, "somebody", Peer("numpy", lambda task: None, free=False))
    assert missing("nobody") == "nobody is not installed"
    assert missing("somebody") == ""
