"""Sizes and gradient norms of a loss's terms before training."""

import pytest
import torch
from torch import nn

from rsdistill.reporting import Silent
from rsdistill.training.calibration import Pull, balanced, measure, report
from rsdistill.training.objectives import Objective


class Known(Objective):
    """Two terms whose gradients are known: ``ce`` = 3 w₀ + 4 w₁ and ``far`` = 1000 w₀, plus one that pulls at nothing."""

    def __init__(self):
        nn.Module.__init__(self)
        self.network = nn.Linear(2, 1, bias=False)
        self.network.register_buffer("seen", torch.zeros(()))
        self.method = None

    def forward(self, batch, step):
        weight = self.network.weight[0]
        self.network.seen += 1
        return {"ce": batch * (3 * weight[0] + 4 * weight[1]), "far": 1000 * weight[0], "idle": torch.tensor(2.0)}


class Heard(Silent):
    def __init__(self):
        self.said, self.warned = [], []

    def message(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


def test_norms_are_those_of_the_gradient_and_the_objective_is_left_as_it_was():
    objective = Known()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    pulls = measure(objective, [1.0, 3.0])
    assert pulls["ce"].gradient == pytest.approx(10)  # the mean of 5 and 15
    assert pulls["far"].gradient == pytest.approx(1000)
    assert pulls["idle"] == Pull(2.0, 0.0)
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_balanced_weights_make_the_gradients_match_the_ratio():
    pulls = {"ce": Pull(1, 10), "far": Pull(1, 1000), "idle": Pull(2, 0)}
    weights = balanced(pulls, {"far": 7.0, "idle": 3.0}, 0.5)
    assert weights["far"] * pulls["far"].gradient == pytest.approx(0.5 * pulls["ce"].gradient)
    assert weights["idle"] == 3.0


def test_a_term_far_from_the_others_is_warned_of():
    heard = Heard()
    report({"ce": Pull(1, 10), "far": Pull(1, 1001)}, {}, heard)
    assert len(heard.said) == 2
    assert "'far' pulls 100 times as hard as 'ce'" in heard.warned[0]
    report({"ce": Pull(1, 10), "near": Pull(1, 900)}, {}, heard)
    assert len(heard.warned) == 1
