"""Students: their size, the pyramid they read, and that nothing in them sees a whole tile."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rsdistill.models import Network, build_network

STUDENTS = ("tiny", "small", "base")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_one_dial_from_tiny_to_base() -> None:
    counts = [parameters(build_network(arch, {}, 3, 6)) for arch in STUDENTS]
    assert [round(count / 1e6, 1) for count in counts] == [0.2, 0.4, 1.9]


def test_a_student_is_ten_times_smaller_than_the_default_teacher() -> None:
    assert parameters(build_network("ginet", {}, 3, 6)) > 10 * parameters(build_network("small", {}, 3, 6))


@pytest.mark.parametrize("arch", [*STUDENTS, "local"])
def test_what_lies_far_away_in_a_tile_changes_nothing(lively: Callable[..., Network], arch: str) -> None:
    """Squeeze-excite, image pooling or norms over the tile would let every pixel see every other, and overlapping tiles disagree."""
    args = {} if arch == "local" else {"dim": 8}
    network, strip = lively(arch, **args), torch.randn(1, 3, 32, 2048)
    other = strip.clone()
    other[..., 1536:] = torch.randn(1, 3, 32, 512)
    with torch.no_grad():
        one, two = network(strip).logits, network(other).logits
    assert torch.equal(one[..., :64], two[..., :64])
    assert not torch.equal(one[..., 384:], two[..., 384:])


@pytest.mark.parametrize("arch", [*STUDENTS, "ginet-lite"])
def test_no_student_squeezes_and_excites(arch: str) -> None:
    kinds = {type(module).__name__ for module in build_network(arch, {}, 3, 6).modules()}
    assert not {kind for kind in kinds if "Squeeze" in kind or "Adaptive" in kind or kind == "SEModule"}


def test_overlapping_tiles_agree_inside_their_margins(lively: Callable[..., Network]) -> None:
    network, scene = lively("small"), torch.randn(1, 3, 32, 2560)
    with torch.no_grad():
        left, right = network(scene[..., :2048]).logits, network(scene[..., 512:]).logits
    # 512 pixels from either tile's border, the padding there is not seen any more.
    left, right = left[..., 128 + 128 : 512 - 128], right[..., 128 : 384 - 128]
    assert left.shape[-1] == 128
    assert torch.allclose(left, right, atol=1e-5)


def test_a_student_takes_any_convolutional_encoder_and_any_bands() -> None:
    network = build_network("small", {"encoder": "resnet18", "dim": 16}, 5, 3).eval()
    with torch.no_grad():
        answer = network(torch.randn(2, 5, 64, 32))
    assert answer.logits.shape == (2, 3, 16, 8)
    assert answer.features.shape == (2, 16, 16, 8)
    assert [stage.shape[1] for stage in answer.stages] == [64, 128, 256, 512]


def test_linear_begins_at_even_odds_and_learns_what_a_line_can_tell() -> None:
    network = build_network("linear", {}, 2, 2)
    image = torch.randn(4, 2, 16, 16)
    label = (image[:, 0] > image[:, 1]).long()
    assert torch.equal(network(image).logits, torch.zeros(4, 2, 16, 16))
    optimiser = torch.optim.SGD(network.parameters(), lr=5.0)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(image).logits, label).backward()
        optimiser.step()
    assert (network(image).logits.argmax(1) == label).float().mean() > 0.98
