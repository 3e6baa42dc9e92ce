"""The second level of context: silent at the start, in its place, left out at random, and the only one to know what lies far away."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.batches import Context
from rsdistill.models import build_network, load_model, save_model
from rsdistill.models.backbones import Encoder
from rsdistill.models.card import ModelCard
from rsdistill.models.ginet import GINet
from rsdistill.models.thumbnail import Surroundings, Thumbnail

LIGHT = {"encoder": "test_resnet", "dim": 8, "hidden": 8}


def batch(far: Tensor, *, tiles: int = 2, shown: bool = True) -> tuple[Tensor, Context]:
    """Two contexts of noise, each in the middle of a thumbnail of the colour ``far`` (2,)."""
    thumbnails = far[:, None, None, None].expand(2, 3, 64, 64) + 0.1 * torch.randn(2, 3, 64, 64)
    valid = torch.full((2, 64, 64), shown)
    box = torch.tensor([[0.4, 0.4, 0.525, 0.525]]).repeat(2, 1)
    wider = Context(thumbnails * valid[:, None], valid, box, torch.arange(2))
    places = torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(2 * tiles, 1)
    context = Context(
        torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool), places, torch.arange(2).repeat_interleave(tiles), None, wider
    )
    return torch.randn(2 * tiles, 3, 64, 64), context


def test_an_untrained_thumbnail_says_nothing() -> None:
    network = build_network("ginet", {**LIGHT, "thumbnail_from": 16000}, 3, 2).eval()
    image, context = batch(torch.tensor([1.0, -1.0]))
    with torch.no_grad():
        assert torch.equal(network(image, context).logits, network(image, context._replace(wider=None)).logits)


def test_without_the_option_thumbnails_are_not_looked_at() -> None:
    network = build_network("ginet", LIGHT, 3, 2).eval()
    assert network.thumbnail is None
    assert network.thumbnail_from == 0
    image, context = batch(torch.tensor([1.0, -1.0]))
    with torch.no_grad():
        assert torch.equal(network(image, context).logits, network(image, context._replace(wider=None)).logits)


def test_the_thumbnail_has_an_encoder_of_its_own_unless_one_serves_all(card: Callable[..., ModelCard], tmp_path) -> None:
    apart, shared = (build_network("ginet", {**LIGHT, "thumbnail_from": 9, "shared_encoder": one}, 3, 2).eval() for one in (False, True))
    assert (len(apart.encoders), len(shared.encoders)) == (3, 1)
    for number, network in enumerate((apart, shared)):
        torch.nn.init.normal_(network.thumbnail.added.weight)
        save_model(tmp_path / f"{number}.safetensors", network, card("ginet"))
        loaded, kept = load_model(tmp_path / f"{number}.safetensors")
        assert kept.arch_args["thumbnail_from"] == loaded.thumbnail_from == 9
        image, context = batch(torch.tensor([1.0, -1.0]))
        with torch.no_grad():
            assert torch.equal(loaded(image, context).logits, network(image, context).logits)


@pytest.mark.parametrize("encoder", ["mobilenetv4_conv_small_035", "convnext_atto"])
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_the_thumbnail_lies_where_the_context_lies(encoder: str, size: tuple[int, int]) -> None:
    """Cells of the thumbnail that hold their own place in the scene reach the context's coarsest cells as exactly their place in it."""
    ours, theirs = Encoder(encoder, 3), Encoder(encoder, 3)
    level = Thumbnail(ours, ours.channels, 2)

    def middle(stride: int) -> float:
        return stride / 2 if encoder == "convnext_atto" else 0.5

    places = 8.0 * (4 * torch.arange(40) + middle(4))  # in context pixels
    features = torch.stack([places[:, None].expand(40, 40), places[None, :].expand(40, 40)])[None]
    top, left = 203.0, 331.0
    box = torch.tensor([[top, left, top + size[0], left + size[1]]]) / (8 * 160)
    around = Surroundings(features, (160, 160), box, torch.tensor([0]), torch.tensor([True]))
    seen = level.seen_from(around, size, ours, theirs)
    rows, cols = -(-size[0] // 32), -(-size[1] // 32)
    assert seen.shape == (1, 2, rows, cols)
    assert torch.allclose(seen[0, 0, :, 0], top + 32 * torch.arange(rows) + middle(32), atol=1e-2)
    assert torch.allclose(seen[0, 1, 0], left + 32 * torch.arange(cols) + middle(32), atol=1e-2)


def lively(**args: object) -> GINet:
    network = build_network("ginet", {**LIGHT, "thumbnail_from": 16000, **args}, 3, 2)
    torch.nn.init.normal_(network.thumbnail.added.weight, std=0.1)
    for guide in network.context.guides:
        torch.nn.init.normal_(guide.outer.weight, std=0.05)
    return network


def test_nothing_is_shown_where_no_pixel_is_valid_or_all_is_dropped() -> None:
    (image, context), (_, absent) = batch(torch.tensor([1.0, -1.0])), batch(torch.tensor([1.0, -1.0]), shown=False)
    network = lively().eval()
    with torch.no_grad():
        without = network(image, context._replace(wider=None)).logits
        assert torch.equal(network(image, context._replace(wider=absent.wider)).logits, without)
        assert not torch.allclose(network(image, context).logits, without)
    half = absent.wider._replace(image=context.wider.image, valid=torch.tensor([True, False])[:, None, None].expand(2, 64, 64))
    with torch.no_grad():
        mixed = network(image, context._replace(wider=half)).logits
    assert torch.allclose(mixed[2:], without[2:], atol=1e-5)
    assert not torch.allclose(mixed[:2], without[:2])


@pytest.mark.parametrize(("drop", "share"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)])
def test_training_leaves_a_share_of_thumbnails_out(drop: float, share: float) -> None:
    network = lively(thumbnail_drop=drop).train()
    _, context = batch(torch.tensor([1.0, -1.0]))
    shown = torch.cat([network.surroundings(context.wider).shown for _ in range(40)]).float().mean()
    assert abs(float(shown) - share) < (0.15 if 0 < drop < 1 else 1e-9)
    assert network.eval().surroundings(context.wider).shown.all()


def test_what_only_the_thumbnail_tells_is_learned_believed_and_done_without() -> None:
    """Tiles and contexts are noise; the colour of the thumbnail, far beyond the context, is the class."""
    torch.manual_seed(0)
    network = build_network("ginet", {**LIGHT, "thumbnail_from": 16000}, 3, 2).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 60)  # at a constant rate, where it stops is left to rounding

    def answer(sign: int = 1, *, shown: bool = True) -> tuple[Tensor, Tensor]:
        label = torch.randperm(2)
        image, context = batch(sign * (2.0 * label - 1), shown=shown)
        return network(image, context).logits, label[context.index]

    for _ in range(60):
        logits, label = answer()
        optimiser.zero_grad()
        F.cross_entropy(logits, label[:, None, None].expand(len(label), *logits.shape[-2:])).backward()
        optimiser.step()
        decay.step()

    def accuracy(**how: object) -> float:
        with torch.no_grad():
            pairs = [answer(**how) for _ in range(20)]
        return float(torch.stack([(logits.argmax(1) == label[:, None, None]).float().mean() for logits, label in pairs]).mean())

    network.eval()
    assert accuracy() >= 0.95
    assert accuracy(sign=-1) <= 0.05
    assert abs(accuracy(shown=False) - 0.5) <= 0.1
