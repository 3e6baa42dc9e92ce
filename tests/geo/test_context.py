"""The scene made small: means of all pixels, majorities of labels, and the grid they lie on."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.geo.classes import IGNORE
from rsdistill.geo.context import area_mean, context_grid, context_window, majority
from rsdistill.geo.windows import Grid, Window


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["uint8", "int16", "float32"]), st.integers(0, 2**32 - 1))
def test_means_are_of_the_valid_pixels_of_each_block(height, width, dtype, seed):
    random = np.random.default_rng(seed)
    values = random.integers(0, 200, (2, height, width)).astype(dtype)
    valid = random.random((height, width)) < 0.7
    mean, known = area_mean(values, valid)
    assert mean.dtype == values.dtype
    for row in range(mean.shape[1]):
        for col in range(mean.shape[2]):
            block = np.s_[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            assert known[row, col] == valid[block].any()
            for band in range(2):
                pixels = values[band][block][valid[block]].astype(np.float64)
                expected = pixels.mean() if len(pixels) else 0
                assert mean[band, row, col] == pytest.approx(expected, abs=0.5 if dtype != "float32" else 1e-3)


def test_a_mean_of_large_numbers_is_exact():
    values = np.full((1, 8, 8), 65535, np.uint16)
    assert area_mean(values, np.ones((8, 8), bool))[0].item() == 65535


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_majorities_need_half_of_the_block(height, width, seed):
    index = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (height, width), p=[0.3, 0.1, 0.1, 0.5]).astype(np.uint8)
    small = majority(index, 3)
    for (row, col), found in np.ndenumerate(small):
        block = index[8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
        counts = np.bincount(block.ravel(), minlength=256)[:3]
        assert found == (counts.argmax() if 2 * counts.sum() >= block.size else IGNORE)


def test_the_context_grid_starts_at_the_same_corner_and_covers_the_scene():
    grid = Grid(17, 24, None, Affine.scale(2, -2))
    small = context_grid(grid)
    assert (small.height, small.width) == (3, 3)
    assert small.transform @ (1, 1) == grid.transform @ (8, 8)
    assert context_window(Window(8, 16, 9, 8)) == Window(1, 2, 2, 1)
