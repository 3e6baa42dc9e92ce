import math

import pytest
import torch

from rsdistill.methods import load_method


def nfd():
    return load_method("nfd", {"nfd.kd": 0})


def test_value_by_hand(case, by_hand):
    example = case()
    images = []
    for n in range(2):
        kept = [(row, col) for m, row, col, _ in example.pixels() if m == n]
        squares = []
        for channel in range(4):
            normalised = []
            for maps in (example.student.features, example.teacher.features):
                values = [maps[n, channel, row, col].item() for row, col in kept]
                mean = by_hand.mean(values)
                sd = math.sqrt(by_hand.mean((value - mean) ** 2 for value in values))
                normalised.append([(value - mean) / sd for value in values])
            squares += [(a - b) ** 2 for a, b in zip(*normalised, strict=True)]
        images.append(by_hand.mean(squares))
    assert example.values(nfd())["features"] == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_a_positive_affine_map_of_a_channel_changes_nothing(case):
    example = case()
    gain, offset = 0.1 + torch.rand(1, 4, 1, 1, dtype=torch.float64), torch.randn(1, 4, 1, 1, dtype=torch.float64)
    value = example.values(nfd())["features"]
    assert example.with_student(lambda f: gain * f + offset).values(nfd())["features"] == pytest.approx(value, rel=1e-9)
    assert example.with_student(lambda f: -f).values(nfd())["features"] == pytest.approx(4 - value, rel=1e-9)


def test_a_constant_channel_counts_as_nothing(case):
    example = case()
    flat = example.with_student(torch.ones_like).with_teachers(torch.ones_like)
    loss = flat.run(nfd())["features"]
    loss.backward()
    assert loss.item() == 0
    assert flat.student.features.grad.isfinite().all()
