import math

import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.methods import load_method
from rsdistill.methods.idd import scene_ramps


def idd(**options):
    return load_method("idd", {"idd.kd": 0, **{f"idd.{name}": value for name, value in options.items()}})


def distance(**options):
    return idd(position=0, **options)


def edges_by_hand(example, maps, n, by_hand):
    """Distances between the centres of the classes present in one image."""
    centres = []
    for k in range(3):
        members = [by_hand.at(maps, m, row, col) for m, row, col, label in example.pixels() if (m, label) == (n, k)]
        if members:
            centres.append([by_hand.mean(channel) for channel in zip(*members, strict=True)])
    pairs = [(i, j) for i in range(len(centres)) for j in range(i + 1, len(centres))]
    return [math.dist(centres[i], centres[j]) for i, j in pairs]


@pytest.mark.parametrize("normalise", [True, False])
def test_distance_by_hand_with_different_channels(case, by_hand, normalise):
    example = case(widths=(3, 6))
    label = example.batch.label.clone()
    label[0][label[0] == 1] = IGNORE  # one class of the first image is absent
    example = example._replace(batch=example.batch._replace(label=label))
    images = []
    for n in range(2):
        own, other = (edges_by_hand(example, f, n, by_hand) for f in (example.student.features, example.teacher.features))
        if normalise:
            own, other = ([edge / by_hand.mean(edges) for edge in edges] for edges in (own, other))
        images.append(by_hand.mean((a - b) ** 2 / 2 for a, b in zip(own, other, strict=True)))
    assert example.values(distance(normalise=normalise))["distance"] == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_a_tile_of_one_class_gives_nothing_and_leaves_the_mean(case):
    example = case()
    label = example.batch.label.clone()
    label[0] = 1
    one = example._replace(batch=example.batch._replace(label=label))
    assert one.rows([0]).values(distance())["distance"] == 0
    assert one.values(distance()) == pytest.approx(one.rows([1]).values(distance()), rel=1e-9)


@pytest.mark.parametrize("normalise", [True, False])
def test_translation_and_rotation_of_features_change_nothing(case, normalise):
    example, method = case(), distance(normalise=normalise)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    moved = example.with_student(lambda f: torch.einsum("de,behw->bdhw", rotation, f) + 3)
    assert moved.values(method) == pytest.approx(example.values(method), rel=1e-9)


@pytest.mark.parametrize("gain", [1e-2, 7, 1e3])
def test_only_normalised_distances_do_not_see_a_gain(case, gain):
    example = case()
    louder = example.with_student(lambda f: gain * f)
    assert louder.values(distance()) == pytest.approx(example.values(distance()), rel=1e-9)
    assert louder.values(distance(normalise=False)) != pytest.approx(example.values(distance(normalise=False)), rel=1e-2)


def test_other_names_of_the_classes_change_nothing(case):
    example = case()
    label = example.batch.label
    renamed = torch.where(label == IGNORE, label, (label + 1) % 3)
    other = example._replace(batch=example.batch._replace(label=renamed))
    assert other.values(distance()) == pytest.approx(example.values(distance()), rel=1e-9)


def test_ramps_are_the_scenes(case):
    batch = case(images=1).batch._replace(box_in_scene=torch.tensor([[0.0, 0.5, 0.25, 1.0]]))
    ramps = scene_ramps(batch, (2, 4))[0].double()
    torch.testing.assert_close(ramps[0, :, 0], torch.tensor([-0.875, -0.625], dtype=torch.float64))
    torch.testing.assert_close(ramps[1, 0], torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64))
    whole = scene_ramps(batch._replace(box_in_scene=None), (2, 4))[0].double()
    torch.testing.assert_close(whole[0, :, 0], torch.tensor([-0.5, 0.5], dtype=torch.float64))


def test_position_by_hand(case, by_hand):
    """With a decoder that looks at one pixel, what it reads is a product."""
    example = case(masked=False)
    method = idd(distance=0)
    method.setup(example.student, *example.teachers)
    method.critic.weight.data.zero_()
    weight = torch.randn(2, 4, dtype=torch.float64)
    method.critic.weight.data[:, :, 1, 1] = weight
    bias, ramps = method.critic.bias.tolist(), scene_ramps(example.batch, (5, 4))
    gaps, misses = [], []
    for n, row, col, _ in example.pixels():
        own, other = (
            [by_hand.dot(weight[axis].tolist(), by_hand.at(f, n, row, col)) + bias[axis] for axis in (0, 1)]
            for f in (example.student.features, example.teacher.features)
        )
        gaps.append(math.dist(own, other) ** 2 / 2)
        misses.append(math.dist(other, ramps[n, :, row, col].tolist()) ** 2 / 2)
    assert example.values(method)["position"] == pytest.approx(by_hand.mean(gaps), rel=1e-9)
    terms = method.critic_terms(*example[:2], *example.teachers)
    assert terms["position"].item() == pytest.approx(by_hand.mean(misses), rel=1e-9)


def test_the_decoder_learns_where_the_teachers_pixels_lie(case):
    example = case(dtype=torch.float32, tile=(12, 12))
    ramps = scene_ramps(example.batch, (12, 12))
    example = example.with_teachers(lambda f: torch.cat([f[:, :2], ramps], 1))
    method = idd()
    method.setup(example.student, *example.teachers)
    adam = torch.optim.Adam(method.critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = method.critic_terms(*example[:2], *example.teachers)["position"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_position_fades_in_over_the_first_tenth(case):
    example, method = case(), idd(distance=0)
    values = []
    for progress in (0.0, 0.05, 0.1, 1.0):
        method.schedule(progress)
        values.append(example.values(method)["position"])
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 2)
    assert values[3] == values[2]


def test_the_student_step_leaves_the_decoder_alone_and_the_critic_step_the_student(case):
    example = case(widths=(3, 6))
    method = idd(distance=0)
    example.run(method)["position"].backward()
    (weight,) = method.student_parameters()
    assert weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.critic.parameters())
    example.student.features.grad = None
    method.critic_terms(*example[:2], *example.teachers)["position"].backward()
    assert example.student.features.grad is None
    assert all(parameter.grad is not None for parameter in method.critic.parameters())


def test_an_adapter_before_the_decoder_is_one_convolution_with_it(case):
    example = case(widths=(3, 6))
    method = idd(distance=0)
    found = example.values(method)["position"]
    adapted = example.with_student(method.adapter.double())
    again = idd(distance=0)
    again.setup(adapted.student, *adapted.teachers)
    again.critic = method.critic
    assert adapted.values(again)["position"] == pytest.approx(found, rel=1e-9)
