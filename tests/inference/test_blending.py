"""How windows become one map: weights, sums, and that nothing depends on the order of windows in a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsdistill.geo.windows import Window, plan
from rsdistill.inference.blending import Wanted, accumulator, window_weights
from rsdistill.inference.scores import argmax, confidence, softmax


@given(blend=st.sampled_from(["core", "hann", "gaussian"]), size=st.integers(1, 700))
def test_weights_are_above_zero_symmetric_and_highest_in_the_middle(blend, size):
    weights = window_weights(blend, size)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-5)
    assert weights.max() == weights[(size - 1) // 2]


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.integers(8, 24),
    margin=st.integers(0, 3),
    blend=st.sampled_from(["core", "hann", "gaussian"]),
    seed=st.integers(0, 9),
)
def test_strips_equal_a_naive_sum_over_the_whole_scene(height, width, tile, margin, blend, seed):
    rng = np.random.default_rng(seed)
    windows, area = plan(height, width, tile, margin), Window(0, 0, height, width)
    collect = accumulator(windows, area, 3, Wanted(confidence=True, probabilities=True), blend)
    total, weight = np.zeros((3, height, width)), np.zeros((height, width))
    rows, cols = (window_weights(blend, side).astype(float) for side in windows.tile)
    labels, sure, odds = [], [], []
    for i in range(len(windows.rows)):
        for j in rng.permutation(len(windows.cols)):
            place = windows.placement(i, int(j))
            logits = rng.normal(size=(3, *windows.tile)).astype(np.float32)
            collect.add(place, logits, np.ones((place.read.height, place.read.width), bool))
            own = place.core if blend == "core" else place.read
            inner = own.relative_to(place.read).slices
            shape = np.outer(rows, cols)[inner]
            total[:, *own.slices] += logits[:, *inner] * shape
            weight[own.slices] += shape
        strip = collect.finish(i)
        if strip is not None:
            labels.append(strip.labels)
            sure.append(strip.confidence)
            odds.append(strip.probabilities)
    mean = total / weight
    expected = np.exp(mean) / np.exp(mean).sum(0)
    got = np.concatenate(odds, axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(sure), expected.max(0), atol=1e-5)
    index = np.concatenate(labels)
    assert (np.take_along_axis(expected, index[None].astype(int), 0)[0] >= expected.max(0) - 1e-6).all()


@given(st.integers(1, 9), st.integers(1, 140), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_argmax_is_numpys_with_the_first_of_equals(classes, height, width, seed):
    logits = np.random.default_rng(seed).integers(0, 3, (classes, height, width)).astype(np.float32)
    assert np.array_equal(argmax(logits), logits.argmax(0))


def test_argmax_takes_all_class_indices():
    logits = np.zeros((255, 1, 255), np.float32)
    logits[np.arange(255), 0, np.arange(255)] = 1
    assert np.array_equal(argmax(logits)[0], np.arange(255))


def test_softmax_and_confidence_hold_for_large_logits():
    logits = np.array([[[1e4]], [[1e4]], [[-1e4]]], np.float32)
    assert softmax(logits)[:, 0, 0].tolist() == [0.5, 0.5, 0]
    assert confidence(logits)[0, 0] == pytest.approx(0.5)
