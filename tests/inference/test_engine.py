"""The engine against the answer that is known for each pixel, on scenes of any shape."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.geo.windows import Window
from rsdistill.inference.blending import INVALID
from rsdistill.inference.engine import Stats, strips
from rsdistill.inference.scores import confidence, softmax

CLASSES = 5


def drawn(height, width, seed, share_invalid):
    """A code a pixel, and a validity that is full of holes and has whole rows and columns missing."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CLASSES, (1, height, width)).astype(np.uint8)
    valid = rng.random((height, width)) >= share_invalid
    if share_invalid:
        valid[height // 3 : height // 2] = False
        valid[:, : width // 4] = False
    return codes, valid


def gathered(found, height, width):
    """The map that strips make together, after a check that they cover it once and in order."""
    labels = np.full((height, width), 77, np.uint8)
    row = 0
    for strip in found:
        assert strip.row == row
        assert strip.labels.shape[1] == width
        row += len(strip.labels)
        labels[strip.row : row] = strip.labels
    assert row == height
    return labels


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    stride=st.sampled_from([1, 4, 8]),
    cells=st.integers(1, 6),
    margin=st.integers(0, 11),
    batch=st.integers(1, 5),
    block_rows=st.sampled_from([1, 16, 2048]),
    blend=st.sampled_from(["core", "hann", "gaussian"]),
    share_invalid=st.sampled_from([0.0, 0.3, 0.99]),
    seed=st.integers(0, 99),
)
def test_every_pixel_gets_its_own_class(
    array_scene, oracle, height, width, stride, cells, margin, batch, block_rows, blend, share_invalid, seed
):
    tile = stride * cells
    codes, valid = drawn(height, width, seed, share_invalid)
    scene, network = array_scene(codes, valid, (block_rows, 16)), oracle(CLASSES, stride)
    found = strips(scene, network, bands=[1], tile=tile, margin=min(margin, (tile - 1) // 2), batch=batch, blend=blend)
    assert np.array_equal(gathered(found, height, width), np.where(valid, codes[0], INVALID))
    assert sum(read.height for read in scene.reads) == height, "each row is read once"


def test_a_network_that_sees_whole_cells_draws_one_map_whatever_the_windows(array_scene, oracle):
    """As any network with strided layers does: its cells are counted from a window's corner, so windows must begin on cells."""

    class Cells(oracle):
        def __call__(self, images, valid, windows):
            return super().__call__(images[:, :, ::8, ::8].repeat(8, 2).repeat(8, 3), valid, windows)

    codes, valid = drawn(203, 331, 0, 0.0)
    maps = [
        gathered(strips(array_scene(codes, valid), Cells(CLASSES, 8), bands=[1], tile=tile, margin=margin), 203, 331)
        for tile, margin in ((336, 0), (64, 8), (64, 11), (128, 0), (40, 3))
    ]
    assert np.array_equal(maps[0], codes[0, ::8, ::8].repeat(8, 0).repeat(8, 1)[:203, :331])
    assert all(np.array_equal(one, maps[0]) for one in maps)


@settings(max_examples=60, deadline=None)
@given(
    place=st.tuples(st.integers(0, 59), st.integers(0, 49)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 50)),
    blend=st.sampled_from(["core", "hann"]),
)
def test_the_map_of_a_window_is_that_part_of_the_map(array_scene, oracle, place, size, blend):
    class Shifty(oracle):
        """What it says of a pixel depends on where the pixel lies in its window."""

        def __call__(self, images, valid, windows):
            ramp = np.linspace(0, 3, images.shape[-1] * images.shape[-2]).reshape(images.shape[-2:])
            return super().__call__(images + ramp.astype(np.float32), valid, windows)

    codes, valid = drawn(60, 50, 3, 0.1)
    window = Window(*place, min(size[0], 60 - place[0]), min(size[1], 50 - place[1]))
    options = {"bands": [1], "tile": 16, "margin": 3, "blend": blend}
    whole = gathered(strips(array_scene(codes, valid), Shifty(CLASSES), **options), 60, 50)
    part = gathered(strips(array_scene(codes, valid), Shifty(CLASSES), window=window, **options), window.height, window.width)
    assert np.array_equal(part, whole[window.slices])


@pytest.mark.parametrize("blend", ["core", "hann", "gaussian"])
def test_scores_come_with_the_labels(array_scene, oracle, blend):
    codes, valid = drawn(40, 30, 0, 0.2)
    logits = oracle(CLASSES)(codes[None], valid[None], [])[0]
    found = list(
        strips(array_scene(codes, valid), oracle(CLASSES), bands=[1], tile=16, margin=4, blend=blend, confidence=True, probabilities=True)
    )
    sure, odds = np.concatenate([s.confidence for s in found]), np.concatenate([s.probabilities for s in found], axis=1)
    assert np.isnan(sure[~valid]).all()
    assert np.isnan(odds[:, ~valid]).all()
    np.testing.assert_allclose(sure[valid], confidence(logits)[valid], rtol=1e-5)
    np.testing.assert_allclose(odds[:, valid], softmax(logits)[:, valid], atol=1e-6)
    np.testing.assert_allclose(odds[:, valid].sum(0), 1, rtol=1e-6)


def test_windows_without_data_cost_no_forward_pass(array_scene, oracle):
    valid = np.zeros((64, 64), bool)
    valid[5, 5] = valid[40, 60] = True
    network, stats, scene = oracle(CLASSES), Stats(), array_scene(np.ones((1, 64, 64), np.uint8), valid)
    labels = gathered(strips(scene, network, bands=[1], tile=16, margin=0, stats=stats), 64, 64)
    assert np.array_equal(labels != INVALID, valid)
    assert (stats.windows, stats.skipped, len(network.seen)) == (16, 14, 2)


def test_a_scene_without_data_is_mapped_to_nothing(array_scene, oracle):
    network = oracle(CLASSES)
    scene = array_scene(np.zeros((1, 20, 20), np.uint8), np.zeros((20, 20), bool))
    for wanted in ({}, {"confidence": True, "probabilities": True}):
        for blend in ("core", "hann"):
            found = list(strips(scene, network, bands=[1], tile=8, margin=2, blend=blend, **wanted))
            assert sum(len(strip.labels) for strip in found) == 20
            assert all((strip.labels == INVALID).all() for strip in found)
    assert network.seen == []


def test_only_what_is_within_gets_a_label(array_scene, oracle):
    codes, valid = drawn(50, 40, 1, 0.1)
    inside = np.zeros((50, 40), bool)
    inside[10:20, 30:35] = True
    network, stats = oracle(CLASSES), Stats()
    found = strips(
        array_scene(codes, valid), network, bands=[1], tile=16, margin=2, within=lambda window: inside[window.slices], stats=stats
    )
    assert np.array_equal(gathered(found, 50, 40), np.where(valid & inside, codes[0], INVALID))
    assert 0 < stats.windows - stats.skipped < stats.windows


def test_batches_end_with_their_row_of_windows(array_scene, oracle):
    sizes = []

    class Counting(oracle):
        def __call__(self, images, valid, windows):
            sizes.append({window.row for window in windows})
            return super().__call__(images, valid, windows)

    list(strips(array_scene(*drawn(32, 48, 0, 0)), Counting(CLASSES), bands=[1], tile=16, margin=0, batch=2))
    assert sizes == [{0}, {0}, {16}, {16}]


def test_an_error_of_the_scene_comes_out_and_stops_the_reader(array_scene, oracle):
    class Broken(array_scene):
        def read(self, window, bands):
            if window.row >= 64:
                raise OSError("torn")
            return super().read(window, bands)

    with pytest.raises(OSError, match="torn"):
        list(strips(Broken(*drawn(1024, 8, 0, 0)), oracle(CLASSES), bands=[1], tile=8, margin=0))


def test_a_network_that_fails_stops_the_reader(array_scene, oracle):
    """At once, and not when the error's traceback is let go of: by then no thread may be started any more."""
    closed = []

    class Handle(array_scene):
        def reopen(self):
            return Handle(self.image, self.valid)

        def __exit__(self, *_):
            closed.append(True)

    class Failing(oracle):
        def __call__(self, images, valid, windows):
            raise RuntimeError("out of everything")

    with pytest.raises(RuntimeError, match="out of everything") as caught:
        list(strips(Handle(*drawn(2048, 8, 0, 0)), Failing(CLASSES), bands=[1], tile=8, margin=0))
    assert caught.tb is not None
    assert closed == [True]


def test_who_takes_no_more_strips_stops_the_reader(array_scene, oracle):
    closed = []

    class Handle(array_scene):
        def __exit__(self, *_):
            closed.append(True)

    found = strips(Handle(*drawn(2048, 8, 0, 0)), oracle(CLASSES), bands=[1], tile=8, margin=0)
    next(found)
    found.close()
    assert closed == [True]


@pytest.mark.parametrize("blend", ["core", "hann"])
def test_memory_does_not_grow_with_the_height(array_scene, oracle, blend):
    class Endless(array_scene):
        """Makes its pixels when they are read, so that only the engine's memory counts."""

        def read(self, window, bands):
            shape = (window.height, window.width)
            return np.full((1, *shape), 3, np.uint8), np.ones(shape, bool)

    def peak(height):
        valid = np.broadcast_to(True, (height, 512))
        scene = Endless(np.broadcast_to(np.uint8(3), (1, height, 512)), valid)
        tracemalloc.start()
        for strip in strips(scene, oracle(CLASSES), bands=[1], tile=64, margin=8, blend=blend):
            assert (strip.labels == 3).all()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(1024)
    assert peak(32_768) < 3_000_000  # of 16 777 216 pixels; the reader's thread is ahead by a chunk more or less
