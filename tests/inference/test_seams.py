from itertools import pairwise

import numpy as np
import pytest

from rsdistill.inference.blending import Strip
from rsdistill.inference.seams import NEAR, Seams, _near, aligned


def cut(labels: np.ndarray, heights: list[int]) -> list[Strip]:
    rows = np.cumsum([0, *heights])
    assert rows[-1] == len(labels)
    return [Strip(int(top), labels[top:stop]) for top, stop in pairwise(rows)]


@pytest.mark.parametrize(("first", "second"), [([10], [10]), ([3, 3, 4], [5, 5]), ([1] * 10, [10]), ([9, 1], [1, 9])])
def test_streams_of_any_strips_are_brought_together(first: list[int], second: list[int]) -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 9, (2, 10, 4), dtype=np.uint8)
    pieces = list(aligned(iter(cut(one, first)), iter(cut(two, second))))
    assert [row for row, _, _ in pieces] == np.cumsum([0, *(len(a) for _, a, _ in pieces)])[:-1].tolist()
    assert (np.concatenate([a for _, a, _ in pieces]) == one).all()
    assert (np.concatenate([b for _, _, b in pieces]) == two).all()


def test_near_a_cut_is_within_the_distance_on_both_sides() -> None:
    near = _near(((0, 0, 100), (80, 100, 150)), 150)
    assert np.flatnonzero(near).tolist() == list(range(100 - NEAR, 100 + NEAR))
    assert not _near(((0, 0, 150),), 150).any()


def test_shares_without_pixels_do_not_exist() -> None:
    assert Seams.none().as_dict() == {"near": None, "elsewhere": None, "distance": NEAR}
