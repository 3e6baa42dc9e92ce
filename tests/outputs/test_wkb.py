"""Well-known binary made by arrays is, byte for byte, what shapely makes of each polygon."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rsdistill.outputs.regions import IGNORE, class_of_regions, label_regions
from rsdistill.outputs.tracing import trace
from rsdistill.outputs.wkb import to_wkb

TRANSFORMS = [
    Affine(2, 0, 4e5, 0, -2, 5e6),
    Affine(2, 0, 4e5, 0, 2, 5e6),
    Affine(1e-5, 0, 179.9, 0, -2e-5, -40),
    Affine(1.5, 0.7, 4e5, 0.7, -1.5, 5e6),
    Affine.identity(),
]


def by_shapely(polygons, transform):
    a, b, c, d, e, f = transform[:6]
    placed = shapely.transform(polygons, lambda p: np.stack([a * p[:, 0] + b * p[:, 1] + c, d * p[:, 0] + e * p[:, 1] + f], axis=1))
    return shapely.to_wkb(shapely.orient_polygons(placed), byte_order=1).tolist()


def pieces(made):
    whole = made.data.tobytes()
    return [whole[start:stop] for start, stop in zip(made.offsets[:-1], made.offsets[1:], strict=True)]


@settings(max_examples=100, deadline=None)
@given(
    labels=arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, IGNORE])),
    transform=st.sampled_from(TRANSFORMS),
)
def test_traced_polygons(labels, transform):
    region = label_regions(labels)
    polygons = trace(region, class_of_regions(region, labels) != IGNORE)
    made = to_wkb(polygons, transform)
    assert len(made) == len(polygons)
    assert pieces(made) == (by_shapely(polygons, transform) if len(polygons) else [])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_polygons_of_any_shape_and_direction(transform):
    rng = np.random.default_rng(0)
    round_ones = shapely.buffer(shapely.points(rng.random((20, 2)) * 1000), rng.random(20) * 50 + 1)
    with_hole = shapely.difference(round_ones, shapely.buffer(shapely.centroid(round_ones), 0.3))
    polygons = np.concatenate([round_ones, with_hole, shapely.reverse(with_hole)])
    assert pieces(to_wkb(polygons, transform)) == by_shapely(polygons, transform)
