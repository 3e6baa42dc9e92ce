"""The context once a scene, with real GINets: a tile decoded from it is a tile that was given its whole context."""

import numpy as np
import pytest
import torch

from rsdistill.batches import Context
from rsdistill.errors import ConfigError
from rsdistill.geo.context import THUMBNAIL, area_mean
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import WINDOW, SceneCanvas, context_rows
from rsdistill.inference.context_windows import CELL, ContextWindows, boxes_in, turned_boxes
from rsdistill.inference.engine import strips
from rsdistill.inference.torch_backend import TorchBackend
from rsdistill.methods.base import upsample
from rsdistill.models import ModelCard, build_network
from rsdistill.models.margins import TOLERANCE

RATIO = 4


def ginet(arch="ginet", **options):
    torch.manual_seed(3)
    light = {"encoder": "mobilenetv4_conv_small_035", "dim": 8, "hidden": 8, "context_ratio": RATIO, **options}
    network = build_network(arch, light, bands=2, classes=3).eval()
    with torch.no_grad():
        for weights in network.parameters():  # guidance begins at zero: without noise, context would change nothing
            weights += 0.05 * torch.randn_like(weights)
    return network


def card(**extra):
    classes = [{"id": i, "name": f"c{i}", "color": "#000000"} for i in range(3)]
    return ModelCard(arch="ginet", classes=classes, bands=(1, 2), mean=(100.0, 90.0), std=(50.0, 40.0), **extra)


@pytest.fixture
def scene(array_scene, rng):
    image = rng.integers(1, 256, (2, 300, 420)).astype(np.uint8)
    image += np.linspace(0, 90, 420).astype(np.uint8)
    valid = np.ones((300, 420), bool)
    valid[100:160, 40:130] = False
    return array_scene(image, valid)


def normalised(values, valid):
    mean, std = torch.tensor([100.0, 90.0]).view(-1, 1, 1), torch.tensor([50.0, 40.0]).view(-1, 1, 1)
    return ((torch.from_numpy(values).float() - mean) / std * torch.from_numpy(valid))[None], torch.from_numpy(valid)[None]


def deviation(found, expected):
    """Root mean square difference in units of the deviation of what is expected."""
    return float((found - expected).square().mean().sqrt() / expected.std())


def whole_context(scene):
    return area_mean(*scene.read(scene.grid.window, [1, 2]), RATIO)


@pytest.mark.parametrize("options", [{}, {"ggn": "vector"}, {"fusion": False}, {"shared_encoder": True}])
def test_a_tile_from_the_canvas_equals_one_given_its_context(scene, options):
    network = ginet(**options)
    backend = TorchBackend(network, card(), device="cpu", scene=scene)
    windows = [Window(0, 0, 96, 96), Window(120, 250, 96, 96), Window(230, 340, 70, 80)]
    pairs = [scene.read(window, [1, 2]) for window in windows]
    fit = [((0, 96 - window.height), (0, 96 - window.width)) for window in windows]
    images = np.stack([np.pad(image, ((0, 0), *beyond), "reflect") for (image, _), beyond in zip(pairs, fit, strict=True)])
    valid = np.stack([np.pad(known, beyond, "reflect") for (_, known), beyond in zip(pairs, fit, strict=True)])
    got = backend(images, valid, windows)
    context, known = normalised(*whole_context(scene))
    size = torch.tensor([known.shape[1], known.shape[2]] * 2) * RATIO
    for number, window in enumerate(windows):
        box = torch.tensor([[window.row, window.col, window.row + 96, window.col + 96]]) / size
        image, _ = normalised(images[number], valid[number])
        with torch.inference_mode():
            alone = network(image, Context(context, known, box, torch.zeros(1, dtype=torch.int64)))
        expected = upsample(alone.logits, (96, 96))[0].numpy()
        assert np.abs(got[number] - expected).max() <= 1e-5 * expected.std()


def test_context_changes_the_answer_and_is_read_once(scene, array_scene):
    backend = TorchBackend(ginet(), card(), device="cpu", scene=scene)
    mapped = np.concatenate([strip.labels for strip in strips(scene, backend, bands=[1, 2], tile=96, margin=16)])
    pixels = sum(read.height * read.width for read in scene.reads)
    assert pixels == 2 * scene.grid.height * scene.grid.width, "once for the tiles, once for the context"
    other = array_scene(255 - scene.image, scene.valid)
    misled = TorchBackend(ginet(), card(), device="cpu", scene=other)
    assert not np.array_equal(mapped, np.concatenate([s.labels for s in strips(scene, misled, bands=[1, 2], tile=96, margin=16)]))


def test_the_map_does_not_depend_on_where_it_begins(scene):
    def mapped(window):
        backend = TorchBackend(ginet(), card(), device="cpu", scene=scene)
        return np.concatenate([s.labels for s in strips(scene, backend, bands=[1, 2], tile=96, margin=16, window=window)])

    part = Window(150, 60, 120, 200)
    assert (mapped(part) == mapped(scene.grid.window)[part.slices]).mean() > 0.999


def test_windows_of_the_context_lie_on_the_grid_of_the_whole(array_scene, rng):
    """Far from a cut, nothing tells a canvas in windows from a whole one; an encoder that began on another pixel phase would."""
    noise = np.cumsum(rng.normal(size=(2, 200, 4800)), axis=2) * 9 % 256
    scene = array_scene(noise.astype(np.uint8), np.ones((200, 4800), bool))
    network = ginet()

    def decoded(side, tiles):
        canvas = SceneCanvas(network, scene, [1, 2], lambda v, k: normalised(v[0], k[0]), margin=16, window=side)
        images = torch.cat([normalised(*scene.read(tile, [1, 2]))[0] for tile in tiles])
        with torch.inference_mode():
            return torch.cat([canvas.decode(images[i : i + 2], tiles[i : i + 2]).logits for i in range(0, len(tiles), 2)])

    far, near = [Window(40, col, 96, 96) for col in (0, 200, 4500, 4704)], [Window(40, col, 96, 96) for col in (2300, 2500)]
    assert deviation(decoded(736, far), decoded(4096, far)) < TOLERANCE
    assert deviation(decoded(736, near), decoded(4096, near)) > TOLERANCE, "there are two windows"


@pytest.mark.parametrize("size", [(40, 33), (3000, 5000), (12345, 777)])
def test_windows_hold_the_margin_around_every_tile(size):
    context = Window(0, 0, -(-size[0] // 8), -(-size[1] // 8))
    windows = ContextWindows.over(context[2:], 8, margin=20, tile=(256, 256), window=256)
    for row in range(0, max(1, size[0] - 256), 131):
        for col in range(0, max(1, size[1] - 256), 177):
            seen = windows.window(windows.owner(Window(row, col, 256, 256)))
            assert seen.row % CELL == seen.col % CELL == 0
            wanted = Window(row // 8, col // 8, 32, 32).grown(20, context.height, context.width).intersection(context)
            assert seen.intersection(wanted) == wanted


def test_context_rows_are_area_means_from_any_row_on(scene):
    values, valid = whole_context(scene)
    for first in (0, 3, 70):
        rows = list(context_rows(scene, [1, 2], RATIO, first))
        assert rows[0].row == first
        assert np.array_equal(np.concatenate([part.image for part in rows], axis=1), values[:, first:])
        assert np.array_equal(np.concatenate([part.valid for part in rows]), valid[first:])


def test_a_network_that_needs_context_is_refused_without_a_scene():
    with pytest.raises(ConfigError, match="context"):
        TorchBackend(ginet(), card(), device="cpu")


@pytest.mark.parametrize("options", [{}, {"ggn": "vector"}, {"encoder": "convnext_atto"}])
@pytest.mark.parametrize("turn", [(0, False), (1, False), (2, True), (3, True)])
def test_what_is_kept_of_a_window_is_all_that_its_tiles_read(options, turn):
    """Tiles of every window answer from the kept part as from the whole window, bit by bit, in whatever way the window was turned."""
    network, size = ginet(**options), (330, 1000)
    laid = ContextWindows.over(size, RATIO, margin=40, tile=(96, 96), window=320)
    assert len(laid) > 2
    generator = torch.Generator().manual_seed(0)
    for place in [(0, 0), (0, 1), laid.owner(Window(size[0] * RATIO - 96, size[1] * RATIO - 96, 96, 96))]:
        window = laid.window(place)
        sides = (window.height, window.width) if turn[0] % 2 == 0 else (window.width, window.height)
        tiles = [Window(row, col, 96, 96) for row in range(0, 4 * 330 - 95, 37) for col in range(0, 4 * 1000 - 95, 101)]
        own = [tile for tile in tiles if laid.owner(tile) == place]
        own = [own[0], own[len(own) // 2], own[-1]]
        images = torch.randn(3, 2, 96, 96, generator=generator)
        with torch.inference_mode():
            canvas = network.encode_context(torch.randn(1, 2, *sides, generator=generator), torch.ones(1, *sides, dtype=torch.bool))
            part = network.canvas_part(canvas, *laid.kept(place, turn))
            whole = turned_boxes(boxes_in(window, own, RATIO), *turn).float()
            first = torch.zeros(3, dtype=torch.int64)
            found = network.decode(images, part, laid.boxes(place, own, turn), first).logits
            expected = network.decode(images, canvas, whole, first).logits
        assert (found - expected).abs().max() <= 1e-5 * expected.std()


def test_a_canvas_in_half_precision_stays_within_the_tolerance_of_its_margin():
    network, size = ginet(), (96, 96)
    generator = torch.Generator().manual_seed(0)
    image, tile = torch.randn(1, 2, *size, generator=generator), torch.randn(4, 2, 96, 96, generator=generator)
    box, first = torch.tensor([[0.2, 0.3, 0.45, 0.55]]).repeat(4, 1), torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode():
        canvas = network.encode_context(image, torch.ones(1, *size, dtype=torch.bool))
        half = network.canvas_part(canvas, slice(0, 96), slice(0, 96), half=True)
        wild = network.canvas_part(canvas._replace(mask=canvas.mask * 1e9), slice(0, 96), slice(0, 96), half=True)
        found, expected = (network.decode(tile, maps, box, first).logits for maps in (half, canvas))
    assert {maps.dtype for maps in (*half.guidance, half.mask)} == {torch.float16}
    assert 0 < deviation(found, expected) < TOLERANCE
    assert wild.mask.isfinite().all()


@pytest.mark.parametrize(("side", "megabytes"), [(4096, 61.5), (20_000, 370), (50_000, 470)])
def test_canvases_are_bounded_by_one_row_of_windows(side, megabytes):
    """What is held at 128 channels: 117 bytes a context pixel of a scene that is seen at once, 58.5 of one that is taken in windows."""
    context = -(-side // 8)
    laid = ContextWindows.over((context, context), 8, margin=128, tile=(1024, 1024), window=WINDOW)
    rows = {}
    for row in range(0, side - 1023, 512):
        for col in range(0, side - 1023, 512):
            place = laid.owner(Window(row, col, 1024, 1024))
            height, width = (part.stop - part.start for part in laid.kept(place))
            rows.setdefault(place[0], {})[place] = height * width
    held = max(sum(row.values()) for row in rows.values()) * (117 if len(laid) == 1 else 58.5)
    assert held <= megabytes * 1e6


def test_the_thumbnail_is_seen_from_scenes_above_its_threshold(array_scene, rng):
    """All that a tile's window of the context shows is the same, the far end of the scene is not: the thumbnail alone tells."""
    image, valid = rng.integers(1, 256, (2, 96, 1600)).astype(np.uint8), np.ones((96, 1600), bool)
    far = image.copy()
    far[:, :, 1200:] = 10
    tile, window = array_scene(image, valid).read(Window(0, 0, 96, 96), [1, 2]), [Window(0, 0, 96, 96)]

    def answers(threshold):
        network = ginet(thumbnail_from=threshold)
        logits = []
        for pixels in (image, far):
            source = array_scene(pixels, valid)
            canvas = SceneCanvas(network, source, [1, 2], lambda v, k: normalised(v[0], k[0]), margin=0, window=32)
            with torch.inference_mode():
                logits.append(canvas.decode(normalised(*tile)[0], window).logits)
        return logits

    assert torch.equal(*answers(1600)), "the scene is no longer than that"
    assert not torch.equal(*answers(1599))


def test_a_window_sees_the_thumbnail_as_in_training(scene):
    """The whole chain against one call with everything in place, thumbnail included."""
    network = ginet(thumbnail_from=400)
    backend = TorchBackend(network, card(), device="cpu", scene=scene)
    window = Window(120, 250, 96, 96)
    image, valid = scene.read(window, [1, 2])
    context, known = normalised(*whole_context(scene))
    small, shown = normalised(*area_mean(*whole_context(scene), THUMBNAIL))
    size = torch.tensor([known.shape[1], known.shape[2]] * 2)
    here = torch.tensor([[0.0, 0.0, 1.0, 1.0]]) * size / (torch.tensor([shown.shape[1], shown.shape[2]] * 2) * THUMBNAIL)
    wider = Context(small, shown, here, torch.zeros(1, dtype=torch.int64))
    box = torch.tensor([[window.row, window.col, *window.stop]]) / (size * RATIO)
    given = Context(context, known, box, torch.zeros(1, dtype=torch.int64), None, wider)
    for quarters in (0, 3):
        turned_image, turned_known = np.rot90(image, quarters, (1, 2)).copy(), np.rot90(valid, quarters).copy()
        got = torch.from_numpy(backend.turned(quarters, False)(turned_image[None], turned_known[None], [window]))
        if quarters == 0:
            with torch.inference_mode():
                expected = upsample(network(normalised(image, valid)[0], given).logits, (96, 96))
                without = upsample(network(normalised(image, valid)[0], given._replace(wider=None)).logits, (96, 96))
            assert deviation(got, expected) < 1e-5
            assert deviation(got, without) > 1e-2
        else:
            thirds = [torch.rot90(part, quarters, (-2, -1)) for part in (context, known, small, shown)]
            other = Context(thirds[2], thirds[3], turned_boxes(here, quarters, False), torch.zeros(1, dtype=torch.int64))
            seen = Context(thirds[0], thirds[1], turned_boxes(box, quarters, False), torch.zeros(1, dtype=torch.int64), None, other)
            with torch.inference_mode():
                expected = upsample(network(normalised(turned_image, turned_known)[0], seen).logits, (96, 96))
            assert deviation(got, expected) < 1e-5


def test_the_thumbnail_is_kept_for_other_processes(scene, tmp_path):
    network = ginet(thumbnail_from=400)

    def answer():
        source = type(scene)(scene.image, scene.valid)
        backend = TorchBackend(network, card(), device="cpu", scene=source, canvases=tmp_path)
        image, valid = scene.read(Window(0, 0, 96, 96), [1, 2])
        return backend(image[None], valid[None], [Window(0, 0, 96, 96)]), source.reads

    first, reads = answer()
    again, none = answer()
    assert np.array_equal(first, again)
    assert reads
    assert not none
