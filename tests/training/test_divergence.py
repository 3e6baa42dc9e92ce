"""Training that leaves the finite numbers, by methods that make it do so: named, taken back, and given up in good order."""

import pytest
import torch

from rsdistill.commands.distill import distill
from rsdistill.errors import ConfigError, DivergedError
from rsdistill.reporting import Silent

METHODS = '''
"""Methods of somebody else that spoil a run from its middle on, ``times`` times."""

import torch
from torch import nn

from rsdistill.methods.base import Method


class Spoiling(Method):
    teachers = 0
    from_share = 0.5

    def __init__(self, *, times: int = 1000):
        super().__init__(spoilt=1.0)
        self.times = times

    def schedule(self, progress):
        self.now = progress >= self.from_share and self.times > 0
        self.times -= self.now

    def forward(self, batch, student, *teachers):
        zero = student.logits.square().sum() * 0
        return {"spoilt": self.spoil(zero, student) if self.now else zero}


class Value(Spoiling):
    def spoil(self, zero, student):
        return zero.log()


class Gradient(Spoiling):
    def spoil(self, zero, student):
        return zero.sqrt()


class FirstGradient(Gradient):
    from_share = 0.0


class Weight(Spoiling):
    from_share = 0.0

    def spoil(self, zero, student):
        return student.logits.mean() * 1e15


class Critic(Spoiling):
    def setup(self, student, *teachers):
        self.critic = self.critic or nn.Linear(1, 1)

    def spoil(self, zero, student):
        return zero

    def critic_terms(self, batch, student, *teachers):
        return {"judged": self.critic.weight.sum() * (float("nan") if self.now else 1.0)}
'''


class Heard(Silent):
    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture
def train(tiles, tmp_path, monkeypatch):
    """Train eight steps by a method of METHODS; what was warned of is returned, the model is ``s.safetensors``."""
    (tmp_path / "spoiling.py").write_text(METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    heard = Heard()

    def trained(method, **options):
        how = {"student": "linear", "steps": 8, "batch": 2, "validate_every": 2, "threads": 1, "calibrate": 0} | options
        distill(tiles=tiles, out=tmp_path / "s.safetensors", method=f"spoiling:{method}", progress=heard, **how)
        return heard.warned

    trained.heard = heard
    return trained


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("Value", "term 'spoilt' is -inf at step 4, on scene at row"),
        ("Gradient", "the gradient of term 'spoilt' is not finite at step 4, on scene at row"),
        ("Critic", "term 'critic.judged' is nan at step 4, on scene at row"),
    ],
)
def test_what_stays_broken_is_named_and_the_last_good_state_kept(train, tmp_path, method, says):
    with pytest.raises(DivergedError, match=says) as caught:
        train(method)
    assert "--lr" in caught.value.hint
    assert [line.rpartition("; ")[2] for line in train.heard.warned] == [
        f"back to step 4 with {factor} of the learning rate" for factor in ("0.5", "0.25", "0.125")
    ]
    assert not (tmp_path / "s.safetensors").exists()
    state = torch.load(tmp_path / "s.state.pt", weights_only=True)
    assert state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["objective"].values())


@pytest.mark.parametrize("method", ["Value", "Gradient"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_happens_once_costs_half_the_learning_rate(train, tmp_path, method, accumulate):
    """A gradient that stayed behind would spoil every further attempt."""
    warned = train(method, set={f"{method}.times": 1}, accumulate=accumulate)
    assert len(warned) == 1
    assert (tmp_path / "s.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("FirstGradient", {}, "the gradient of term 'spoilt' is not finite at step 0"),
        ("FirstGradient", {"clip": 0}, "the gradient of term 'spoilt' is not finite at step 0"),
        ("Weight", {"optimizer": "sgd", "lr": 1e30, "clip": 0}, "the weight 'network.weight' is not finite at step 0"),
    ],
)
def test_the_only_step_is_no_exception(train, tmp_path, method, options, says):
    with pytest.raises(DivergedError, match=says):
        train(method, steps=1, **options)
    assert len(train.heard.warned) == 3
    assert not (tmp_path / "s.safetensors").exists()


@pytest.mark.gpu
def test_half_precision_skips_single_steps_and_gives_up_on_many(train, tmp_path):
    assert train("Gradient", device="cuda", precision="fp16", set={"Gradient.times": 3}) == []
    with pytest.raises(DivergedError, match="gradient"):
        train("FirstGradient", device="cuda", precision="fp16", overwrite=True, steps=30)


def test_half_precision_without_an_accelerator_is_refused(train):
    with pytest.raises(ConfigError, match="--precision fp16"):
        train("Value", device="cpu", precision="fp16")
