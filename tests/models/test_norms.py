"""Norms whose statistics are shared by several processes are the same norms: weights, names, answers."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsdistill.models.backbones import synchronise_norms
from rsdistill.models.checkpoints import build_network
from rsdistill.models.context import running_statistics


@pytest.mark.parametrize("arch", ["tiny", "pspnet"])
def test_shared_norms_answer_as_before(arch):
    torch.manual_seed(0)
    network = build_network(arch, {}, 3, 4).train()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        network(image, None)  # so that running statistics are not those of the start
    network.eval()
    with torch.inference_mode():
        before, names = network(image, None).logits, list(network.state_dict())
        synchronise_norms(network)
        after = network(image, None).logits
    torch.testing.assert_close(after, before)
    assert list(network.state_dict()) == names
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_running_statistics_hold_for_shared_norms_too():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    synchronise_norms(network)
    with running_statistics(network):
        assert not network[1].training
    assert network[1].training
