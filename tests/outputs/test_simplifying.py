"""Simplified coverages: no gap, no overlap, no area lost."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter

from rsdistill.outputs.regions import Strip
from rsdistill.outputs.simplifying import simplify_coverage, with_all_nodes
from rsdistill.outputs.stitching import whole_polygons

SMALL = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.sampled_from([0, 1, 255]))


def polygons_of(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([some.shapes for some in whole_polygons([Strip(0, labels)])])


def lumps(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((3, 150, 120))
    labels = gaussian_filter(noise, (0, 4, 4)).argmax(0).astype(np.uint8)
    labels[40:80, :30] = 255
    return labels


@given(SMALL)
@settings(max_examples=200, deadline=None)
def test_added_nodes_change_no_shape_and_make_a_coverage(labels: np.ndarray) -> None:
    plain = polygons_of(labels)
    noded = with_all_nodes(plain)
    assert shapely.equals(plain, noded).all()
    assert shapely.get_num_coordinates(noded).sum() >= shapely.get_num_coordinates(plain).sum()
    assert not len(noded) or shapely.coverage_is_valid(noded)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [1, 3, 10])
def test_a_simplified_coverage_has_its_area_no_overlap_and_fewer_corners(seed: int, tolerance: float) -> None:
    labels = lumps(seed)
    before = polygons_of(labels)
    after = np.concatenate([some.shapes for some in simplify_coverage(whole_polygons([Strip(0, labels)]), tolerance)])
    assert len(after) == len(before)
    assert shapely.is_valid(after).all()
    assert shapely.coverage_is_valid(after)
    assert shapely.area(after).sum() == pytest.approx((labels != 255).sum(), rel=1e-9)
    assert shapely.area(shapely.union_all(after)) == pytest.approx((labels != 255).sum(), rel=1e-9)
    assert shapely.get_num_coordinates(after).sum() < 0.7 * shapely.get_num_coordinates(before).sum()


def test_a_mask_without_data_simplifies_to_one_empty_batch() -> None:
    batches = list(simplify_coverage(whole_polygons([Strip(0, np.full((4, 4), 255, np.uint8))]), 2))
    assert [len(some.shapes) for some in batches] == [0]
