import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.methods import load_method
from rsdistill.methods.base import upsample


def ifvd():
    return load_method("ifvd", {"ifvd.kd": 0})


def by_definition(example, by_hand):
    """(M^S − M^T) of every pixel that takes part."""
    pixels = list(example.pixels())
    gaps = []
    for n, row, col, label in pixels:
        cosines = []
        for maps in (example.student.features, example.teacher.features):
            mates = [by_hand.at(maps, m, r, c) for m, r, c, k in pixels if (m, k) == (n, label)]
            centre = [by_hand.mean(channel) for channel in zip(*mates, strict=True)]
            cosines.append(by_hand.cosine(by_hand.at(maps, n, row, col), centre))
        gaps.append(cosines[0] - cosines[1])
    return gaps


def test_value_by_hand_with_different_channels(case, by_hand):
    example = case(widths=(3, 6))
    expected = by_hand.mean(gap**2 for gap in by_definition(example, by_hand))
    assert example.values(ifvd())["variation"] == pytest.approx(expected, rel=1e-9)


def test_the_gradient_runs_through_the_centre(case):
    example = case()
    one = example.batch.label.clone().fill_(IGNORE)
    one[:, 1, :2] = 0
    example._replace(batch=example.batch._replace(label=one)).run(ifvd())["variation"].backward()
    reached = example.student.features.grad.abs().sum((0, 1)) > 0
    assert reached[1, :2].all()
    assert reached.sum() == 2


def test_one_pixel_a_class_gives_nothing(case):
    example = case()
    label = torch.full_like(example.batch.label, IGNORE)
    label[:, 1, :3] = torch.arange(3)
    assert example._replace(batch=example.batch._replace(label=label)).values(ifvd())["variation"] == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("gain", [1e-2, 7, 1e3])
def test_a_gain_of_one_network_changes_nothing(case, gain):
    example = case()
    value = example.values(ifvd())["variation"]
    assert example.with_student(lambda f: gain * f).values(ifvd())["variation"] == pytest.approx(value, rel=1e-9)
    assert example.with_teachers(lambda f: gain * f).values(ifvd())["variation"] == pytest.approx(value, rel=1e-9)


def test_a_rotation_of_channels_changes_nothing(case):
    example = case()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    turned = example.with_student(lambda f: torch.einsum("de,behw->bdhw", rotation, f))
    assert turned.values(ifvd())["variation"] == pytest.approx(example.values(ifvd())["variation"], rel=1e-9)


def test_other_names_of_the_classes_change_nothing(case):
    example = case()
    names = torch.tensor([2, 0, 1])
    label = example.batch.label
    renamed = torch.where(label == IGNORE, label, names[label.clamp(max=2)])
    other = example._replace(batch=example.batch._replace(label=renamed))
    assert other.values(ifvd())["variation"] == pytest.approx(example.values(ifvd())["variation"], rel=1e-9)


def test_a_coarser_student_is_resized_to_its_teacher(case):
    coarse = case(tile=(12, 8), student=(3, 2), teacher=(6, 4))
    fine = coarse.with_student(lambda f: upsample(f, (6, 4)))
    assert coarse.values(ifvd())["variation"] == pytest.approx(fine.values(ifvd())["variation"], rel=1e-12)
