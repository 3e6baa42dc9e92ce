"""The drawn scenes: same bytes for a seed, labels that are true to the pixel, and tasks that are as hard as they claim."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from scipy import ndimage

from rsdistill.geo import synthetic
from rsdistill.geo.classes import load_class_table
from rsdistill.geo.synthetic import (
    BUILDING,
    CROPLAND,
    OUTSIDE,
    SOIL,
    TREES,
    WATER,
    draw_land_cover,
    far_context,
    write_drawn,
    write_land_cover,
)


@pytest.fixture(scope="module")
def drawn() -> synthetic.Drawn:
    return draw_land_cover(768, 640, seed=0)


def test_a_seed_draws_the_same_bytes():
    first, second, other = (draw_land_cover(160, 200, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.label, other.label)


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("seed", range(4))
def test_every_class_has_its_share(size: int, seed: int):
    drawn = draw_land_cover(size, size, seed)
    shares = np.bincount(drawn.label.ravel(), minlength=8)[1:] / drawn.valid.sum()
    assert shares.sum() == pytest.approx(1)
    assert shares.min() > 0.01
    assert shares.max() < 0.6


def test_shapes_types_and_rim(drawn: synthetic.Drawn):
    assert drawn.image.shape == (3, 768, 640)
    assert drawn.image.dtype == drawn.label.dtype == np.uint8
    assert np.array_equal(drawn.label == 0, ~drawn.valid)
    assert np.array_equal(drawn.image == 0, np.broadcast_to(~drawn.valid, drawn.image.shape))
    assert 0.02 < 1 - drawn.valid.mean() < 0.1
    assert not any(edge.all() for edge in (drawn.valid[0], drawn.valid[:, 0], drawn.valid[-1]))


def test_labels_lie_exactly_on_the_picture(drawn: synthetic.Drawn):
    """Colours vary least within classes when the labels are not shifted by even one pixel."""
    inner = np.s_[60:600, 60:500]
    image = drawn.image[:, *inner].reshape(3, -1).astype(float)

    def scatter(down: int, right: int) -> float:
        label = np.roll(drawn.label, (down, right), (0, 1))[inner].ravel()
        hard = np.isin(label, (WATER, BUILDING))  # classes with crisp, high-contrast rims
        return sum(image[band][label == k].var() * (label == k).sum() for band in range(3) for k in np.unique(label[hard]))

    shifts = {(down, right): scatter(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert min(shifts, key=shifts.__getitem__) == (0, 0)


def test_water_and_shadow_look_alike(drawn: synthetic.Drawn):
    water = ndimage.binary_erosion(drawn.label == WATER, iterations=4)
    dark = (drawn.image.max(axis=0) < 70) & ~np.isin(drawn.label, (OUTSIDE, WATER, TREES))
    shadow = ndimage.binary_erosion(dark, iterations=3)
    assert shadow.sum() > 500
    for band in drawn.image:
        assert abs(band[water].mean() - band[shadow].mean()) < 4
        assert band[shadow].std() == pytest.approx(band[water].std(), rel=0.5)


def test_furrows_tell_ploughed_land_from_soil(drawn: synthetic.Drawn):
    green = drawn.image[1].astype(np.float32)
    texture = green - ndimage.uniform_filter(green, 9)
    crops, soil = (ndimage.binary_erosion(drawn.label == kind, iterations=8) for kind in (CROPLAND, SOIL))
    assert texture[crops].std() > 1.2 * texture[soil].std()


def test_far_context_hides_its_answer_from_tiles():
    reach = 48
    drawn = far_context(512, 768, seed=1, region=192, reach=reach)
    beacon = np.abs(ndimage.uniform_filter(drawn.image.mean(0), 5) - 128) > 40
    near = ndimage.binary_dilation(beacon, np.ones((3, 3)), iterations=reach - 4)
    assert drawn.valid.all()
    assert not drawn.label[near].any()
    dark, bright = (drawn.image[:, drawn.label == side] for side in (1, 2))
    assert min(dark.size, bright.size) > 0.3 * max(dark.size, bright.size)
    assert dark.mean() == pytest.approx(bright.mean(), abs=0.2)
    assert dark.std() == pytest.approx(bright.std(), abs=0.2)


def test_far_context_answers_lie_in_the_beacons():
    drawn = far_context(384, 384, seed=0, region=192, reach=40)
    for top in (0, 192):
        for left in (0, 192):
            region = np.s_[top : top + 192, left : left + 192]
            sides = set(np.unique(drawn.label[region])) - {0}
            beacon = drawn.image[:, top + 90 : top + 102, left + 90 : left + 102].mean()
            assert sides == ({2} if beacon > 128 else {1})


def test_far_context_needs_room():
    with pytest.raises(ValueError, match="no labels"):
        far_context(256, 256, region=64, reach=24)


def test_written_scene_is_a_real_geotiff(tmp_path):
    files = write_land_cover(tmp_path / "new", size=(384, 512), seed=2)
    drawn = draw_land_cover(384, 512, seed=2)
    with rasterio.open(files.scene) as scene:
        assert scene.crs.to_epsg() == 32720
        assert scene.transform == synthetic.GRID
        assert scene.nodatavals == (0, 0, 0)
        assert scene.dtypes == ("uint8",) * 3
        assert scene.block_shapes[0] == (256, 256)
        assert scene.overviews(1) == [2]
        assert scene.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert np.array_equal(scene.read(), drawn.image)
        assert np.array_equal(scene.dataset_mask() > 0, drawn.valid)
    with rasterio.open(files.labels) as labels:
        assert labels.transform == rasterio.open(files.scene).transform
        assert np.array_equal(labels.read(1), drawn.label)
        assert labels.colormap(1)[WATER] == (0x2F, 0x7E, 0xD8, 255)
        assert set(np.unique(labels.read(1, out_shape=(192, 256)))) <= set(range(8))
    table = load_class_table(files.classes)
    assert table == synthetic.LAND_COVER


def test_written_again_in_the_same_place(tmp_path):
    write_drawn(tmp_path, far_context(256, 256, seed=0), synthetic.SIDES)
    files = write_drawn(tmp_path, far_context(256, 256, seed=1), synthetic.SIDES)
    with rasterio.open(files.labels) as labels:
        assert np.array_equal(labels.read(1), far_context(256, 256, seed=1).label)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.toml", "labels.tif", "scene.tif"]
