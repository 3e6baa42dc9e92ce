import math

import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.training.losses import Supervised, balanced_weights, cross_entropy


def naive(logits, label, weight):
    total = share = 0.0
    for b in range(label.shape[0]):
        for r in range(label.shape[1]):
            for c in range(label.shape[2]):
                k = int(label[b, r, c])
                if k == IGNORE:
                    continue
                scores = [float(value) for value in logits[b, :, r, c]]
                normaliser = math.log(sum(math.exp(score) for score in scores))
                total += weight[k] * (normaliser - scores[k])
                share += weight[k]
    return total / share


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0]])
def test_cross_entropy_is_the_mean_over_labelled_pixels(weight):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 5, 4), generator=generator)
    label[0, :2] = IGNORE
    value = cross_entropy(logits, label, None if weight is None else torch.tensor(weight))
    assert float(value) == pytest.approx(naive(logits, label, weight or [1, 1, 1]), rel=1e-6)


@pytest.mark.parametrize("names", [("ce",), ("ce", "dice", "focal")])
def test_an_ignored_tile_gives_zero_and_a_zero_gradient(names):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    terms = Supervised(names)(logits, torch.full((1, 8, 8), IGNORE))
    assert set(terms) == set(names)
    assert all(float(term.detach()) == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
def test_ignored_pixels_change_neither_loss_nor_gradient(name):
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 3, (1, 8, 8), generator=generator)
    label[:, :, :3] = IGNORE
    values = torch.randn(1, 3, 8, 8, generator=generator)
    other = values.clone()
    other[..., :3] += 5
    results = []
    for start in (values, other):
        logits = start.clone().requires_grad_()
        loss = Supervised((name,))(logits, label)[name]
        loss.backward()
        results.append((float(loss.detach()), logits.grad[..., 3:].clone(), float(logits.grad[..., :3].abs().max())))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)
    assert results[0][2] == 0


@pytest.mark.parametrize("name", ["ce", "dice", "focal"])
def test_right_logits_cost_less_than_wrong_ones(name):
    label = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(2))
    right = 16.0 * (torch.nn.functional.one_hot(label, 3).permute(0, 3, 1, 2).float() - 0.5)
    loss = Supervised((name,))
    assert float(loss(right, label)[name]) < 0.01 < float(loss(-right, label)[name])


def test_balanced_weights_follow_the_inverse_square_root_of_the_share():
    weights = balanced_weights([100, 400, 1600])
    assert float(weights.mean()) == pytest.approx(1)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 0.5, 0.25])
    assert float(balanced_weights([100, 0])[1]) == pytest.approx(1)
