"""Unusual and broken rasters of the wild: each is read, or refused in one line; none hangs, prints or allocates what it claims."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

from rsdistill.errors import SceneError
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Window

DATA = Path(os.environ.get("RSDISTILL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
pytestmark = pytest.mark.skipif(not (DATA / "odd" / "MANIFEST.tsv").exists(), reason="RSDISTILL_DATA names no folder of real scenes")


def manifest(folder: str) -> list[dict[str, str]]:
    path = DATA / folder / "MANIFEST.tsv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")) if path.exists() else []


def read_all(path: Path) -> tuple[int, int]:
    """Pixels and valid pixels."""
    with open_scene(path) as scene:
        total = known = 0
        for _, values, valid in scene.strips(scene.bands(), 512):
            assert values.dtype == scene.dtype
            if np.issubdtype(values.dtype, np.floating):
                assert np.isfinite(values).all()
            total, known = total + valid.size, known + int(valid.sum())
    return total, known


LOSSLESS_JPEG = "twelvemonkeys__jpeg-lossless-24bit-rgb.tif"
GCPS_ALONE = "gdal_gcore__byte_gcp.tif"
REFUSED = {"rasterio__corrupt.tif": "cannot read rows", "georust__gcp.tif": "ground control points"}


@pytest.mark.parametrize("row", manifest("odd"), ids=lambda row: row["file"])
def test_odd_scenes_are_read_or_refused(row: dict[str, str]):
    path = DATA / "odd" / row["file"]
    if row["file"] in REFUSED:
        with pytest.raises(SceneError, match=REFUSED[row["file"]]) as caught:
            read_all(path)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)
        return
    total, known = read_all(path)
    width, height = (int(part) for part in row["facts"].split()[1].split("x")[:2])
    assert total == width * height
    if row["file"] == "rasterio__all-nodata.tif":
        assert known == 0
    elif row["file"].startswith(("planet", "titiler", "rasterio__goes")):
        assert 0 < known < total
    elif "nodata=None" in row["facts"]:
        assert known == total


def test_scale_and_place_of_odd_scenes():
    with open_scene(DATA / "odd" / "rio_tiler__cog_scale.tif") as scene:
        assert scene.dtype == "float32"
    with open_scene(DATA / "odd" / "rio_tiler__inverted_lat.tif") as scene:
        assert scene.grid.transform.e > 0
        assert not scene.grid.rotated


@pytest.mark.parametrize("row", manifest("corrupt"), ids=lambda row: row["file"])
def test_corrupt_files_are_refused_in_one_line(row: dict[str, str]):
    path = DATA / "corrupt" / row["file"]
    if row["rasterio_1.4.4_outcome"] == "ok" and row["file"] != GCPS_ALONE:
        assert read_all(path)[0] > 0
        return
    if row["file"] == LOSSLESS_JPEG and rasterio.__gdal_version__ >= "3.12":
        pytest.skip("newer JPEG libraries can read it")
    with pytest.raises(SceneError) as caught:
        read_all(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_raster_of_two_billion_columns_allocates_nothing():
    with pytest.raises(SceneError, match="stored in"):
        open_scene(DATA / "corrupt" / "gdal_gcore__scanline_more_than_2GB.tif").read(Window(0, 0, 1, 1), (1,))
