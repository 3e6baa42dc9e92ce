"""The global branch: contexts of any size, nodata, the fixed window, and a scene's context taken in windows."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.models import build_network, margins
from rsdistill.models.context import full_size_logits, running_statistics
from rsdistill.models.ginet import GINet
from rsdistill.models.margins import MARGINS, canvas_margin, window_errors

LIGHT = "mobilenetv4_conv_small_035"
Lively = Callable[..., GINet]


def everywhere(image: Tensor) -> Tensor:
    return torch.ones(len(image), *image.shape[-2:], dtype=torch.bool)


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (33, 50), (64, 96)])
def test_contexts_of_any_size_are_taken(lively: Lively, size: tuple[int, int]) -> None:
    network, image = lively("ginet"), torch.randn(2, 3, *size)
    with torch.no_grad():
        canvas = network.encode_context(image, everywhere(image))
    for stride, maps in zip((4, 8, 16, 32), canvas.guidance, strict=True):
        assert maps.shape == (2, 16, -(-size[0] // stride), -(-size[1] // stride))
    assert canvas.mask.shape[-2:] == canvas.logits.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    assert full_size_logits(canvas, network.local.encoder).shape == (2, 3, *size)


def test_a_canvas_of_128_channels_takes_58_and_a_half_bytes_a_context_pixel(lively: Lively) -> None:
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        canvas = lively("ginet", dim=128).encode_context(image, everywhere(image))
    assert sum(maps.half().nbytes for maps in (*canvas.guidance, canvas.mask)) == 58.5 * 64 * 96


def test_a_small_context_is_one_with_its_edges_repeated(lively: Lively) -> None:
    network, image = lively("ginet"), torch.randn(1, 3, 40, 50)
    wide = F.pad(image, (0, 14, 0, 24), mode="replicate")
    with torch.no_grad():
        small, large = network.encode_context(image, everywhere(image)), network.encode_context(wide, everywhere(wide))
    assert torch.equal(small.mask, large.mask[..., :10, :13])
    assert torch.equal(small.guidance[0], large.guidance[0][..., :10, :13])


@pytest.mark.parametrize("ggn", ["spatial", "vector"])
def test_what_is_not_valid_has_no_say(lively: Lively, ggn: str) -> None:
    network, image = lively("ginet", ggn=ggn), torch.randn(1, 3, 64, 64)
    valid = everywhere(image)
    valid[:, 10:40, 20:] = False
    with torch.no_grad():
        canvas = network.encode_context(image, valid)
        image[:, :, 10:40, 20:] = 1e4
        again = network.encode_context(image, valid)
    assert torch.equal(canvas.mask, again.mask)
    assert all(torch.equal(one, other) for one, other in zip(canvas.guidance, again.guidance, strict=True))


def test_vector_guidance_is_the_mean_over_the_valid_part(lively: Lively) -> None:
    vector, spatial = lively("ginet", ggn="vector"), lively("ginet")
    spatial.load_state_dict(vector.state_dict())
    image = torch.randn(2, 3, 64, 64)
    valid = torch.rand(2, 64, 64) < torch.linspace(0, 1, 64)
    valid[1] = False
    with torch.no_grad():
        means, maps = vector.encode_context(image, valid).guidance, spatial.encode_context(image, valid).guidance
    for stride, mean, field in zip((4, 8, 16, 32), means, maps, strict=True):
        total, weight = torch.zeros(16, dtype=torch.float64), 0.0
        for row in range(64 // stride):
            for col in range(64 // stride):
                share = float(valid[0, row * stride : (row + 1) * stride, col * stride : (col + 1) * stride].double().mean())
                total, weight = total + share * field[0, :, row, col].double(), weight + share
        assert torch.allclose(mean[0, :, 0, 0].double(), total / weight, atol=1e-5)
        assert torch.equal(mean[1], torch.zeros(16, 1, 1))


def test_logits_rise_to_the_pixels_that_their_cells_see(lively: Lively) -> None:
    network, image = lively("ginet"), torch.randn(1, 3, 64, 96)
    canvas = network.encode_context(image, everywhere(image))
    # A padded encoder's cell i is centred on pixel 4 i.
    ramp = (4 * torch.arange(24.0) + 0.5).expand(1, 3, 16, 24)
    risen = full_size_logits(canvas._replace(logits=ramp), network.local.encoder)
    assert torch.allclose(risen[0, 0, 7, :92], torch.arange(92) + 0.5, atol=1e-4)


def test_a_context_in_windows_with_the_measured_margin_answers_as_the_whole(lively: Lively) -> None:
    network = lively("ginet", encoder="resnet18")
    margin = canvas_margin(network)
    assert 32 < margin <= 192
    scene = F.interpolate(torch.randn(1, 3, 20, 48), scale_factor=16, mode="bilinear", align_corners=False)
    tile, first = torch.randn(1, 3, 256, 256), torch.tensor([0])
    with torch.no_grad():
        whole = network.encode_context(scene, everywhere(scene))
        for row, col in ((0, 384), (160, 352), (288, 736)):
            top, left = max(0, row - margin), max(0, col - margin)
            window = scene[..., top : row + 32 + margin, left : col + 32 + margin].contiguous()
            part = network.encode_context(window, everywhere(window))
            here = torch.tensor([[row - top, col - left, row - top + 32, col - left + 32]]) / torch.tensor([*part.size, *part.size])
            there = torch.tensor([[row, col, row + 32, col + 32]]) / torch.tensor([*whole.size, *whole.size])
            error = network.decode(tile, part, here, first).logits - network.decode(tile, whole, there, first).logits
            assert error.square().mean().sqrt() <= 1e-3 * network.decode(tile, whole, there, first).logits.std()


def test_the_margin_follows_what_the_encoder_sees(lively: Lively) -> None:
    near_seeing, far_seeing = (dict(window_errors(lively("ginet", encoder=encoder))) for encoder in ("resnet18", LIGHT))
    assert list(near_seeing) == list(far_seeing) == list(MARGINS)
    assert near_seeing[32] > 5 * near_seeing[96] > 25 * near_seeing[192]
    assert near_seeing[128] < 0.1 * far_seeing[128]


def test_the_largest_margin_is_the_answer_where_none_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("ginet-lite", {}, 3, 2)
    monkeypatch.setattr(margins, "window_errors", lambda network: iter([(32, 0.1), (64, 0.02), (384, 0.01)]))
    assert [canvas_margin(network, tolerance=tolerance) for tolerance in (1, 0.02, 0.015, 0)] == [32, 64, 384, 384]


def test_running_statistics_are_used_and_left_alone_for_a_while(lively: Lively) -> None:
    encoder = lively("ginet").train().local.encoder
    image = torch.randn(2, 3, 64, 64)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with running_statistics(encoder):
        frozen = encoder(image)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(frozen[0], encoder.eval()(image)[0])
    encoder.train()(image)
    assert any(not torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
