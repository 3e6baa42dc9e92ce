import math

import pytest
import torch
import torch.nn.functional as F

from rsdistill.batches import IGNORE
from rsdistill.errors import ConfigError
from rsdistill.methods import load_method
from rsdistill.methods.kd import distillation
from rsdistill.methods.mgsad import affinities

OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def mgsad(**options):
    return load_method("mgsad", {"mgsad.kd": 0, **{f"mgsad.{name}": value for name, value in options.items()}})


def unpermuted(student, teacher):
    """The pixel-wise term as it was released: rows of ``view(-1, K)`` are K neighbouring pixels of one channel."""
    classes = student.shape[1]
    log_student, log_teacher = (z.reshape(-1, classes).log_softmax(1) for z in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1).mean()


def test_variation_is_square_plus_absolute_of_ifvds_gap(case, by_hand):
    example = case(widths=(3, 6))
    pixels = list(example.pixels())
    values = []
    for n, row, col, label in pixels:
        own, other = (
            by_hand.cosine(
                by_hand.at(f, n, row, col),
                [by_hand.mean(d) for d in zip(*(by_hand.at(f, m, r, c) for m, r, c, k in pixels if (m, k) == (n, label)), strict=True)],
            )
            for f in (example.student.features, example.teacher.features)
        )
        values.append((own - other) ** 2 + abs(own - other))
    assert example.values(mgsad(affinity=0))["variation"] == pytest.approx(by_hand.mean(values), rel=1e-9)


def test_affinities_by_hand(by_hand):
    logits = 3 * torch.randn(1, 2, 4, 5, dtype=torch.float64)
    part = torch.ones(1, 4, 5, dtype=torch.bool)
    part[0, 1, 2] = False
    found = affinities(logits, part)
    assert found.shape == (1, 16, 4, 5)

    def clamp(value):
        return min(max(value, 1e-4), 1)

    def probability(row, col, k):
        row, col = min(max(row, 0), 3), min(max(col, 0), 4)
        values = by_hand.at(logits, 0, row, col) if part[0, row, col] else [0.0, 0.0]
        return by_hand.softmax(values)[k], bool(part[0, row, col])

    for row in range(4):
        for col in range(5):
            for place, (down, right) in enumerate(OFFSETS):
                for k in range(2):
                    (p, own), (other, kept) = probability(row, col, k), probability(row + down, col + right, k)
                    q = p * other
                    value = clamp(q) * math.log(clamp(q) / clamp(p)) + clamp(1 - q) * math.log(clamp(1 - q) / clamp(1 - p))
                    assert float(found[0, 2 * place + k, row, col]) == pytest.approx(value if own and kept else 0, rel=1e-9, abs=1e-12)


def test_a_constant_one_hot_map_has_no_affinity():
    logits = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    logits[:, 1] = 1e3
    assert affinities(logits, torch.ones(1, 6, 6, dtype=torch.bool)).abs().max() < 1e-12


def test_the_right_pixelwise_term_is_not_the_released_one():
    """A shift of all logits of a pixel changes no probability: the term without a permute sees one, and pulls elsewhere."""
    teacher, student = 2 * torch.randn(2, 2, 6, 8, 8, dtype=torch.float64)
    part = torch.ones(2, 8, 8, dtype=torch.bool)
    shift = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    right = [distillation(z, teacher, part, 1.0).item() for z in (student, student + shift)]
    wrong = [unpermuted(z, teacher).item() for z in (student, student + shift)]
    assert right[0] == pytest.approx(right[1], rel=1e-9)
    assert abs(wrong[0] - wrong[1]) > 0.01 * wrong[0]
    student.requires_grad_()
    pulls = [
        torch.autograd.grad(loss, student)[0].flatten()
        for loss in (distillation(student, teacher, part, 1.0), unpermuted(student, teacher))
    ]
    assert F.cosine_similarity(*pulls, dim=0) < 0.7
    assert pulls[0].view_as(student).sum(1).abs().max() < 1e-12 < pulls[1].view_as(student).sum(1).abs().max()


def test_the_methods_own_pixelwise_term_is_the_right_one(case):
    example = case()
    shift = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    method = mgsad(kd=1, affinity=0, variation=0)
    assert example.with_student(lambda z: z + shift, "logits").values(method) == pytest.approx(example.values(method), rel=1e-9)


def test_the_verdict_fades_to_nothing_at_the_last_step(case):
    example = case(dtype=torch.float32, tile=(32, 32), student=(4, 4), teacher=(4, 4))
    method = mgsad(variation=0)
    values = []
    for progress in (0.0, 0.5, 1.0):
        method.schedule(progress)
        values.append(example.values(method)["affinity"])
    assert values[1] == pytest.approx(values[0] / 2, rel=1e-5)
    assert values[2] == 0


def test_an_undecided_critic_loses_ln_2(case):
    example = case(dtype=torch.float32, tile=(32, 32))
    method = mgsad(variation=0)
    method.setup(example.student, *example.teachers)
    for parameter in method.critic.parameters():
        parameter.data.zero_()
    assert example.values(method)["affinity"] == pytest.approx(math.log(2))
    assert method.critic_terms(*example[:2], *example.teachers)["affinity"].item() == pytest.approx(math.log(2))


def test_the_student_step_leaves_the_critic_alone_and_the_critic_step_the_student(case):
    example = case(dtype=torch.float32, tile=(32, 32))
    method = mgsad()
    example.run(method)["affinity"].backward()
    assert example.student.logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.critic.parameters())
    example.student.logits.grad = None
    method.critic_terms(*example[:2], *example.teachers)["affinity"].backward()
    assert example.student.logits.grad is None
    assert all(parameter.grad is not None for parameter in method.critic.parameters())


def test_a_critic_learns_to_tell_the_networks_apart(case):
    example = case(dtype=torch.float32, tile=(32, 32)).with_teachers(lambda z: 4 * z, "logits")
    method = mgsad()
    method.setup(example.student, *example.teachers)
    adam = torch.optim.Adam(method.critic.parameters(), lr=4e-4, betas=(0.9, 0.99))
    losses = []
    for _ in range(25):
        loss = method.critic_terms(*example[:2], *example.teachers)["affinity"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_small_tiles_are_refused_and_a_scale_makes_maps_smaller(case):
    with pytest.raises(ConfigError, match="at least 32 pixels, not 16 x 64") as caught:
        case(dtype=torch.float32, tile=(16, 64)).run(mgsad())
    assert "mgsad.affinity=0" in caught.value.hint
    example = case(dtype=torch.float32, tile=(64, 64), student=(8, 8), teacher=(8, 8))
    with pytest.raises(ConfigError, match="not 16 x 16"):
        example.run(mgsad(scale=4))


@pytest.mark.parametrize(
    ("scale", "teacher", "seen"),
    [(None, (48, 40), (48, 40)), (None, (8, 40), (32, 40)), (1, (48, 40), (96, 80)), ("2", (48, 40), (48, 40))],
)
def test_the_critic_sees_the_teachers_grid_unless_a_scale_is_given(case, scale, teacher, seen):
    example = case(dtype=torch.float32, tile=(96, 80), student=(6, 5), teacher=teacher)
    method = mgsad(variation=0, **({} if scale is None else {"scale": scale}))
    method.setup(example.student, *example.teachers)
    shown = []
    method.critic[0].register_forward_pre_hook(lambda layer, maps: shown.append(tuple(maps[0].shape[2:])))
    example.run(method)
    method.critic_terms(*example[:2], *example.teachers)
    assert shown == [seen] * 3


def test_masked_pixels_and_images_are_not_shown(case):
    example = case(dtype=torch.float32, tile=(32, 32))
    valid = example.batch.valid.clone()
    valid[1] = False
    half = example._replace(batch=example.batch._replace(valid=valid))
    method = mgsad(variation=0)
    value = half.values(method)["affinity"]
    assert value == pytest.approx(half.rows([0]).values(method)["affinity"], rel=1e-5)
    assert (example.batch.label == IGNORE).any()
