"""Polygons over strips: the cuts must leave no trace."""

import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from rasterio.features import shapes

from rsdistill.outputs.regions import Strip
from rsdistill.outputs.stitching import Polygons, whole_polygons, without_straight_corners

SMALL = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=10), elements=st.sampled_from([0, 1, 255]))


def stitched(labels: np.ndarray, height: int, confidence: np.ndarray | None = None) -> Polygons:
    rows = range(0, len(labels), height)
    parts = [Strip(row, labels[row : row + height], None if confidence is None else confidence[row : row + height]) for row in rows]
    found = list(whole_polygons(parts))
    return Polygons(*(np.concatenate([getattr(some, name) for some in found]) for name in Polygons._fields))


def listed(polygons: Polygons) -> list[tuple[int, str]]:
    return sorted(zip(polygons.classes.tolist(), [shape.wkt for shape in shapely.normalize(polygons.shapes)], strict=True))


@given(SMALL, st.integers(1, 10))
@settings(max_examples=200, deadline=None)
def test_any_strip_height_gives_what_gdal_makes_of_the_whole_mask(labels: np.ndarray, height: int) -> None:
    polygons = stitched(labels, height)
    assert shapely.is_valid(polygons.shapes).all()
    whole = shapes(labels, mask=labels != 255, connectivity=4)
    assert listed(polygons) == sorted((int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt) for shape, value in whole)


@pytest.mark.parametrize("height", [1, 7, 64])
def test_a_large_mask_with_noise_lumps_and_a_frame_is_cut_without_trace(height: int) -> None:
    generator = np.random.default_rng(4)
    labels = np.kron(generator.integers(0, 3, (24, 20), dtype=np.uint8), np.ones((8, 8), np.uint8))
    noisy = generator.random(labels.shape) < 0.2
    labels[noisy] = generator.integers(0, 3, noisy.sum(), dtype=np.uint8)
    labels[[0, -1]] = labels[:, [0, -1]] = 2
    labels[50:90, 30:40] = 255
    assert listed(stitched(labels, height)) == listed(stitched(labels, len(labels)))


@pytest.mark.parametrize("height", [1, 2, 5])
def test_confidence_is_the_mean_over_the_pixels_that_have_one(height: int) -> None:
    labels = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 2], [255, 1, 2], [0, 1, 1]], np.uint8)
    figures = np.random.default_rng(0).random(labels.shape, dtype=np.float32)
    figures[0, 2] = figures[2:4, 2] = np.nan
    polygons = stitched(labels, height, figures)
    means = {(one, round(shape.area)): mean for shape, one, mean in zip(*polygons, strict=True)}
    upper, lower = labels.copy(), labels.copy()
    upper[4], lower[:4] = 255, 255
    assert means[0, 4] == pytest.approx(figures[upper == 0].mean(), rel=1e-6)
    assert means[0, 1] == pytest.approx(figures[4, 0], rel=1e-6)
    assert means[1, 7] == pytest.approx(np.nanmean(figures[labels == 1]), rel=1e-6)
    assert np.isnan(means[2, 2])


def test_polygons_come_as_soon_as_they_are_complete() -> None:
    labels = np.array([[0], [0], [1], [1], [2]], np.uint8)
    batches = whole_polygons(Strip(row, labels[row : row + 1]) for row in range(5))
    assert [batch.classes.tolist() for batch in batches] == [[], [], [0], [], [1], [2]]


def test_memory_does_not_grow_with_the_height_of_the_mask() -> None:
    def peak(strips: int) -> int:
        blocks = np.random.default_rng(1).integers(0, 4, (16, 64), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        tracemalloc.start()
        found = sum(len(some.shapes) for some in whole_polygons(Strip(64 * n, np.roll(blocks, 5 * n, axis=1)) for n in range(strips)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found > 200 * strips
        return most

    assert peak(40) < 1.3 * peak(8)


def test_straight_corners_go_and_others_stay_also_at_a_rings_start() -> None:
    plain = shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4)], [[(1, 1), (1, 2), (2, 2), (2, 1)]])
    dotted = shapely.Polygon([(2, 0), (4, 0), (4, 1), (4, 3), (4, 4), (0, 4), (0, 0), (1, 0)], [[(1, 1), (1, 2), (2, 2), (2, 1)]])
    result = without_straight_corners(np.array([dotted, plain], object))
    assert shapely.equals_exact(shapely.normalize(result), shapely.normalize([plain, plain])).all()
    assert shapely.get_num_coordinates(result).tolist() == [10, 10]
