"""Test-time augmentation of a network that reads context: the scene's context turns with the tile, or the mean is not symmetric."""

import numpy as np
import pytest
import torch

from rsdistill.geo.windows import Window
from rsdistill.inference.context_windows import turned_boxes
from rsdistill.inference.symmetries import D4Backend, symmetries, turned, turned_back
from rsdistill.inference.torch_backend import TorchBackend
from rsdistill.models import ModelCard, build_network

SIDE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    light = {"encoder": "mobilenetv4_conv_small_035", "dim": 8, "hidden": 8, "context_ratio": 2}
    made = build_network("ginet", light, bands=2, classes=3).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)  # far from the start, where guidance does nothing
    return made


def backend(network, scene):
    card = ModelCard(
        arch="ginet", classes=[{"id": k, "name": f"c{k}"} for k in range(3)], bands=(1, 2), mean=(100.0, 80.0), std=(50.0, 60.0)
    )
    return TorchBackend(network, card, device="cpu", scene=scene, bands=[1, 2])


@pytest.mark.parametrize("symmetry", [(1, False), (2, True), (3, True)])
def test_the_map_of_a_turned_scene_is_the_map_turned(array_scene, network, symmetry):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (2, 2 * SIDE, 2 * SIDE)).astype(np.uint8)
    pixels[:, :SIDE, :SIDE] //= 4  # the corners are told apart
    valid = np.ones(pixels.shape[1:], bool)

    def answers(image):
        scene = array_scene(image, valid)
        windows = [Window(row, col, SIDE, SIDE) for row in (0, SIDE) for col in (0, SIDE)]
        d4 = D4Backend(backend(network, scene))
        found = d4(np.stack([image[:, *one.slices] for one in windows]), np.ones((4, SIDE, SIDE), bool), windows)
        rows = [np.concatenate([found[2 * row], found[2 * row + 1]], axis=-1) for row in (0, 1)]
        return np.concatenate(rows, axis=-2)

    upright = answers(pixels)
    again = turned_back(answers(turned(pixels, *symmetry)), *symmetry)
    np.testing.assert_allclose(again, upright, atol=2e-3 * np.abs(upright).max())


def test_context_matters_to_this_network(array_scene, network):
    """Else the test above would hold without turning anything."""
    image = np.random.default_rng(1).integers(1, 255, (2, 2 * SIDE, 2 * SIDE)).astype(np.uint8)
    other, valid = image.copy(), np.ones(image.shape[1:], bool)
    other[:, SIDE:] = 10
    tile, window = image[None, :, :SIDE, :SIDE], [Window(0, 0, SIDE, SIDE)]
    first, second = (backend(network, array_scene(one, valid))(tile, valid[None, :SIDE, :SIDE], window) for one in (image, other))
    assert np.abs(first - second).max() > 0.02 * np.abs(first).max()


@pytest.mark.parametrize("symmetry", list(symmetries()))
def test_boxes_turn_as_arrays_do(symmetry):
    grid = np.zeros((20, 20))
    grid[2:7, 5:18] = 1
    rows, cols = np.nonzero(turned(grid, *symmetry))
    (box,) = turned_boxes(torch.tensor([[2, 5, 7, 18]]) / 20, *symmetry)
    expected = [rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]
    np.testing.assert_allclose(20 * box.numpy(), expected, atol=1e-5)
