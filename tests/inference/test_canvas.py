"""The context once a scene, with real GINets: a tile decoded from it is a tile that was given its whole context."""

import numpy as np
import pytest
import torch

from rsdistill.batches import Context
from rsdistill.errors import ConfigError
from rsdistill.geo.context import area_mean
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import CELL, ContextWindows, SceneCanvas, context_rows
from rsdistill.inference.engine import strips
from rsdistill.inference.torch_backend import TorchBackend
from rsdistill.methods.base import upsample
from rsdistill.models import ModelCard, build_network

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
        np.testing.assert_allclose(got[number], upsample(alone.logits, (96, 96))[0].numpy(), rtol=1e-4, atol=1e-3)


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
        canvas = SceneCanvas(network, scene, [1, 2], lambda v, k: normalised(v[0], k[0]), ratio=RATIO, margin=16, window=side)
        images = torch.cat([normalised(*scene.read(tile, [1, 2]))[0] for tile in tiles])
        with torch.inference_mode():
            return torch.cat([canvas.decode(images[i : i + 2], tiles[i : i + 2]).logits for i in range(0, len(tiles), 2)])

    far, near = [Window(40, col, 96, 96) for col in (0, 200, 4500, 4704)], [Window(40, col, 96, 96) for col in (2300, 2500)]
    torch.testing.assert_close(decoded(736, far), decoded(4096, far), rtol=1e-3, atol=1e-2)
    assert not torch.allclose(decoded(736, near), decoded(4096, near), rtol=1e-3, atol=1e-2), "there are two windows"


@pytest.mark.parametrize("size", [(40, 33), (3000, 5000), (12345, 777)])
def test_windows_hold_the_margin_around_every_tile(array_scene, size):
    scene = array_scene(np.zeros((1, 1, 1)), np.broadcast_to(True, size))
    windows = ContextWindows.over(scene, 8, margin=20, tile=(256, 256), window=256)
    context = Window(0, 0, -(-size[0] // 8), -(-size[1] // 8))
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
