"""GINet: guided normalisation against loops, what each mode sees, one canvas for all tiles, and who learns from what."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rsdistill.batches import Context
from rsdistill.errors import ConfigError
from rsdistill.models import build_network
from rsdistill.models.ggn import GlobalGuidedNorm, Guide, PlainNorm
from rsdistill.models.ginet import GINet

Lively = Callable[..., GINet]


@pytest.fixture
def context() -> Context:
    boxes = torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.4, 0.3, 0.65, 0.55], [0.75, 0.75, 1.0, 1.0]])
    return Context(torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool), boxes, torch.tensor([0, 1, 1]))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(3, 3, 128, 128)


# --- guided normalisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_ggn_is_what_the_equation_says(training: bool) -> None:
    ggn = GlobalGuidedNorm(3, "bn").double().train(training)
    ggn.norm.running_mean.normal_()
    ggn.norm.running_var.uniform_(0.5, 2)
    local, guidance = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    if training:
        mean, var = local.mean(dim=(0, 2, 3)), local.var(dim=(0, 2, 3), unbiased=False)
    else:
        mean, var = ggn.norm.running_mean.clone(), ggn.norm.running_var.clone()
    out = ggn(local, guidance)
    for n, d, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        normed = (local[n, d, y, x] - mean[d]) / (var[d] + 1e-5).sqrt()
        expected = max(0.0, float(normed * (1 + guidance[n, d, y, x]) + guidance[n, 3 + d, y, x]))
        assert float(out[n, d, y, x]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_guidance_begins_at_zero_and_then_ggn_is_plain_normalisation(norm: str) -> None:
    guidance = Guide(8, 16)(torch.randn(2, 16, 4, 4))
    assert torch.equal(guidance, torch.zeros(2, 16, 4, 4))
    local = torch.randn(2, 8, 4, 4)
    assert torch.equal(GlobalGuidedNorm(8, norm)(local, guidance), PlainNorm(8, norm)(local))


def test_an_untrained_ginet_without_fusion_is_the_local_network(image: Tensor, context: Context) -> None:
    torch.manual_seed(3)
    ginet = build_network("ginet", {"fusion": False, "dim": 8}, 3, 4).eval()
    local = build_network("local", {"dim": 8}, 3, 4).eval()
    shared = {name: tensor for name, tensor in ginet.state_dict().items() if name in local.state_dict()}
    missing, unexpected = local.load_state_dict(shared, strict=False)
    # All but the scale and shift of the plain norms, which stand where the guidance is and begin at one and zero.
    assert set(missing) == {f"local.norms.{level}.norm.{name}" for level in range(4) for name in ("weight", "bias")}
    assert not unexpected
    with torch.no_grad():
        assert torch.equal(ginet(image, context).logits, local(image).logits)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "hears"),
    [
        ({}, True),
        ({"fusion": False}, True),
        ({"ggn": "vector", "fusion": False}, True),
        ({"ggn": "none"}, True),
        ({"ggn": "none", "fusion": False}, False),
        ({"ggn_strides": (), "fusion": False}, False),
        ({"shared_encoder": True}, True),
        ({"norm": "ln"}, True),
    ],
)
def test_each_mode_hears_the_context_or_does_not(lively: Lively, image: Tensor, context: Context, args: dict, hears: bool) -> None:
    network = lively("ginet", **args)
    with torch.no_grad():
        one, other = network(image, context), network(image, context._replace(image=-context.image))
    assert torch.equal(one.logits, other.logits) != hears
    # The auxiliary head reads the tile alone: what the network would say without its context.
    assert torch.equal(one.aux, other.aux)


def test_spatial_guidance_tells_places_apart_and_a_vector_does_not(lively: Lively, image: Tensor, context: Context) -> None:
    moved = context._replace(box=context.box.flip(0), index=torch.tensor([0, 1, 1]))
    for ggn, same in (("spatial", False), ("vector", True)):
        network = lively("ginet", ggn=ggn, fusion=False)
        with torch.no_grad():
            assert torch.equal(network(image, context).logits, network(image, moved).logits) == same


def test_only_the_named_strides_are_guided(lively: Lively) -> None:
    lite = build_network("ginet-lite", {}, 3, 4)
    assert [isinstance(norm, GlobalGuidedNorm) for norm in lite.local.norms] == [False, False, True, True]
    assert len(lite.context.guides) == 2
    assert lite.context.encoder is None
    assert len(lite.encoders) == 1
    full = lively("ginet")
    assert all(isinstance(norm, GlobalGuidedNorm) for norm in full.local.norms)
    assert len(full.encoders) == 2


def test_no_norm_outside_the_encoder_is_a_batch_norm_when_layer_norms_are_asked_for() -> None:
    network = build_network("ginet", {"norm": "ln", "encoder": "convnext_atto", "dim": 8}, 3, 4)
    assert not [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"norm": "in"}, "norm"),
        ({"norm": "gn"}, "norm"),
        ({"encoder": "test_efficientnet_gn"}, "differs from tile to tile|differ from tile to tile"),
        ({"encoder": "resnet81"}, "did you mean 'resnet18'"),
        ({"encoder": "vit_tiny_patch16_224"}, "strides"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "swin_tiny"),
        ({"encodr": "resnet18"}, "did you mean 'encoder'"),
        ({"dim": 0}, "dim"),
        ({"ggn": "spacial"}, "ggn"),
        ({"ggn_strides": (2,)}, "ggn_strides"),
        ({"context_ratio": 0}, "context_ratio"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_options_without_a_meaning_are_refused(args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network("ginet", args, 3, 4)
    assert caught.value.hint


def test_a_ginet_without_context_is_a_mistake_of_the_caller(lively: Lively, image: Tensor) -> None:
    with pytest.raises(ValueError, match="context"):
        lively("ginet")(image)


# --- one canvas for all tiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [{}, {"ggn": "vector"}, {"shared_encoder": True, "norm": "ln"}])
def test_tiles_from_one_canvas_equal_tiles_with_their_own(lively: Lively, image: Tensor, context: Context, args: dict) -> None:
    network = lively("ginet", **args)
    with torch.no_grad():
        canvas = network.encode_context(context.image, context.valid)
        together = network.decode(image, canvas, context.box, context.index).logits
        for n in range(3):
            m = int(context.index[n])
            own = Context(context.image[m : m + 1], context.valid[m : m + 1], context.box[n : n + 1], torch.tensor([0]))
            assert torch.allclose(network(image[n : n + 1], own).logits[0], together[n], atol=1e-5)


@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_overlapping_tiles_agree_inside_their_margins(lively: Lively, norm: str) -> None:
    """Two tiles of one scene, half of each under the other: what their encoders' padding reaches apart, they say the same."""
    network, scene = lively("ginet", norm=norm), torch.randn(1, 3, 32, 2560)
    with torch.no_grad():
        canvas = network.encode_context(torch.randn(1, 3, 4, 320), torch.ones(1, 4, 320, dtype=torch.bool))
        boxes = torch.tensor([[0.0, 0.0, 1.0, 0.8], [0.0, 0.2, 1.0, 1.0]])
        left, right = (
            network.decode(scene[..., start : start + 2048], canvas, box[None], torch.tensor([0])).logits
            for start, box in zip((0, 512), boxes, strict=True)
        )
    first, second = left[..., 128 + 128 : 512 - 128], right[..., 128 : 384 - 128]
    assert first.shape[-1] == 128
    assert (first - second).abs().max() <= 1e-5 * max(1.0, float(left.std()))


def test_a_tile_may_reach_beyond_its_context(lively: Lively, image: Tensor, context: Context) -> None:
    network = lively("ginet")
    beyond = context._replace(box=context.box + 0.9)
    with torch.no_grad():
        assert network(image, beyond).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_canvas_of_half_precision_changes_little(lively: Lively, image: Tensor, context: Context, dtype: torch.dtype) -> None:
    network = lively("ginet")
    with torch.no_grad():
        canvas = network.encode_context(context.image, context.valid)
        half = canvas._replace(guidance=tuple(maps.to(dtype) for maps in canvas.guidance), mask=canvas.mask.to(dtype))
        exact, rough = (network.decode(image, maps, context.box, context.index).logits for maps in (canvas, half))
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.02 * exact.std()


def test_autocast_runs_and_keeps_its_answer(lively: Lively, image: Tensor, context: Context) -> None:
    network = lively("ginet")
    with torch.no_grad():
        exact = network(image, context).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(image, context).logits
    assert (exact - rough).abs().mean() < 0.1 * exact.std()


# --- training ---------------------------------------------------------------------------------------------------------


def moved_by(loss: Tensor, network: GINet) -> set[str]:
    """The parts of the network that ``loss`` has a gradient for."""
    network.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    names = {name for name, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    return {".".join(name.split(".")[:2]) for name in names}


def test_gradients_flow_from_the_tile_to_the_context_and_never_back(lively: Lively, image: Tensor, context: Context) -> None:
    network = lively("ginet").train()
    branches = network.training_outputs(image, context)
    of_context = {"context.encoder", "context.laterals", "context.mask", "context.classifier"}
    assert moved_by(branches.global_.logits.square().sum(), network) == of_context
    assert moved_by(branches.global_.features.square().sum(), network) == of_context - {"context.classifier"}
    fused = moved_by(branches.fused.logits.square().sum(), network)
    assert fused >= {"local.encoder", "local.laterals", "context.encoder", "context.guides", "head.0", "classifier.weight"}
    assert moved_by(branches.local.logits.square().sum(), network) == {"local.encoder", "local.laterals", "local.aux"}


@pytest.mark.parametrize(("tile", "ratio", "cells"), [(128, 8, 4), (256, 8, 8), (96, 9, 3), (64, 32, 1)])
def test_both_branches_offer_the_same_cells_for_affinities(lively: Lively, tile: int, ratio: int, cells: int) -> None:
    network, image = lively("ginet", context_ratio=ratio), torch.randn(1, 3, tile, tile)
    context = Context(torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool), torch.rand(1, 4).sort().values, torch.tensor([0]))
    branches = network.training_outputs(image, context)
    assert network.affinity_cells((tile, tile)) == (cells, cells)
    assert branches.local.features.shape == branches.global_.features.shape == (1, 8, cells, cells)
    assert branches.global_.logits.shape == (1, 3, 64, 64)


def test_the_cells_of_both_branches_lie_at_the_same_place(lively: Lively) -> None:
    """With a map of places in the mask, a cell holds the mean place of the local cells that are pooled for it."""
    network, image = lively("ginet"), torch.randn(1, 3, 256, 256)
    network.context.mask.register_forward_hook(lambda _, inputs, output: (4 * torch.arange(16.0) + 0.5).expand_as(output))
    box = torch.tensor([[16.0, 16.0, 48.0, 48.0]]) / 64
    context = Context(torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool), box, torch.tensor([0]))
    with torch.no_grad():
        seen = network.training_outputs(image, context).global_.features
    local = 16 + (4 * torch.arange(64) + 0.5) / 8
    assert torch.allclose(seen[0, 0, 0], local.view(8, 8).mean(1), atol=1e-3)


@pytest.mark.parametrize(
    ("args", "pretrained", "contexts", "moves"),
    [({}, False, 2, True), ({}, True, 2, False), ({}, True, 4, True), ({"shared_encoder": True}, False, 4, False)],
)
def test_few_contexts_do_not_move_pretrained_statistics(lively: Lively, args: dict, pretrained: bool, contexts: int, moves: bool) -> None:
    network = lively("ginet", **args).train()
    network.pretrained = pretrained
    encoder = network.encoders[-1]
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers() if "running" in name}
    network.encode_context(torch.randn(contexts, 3, 64, 64), torch.ones(contexts, 64, 64, dtype=torch.bool))
    after = dict(encoder.named_buffers())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items()) == moves
    assert all(module.training for module in encoder.modules())
