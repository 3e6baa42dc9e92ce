"""Small regions given to their neighbours."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rsdistill.outputs.regions import Strip, class_of_regions, label_regions
from rsdistill.outputs.sieving import sieve

SMALL = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1, 2, 255]))


def sieved(labels: np.ndarray, least: float, height: int = 99) -> np.ndarray:
    def strips() -> Iterator[Strip]:
        return (Strip(row, labels[row : row + height]) for row in range(0, len(labels), height))

    return np.concatenate([strip.labels for strip in sieve(strips, least)])


def drawn(text: str) -> np.ndarray:
    return np.array([[255 if letter == "." else int(letter) for letter in row] for row in text.split()], np.uint8)


@given(SMALL, st.integers(1, 12), st.sampled_from([2, 3, 6, 1000]))
@settings(max_examples=150, deadline=None)
def test_no_small_region_with_a_neighbour_is_left_whatever_the_strips(labels: np.ndarray, height: int, least: int) -> None:
    result = sieved(labels, least, height)
    assert (result == sieved(labels, least)).all()
    assert ((result == 255) == (labels == 255)).all()
    region = label_regions(result)
    classes = class_of_regions(region, result)
    small = (np.bincount(region.ravel()) < least) & (classes != 255)
    for one, other in ((region[:, 1:], region[:, :-1]), (region[1:], region[:-1])):
        meeting = (one != other) & (classes[one] != 255) & (classes[other] != 255)
        assert not (small[one] | small[other])[meeting].any()


@given(SMALL)
@settings(max_examples=50, deadline=None)
def test_one_pixel_is_never_too_small(labels: np.ndarray) -> None:
    assert (sieved(labels, 1) == labels).all()


@pytest.mark.parametrize(
    ("before", "least", "after"),
    [
        ("0000 0100 0000", 2, "0000 0000 0000"),
        ("000222 ..1222", 2, "000222 ..2222"),  # equal borders: to the larger neighbour
        ("0222 0122 0222 0222", 2, "0222 0222 0222 0222"),  # three sides are longer than one
        ("...1 ...1 00..", 3, "...1 ...1 00.."),  # nothing beside it but nodata
        ("11211 00.00", 5, "11111 11.11"),  # neighbours of one class meet through it, and are large then
        ("12233333", 3, "22233333"),  # the smallest goes first, and what has grown enough stays
        ("112. ..2.", 5, "222. ..2."),  # what meets only small regions joins them, even if that is not enough
        ("0102 0000", 2, "0000 0000"),
    ],
)
def test_where_small_regions_go(before: str, least: int, after: str) -> None:
    for height in (1, 2, 9):
        assert (sieved(drawn(before), least, height) == drawn(after)).all()
