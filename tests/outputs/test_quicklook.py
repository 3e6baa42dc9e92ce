import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from rsdistill.errors import MaskError, SceneError
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Grid
from rsdistill.outputs.geotiff import LabelRasterWriter
from rsdistill.outputs.pictures import SmallMap, class_png, paint, photo_jpeg, shade, small_mask, small_scene, small_size, stretch
from rsdistill.outputs.quicklook import draw_quicklook, scale_bar

TABLE = ClassTable((LandClass(1, "field", "#f0d060"), LandClass(5, "water", "#2060e0"), LandClass(300, "never there", "#ff00ff")))
UTM = Grid(400, 600, CRS.from_epsg(32640), Affine(0.5, 0, 500_000, 0, -0.5, 2_800_000))


def write_mask(path: Path, grid: Grid = UTM) -> np.ndarray:
    """Field on the left, water on the right, nothing below."""
    index = np.zeros((grid.height, grid.width), np.uint8)
    index[:, grid.width // 2 :] = 1
    index[grid.height * 3 // 4 :] = 255
    with LabelRasterWriter(path, grid, TABLE) as writer:
        writer.write(0, index)
    return index


def write_scene(path: Path, grid: Grid = UTM, **options: object) -> np.ndarray:
    values = np.random.default_rng(0).integers(50, 200, (3, grid.height, grid.width), dtype=np.uint8)
    shape = {"height": grid.height, "width": grid.width, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=grid.crs, transform=grid.transform, **shape, **options) as file:
        file.write(values)
    return values


def colors_in(path: Path) -> set[tuple[int, ...]]:
    """The colours that more than 0.1 % of a picture's pixels have."""
    with rasterio.open(path) as file:
        pixels = file.read((1, 2, 3)).reshape(3, -1).T
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(map(int, color)) for color, count in zip(found, counts, strict=True) if count > len(pixels) / 1000}


def test_a_picture_shows_the_classes_that_the_mask_holds_in_their_colours(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.tif")
    draw_quicklook(tmp_path / "mask.tif", tmp_path / "look.png", TABLE)
    shown = colors_in(tmp_path / "look.png")
    assert {(0xF0, 0xD0, 0x60), (0x20, 0x60, 0xE0), (255, 255, 255)} <= shown
    assert (255, 0, 255) not in shown
    with rasterio.open(tmp_path / "look.png") as file:
        assert 1600 < file.width < 2400


def test_over_its_scene_classes_keep_their_hue(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.tif")
    write_scene(tmp_path / "scene.tif")
    draw_quicklook(tmp_path / "mask.tif", tmp_path / "plain.png", TABLE)
    draw_quicklook(tmp_path / "mask.tif", tmp_path / "over.png", TABLE, scene=tmp_path / "scene.tif")
    assert (tmp_path / "over.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    field = paint(np.zeros((2, 2), np.uint8), TABLE.colors)
    shaded = shade(field, np.zeros((2, 2), np.uint8), np.full((2, 2, 3), 100, np.uint8)).astype(float)
    ratio = shaded / field
    assert ratio.max() - ratio.min() < 0.02
    assert 0.8 < ratio.mean() < 0.95


def test_dark_ground_keeps_the_colour_of_its_legend_and_shows_its_texture() -> None:
    light, index = np.full((80, 80, 3), 12, np.uint8), np.zeros((80, 80), np.uint8)
    light[:, 40:], index[:, 40:] = 240, 1
    light[20, 20], light[20, 60] = 60, 120
    shaded = shade(np.full((80, 80, 3), 200, np.uint8), index, light)[..., 0]
    assert shaded[60, 10] == shaded[60, 39] == shaded[60, 40]
    assert shaded[20, 20] > shaded[60, 10]
    assert shaded[20, 60] < shaded[60, 70]
    assert shaded.min() >= 119


def test_a_scene_of_another_size_is_refused(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.tif")
    write_scene(tmp_path / "scene.tif", Grid(300, 600, UTM.crs, UTM.transform))
    with pytest.raises(SceneError, match="300 x 600 pixels"):
        draw_quicklook(tmp_path / "mask.tif", tmp_path / "look.png", TABLE, scene=tmp_path / "scene.tif")
    assert not (tmp_path / "look.png").exists()


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.tif").write_text("not a raster")
    with pytest.raises(MaskError, match="not a raster"):
        draw_quicklook(tmp_path / "mask.tif", tmp_path / "look.png", TABLE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (7, 5)])
def test_masks_of_any_shape_are_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_mask(tmp_path / "mask.tif", Grid(*shape, None, Affine.identity()))
    draw_quicklook(tmp_path / "mask.tif", tmp_path / "look.png", TABLE)
    with rasterio.open(tmp_path / "look.png") as file:
        assert max(file.shape) < 4000


@pytest.mark.parametrize(
    ("grid", "text", "metres"),
    [
        (Grid(100, 1000, CRS.from_epsg(32640), Affine(0.5, 0, 5e5, 0, -0.5, 3e6)), "100 m", 0.5),
        (Grid(100, 10_000, CRS.from_epsg(32640), Affine(0, 10, 5e5, 10, 0, 3e6)), "20 km", 10),
        (Grid(100, 100, CRS.from_epsg(32640), Affine(0.01, 0, 5e5, 0, -0.01, 3e6)), "20 cm", 0.01),
        (Grid(100, 1000, CRS.from_epsg(2263), Affine(2, 0, 1e6, 0, -2, 2e5)), "100 m", 0.6096),
        (Grid(2, 1000, CRS.from_epsg(4326), Affine(1e-4, 0, 10, 0, -1e-4, 60)), "1 km", 5.566),
    ],
)
def test_the_scale_bar_is_a_round_length_that_fits(grid: Grid, text: str, metres: float) -> None:
    length, shown = scale_bar(grid)
    number, unit = shown.split()
    assert shown == text
    assert length * metres == pytest.approx(float(number) * {"cm": 0.01, "m": 1, "km": 1000}[unit], rel=2e-3)
    assert length <= 0.3 * grid.width


def test_without_a_crs_the_bar_counts_pixels() -> None:
    assert scale_bar(Grid(10, 1000, None, Affine.identity())) == (200, "200 pixels")
    assert scale_bar(Grid(1, 1, None, Affine.identity()))[1] == "0.2 pixels"


def test_small_maps_hold_true_pixels_whatever_the_strips() -> None:
    index = np.random.default_rng(1).integers(0, 9, (137, 211), dtype=np.uint8)
    for strip in (1, 10, 137):
        small = SmallMap(137, 211, 50)
        for row in range(0, 137, strip):
            small.add(row, index[row : row + strip])
        assert small.index.shape == small_size(137, 211, 50)
        assert (small.index == index[small._rows][:, small._cols]).all()
    whole = SmallMap(137, 211, 1000)
    whole.add(0, index)
    assert (whole.index == index).all()


def test_a_mask_is_read_small_and_at_the_right_place(tmp_path: Path) -> None:
    index = write_mask(tmp_path / "mask.tif")
    assert (small_mask(tmp_path / "mask.tif", TABLE, 600) == index).all()
    assert (small_mask(tmp_path / "mask.tif", TABLE, 60) == index[::10, ::10]).all()


def test_a_scene_is_read_small_with_its_nodata(tmp_path: Path) -> None:
    values = write_scene(tmp_path / "scene.tif")
    values[:, :100, :50] = 7
    with rasterio.open(tmp_path / "scene.tif", "r+") as file:
        file.write(values)
    with open_scene(tmp_path / "scene.tif", nodata=[7]) as scene:
        colors, valid = small_scene(scene, 60)
    assert colors.shape == (40, 60, 3)
    assert not valid[:10, :5].any()
    assert valid[10:].all()
    assert valid[:, 5:].all()
    assert (colors[~valid] == 0).all()


def test_stretching_ignores_units_and_nodata() -> None:
    values = np.linspace(0, 1e-3, 10_000, dtype=np.float32).reshape(1, 100, 100)
    valid = np.ones((100, 100), bool)
    values[0, 0], valid[0] = np.nan, False
    picture = stretch(values, valid)
    assert (picture[0] == 0).all()
    assert picture[1:].min() == 0
    assert picture[-1].min() == 255
    assert not stretch(values, np.zeros_like(valid)).any()


def test_pictures_for_pages_read_back() -> None:
    index = np.array([[0, 1], [1, 255]], np.uint8)
    with rasterio.MemoryFile(class_png(index, ("#ff0000", "#00ff00"))) as memory, memory.open() as file:
        assert (file.read(1) == index).all()
        assert file.colormap(1)[0] == (255, 0, 0, 255)
        assert file.colormap(1)[255][3] == 0
    with rasterio.MemoryFile(photo_jpeg(np.full((40, 40, 3), 90, np.uint8))) as memory, memory.open() as file:
        assert file.count == 3
        assert abs(int(file.read(1)[20, 20]) - 90) < 4


@pytest.mark.slow
def test_a_huge_mask_takes_the_memory_of_its_picture(tmp_path: Path) -> None:
    shape = {"height": 100_000, "width": 100_000, "count": 1, "dtype": "uint16", "nodata": 65535, "crs": "EPSG:32640"}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True, "bigtiff": True}
    with rasterio.open(tmp_path / "mask.tif", "w", driver="GTiff", transform=UTM.transform, **shape, **layout) as file:
        for row in range(0, 99_000, 20_480):
            file.write(np.full((1, 512, 100_000), 5, np.uint16), window=rasterio.windows.Window(0, row, 100_000, 512))
    code = f"""
import resource
from pathlib import Path
import matplotlib.figure
from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.outputs.quicklook import draw_quicklook
table = ClassTable((LandClass(5, "a", "#aa0000"), LandClass(300, "b", "#00aa00")))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
draw_quicklook(Path({str(tmp_path / "mask.tif")!r}), Path({str(tmp_path / "look.png")!r}), table)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 500
