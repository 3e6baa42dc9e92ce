"""Rows read ahead: each once, in order, errors in their place, the thread gone at the end."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.geo.windows import Window
from rsdistill.inference.reading import RowBuffer, prefetch, read_rows


def test_prefetch_keeps_the_order_and_closes_its_source_early():
    closed = threading.Event()

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.set()

    stream = prefetch(numbers(), 3)
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    stream.close()
    assert closed.is_set()
    assert list(prefetch(numbers(), 2)) == list(range(1000))


def test_prefetch_raises_an_error_after_what_came_before_it():
    def torn():
        yield 1
        raise OSError("torn")

    stream = prefetch(torn(), 4)
    assert next(stream) == 1
    with pytest.raises(OSError, match="torn"):
        next(stream)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    block_rows=st.sampled_from([1, 7, 100, 256, 5000]),
    band=st.integers(1, 300),
    steps=st.lists(st.integers(0, 200), max_size=12),
    first=st.integers(0, 600),
)
def test_the_buffer_shows_the_rows_it_is_asked_for(array_scene, height, block_rows, band, steps, first):
    rows = np.arange(height)
    image = np.broadcast_to((rows % 251).astype(np.uint8)[None, :, None], (2, height, 4))
    scene = array_scene(image, np.broadcast_to(rows[:, None] % 3 > 0, (height, 4)), (block_rows, 4))
    area = Window(min(first, height - 1), 1, height - min(first, height - 1), 2)
    buffer = RowBuffer(read_rows(scene, area, [2, 1]), band)
    top = area.row
    for step in [0, *steps]:
        top = min(top + step, height - 1)
        stop = min(top + band, height)
        shown = buffer.slide(top, stop)
        assert shown.row == top
        assert np.array_equal(shown.valid[:, 0], rows[top:stop] % 3 > 0)
        assert np.array_equal(shown.image[0, :, 1], rows[top:stop] % 251 * (rows[top:stop] % 3 > 0))
    reads = [(read.row, read.stop[0]) for read in scene.reads]
    assert all(stop == start for (_, stop), (start, _) in pairwise(reads)), "no row is read twice"
