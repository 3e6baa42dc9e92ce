"""The shared top-down pyramid: norms that make no seams, and sums of maps at the right places."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rsdistill.models.pyramid import ChannelNorm, Laterals, conv_block, norm_layer, top_down

STRIDES = (4, 8, 16)


@pytest.mark.parametrize("kind", ["bn", "ln"])
def test_norms_give_overlapping_tiles_the_same_numbers(kind: str) -> None:
    scene, norm = torch.randn(1, 6, 16, 40) * torch.linspace(0.1, 5, 40), norm_layer(kind, 6)
    norm(scene)
    norm.eval()
    left, right = norm(scene[..., :24]), norm(scene[..., 16:])
    assert torch.equal(left[..., 16:], right[..., :8])


def test_channel_norm_is_layer_norm_over_each_pixel() -> None:
    norm = ChannelNorm(5).double()
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    out = norm(features)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                pixel = features[b, :, y, x]
                expected = (pixel - pixel.mean()) / (((pixel - pixel.mean()) ** 2).mean() + 1e-5).sqrt()
                assert torch.allclose(out[b, :, y, x], expected, atol=1e-12)


@pytest.mark.parametrize(("kind", "parameters"), [("bn", 0), ("ln", 0)])
def test_a_norm_without_affine_has_no_parameters(kind: str, parameters: int) -> None:
    assert sum(p.numel() for p in norm_layer(kind, 6, affine=False).parameters()) == parameters


def sampled(coarse: Tensor, at: float, axis_cells: int) -> list[tuple[int, float]]:
    """Cells and weights of linear interpolation at position ``at`` in cells, edges repeated."""
    low = int(at // 1)
    weights = [(low, 1 - (at - low)), (low + 1, at - low)]
    return [(min(max(cell, 0), axis_cells - 1), weight) for cell, weight in weights]


@pytest.mark.parametrize("middle", [lambda s: 0.5, lambda s: s / 2, lambda s: s - 0.5], ids=["padded", "patchify", "tensorflow"])
def test_top_down_adds_what_lies_at_each_cells_true_place(middle: Callable[[int], float]) -> None:
    offsets = [stride / 2 - middle(stride) for stride in STRIDES]
    maps = [torch.randn(1, 2, 32 // stride, 48 // stride, dtype=torch.float64) for stride in STRIDES]
    summed = top_down(maps, STRIDES, offsets)
    expected = [maps[2]]
    for level in (1, 0):
        fine, coarse, step = maps[level].clone(), expected[0], STRIDES[level + 1]
        for y in range(fine.shape[2]):
            for x in range(fine.shape[3]):
                v = (STRIDES[level] * y + middle(STRIDES[level]) - middle(step)) / step
                u = (STRIDES[level] * x + middle(STRIDES[level]) - middle(step)) / step
                for row, down in sampled(coarse, v, coarse.shape[2]):
                    for col, across in sampled(coarse, u, coarse.shape[3]):
                        fine[0, :, y, x] += down * across * coarse[0, :, row, col]
        expected.insert(0, fine)
    for found, right in zip(summed, expected, strict=True):
        assert torch.allclose(found, right, atol=1e-12)


def test_maps_of_equal_stride_are_added_as_they_are() -> None:
    maps = [torch.randn(1, 2, 4, 4) for _ in range(2)]
    assert torch.equal(top_down(maps, (8, 8), (0.0, 0.0))[0], maps[0] + maps[1])


def test_laterals_bring_every_map_to_one_width() -> None:
    maps = [torch.randn(1, width, 4, 4) for width in (3, 5)]
    laterals = Laterals((3, 5), 7)
    brought = laterals(maps)
    assert [m.shape[1] for m in brought] == [7, 7]
    expected = torch.einsum("oc,bchw->bohw", laterals[1].weight[:, :, 0, 0], maps[1]) + laterals[1].bias[:, None, None]
    assert torch.allclose(brought[1], expected, atol=1e-6)


def test_conv_block_keeps_the_size_and_is_not_negative() -> None:
    out = conv_block(3, 5, "ln")(torch.randn(2, 3, 6, 7))
    assert out.shape == (2, 5, 6, 7)
    assert (out >= 0).all()
    assert not isinstance(conv_block(3, 5, "ln")[1], nn.BatchNorm2d)
