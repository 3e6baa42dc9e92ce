import math

import pytest
import torch

from rsdistill.methods import load_method
from rsdistill.methods.drd import MOST_CELLS, channel_distance, spatial_softmax_distance


def drd(**options):
    return load_method("drd", {"drd.kd": 0, **{f"drd.{name}": value for name, value in options.items()}})


def columns(example, maps, n):
    """The valid pixels of one image: a list of D numbers each."""
    return [maps[m, :, row, col].tolist() for m, row, col, _ in example.pixels() if m == n]


def test_cosine_form_by_hand(case, by_hand):
    example = case()
    spatial, channel = [], []
    for n in range(2):
        own, other = (columns(example, f, n) for f in (example.student.features, example.teacher.features))
        own_rows, other_rows = list(zip(*own, strict=True)), list(zip(*other, strict=True))
        for values, (first, second) in ((spatial, (own, other)), (channel, (own_rows, other_rows))):
            count = range(len(first))
            gaps = ((by_hand.cosine(first[i], first[j]) - by_hand.cosine(second[i], second[j])) ** 2 for i in count for j in count)
            values.append(by_hand.mean(gaps))
    assert example.values(drd()) == pytest.approx({"spatial": by_hand.mean(spatial), "channel": by_hand.mean(channel)}, rel=1e-9)


def test_softmax_form_by_hand(case, by_hand):
    example = case()
    spatial, channel = [], []
    for n in range(2):
        own, other = (columns(example, f, n) for f in (example.student.features, example.teacher.features))
        rows = [[by_hand.softmax([by_hand.dot(a, b) / math.sqrt(4) for b in pixels]) for a in pixels] for pixels in (own, other)]
        spatial += [sum((p - q) ** 2 for p, q in zip(*pair, strict=True)) for pair in zip(*rows, strict=True)]
        rows = [
            [
                by_hand.softmax([by_hand.dot(a, b) / math.sqrt(len(pixels)) for b in zip(*pixels, strict=True)])
                for a in zip(*pixels, strict=True)
            ]
            for pixels in (own, other)
        ]
        channel.append(by_hand.mean(sum((p - q) ** 2 for p, q in zip(*pair, strict=True)) for pair in zip(*rows, strict=True)))
    expected = {"spatial": by_hand.mean(spatial), "channel": by_hand.mean(channel)}
    assert example.values(drd(form="softmax")) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gain", [1e-2, 7, 1e3])
def test_a_gain_of_one_network_changes_nothing(case, gain):
    example = case()
    assert example.with_student(lambda f: gain * f).values(drd()) == pytest.approx(example.values(drd()), rel=1e-9)


def test_a_rotation_of_channels_changes_pairs_of_channels_only(case):
    example = case()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    before, after = (each.values(drd()) for each in (example, example.with_student(lambda f: torch.einsum("de,behw->bdhw", rotation, f))))
    assert after["spatial"] == pytest.approx(before["spatial"], rel=1e-9)
    assert after["channel"] != pytest.approx(before["channel"], rel=1e-2)


def test_only_pairs_of_channels_need_an_adapter(case):
    example = case(widths=(3, 6))
    spatial, both = drd(channel=0), drd()
    example.run(spatial), example.run(both)
    assert not list(spatial.parameters())
    assert [tuple(parameter.shape) for parameter in both.parameters()] == [(6, 3, 1, 1)]


def test_the_softmax_form_pools_large_maps_to_means_of_valid_pixels():
    maps = torch.randn(1, 4, 2 * MOST_CELLS, 2 * MOST_CELLS, dtype=torch.float64)
    part = torch.ones(1, 2 * MOST_CELLS, 2 * MOST_CELLS, dtype=torch.bool)
    part[:, ::2] = False
    kept = maps[:, :, 1::2].unflatten(3, (MOST_CELLS, 2)).mean(4)
    other = torch.randn(1, 5, 2 * MOST_CELLS, 2 * MOST_CELLS, dtype=torch.float64)
    kept_other = other[:, :, 1::2].unflatten(3, (MOST_CELLS, 2)).mean(4)
    every = torch.ones(1, MOST_CELLS, MOST_CELLS, dtype=torch.bool)
    found, expected = spatial_softmax_distance(maps, other, part), spatial_softmax_distance(kept, kept_other, every)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_channels_of_zeros_are_alike():
    zeros = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = channel_distance(zeros, torch.zeros(1, 3, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert zeros.grad.isfinite().all()


def test_an_adapter_on_products_is_one_on_pixels(case):
    example = case(widths=(3, 6))
    method = drd(spatial=0)
    found = example.values(method)["channel"]
    adapted = example.with_student(method.adapter.double())
    assert found == pytest.approx(adapted.values(drd(spatial=0))["channel"], rel=1e-9)
