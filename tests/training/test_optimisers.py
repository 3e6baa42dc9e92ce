from itertools import pairwise

import pytest
import torch

from rsdistill.training.optimisers import learning_rate_factor, ramped_average


def test_the_rate_rises_in_a_line_and_falls_as_a_polynomial_to_zero():
    factors = [learning_rate_factor(step / 1000, 0.1, 0.9) for step in range(1001)]
    assert 0 < factors[0] < 0.05
    assert factors[100] == pytest.approx(1)
    assert factors[50] == pytest.approx(0.51, abs=0.01)
    assert factors[550] == pytest.approx(0.5**0.9)
    assert factors[-1] == 0
    assert max(factors) == factors[100]
    assert all(a > b for a, b in pairwise(factors[100:]))


def test_without_warm_up_the_rate_starts_at_its_peak():
    assert learning_rate_factor(0, 0, 0.9) == 1


def test_the_average_forgets_its_start_and_then_keeps_its_decay():
    update = ramped_average(0.9)
    averaged = [torch.zeros(1)]
    update(averaged, [torch.ones(1)], 0)
    assert float(averaged[0]) == pytest.approx(0.9)
    averaged = [torch.zeros(1)]
    update(averaged, [torch.ones(1)], 10_000)
    assert float(averaged[0]) == pytest.approx(0.1)
