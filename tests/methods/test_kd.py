import math

import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.errors import ConfigError
from rsdistill.methods import load_method
from rsdistill.methods.kd import disagreement


def kd(**options):
    return load_method("kd", {f"kd.{name}": value for name, value in options.items()})


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_value_by_hand(case, by_hand, tau):
    example = case()
    values = []
    for n, row, col, _ in example.pixels():
        teacher, student = (by_hand.softmax(by_hand.at(z.logits, n, row, col), tau) for z in (example.teacher, example.student))
        values.append(by_hand.kl(teacher, student))
    assert example.values(kd(tau=tau))["kd"] == pytest.approx(tau**2 * by_hand.mean(values), rel=1e-9)


def test_gradient_is_tau_times_the_gap_of_probabilities(case):
    tau, example = 3.0, case()
    example.run(kd(tau=tau))["kd"].backward()
    part = example.batch.valid & (example.batch.label != IGNORE)
    student, teacher = ((z.logits.detach() / tau).softmax(1) for z in (example.student, example.teacher))
    expected = (tau * (student - teacher) / part.sum()).masked_fill(~part[:, None], 0)
    torch.testing.assert_close(example.student.logits.grad, expected)
    torch.testing.assert_close(expected.sum(1), torch.zeros_like(expected.sum(1)))


def test_a_shift_of_all_logits_of_a_pixel_changes_nothing_and_a_gain_does(case):
    example = case()
    value = example.values(kd())["kd"]
    shift = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    shifted = example.with_student(lambda z: z + shift, "logits").with_teachers(lambda z: z - 3 * shift, "logits")
    assert shifted.values(kd())["kd"] == pytest.approx(value, rel=1e-9)
    assert example.with_student(lambda z: 7 * z, "logits").values(kd())["kd"] != pytest.approx(value, rel=0.1)


def test_peaked_logits_stay_finite(case):
    example = case(dtype=torch.float32).with_student(lambda z: 1e4 * z, "logits").with_teachers(lambda z: -1e4 * z, "logits")
    loss = example.run(kd())["kd"]
    loss.backward()
    assert loss.isfinite()
    assert example.student.logits.grad.isfinite().all()


def test_disagreement_by_hand(by_hand):
    first, second = 2 * torch.randn(2, 1, 3, 2, 2, dtype=torch.float64)
    found = disagreement(first, second)
    for row in range(2):
        for col in range(2):
            p, q = by_hand.softmax(by_hand.at(first, 0, row, col)), by_hand.softmax(by_hand.at(second, 0, row, col))
            middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            assert float(found[0, row, col]) == pytest.approx((by_hand.kl(p, middle) + by_hand.kl(q, middle)) / 2 / math.log(2), rel=1e-9)
    assert float(disagreement(first, first).abs().max()) < 1e-12
    opposite = torch.tensor([50.0, -50.0])[None, :, None, None]
    assert float(disagreement(opposite, -opposite)) == pytest.approx(1)


def test_js_trusts_a_teacher_less_where_its_auxiliary_head_disagrees(case, by_hand):
    example = case()
    teacher = example.teacher._replace(aux=2 * torch.randn(2, 3, 5, 4, dtype=torch.float64))
    trust = 1 - disagreement(teacher.logits.detach(), teacher.aux)
    values = []
    for n, row, col, _ in example.pixels():
        wanted, own = (by_hand.softmax(by_hand.at(z.logits, n, row, col)) for z in (teacher, example.student))
        values.append(float(trust[n, row, col]) * by_hand.kl(wanted, own))
    found = example._replace(teachers=(teacher,)).values(kd(js=True))["kd"]
    assert found == pytest.approx(by_hand.mean(values), rel=1e-9)


def test_js_without_an_auxiliary_head_is_refused(case):
    with pytest.raises(ConfigError, match="auxiliary head"):
        case().run(kd(js="true"))


def test_where_valid_lets_unlabelled_tiles_teach(case):
    example = case()
    hidden = example._replace(batch=example.batch._replace(label=torch.full_like(example.batch.label, IGNORE)))
    assert hidden.values(kd())["kd"] == 0
    assert hidden.values(kd(where="valid"))["kd"] > 0
    assert (kd().semi_supervised, kd(where="valid").semi_supervised) == (False, True)
    nodata = hidden._replace(batch=hidden.batch._replace(valid=torch.zeros_like(hidden.batch.valid)))
    assert nodata.values(kd(where="valid"))["kd"] == 0
