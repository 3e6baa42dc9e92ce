"""Statistics, tallies and chunks, against the same done in one go."""

import numpy as np
import pytest

from rsdistill.data.tiling import BandStatistics, Tally
from rsdistill.geo.windows import Window


def test_statistics_in_pieces_are_those_of_the_whole():
    random = np.random.default_rng(0)
    values = (random.normal(1e6, [[[1]], [[50]]], (2, 64, 90))).astype(np.float64)
    values[:, :32] += 1000
    where = random.random((64, 90)) < 0.3
    statistics = BandStatistics(2)
    for row in range(0, 64, 10):
        statistics.add(values[:, row : row + 10], where[row : row + 10])
    statistics.add(values, np.zeros_like(where))
    assert statistics.mean == pytest.approx(values[:, where].mean(axis=1), rel=1e-12)
    assert statistics.std == pytest.approx(values[:, where].std(axis=1), rel=1e-9)


def test_a_band_that_does_not_vary_has_std_1():
    statistics = BandStatistics(1)
    assert (statistics.mean, statistics.std) == ((0.0,), (1.0,))
    statistics.add(np.full((1, 4, 4), 7, np.uint8), np.ones((4, 4), bool))
    assert (statistics.mean, statistics.std) == ((7.0,), (1.0,))


def test_tiles_are_counted_over_chunks_that_cut_them():
    random = np.random.default_rng(0)
    index = random.choice([0, 1, 255], (60, 80)).astype(np.uint8)
    valid = random.random((60, 80)) < 0.5
    windows = [Window(0, 0, 32, 32), Window(20, 30, 32, 32), Window(28, 48, 32, 32)]
    tally = Tally(windows, 2)
    for row in range(0, 60, 25):
        for col in range(0, 80, 35):
            chunk = Window(row, col, min(25, 60 - row), min(35, 80 - col))
            tally.add(chunk, index[chunk.slices], valid[chunk.slices])
    for i, window in enumerate(windows):
        assert tally.valid[i] == valid[window.slices].sum()
        assert tally.classes[i].tolist() == [(index[window.slices] == k).sum() for k in (0, 1)]
    assert Tally([], 3).classes.shape == (0, 3)
