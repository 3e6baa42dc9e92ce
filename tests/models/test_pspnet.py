"""PSPNet-D8 as the papers have it: output stride 8, and pyramid pooling against loops in float64."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.errors import ConfigError
from rsdistill.models import Network, build_network


def pooled(features: Tensor, side: int) -> Tensor:
    """Mean of (C, h, w) over a side x side grid of parts, each from floor to ceiling of its share."""
    channels, height, width = features.shape
    out = torch.zeros(channels, side, side, dtype=torch.float64)
    for row, col in itertools.product(range(side), range(side)):
        rows = range(row * height // side, math.ceil((row + 1) * height / side))
        cols = range(col * width // side, math.ceil((col + 1) * width / side))
        for y, x in itertools.product(rows, cols):
            out[:, row, col] += features[:, y, x] / (len(rows) * len(cols))
    return out


def spread(coarse: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of (C, s, s) to height x width, cells in the middle of their parts, edges repeated."""
    side = coarse.shape[1]
    out = torch.zeros(coarse.shape[0], height, width, dtype=torch.float64)
    for y, x in itertools.product(range(height), range(width)):
        v = min(max((y + 0.5) * side / height - 0.5, 0), side - 1)
        u = min(max((x + 0.5) * side / width - 0.5, 0), side - 1)
        for row, col in itertools.product((math.floor(v), math.ceil(v)), (math.floor(u), math.ceil(u))):
            down = 1.0 if math.floor(v) == math.ceil(v) else 1 - abs(v - row)
            across = 1.0 if math.floor(u) == math.ceil(u) else 1 - abs(u - col)
            halves = (1 if math.floor(v) != math.ceil(v) else 2) * (1 if math.floor(u) != math.ceil(u) else 2)
            out[:, y, x] += down * across / halves * coarse[:, row, col]
    return out


def test_pyramid_pooling_is_what_the_paper_draws(lively: Callable[..., Network]) -> None:
    network = lively("pspnet", encoder="test_resnet", dim=8).double()
    image = torch.randn(1, 3, 72, 104, dtype=torch.float64)
    with torch.no_grad():
        answer = network(image)
        last = answer.stages[-1][0]
        parts = [last]
        for side, block in zip((1, 2, 3, 6), network.pools, strict=True):
            conv, norm, _ = block
            cells = torch.einsum("oc,cyx->oyx", conv.weight[:, :, 0, 0], pooled(last, side))
            scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
            cells = (cells - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            parts.append(spread(cells.clamp(min=0), *last.shape[-2:]))
        features = network.bottleneck(torch.cat(parts)[None])
    assert last.shape[-2:] == (9, 13)
    assert torch.allclose(answer.features, features, atol=1e-9)
    assert torch.allclose(answer.logits, F.conv2d(features, network.classifier.weight, network.classifier.bias), atol=1e-9)


@pytest.mark.parametrize(("encoder", "features", "third"), [("resnet18", 128, 64), ("resnet50", 512, 256)])
def test_widths_and_strides_are_the_papers(encoder: str, features: int, third: int) -> None:
    network = build_network("pspnet", {"encoder": encoder}, 3, 5).eval()
    assert network.encoder.strides == (4, 8, 8, 8)
    assert network.classifier.in_channels == features
    assert network.aux[0][0].out_channels == third
    assert {pool[0].out_channels for pool in network.pools} == {network.encoder.channels[-1] // 4}
    assert network.stride == 8
    with torch.no_grad():
        answer = network(torch.randn(1, 3, 40, 48))
    assert answer.logits.shape == (1, 5, 5, 6)


def test_layers_three_and_four_are_dilated_instead_of_strided() -> None:
    body = build_network("pspnet", {}, 3, 5).encoder.body
    assert [body[name][1].conv2.dilation[0] for name in ("layer1", "layer2", "layer3", "layer4")] == [1, 1, 2, 4]


def test_the_auxiliary_head_speaks_in_training_only() -> None:
    network = build_network("pspnet", {"dim": 16}, 3, 5)
    image = torch.randn(2, 3, 64, 64)
    assert network.train()(image).aux.shape == (2, 5, 8, 8)
    assert network.eval()(image).aux is None


@pytest.mark.parametrize("arch", ["pspnet", "deeplabv3plus"])
def test_a_batch_of_one_cannot_train_what_pools_to_one_cell(arch: str) -> None:
    network = build_network(arch, {}, 3, 5).train()
    with pytest.raises(ConfigError, match="batch of one") as caught:
        network(torch.randn(1, 3, 64, 64))
    assert "--batch 2" in caught.value.hint
    assert network.eval()(torch.randn(1, 3, 64, 64)).logits.isfinite().all()


@pytest.mark.parametrize("args", [{"bins": ()}, {"bins": (0,)}, {"encoder": "densenet121"}])
def test_options_without_a_meaning_are_refused(args: dict) -> None:
    with pytest.raises(ConfigError, match=r"bins|densenet121"):
        build_network("pspnet", args, 3, 5)
