"""Regions and their outlines against GDAL's polygonizer and scipy's labels."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.features import rasterize, shapes
from scipy import ndimage

from rsdistill.outputs.regions import class_of_regions, label_regions
from rsdistill.outputs.tracing import trace

SMALL = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 255]))


def outlines(labels: np.ndarray) -> list[tuple[int, str]]:
    """Class and normalised outline of every region, as GDAL finds them."""
    found = shapes(labels, mask=labels != 255, connectivity=4)
    return sorted((int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt) for shape, value in found)


@given(SMALL)
@settings(max_examples=150, deadline=None)
def test_regions_are_scipys(labels: np.ndarray) -> None:
    region = label_regions(labels)
    classes = class_of_regions(region, labels)
    assert (classes[region] == labels).all()
    for value in np.unique(labels):
        expected, count = ndimage.label(labels == value)
        pairs = set(zip(expected[labels == value].tolist(), region[labels == value].tolist(), strict=True))
        assert len(pairs) == count == (classes == value).sum()


@given(SMALL)
@settings(max_examples=200, deadline=None)
def test_outlines_are_gdals(labels: np.ndarray) -> None:
    region = label_regions(labels)
    classes = class_of_regions(region, labels)
    traced = trace(region, classes != 255)
    assert shapely.is_valid(traced).all()
    found = zip(classes[classes != 255].tolist(), [shape.wkt for shape in shapely.normalize(traced)], strict=True)
    assert sorted(found) == outlines(labels)


@given(SMALL)
@settings(max_examples=200, deadline=None)
def test_polygons_burnt_back_are_the_labels(labels: np.ndarray) -> None:
    region = label_regions(labels)
    classes = class_of_regions(region, labels)
    pairs = list(zip(trace(region, classes != 255), classes[classes != 255].tolist(), strict=True))
    burnt = rasterize(pairs, labels.shape, fill=255, dtype="uint8") if pairs else np.full_like(labels, 255)
    assert (burnt == labels).all()


@pytest.mark.parametrize(
    ("drawing", "holes"),
    [
        ("111 1.1 111", 1),  # a hole
        ("11. 1.1 111", 1),  # closed where two pixels touch at a corner: the hole touches the shell there
        ("111 1.. 111", 0),
        (".11 1.1 11.", 0),  # two regions that touch at corners only: neither surrounds anything
        ("1111 1.11 11.1 1111", 2),  # two holes that touch
        ("11111 1.1.1 11111", 2),
    ],
)
def test_a_region_that_surrounds_something_has_a_hole_there(drawing: str, holes: int) -> None:
    labels = np.array([[1 if letter == "1" else 255 for letter in row] for row in drawing.split()], np.uint8)
    region = label_regions(labels)
    traced = trace(region, class_of_regions(region, labels) == 1)
    assert shapely.is_valid(traced).all()
    assert shapely.get_num_interior_rings(traced).sum() == holes


def test_nothing_wanted_gives_nothing() -> None:
    assert len(trace(np.zeros((4, 5), np.int32), np.array([False]))) == 0


def test_shells_run_clockwise_on_the_screen_and_start_where_the_raster_does() -> None:
    polygon = trace(np.zeros((2, 3), np.int32), np.array([True]), first_row=10)[0]
    assert list(polygon.exterior.coords) == [(0, 10), (3, 10), (3, 12), (0, 12), (0, 10)]
