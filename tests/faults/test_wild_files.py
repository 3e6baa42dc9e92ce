"""Rasters of the wild, unusual and broken, given to every command that reads one: a right result or one line, never a traceback."""

import csv
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from harness import ended, litter, write_linear

DATA = Path(os.environ.get("RSDISTILL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
HANG_SECONDS = 60.0
"""Of processor time; the largest that can be mapped has 140 million pixels."""
REFUSED = {"rasterio__corrupt.tif", "georust__gcp.tif", "gdal_gcore__byte_gcp.tif"}
"""Files that open in other programs: tiles that cannot be decoded, and places that are known by control points alone."""
NEWER_JPEG = "twelvemonkeys__jpeg-lossless-24bit-rgb.tif"


def manifest(folder):
    path = DATA / folder / "MANIFEST.tsv"
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t") if path.exists() else []
    return [pytest.param(DATA / folder / row["file"], row.get("rasterio_1.4.4_outcome", "ok"), id=row["file"]) for row in rows]


FILES = manifest("odd") + manifest("corrupt")
pytestmark = pytest.mark.skipif(not FILES, reason="RSDISTILL_DATA names no folder of real scenes")


def fit(path, outcome):
    """Whether the file can be mapped; None where that depends on the JPEG library."""
    if path.name == NEWER_JPEG and rasterio.__gdal_version__ >= "3.12":
        return None
    return outcome == "ok" and path.name not in REFUSED


def commands_for(world, folder, path):
    """Every way in which a raster comes into a command, by name."""
    try:
        with rasterio.open(path) as file:
            bands = sum(kind.name != "alpha" for kind in file.colorinterp)
    except rasterio.RasterioIOError:
        bands = 1
    model = write_linear(folder / "m.safetensors", bands=bands, classes=7)
    shutil.copy(world.scene, folder / "s.tif")
    shutil.copy(path, folder / "s_label.tif")
    classes, out = ["--classes", world.classes], ["--out", folder / "out"]
    return {
        "info": ["info", path],
        "check": ["check", path],
        "predict": ["predict", path, "--model", model, "--out", folder / "m.tif"],
        "tile": ["tile", path, "--unlabelled", *classes, *out, "--tile", 32],
        "tile by labels": ["tile", folder / "s.tif", "--labels", folder / "s_label.tif", *classes, *out, "--tile", 64],
        "evaluate": ["evaluate", folder / "s.tif", "--labels", folder / "s_label.tif", "--work", world.work, *out],
        "evaluate a mask": ["evaluate", "--mask", path, "--labels", folder / "s_label.tif", *classes, *out],
        "style": ["style", folder / "s_label.tif", *classes],
        "model": ["predict", world.scene, "--model", path, "--out", folder / "n.tif"],
        "class table": ["tile", folder / "s.tif", "--unlabelled", "--classes", path, *out],
        "tile set": ["distill", "--tiles", path, "--method", "ce", "--out", folder / "d.safetensors"],
    }


def answer(arguments, *names):
    """Run a command; it ends well, or with 2 and one line that names one of ``names`` and a next step."""
    start = time.process_time()
    run = ended(*arguments, "-q")
    assert time.process_time() - start < HANG_SECONDS
    assert "Traceback" not in run.err
    assert run.code in (0, 2), run.err
    if run.code:
        assert run.err.count("\n") == 1, run.err
        assert run.line.startswith("rsdistill: ")
        assert run.line.endswith(")")
        assert any(name in run.line for name in names), run.line
    return run


@pytest.mark.parametrize(("path", "outcome"), FILES)
def test_headers_alone(world, path, outcome):
    codes = {answer(command, path.name).code for command in (["check", path, "--headers"], ["info", path])}
    if outcome.startswith(("open", "huge")):
        assert codes == {2}
    elif fit(path, outcome):
        assert codes == {0}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "outcome"), FILES)
def test_every_command_on_every_file(world, tmp_path, path, outcome):
    codes = {}
    for name, arguments in commands_for(world, tmp_path, path).items():
        codes[name] = answer(arguments, path.name, "s_label.tif", str(tmp_path / "out")).code
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert litter(tmp_path) == []
    assert codes["model"] == codes["tile set"] == codes["class table"] == 2
    if path.stem.endswith("_label"):  # which is no scene, by its name
        assert (codes["predict"], codes["check"]) == (2, 0)
    elif fit(path, outcome):
        assert codes["predict"] == codes["check"] == 0
        with rasterio.open(path) as scene, rasterio.open(tmp_path / "m.tif") as mask:
            assert mask.shape == scene.shape
            assert mask.crs == scene.crs
            assert np.allclose(mask.transform, scene.transform)
    elif fit(path, outcome) is False:
        assert codes["predict"] == codes["check"] == codes["tile"] == 2
        assert not (tmp_path / "m.tif").exists()
