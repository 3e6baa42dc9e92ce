"""A scene with holes and a model written by hand, mapped once in one piece."""

import shutil

import pytest
from cases import OPTIONS, Case, Inline, holed
from harness import end_spawned, write_linear, write_raster

from rsdistill.commands.predict import predict


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    root = tmp_path_factory.mktemp("scale-out")
    scene = write_raster(root / "s.tif", holed(400, 330), nodata=0, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    (root / "work").mkdir()
    write_linear(root / "work" / "student.safetensors", classes=4)
    return Case(root, scene, root / "work")


@pytest.fixture(scope="session")
def in_one_piece(case):
    """What the scene becomes in one process, by way of blending."""
    made = {}
    for blend in ("core", "hann"):
        folder = case.root / f"whole-{blend}"
        predict(case.scene, work=case.work, blend=blend, **case.products(folder), **OPTIONS)
        made[blend] = case.bytes_in(folder)
    return made


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    end_spawned()


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "results"
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def inline():
    return Inline()
