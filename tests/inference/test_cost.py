"""What a network costs, counted by hand where that is possible."""

import pytest

from rsdistill.inference.cost import SIDE, cost
from rsdistill.models import build_network


def test_a_convolution_of_one_pixel_is_counted_by_hand():
    found = cost(build_network("linear", {}, 4, 7), 4)
    assert found["parameters"] == 4 * 7 + 7
    assert found["gmacs"] == pytest.approx(4 * 7 * SIDE**2 / 1e9)
    assert found["tiles_per_second"] > 0
    assert "gmacs_context" not in found


def test_a_network_with_context_tells_both_parts():
    small, large = (cost(build_network("ginet", {"dim": dim}, 3, 5), 3) for dim in (16, 32))
    assert 0 < small["gmacs"] < large["gmacs"]
    assert 0 < small["gmacs_context"] < large["gmacs_context"]
