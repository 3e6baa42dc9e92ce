import math
from collections import Counter

import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.methods import load_method
from rsdistill.methods.cbd import balance


def cbd(**options):
    return load_method("cbd", {f"cbd.{name}": value for name, value in options.items()})


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_value_by_hand(case, by_hand, alpha):
    example = case()
    counts = Counter(label for *_, label in example.pixels())
    raw = [counts[label] ** -alpha for *_, label in example.pixels()]
    weights = [value / by_hand.mean(raw) for value in raw]
    distill, labels = [], []
    for weight, (n, row, col, label) in zip(weights, example.pixels(), strict=True):
        student, teacher = (by_hand.at(outputs.logits, n, row, col) for outputs in (example.student, example.teacher))
        distill.append(weight * 4 * by_hand.kl(by_hand.softmax(teacher, 2), by_hand.softmax(student, 2)))
        labels.append(-weight * math.log(by_hand.softmax(student)[label]))
    terms = example.values(cbd(alpha=alpha, tau=2))
    assert terms["distill"] == pytest.approx(by_hand.mean(distill), rel=1e-6)
    assert terms["labels"] == pytest.approx(by_hand.mean(labels), rel=1e-6)


def test_without_balance_it_is_kd(case):
    example = case()
    assert example.values(cbd(alpha=0))["distill"] == pytest.approx(example.values(load_method("kd", {}))["kd"], rel=1e-6)


def test_with_full_balance_every_class_weighs_the_same():
    label = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1, 2, IGNORE]]])
    weights = balance(label, 4, 1.0)
    sums = [weights[label == k].sum().item() for k in range(3)]
    assert sums == pytest.approx([3.0, 3.0, 3.0])
    assert weights[label == IGNORE].item() == 0
    assert balance(label, 4, 0.0)[label != IGNORE].tolist() == pytest.approx([1.0] * 9)


def test_no_label_gives_no_loss_and_no_gradient(case):
    example = case()
    hidden = example._replace(batch=example.batch._replace(label=torch.full_like(example.batch.label, IGNORE)))
    terms = hidden.run(cbd())
    sum(terms.values()).backward()
    assert [value.item() for value in terms.values()] == [0, 0]
    assert not hidden.student.logits.grad.any()
