"""Cuts: rectangles that cover what is mapped once, on the lines between windows, of about the same work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.geo.windows import Window, plan
from rsdistill.inference.cutting import BLOCK, cut
from rsdistill.inference.engine import Job


def everywhere(rows, cols):
    return np.ones((len(rows) - 1, len(cols) - 1), bool)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), blend=st.sampled_from(["core", "hann"]), batch=st.integers(1, 5), count=st.integers(1, 40))
def test_rectangles_cover_the_area_once_and_are_as_many_as_asked_for(data, blend, batch, count):
    height, width = data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900))
    margin = data.draw(st.integers(0, 15))
    windows = plan(height, width, 64, margin, 8)
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    area = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    rectangles = cut(windows, area, blend, batch=batch, count=count, holds_data=everywhere)
    assert len(rectangles) == count
    seen = np.zeros((height, width), np.uint8)
    for rectangle in filter(None, rectangles):
        assert rectangle.intersection(area) == rectangle
        assert min(rectangle[2:]) > 0
        seen[rectangle.slices] += 1
    assert (seen[area.slices] == 1).all()
    assert seen.sum() == area.height * area.width


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 900), width=st.integers(1, 900), batch=st.integers(1, 5), count=st.integers(1, 40))
def test_no_window_is_run_twice_and_no_batch_divided(height, width, batch, count):
    windows = plan(height, width, 64, 8, 8)
    rectangles = [
        part for part in cut(windows, Window(0, 0, height, width), "core", batch=batch, count=count, holds_data=everywhere) if part
    ]
    jobs = [Job.of(windows, part, "core") for part in rectangles]
    assert sum(map(len, jobs)) == len(windows)
    assert all(job.cols.start % batch == 0 for job in jobs)


def test_blended_windows_are_cut_where_one_lies_across():
    windows = plan(8000, 3000, 1024, 64, 32)
    parts = cut(windows, Window(0, 0, 8000, 3000), "hann", batch=2, count=3, holds_data=everywhere)
    rows = [list(Job.of(windows, part, "hann").rows) for part in parts]
    assert sum(map(len, rows)) == len(windows.rows) + 2, "each of two cuts costs one row of windows"
    assert all(part.width == 3000 for part in parts), "columns would divide batches"
    assert all(part.row % BLOCK == 0 for part in parts)


def test_work_is_shared_by_what_holds_data():
    windows = plan(10_000, 10_000, 1000, 0)
    full = Window(0, 0, 10_000, 10_000)
    left = cut(windows, full, "core", batch=1, count=2, holds_data=lambda rows, cols: everywhere(rows, cols) & (np.array(cols[:-1]) < 2000))
    assert [part.width for part in left] == [10_000, 10_000]
    upper = cut(
        windows,
        full,
        "core",
        batch=1,
        count=2,
        holds_data=lambda rows, cols: everywhere(rows, cols) & (np.array(rows[:-1])[:, None] < 4000),
    )
    assert [part.height for part in upper] == [2000, 8000]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 16, 48])
def test_equal_work_is_shared_evenly_while_there_are_windows(count):
    windows = plan(10_000, 10_000, 1000, 0)
    parts = [part for part in cut(windows, Window(0, 0, 10_000, 10_000), "core", batch=1, count=count, holds_data=everywhere) if part]
    assert len(parts) == count
    sizes = [part.height * part.width for part in parts]
    assert max(sizes) <= 2 * 1e8 / count
