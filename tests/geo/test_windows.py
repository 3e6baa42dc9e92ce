"""Windows and plans: every pixel in one core, and nothing outside the raster."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from rsdistill.geo.windows import Grid, Window, plan

lengths = st.integers(1, 90)
windows = st.builds(Window, st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 30), st.integers(0, 30))


@settings(max_examples=150, deadline=None)
@given(lengths, lengths, st.integers(1, 6), st.integers(0, 9), st.integers(1, 8))
def test_every_pixel_lies_in_one_core(height: int, width: int, tiles: int, margin: int, stride: int):
    tile = stride * (tiles + (2 * margin) // stride + 1)
    made = plan(height, width, tile, margin, stride)
    owners = np.zeros((height, width), int)
    for i in range(len(made.rows)):
        for j in range(len(made.cols)):
            read, core = made.placement(i, j)
            owners[core.slices] += 1
            assert read.intersection(Window(0, 0, height, width)) == read
            assert core.intersection(read) == core
            assert read.height <= made.tile[0] <= tile
            assert made.tile[0] % stride == made.tile[1] % stride == 0
            assert tile - 2 * margin < stride or read.row % stride == read.col % stride == 0
            assert core.row == 0 or core.row - read.row >= margin
            assert core.stop[0] == height or read.stop[0] - core.stop[0] >= margin
            assert core.col == 0 or core.col - read.col >= margin
            assert core.stop[1] == width or read.stop[1] - core.stop[1] >= margin
    assert (owners == 1).all()
    assert len(made) == len(made.rows) * len(made.cols)


def test_windows_are_spread_evenly_and_snug():
    made = plan(1000, 1000, 512, 32, 32)
    assert made.tile == (384, 384)
    assert [start for start, _, _ in made.rows] == [0, 320, 640]
    assert made.overlap_factor == pytest.approx((3 * 384 / 1000) ** 2)
    assert plan(100, 40, 512, 32, 32).tile == (128, 64)


def test_windows_of_one_size_begin_where_those_of_its_stride_do():
    assert [start for start, _, _ in plan(1974, 1974, 512, 64, 512).rows] == [0, 384, 768, 1152, 1536]
    assert len(plan(1974, 1974, 512, 64, 512)) == len(plan(1974, 1974, 512, 64, 1))


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        plan(10, 10, 20, 1, 8)
    with pytest.raises(ValueError, match="no core"):
        plan(10, 10, 16, 8)
    with pytest.raises(ValueError, match="no windows"):
        plan(0, 10, 16, 2)


@given(windows, windows)
def test_intersection_holds_the_pixels_of_both(first: Window, second: Window):
    def pixels(window: Window) -> set[tuple[int, int]]:
        return {(row, col) for row in range(window.row, window.stop[0]) for col in range(window.col, window.stop[1])}

    both = first.intersection(second)
    assert pixels(both) == pixels(first) & pixels(second)
    assert both == second.intersection(first)
    assert pixels(first.relative_to(second)) == {(row - second.row, col - second.col) for row, col in pixels(first)}


def test_growing_stops_at_the_raster():
    assert Window(2, 5, 4, 4).grown(3, 8, 100) == Window(0, 2, 8, 10)


def test_the_grid_of_a_window_is_where_its_pixels_are():
    turned = Grid(50, 60, CRS.from_epsg(32633), Affine.translation(100, 200) @ Affine.rotation(30) @ Affine.scale(2, -3))
    part = turned[Window(10, 20, 5, 6)]
    assert (part.height, part.width) == (5, 6)
    assert part.transform @ (1, 2) == pytest.approx(turned.transform @ (21, 12))
    assert turned.rotated
    assert turned.pixel_size == pytest.approx((3, 2))
    assert not Grid(5, 6, None, Affine.scale(2, -3)).rotated
    assert not Grid(5, 6, None, Affine.identity()).georeferenced
