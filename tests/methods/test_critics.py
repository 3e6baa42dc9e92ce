import math

import pytest
import torch
from torch import nn

from rsdistill.methods import critics


def test_losses_of_an_undecided_critic():
    silent = torch.zeros(5)
    assert float(critics.hinge_loss(silent, silent)) == 2
    assert float(critics.wasserstein_loss(silent, silent)) == 0
    assert float(critics.bce(silent, 0.0)) == pytest.approx(math.log(2))
    assert float(critics.bce(silent, 1.0)) == pytest.approx(math.log(2))


def test_losses_of_a_critic_that_is_right():
    real, fake = torch.full((3,), 1.5), torch.full((3,), -2.0)
    assert float(critics.hinge_loss(real, fake)) == 0
    assert float(critics.wasserstein_loss(real, fake)) == -3.5
    assert float(critics.bce(20 * real, 1.0)) < 1e-9 < float(critics.bce(20 * real, 0.0))


def test_a_held_critic_passes_gradients_on_and_rests():
    critic = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    maps = torch.randn(2, 2, 5, 5, requires_grad=True)
    with critics.held(critic) as lent:
        lent(maps).square().sum().backward()
    assert maps.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    assert critic.training
    assert all(torch.equal(before[name], value) for name, value in critic.state_dict().items())


def test_a_critic_that_was_not_made_is_a_bug_with_a_name():
    with pytest.raises(RuntimeError, match="setup"), critics.held(None):
        pass


def test_gradient_penalty_of_a_linear_critic_is_that_of_its_slope():
    slope = torch.randn(2, 3, 3, dtype=torch.float64)

    class Linear(nn.Module):
        def forward(self, maps):
            return (maps * slope).sum((1, 2, 3))

    real, fake = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    assert float(critics.gradient_penalty(Linear(), real, fake)) == pytest.approx((float(slope.norm()) - 1) ** 2)


def test_self_attention_by_hand(by_hand):
    layer = critics.SelfAttention(8).double()
    maps = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    assert torch.equal(layer(maps), maps), "gamma starts at 0"
    layer.gamma.data.fill_(0.7)
    query, key, value = (part(maps)[0].flatten(1).T.tolist() for part in (layer.query, layer.key, layer.value))
    found = layer(maps)[0].detach().flatten(1).T
    for i in range(6):
        weights = by_hand.softmax([by_hand.dot(query[i], key[j]) for j in range(6)])
        for d in range(8):
            mixed = sum(weights[j] * value[j][d] for j in range(6))
            assert float(found[i, d]) == pytest.approx(float(maps[0].flatten(1)[d, i]) + 0.7 * mixed, rel=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (64, 80), (70, 300)])
def test_the_holistic_critic_scores_maps_of_any_size(size):
    critic = critics.HolisticCritic(3)
    scores = critic(torch.randn(2, 3, *size))
    assert scores.shape == (2,)
    assert scores.isfinite().all()
    assert [module.weight.shape[0] for module in critic.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)] == [
        64,
        128,
        256,
        512,
    ]


def test_the_affinity_critic_halves_five_times():
    critic = critics.AffinityCritic(16)
    assert critic(torch.randn(1, 16, 64, 96)).shape == (1, 1, 2, 3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in critic.modules())
