import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray

from rsdistill.errors import ConfigError, DiskError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.windows import Grid
from rsdistill.outputs import overviews
from rsdistill.outputs.cog import quiet, virtual_raster
from rsdistill.outputs.geotiff import LabelRasterWriter
from rsdistill.outputs.overviews import halved, level_sizes, majority_levels

TABLE = ClassTable((LandClass(1, "a", "#e41a1c"), LandClass(4, "b", "#377eb8"), LandClass(7, "c", "#4daf4a")))
WIDE = ClassTable((LandClass(3, "a", "#000000"), LandClass(300, "b", "#ffffff"), LandClass(301, "c", "#808080")))
NOTE = b'  <Item name="OVERVIEW_RESAMPLING" domain="IMAGE_STRUCTURE">MODE</Item>\n'
"""What GDAL adds from 3.12 on where it made the overviews; it moves all that follows."""
SHAPES = [(512, 512), (516, 300), (515, 301), (700, 259), (1025, 257), (131, 3000), (1, 2000), (2, 700), (3, 1031)]


def noise(shape: tuple[int, int], dtype: str, nodata: int | None, seed: int = 0) -> NDArray[np.unsignedinteger]:
    """Classes 0…3 that change at every pixel, so that ties and places with little data abound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape).astype(dtype)
    if nodata is not None:
        values[rng.random(shape) < 0.4] = nodata
    return values


def save(path: Path, values: NDArray[np.unsignedinteger], nodata: int | None) -> Path:
    height, width = values.shape
    with quiet(), rasterio.open(path, "w", "GTiff", width, height, 1, dtype=values.dtype, nodata=nodata) as file:
        file.write(values, 1)
    return path


def read(path: Path) -> NDArray[np.unsignedinteger]:
    with quiet(), rasterio.open(path) as file:
        return np.asarray(file.read(1))


def stored_levels(path: Path) -> list[NDArray[np.unsignedinteger]]:
    with quiet(), rasterio.open(path) as file:
        levels = range(len(file.overviews(1)))
    stored = []
    for level in levels:
        with quiet(), rasterio.open(path, overview_level=level) as file:
            stored.append(file.read(1))
    return stored


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint16", 65535), ("uint16", 300), ("uint8", None)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_levels_are_those_of_gdal(tmp_path: Path, shape: tuple[int, int], dtype: str, nodata: int | None) -> None:
    source = save(tmp_path / "full.tif", noise(shape, dtype, nodata), nodata)
    with quiet():
        rasterio.shutil.copy(source, tmp_path / "cog.tif", driver="COG", overview_resampling="MODE", blocksize=128)
        expected = stored_levels(tmp_path / "cog.tif")
        with majority_levels(source, tmp_path / "mine", 128) as files:
            made = [read(file) for file in files]
    assert len(made) == len(expected) > 0
    for mine, gdals in zip(made, expected, strict=True):
        np.testing.assert_array_equal(mine, gdals)


@pytest.mark.parametrize("options", [{}, {"BLOCKSIZE": "128"}, {"OVERVIEW_COUNT": "2"}, {"OVERVIEW_COUNT": "15"}], ids=str)
@pytest.mark.parametrize("table", [TABLE, WIDE], ids=["uint8", "uint16"])
def test_a_mask_is_byte_for_byte_what_gdal_would_have_made_alone(tmp_path: Path, table: ClassTable, options: dict[str, str]) -> None:
    index = np.random.default_rng(1).integers(0, 3, (1300, 701), dtype=np.uint8)
    index[:, :500] = 255
    made = []
    for name, how in (("mine", {}), ("gdals", {"OVERVIEWS": "IGNORE_EXISTING"})):
        with LabelRasterWriter(
            tmp_path / f"{name}.tif", Grid(1300, 701, None, Affine.identity()), table, creation_options=options | how
        ) as to:
            to.write(0, index)
        made.append((tmp_path / f"{name}.tif").read_bytes())
    mine, gdals = made
    assert mine == gdals or (NOTE in gdals and len(mine) + len(NOTE) == len(gdals))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([[1, 2], [2, 3]], 2),
        ([[1, 2], [2, 1]], 2),  # the second 2 comes before the second 1
        ([[1, 2], [1, 2]], 1),
        ([[3, 2], [1, 4]], 3),
        ([[255, 255], [255, 4]], 4),
        ([[255, 2], [255, 4]], 2),
        ([[255, 255], [255, 255]], 255),
    ],
)
def test_the_most_common_class_wins_and_no_data_only_alone(pixels: list[list[int]], expected: int) -> None:
    assert halved(np.array(pixels, np.uint8), 255).tolist() == [[expected]]


def test_without_nodata_every_value_counts() -> None:
    assert halved(np.array([[255, 1], [255, 2]], np.uint8), None).tolist() == [[255]]


def test_levels_do_not_depend_on_the_parts_they_are_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise((531, 305), "uint8", 255)
    source = save(tmp_path / "full.tif", values, 255)
    monkeypatch.setattr(overviews, "BLOCK", 16)
    monkeypatch.setattr(overviews, "AT_ONCE", 32)
    expected = values
    with quiet(), majority_levels(source, tmp_path / "mine", 64) as files:
        for file in files:
            expected = halved(expected, 255)
            np.testing.assert_array_equal(read(file), expected)


def test_sizes_end_with_a_level_that_fits_in_a_block_or_with_one_pixel() -> None:
    assert level_sizes(1300, 700, 512) == [(650, 350), (325, 175)]
    assert level_sizes(512, 512, 512) == []
    assert level_sizes(5, 1, 512, most=9) == [(2, 1), (1, 1)]


def test_a_wide_raster_takes_the_memory_of_a_few_blocks(tmp_path: Path) -> None:
    wide = virtual_raster([], Grid(1024, 200_000, None, Affine.identity()), "uint8", 255, ["class"], tags={}, decorate=lambda band: None)
    tracemalloc.start()
    with quiet(), majority_levels(wide, tmp_path / "mine", 512):
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # two rows of its blocks are 205 MB


def test_levels_that_the_disk_lost_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = iter(range(1000))
    monkeypatch.setattr(overviews, "crc32", lambda values: next(sums))

    def spoiled() -> None:
        with LabelRasterWriter(tmp_path / "mask.tif", Grid(700, 700, None, Affine.identity()), TABLE) as writer:
            writer.write(0, np.zeros((700, 700), np.uint8))

    with pytest.raises(DiskError, match=r"mask\.tif.*other pixels"):
        spoiled()
    assert list(tmp_path.iterdir()) == []


def test_levels_go_when_what_they_are_made_for_fails(tmp_path: Path) -> None:
    source = save(tmp_path / "full.tif", noise((300, 300), "uint8", 255), 255)

    def fail() -> None:
        with quiet(), majority_levels(source, tmp_path / "mine", 128) as files:
            assert all(file.exists() for file in files)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == [source]


def test_no_overviews_are_made_where_none_are_wanted(tmp_path: Path) -> None:
    with LabelRasterWriter(
        tmp_path / "mask.tif", Grid(700, 700, None, Affine.identity()), TABLE, creation_options={"OVERVIEWS": "NONE"}
    ) as to:
        to.write(0, np.zeros((700, 700), np.uint8))
    assert stored_levels(tmp_path / "mask.tif") == []


def test_a_count_of_none_is_refused_as_gdal_does(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OVERVIEW_COUNT"):
        LabelRasterWriter(tmp_path / "mask.tif", Grid(7, 7, None, Affine.identity()), TABLE, creation_options={"OVERVIEW_COUNT": "0"})
