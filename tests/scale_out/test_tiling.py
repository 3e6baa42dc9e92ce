"""Scenes are tiled by several workers into the very set that one process makes."""

import json
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from affine import Affine
from cases import Inline
from harness import GRID, ended, noise, write_raster

from rsdistill.commands.tile import tile
from rsdistill.errors import ConfigError, SceneError
from rsdistill.geo.tile_index import load_tile_set


@pytest.fixture
def scenes(tmp_path):
    """Five scenes with labels; the third holds nodata."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(5):
        image = noise(3, 160, 192, number)
        image[:, : 40 * (number == 2)] = 0
        write_raster(folder / f"s{number}.tif", image, nodata=0, **place(number))
        write_raster(
            folder / f"s{number}_label.tif", np.repeat(np.arange(1, 5, dtype=np.uint8), 40 * 192).reshape(160, 192), **place(number)
        )
    return folder


def place(number):
    """Of scenes that do not touch each other."""
    return {"transform": GRID @ Affine.translation(200 * number, 0)}


def content(folder):
    """All files by their names: bytes, but for the index and card, whose contents count."""
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.tif")}
    tiles = load_tile_set(folder)
    card = json.loads((folder / "tileset.json").read_text())
    return found, tiles.tiles, card


def told(result):
    return {key: value for key, value in result.data.items() if key != "seconds"}


@pytest.mark.parametrize("chips", [False, True])
def test_any_executor_makes_the_same_tile_set(scenes, tmp_path, chips, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = {"tile": 64, "chips": chips, "val": 0.3}
    alone = tile("scenes", out="alone/tiles", **how)
    with ThreadPoolExecutor(3) as threads:
        for name, executor in (("inline", Inline()), ("threads", threads)):
            result = tile("scenes", out=f"{name}/tiles", executor=executor, **how)
            assert told(result) == told(alone)
            assert content(tmp_path / name / "tiles") == content(tmp_path / "alone" / "tiles")


def test_processes_make_the_same_tile_set(scenes, tmp_path):
    how = ("--tile", 64, "--overlap", 16, "-q")
    for name, more in (("alone", ()), ("together", ("--workers", 2))):
        run = ended("tile", scenes, "--out", tmp_path / name / "tiles", *how, *more)
        assert run.code == 0, run.err
    assert content(tmp_path / "together" / "tiles") == content(tmp_path / "alone" / "tiles")


def test_dask_makes_the_same_tile_set(scenes, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'rsdistill[dask]'")
    tile(scenes, out=tmp_path / "alone" / "tiles", tile=64)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        tile(scenes, out=tmp_path / "dask" / "tiles", tile=64, engine="dask", scheduler=cluster.scheduler_address)
    assert content(tmp_path / "dask" / "tiles") == content(tmp_path / "alone" / "tiles")


def test_a_bad_scene_stops_the_others_or_is_left_out(scenes, tmp_path):
    path = scenes / "s3.tif"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    inline = Inline()
    with pytest.raises(SceneError, match=r"s3\.tif"):
        tile(scenes, out=tmp_path / "tiles", tile=64, executor=inline)
    assert not (tmp_path / "tiles").exists()
    result = tile(scenes, out=tmp_path / "tiles", tile=64, executor=inline, skip_bad=True)
    assert [failure for failure in result.failures if "s3.tif" in failure] == list(result.failures) != []
    assert {entry.name for entry in load_tile_set(tmp_path / "tiles").card.scenes} == {"s0", "s1", "s2", "s4"}


def test_a_scheduler_without_dask_is_refused(scenes, tmp_path):
    with pytest.raises(ConfigError, match="a scheduler needs --engine dask"):
        tile(scenes, out=tmp_path / "tiles", scheduler="tcp://host:8786")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_thousand_scenes_need_no_thousand_open_files(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    label = np.tile(np.array([[1, 2], [3, 4]], np.uint8), (32, 32))
    for number in range(1000):
        write_raster(folder / f"s{number}.tif", noise(1, 64, 64, number), **place(number))
        write_raster(folder / f"s{number}_label.tif", label, **place(number))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        tile(folder, out=tmp_path / "tiles", tile=64, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(load_tile_set(tmp_path / "tiles").tiles) == 1000
