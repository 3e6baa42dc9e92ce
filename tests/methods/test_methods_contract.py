"""What every method in METHODS must satisfy, whatever its equation."""

import copy
from typing import get_args, get_type_hints

import pytest
import torch

from rsdistill.batches import IGNORE, Segmentation
from rsdistill.methods import METHODS, load_method, options_of
from rsdistill.methods.base import Weight
from rsdistill.methods.lad import LAD

NAMES = [*METHODS, "lad"]
LOSSES = [name for name in NAMES if name != "ce"]
CRITICS = {"skd": "holistic", "mgsad": "affinity"}
"""The terms that a critic judges, and that do not measure a distance to the teacher."""
NOT_A_DISTANCE = {"cbd": "labels", "mgd": "pixel"} | CRITICS


def build(name, **options):
    if name == "lad":
        return LAD(**options)
    return load_method(name, {f"{name}.{option}": value for option, value in options.items()})


def lambdas(name):
    """The options of a method that are weights of its terms."""
    kind = type(build(name))
    hints = get_type_hints(kind.__init__, include_extras=True)
    return [option for option in options_of(kind) if hints[option] == Weight or Weight in get_args(hints[option])]


def big(case, name, **options):
    """A case that every method takes: a tile of 32 pixels, two teachers where the method wants two."""
    settings = {"tile": (32, 32), "student": (8, 8), "teacher": (8, 8), "dtype": torch.float32} | options
    return case(teachers=2 if name == "mgd" else 1, **settings)


def total(method, terms):
    return torch.stack([method.weights[term] * value for term, value in terms.items()]).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_finite_scalars_under_the_names_of_the_weights(case, name):
    method = build(name)
    terms = big(case, name).run(method)
    assert terms.keys() == method.weights.keys()
    assert terms
    for value in terms.values():
        assert value.shape == ()
        assert value.isfinite()
        assert value.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_reach_the_student_and_no_teacher(case, name):
    example = big(case, name)
    method = build(name)
    total(method, example.run(method)).backward()
    reached = [maps.grad for maps in example.student[:2] if maps.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in reached)
    assert all(gradient.isfinite().all() for gradient in reached)
    assert all(maps.grad is None for teacher in example.teachers for maps in teacher[:2])


@pytest.mark.parametrize("name", LOSSES)
def test_every_term_pulls_at_the_student(case, name):
    for term in build(name).weights:
        example, method = big(case, name), build(name)
        method.schedule(0.5)
        example.run(method)[term].backward()
        assert sum(float(maps.grad.abs().sum()) for maps in example.student[:2] if maps.grad is not None) > 0, term


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_that_equals_its_teacher_costs_nothing(case, name):
    method = build(name)
    for term, value in big(case, name, dtype=torch.float64).same().values(method).items():
        if term != NOT_A_DISTANCE.get(name):
            assert value == pytest.approx(0, abs=1e-12), term


@pytest.mark.parametrize("name", LOSSES)
def test_hidden_pixels_change_neither_terms_nor_gradients(case, name):
    """Not even if they hold no numbers: images, labels, logits and features at nodata, logits and features at unlabelled pixels."""
    example = big(case, name, student=(32, 32), teacher=(32, 32))
    hidden = ~example.batch.valid | (example.batch.label == IGNORE)
    assert (example.batch.valid & (example.batch.label == IGNORE)).any()

    def spoiled(maps):
        return maps.masked_fill(hidden[:, None], torch.nan)

    batch = example.batch._replace(
        image=spoiled(example.batch.image), label=torch.where(example.batch.valid, example.batch.label, (example.batch.label + 1) % 3)
    )
    other = example._replace(batch=batch)
    for field in ("logits", "features"):
        other = other.with_student(spoiled, field).with_teachers(spoiled, field)
    results = []
    for each in (example, other):
        torch.manual_seed(0)
        method = build(name)
        terms = each.run(method)
        total(method, terms).backward()
        results.append(
            (
                {term: value.item() for term, value in terms.items()},
                {term: value.item() for term, value in method.critic_terms(*each[:2], *each.teachers).items()},
                [maps.grad for maps in each.student[:2] if maps.grad is not None],
            )
        )
    (terms, critic, gradients), (other_terms, other_critic, other_gradients) = results
    assert terms == pytest.approx(other_terms, rel=1e-5)
    assert critic == pytest.approx(other_critic, rel=1e-5)
    for gradient, other_gradient in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-4, atol=1e-8)
        assert not gradient.masked_select(hidden[:, None]).any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["ignored", "nodata"])
def test_a_batch_without_a_pixel_gives_a_finite_zero(case, name, how):
    example = big(case, name)
    batch = example.batch
    empty = {"ignored": {"label": torch.full_like(batch.label, IGNORE)}, "nodata": {"valid": torch.zeros_like(batch.valid)}}[how]
    example = example._replace(batch=batch._replace(**empty))
    method = build(name)
    terms = example.run(method)
    total(method, terms).backward()
    assert all(value.item() == 0 for value in terms.values())
    assert all(not maps.grad.any() for maps in example.student[:2] if maps.grad is not None)
    assert all(value.item() == 0 for value in method.critic_terms(*example[:2], *example.teachers).values())


@pytest.mark.parametrize("name", LOSSES)
def test_neither_copies_nor_order_of_images_matter(case, name):
    example, method = big(case, name, images=3, dtype=torch.float64), build(name)
    value = example.values(method)
    assert example.rows([2, 0, 1]).values(method) == pytest.approx(value, rel=1e-9)
    assert example.rows([0, 1, 2, 0, 1, 2]).values(method) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "shape",
    [
        {"tile": (37, 41), "student": (5, 6), "teacher": (9, 11), "widths": (3, 7)},
        {"tile": (33, 32), "student": (17, 16), "teacher": (5, 4), "widths": (9, 5)},
        {"images": 1, "classes": 2},
        {"images": 1, "classes": 2, "student": (1, 1), "teacher": (2, 3)},
    ],
    ids=["odd", "finer", "one", "cell"],
)
def test_any_stride_width_class_count_and_batch(case, name, shape):
    example, method = big(case, name, **shape), build(name)
    terms = example.run(method)
    total(method, terms).backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(maps.grad.isfinite().all() for maps in example.student[:2] if maps.grad is not None)
    assert all(parameter.grad is not None for parameter in method.student_parameters())
    critic = method.critic_terms(*example[:2], *example.teachers)
    assert all(value.isfinite() for value in critic.values())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_judged_in_full_precision(case, name, dtype):
    example = big(case, name)

    def rounded(outputs):
        return Segmentation(*(maps.detach().to(dtype).requires_grad_() for maps in outputs[:2]))

    half = example._replace(student=rounded(example.student), teachers=tuple(map(rounded, example.teachers)))
    full = half._replace(student=Segmentation(*(maps.detach().float() for maps in half.student[:2])))
    method = build(name)
    method.setup(half.student, *half.teachers)
    expected = full.values(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = half.run(method)
        critic = method.critic_terms(*half[:2], *half.teachers)
    total(method, terms).backward()
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert all(maps.grad.isfinite().all() for maps in half.student[:2] if maps.grad is not None)
    assert {term: value.item() for term, value in terms.items()} == pytest.approx(expected, rel=1e-6)
    assert all(value.dtype == torch.float32 for value in critic.values())
    exact = example.values(method)
    for term, value in terms.items():
        assert value.item() == pytest.approx(exact[term], rel=0.05, abs=0.02), term


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_zero_leave_nothing_behind(case, name):
    options = dict.fromkeys(lambdas(name), 0)
    assert options
    method = build(name, **options)
    example = big(case, name)
    assert example.run(method) == {}
    assert method.critic_terms(*example[:2], *example.teachers) == {}
    assert method.critic is None
    assert not list(method.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(case, name):
    options = {CRITICS[name]: 0} if name in CRITICS else {}
    example = case(tile=(4, 3), widths=(3, 4), teachers=2 if name == "mgd" else 1)
    method = build(name, **options)
    method.setup(example.student, *example.teachers)

    def value(logits, features):
        return total(method, method(example.batch, Segmentation(logits, features), *example.teachers))

    assert torch.autograd.gradcheck(value, example.student[:2])


@pytest.mark.parametrize("name", LOSSES)
def test_a_saved_state_goes_into_a_fresh_method(case, name):
    example = big(case, name, widths=(3, 6))
    first, second = build(name), build(name)
    example.run(first)
    second.setup(example.student, *example.teachers)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert example.values(first) == example.values(second)
    made = dict(second.named_parameters())
    second.setup(example.student, *example.teachers)
    assert all(made[key] is parameter for key, parameter in second.named_parameters()), "setup makes nothing twice"


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in METHODS if name != "ce"), ("drd", {"form": "softmax"}), ("skd", {"nodes": "half"})]
)
def test_no_matrix_of_pixels_by_pixels_is_built(case, largest, name, options):
    side = 48
    example = big(case, name, tile=(96, 96), student=(side, side), teacher=(side, side), images=1)
    method = build(name, **options)
    method.setup(example.student, *example.teachers)
    with largest:
        total(method, example.run(method)).backward()
    assert largest.elements < side**4 / 2


def test_plain_losses_make_the_same_numbers_on_float32_and_float64(case):
    for name in LOSSES:
        options = {CRITICS[name]: 0} if name in CRITICS else {}
        if name == "idd":
            options = {"position": 0}
        narrow, wide = (big(case, name, dtype=dtype).values(build(name, **options)) for dtype in (torch.float32, torch.float64))
        assert narrow == pytest.approx(wide, rel=1e-4, abs=1e-7), name
