import pytest
import torch

from rsdistill.methods import load_method


def dist(**options):
    return load_method("dist", {"dist.kd": 0, **{f"dist.{name}": value for name, value in options.items()}})


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_value_by_hand(case, by_hand, tau):
    example = case()
    student, teacher = (
        [by_hand.softmax(by_hand.at(outputs.logits, n, row, col), tau) for n, row, col, _ in example.pixels()]
        for outputs in (example.student, example.teacher)
    )
    inter = by_hand.mean(1 - by_hand.pearson(q, p) for q, p in zip(student, teacher, strict=True))
    intra = by_hand.mean(1 - by_hand.pearson([q[k] for q in student], [p[k] for p in teacher]) for k in range(3))
    terms = example.values(dist(tau=tau))
    assert terms["inter"] == pytest.approx(tau**2 * inter, rel=1e-9)
    assert terms["intra"] == pytest.approx(tau**2 * intra, rel=1e-9)


def test_a_shift_of_all_logits_of_a_pixel_changes_nothing(case):
    example = case()
    shift = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    before, after = (each.values(dist()) for each in (example, example.with_student(lambda z: z + shift, "logits")))
    for term in ("inter", "intra"):
        assert after[term] == pytest.approx(before[term], rel=1e-9)


def test_uniform_probabilities_give_no_undefined_correlation(case):
    flat = case().with_student(torch.zeros_like, "logits").with_teachers(torch.zeros_like, "logits")
    terms = flat.run(dist())
    sum(terms.values()).backward()
    assert [value.item() for value in terms.values()] == [0, 0]
    assert flat.student.logits.grad.isfinite().all()
