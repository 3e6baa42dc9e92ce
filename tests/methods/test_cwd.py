import pytest
import torch

from rsdistill.methods import load_method


def cwd(**options):
    return load_method("cwd", {"cwd.kd": 0, **{f"cwd.{name}": value for name, value in options.items()}})


@pytest.mark.parametrize("tau", [1.0, 4.0])
@pytest.mark.parametrize("term", ["logits", "features"])
def test_value_by_hand(case, by_hand, term, tau):
    example = case()
    maps = getattr(example.student, term), getattr(example.teacher, term)
    values = []
    for n in range(2):
        kept = [(row, col) for m, row, col, _ in example.pixels() if m == n]
        for channel in range(maps[0].shape[1]):
            student, teacher = (by_hand.softmax([m[n, channel, row, col].item() for row, col in kept], tau) for m in maps)
            values.append(by_hand.kl(teacher, student))
    assert example.values(cwd(tau=tau))[term] == pytest.approx(tau**2 * by_hand.mean(values), rel=1e-9)


def test_an_image_without_a_valid_pixel_leaves_the_mean(case):
    example = case()
    valid = example.batch.valid.clone()
    valid[0] = False
    half = example._replace(batch=example.batch._replace(valid=valid))
    for term, value in half.values(cwd()).items():
        assert value == pytest.approx(example.rows([1]).values(cwd())[term], rel=1e-12)


def test_a_shift_of_a_channel_changes_nothing_and_a_gain_does(case):
    example = case()
    shift = torch.randn(2, 4, 1, 1, dtype=torch.float64)
    value = example.values(cwd())["features"]
    assert example.with_student(lambda f: f + shift).values(cwd())["features"] == pytest.approx(value, rel=1e-9)
    assert example.with_student(lambda f: 7 * f).values(cwd())["features"] != pytest.approx(value, rel=0.1)


def test_channels_are_matched_by_an_adapter_that_learns_with_the_student(case):
    method, example = cwd(), case(widths=(3, 6))
    sum(example.run(method).values()).backward()
    (weight,) = method.student_parameters()
    assert weight.shape == (6, 3, 1, 1)
    assert weight.grad.abs().sum() > 0
