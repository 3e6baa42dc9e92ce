"""Where maps lie on their image, and cutting them out: measured against arithmetic, loops in float64 and grid_sample."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import roi_align

from rsdistill.models.backbones import STRIDES, measured_offsets
from rsdistill.models.registration import cell_offsets, crop, rise


@pytest.mark.parametrize(
    ("encoder", "middle"),
    [
        ("resnet18", lambda s: 0.5),
        ("mobilenetv2_100", lambda s: 0.5),
        ("mobilenetv4_conv_small_050", lambda s: 0.5),
        ("convnext_atto", lambda s: s / 2),
        ("tf_efficientnet_b0", lambda s: s - 0.5),
    ],
)
def test_the_middle_of_cell_0_is_where_its_padding_puts_it(encoder: str, middle: Callable[[int], float]) -> None:
    assert measured_offsets(encoder) == tuple(stride / 2 - middle(stride) for stride in STRIDES)


@pytest.mark.parametrize("layers", [[(3, 2, 1), (3, 2, 1)], [(2, 2, 0), (2, 2, 0)], [(7, 2, 3), (2, 2, 0)], [(3, 2, 0), (5, 2, 2)]])
def test_offsets_of_stacked_convolutions_follow_from_kernel_stride_and_padding(layers: list[tuple[int, int, int]]) -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(1, 1, kernel, stride, padding) for kernel, stride, padding in layers)

        def forward(self, image: Tensor) -> list[Tensor]:
            return [image := layer(image) for layer in self.layers]

    expected, strides, middle, step = [], [], 0.5, 1
    for kernel, stride, padding in layers:
        middle += step * ((kernel - 1) / 2 - padding)
        step *= stride
        strides.append(step)
        expected.append(step / 2 - middle)
    assert cell_offsets(Stack(), tuple(strides)) == tuple(expected)


def test_measuring_leaves_random_numbers_and_the_encoder_alone() -> None:
    encoder = nn.ModuleList([nn.Conv2d(1, 1, 3, 2, 1)])
    before, state = encoder[0].weight.clone(), torch.get_rng_state()
    measured_offsets.cache_clear()
    measured_offsets("mobilenetv4_conv_small_035")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(before, encoder[0].weight)


def naive_crop(maps: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """One map (C, h, w) float64: each sample from the four cells around it, edges repeated."""
    channels, height, width = maps.shape
    out = torch.zeros(channels, *size, dtype=torch.float64)
    top, left, bottom, right = box
    for y in range(size[0]):
        for x in range(size[1]):
            v = top + (y + 0.5) * (bottom - top) / size[0] - 0.5
            u = left + (x + 0.5) * (right - left) / size[1] - 0.5
            for row, down in ((math.floor(v), 1 - v + math.floor(v)), (math.floor(v) + 1, v - math.floor(v))):
                for col, across in ((math.floor(u), 1 - u + math.floor(u)), (math.floor(u) + 1, u - math.floor(u))):
                    out[:, y, x] += down * across * maps[:, min(max(row, 0), height - 1), min(max(col, 0), width - 1)]
    return out


edge = st.floats(-9, 20, width=32)


@settings(max_examples=60, deadline=None)
@given(st.tuples(edge, edge, st.floats(0.5, 12, width=32), st.floats(0.5, 12, width=32)), st.integers(1, 5), st.integers(1, 5))
def test_crop_is_bilinear_interpolation_wherever_the_box_lies(place: tuple[float, ...], height: int, width: int) -> None:
    maps = torch.randn(2, 3, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    top, left, down, across = place
    box = torch.tensor([[top, left, top + down, left + across], [1.0, 2.0, 4.5, 6.0]])
    cut = crop(maps, box, torch.tensor([1, 0]), (height, width))
    for n, m in ((0, 1), (1, 0)):
        expected = naive_crop(maps[m], box[n].double().tolist(), (height, width))
        assert torch.allclose(cut[n].double(), expected, atol=2e-5)


def test_crop_equals_grid_sample_with_repeated_borders() -> None:
    maps = torch.rand(1, 4, 40, 56)
    box = torch.rand(16, 4)
    box = torch.cat([box[:, :2] * 20, 20 + box[:, 2:] * 20], dim=1)
    cut = crop(maps, box, torch.zeros(16, dtype=torch.long), (24, 24))
    box, maps, steps = box.double(), maps.double(), (torch.arange(24) + 0.5) / 24
    rows = (box[:, :1] + steps * (box[:, 2:3] - box[:, :1])) / 40 * 2 - 1
    cols = (box[:, 1:2] + steps * (box[:, 3:] - box[:, 1:2])) / 56 * 2 - 1
    grid = torch.stack([cols[:, None, :].expand(-1, 24, -1), rows[:, :, None].expand(-1, -1, 24)], dim=-1)
    expected = F.grid_sample(maps.expand(16, -1, -1, -1), grid, padding_mode="border", align_corners=False)
    assert torch.allclose(cut.double(), expected, atol=1e-5)


def test_crop_equals_roi_align_with_one_aligned_sample() -> None:
    maps, index = torch.rand(2, 4, 40, 56), torch.randint(2, (16,))
    box = torch.cat([torch.rand(16, 2) * 20, 20 + torch.rand(16, 2) * 20], dim=1)
    rois = torch.cat([index[:, None], box[:, [1, 0, 3, 2]]], dim=1)
    expected = roi_align(maps, rois, (16, 24), sampling_ratio=1, aligned=True)
    assert torch.allclose(crop(maps, box, index, (16, 24)), expected, atol=1e-5)


def test_a_crop_does_not_depend_on_the_tiles_beside_it() -> None:
    maps, index = torch.rand(1, 4, 40, 56), torch.zeros(3, dtype=torch.int64)
    box = torch.tensor([[-3.0, 1.0, 5.0, 9.0], [20.2, 30.4, 26.9, 41.0], [33.0, 50.0, 44.0, 61.0]])
    together = crop(maps, box, index, (16, 16))
    alone = torch.cat([crop(maps, box[n : n + 1], index[:1], (16, 16)) for n in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_crop_of_the_whole_map_is_the_map() -> None:
    maps = torch.randn(2, 3, 9, 13)
    whole = torch.tensor([[0.0, 0.0, 9.0, 13.0]]).repeat(2, 1)
    assert torch.allclose(crop(maps, whole, torch.arange(2), (9, 13)), maps, atol=1e-6)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flipped", [False, True])
def test_turning_map_and_box_turns_the_crop(turns: int, flipped: bool) -> None:
    maps, index = torch.randn(1, 2, 12, 12), torch.tensor([0])
    top, left, bottom, right = 1.3, 2.7, 6.9, 8.2
    turned, box = torch.rot90(maps, turns, (2, 3)), [top, left, bottom, right]
    for _ in range(turns):
        box = [12 - box[3], box[0], 12 - box[1], box[2]]
    if flipped:
        turned, box = turned.flip(3), [box[0], 12 - box[3], box[2], 12 - box[1]]
    expected = torch.rot90(crop(maps, torch.tensor([[top, left, bottom, right]]), index, (5, 5)), turns, (2, 3))
    assert torch.allclose(crop(turned, torch.tensor([box]), index, (5, 5)), expected.flip(3) if flipped else expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_canvas_is_cut_at_exact_places(dtype: torch.dtype) -> None:
    ramp = (torch.arange(6000) % 2).to(dtype).view(1, 1, 1, 6000)
    cut = crop(ramp, torch.tensor([[0.0, 5000.25, 1.0, 5004.25]]), torch.tensor([0]), (1, 4))
    # Coordinates of half precision step by 4 here; a quarter of a cell to the right mixes neighbours 3 to 1.
    assert cut.dtype == torch.float32
    assert torch.allclose(cut.flatten(), torch.tensor([0.25, 0.75, 0.25, 0.75]), atol=2e-3)


def test_crop_under_autocast_is_float32_and_gradients_reach_only_what_it_reads() -> None:
    maps = torch.randn(1, 2, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        cut = crop(maps, torch.tensor([[4.0, 8.0, 8.0, 12.0]]), torch.tensor([0]), (4, 4))
    assert cut.dtype == torch.float32
    cut.sum().backward()
    assert torch.equal(maps.grad[0, 0].nonzero().amin(0), torch.tensor([4, 8]))
    assert torch.equal(maps.grad[0, 0].nonzero().amax(0), torch.tensor([7, 11]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([2, 4, 8]), st.floats(-0.99, 0))
def test_rise_is_linear_interpolation_on_the_shifted_grid(height: int, width: int, factor: int, offset: float) -> None:
    coarse = torch.randn(1, 2, height, width, dtype=torch.float64)
    size = (height * factor - 1, width * factor)
    risen = rise(coarse, factor, offset, size)
    assert risen.shape == (1, 2, *size)
    # Fine cell i lies at i / factor + offset coarse cells from coarse cell 0.
    first = offset + 0.5 - 0.5 / factor
    box = [first, first, first + size[0] / factor, first + size[1] / factor]
    expected = naive_crop(coarse[0], box, size)
    assert torch.allclose(risen[0], expected, atol=1e-9)


def test_rise_of_centred_cells_is_what_torch_does() -> None:
    coarse = torch.randn(2, 3, 6, 9)
    expected = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.allclose(rise(coarse, 4, 0.5 / 4 - 0.5, (24, 36)), expected, atol=1e-6)


@pytest.mark.parametrize("encoder", ["mobilenetv4_conv_small_035", "convnext_atto"])
@pytest.mark.parametrize(("tile", "ratio"), [(256, 8), (96, 9), (128, 5)])
def test_guidance_and_mask_lie_where_the_tile_lies(lively: Callable[..., nn.Module], encoder: str, tile: int, ratio: int) -> None:
    """Canvas cells that hold their own place in the context reach the tile's cells as exactly their place in the context."""
    network = lively("ginet", encoder=encoder, context_ratio=ratio)
    padded = encoder != "convnext_atto"
    canvas = network.encode_context(torch.zeros(1, 3, 128, 128), torch.ones(1, 128, 128, dtype=torch.bool))

    def places(stride: int, count: int) -> Tensor:
        return stride * torch.arange(count) + (0.5 if padded else stride / 2)

    def ramp(maps: Tensor, stride: int) -> Tensor:
        filled = torch.zeros_like(maps)
        filled[:, 0], filled[:, 1] = places(stride, maps.shape[2])[:, None], places(stride, maps.shape[3])[None, :]
        return filled

    canvas = canvas._replace(
        guidance=tuple(ramp(maps, stride) for maps, stride in zip(canvas.guidance, STRIDES, strict=True)), mask=ramp(canvas.mask, 4)
    )
    seen: list[Tensor] = []
    for norm in network.local.norms:
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 8:]))
    top, left, side = 37.25, 50.5, tile / ratio
    box = torch.tensor([[top, left, top + side, left + side]]) / 128
    with torch.no_grad():
        network.decode(torch.zeros(1, 3, tile, tile), canvas, box, torch.tensor([0]))
    for stride, cut in zip((*STRIDES, 4), seen, strict=True):
        cells = places(stride, tile // stride) / ratio
        assert torch.allclose(cut[0, 0], (top + cells)[:, None].expand(len(cells), len(cells)), atol=1e-3)
        assert torch.allclose(cut[0, 1], (left + cells)[None, :].expand(len(cells), len(cells)), atol=1e-3)
