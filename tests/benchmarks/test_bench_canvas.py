"""The global branch once a scene: its share of a run's wall-clock, counted inside that run, and that it changes no answer."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rsdistill.batches import Context
from rsdistill.commands.predict import predict
from rsdistill.geo.context import area_mean
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import SceneCanvas
from rsdistill.inference.torch_backend import TorchBackend, normalise
from rsdistill.methods.base import upsample
from rsdistill.models import ModelCard, build_network, save_model

pytestmark = pytest.mark.benchmark
SIDE, TILE = 4096, 512
SHARE = 0.08
"""Most of the wall-clock that may go into the context: reading the scene once more, making it small, and the global branch."""
CLASSES = [{"id": i + 1, "name": f"class {i}", "color": "#808080"} for i in range(7)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return write_land_cover(tmp_path_factory.mktemp("scene"), size=SIDE, seed=2).scene


def teacher(path: Path, **args):
    """Write a GINet whose context matters; what it costs does not depend on its weights."""
    torch.manual_seed(0)
    network = build_network("ginet", args, 3, 7).eval()
    for guide in network.context.guides:
        torch.nn.init.normal_(guide.outer.weight, std=0.05)
    card = ModelCard(arch="ginet", classes=CLASSES, bands=(1, 2, 3), mean=(100.0,) * 3, std=(50.0,) * 3, tile=TILE, margin=64)
    save_model(path, network, card)
    return network, card


@pytest.mark.parametrize("args", [{}, {"encoder": "resnet18"}, {"ggn": "vector", "fusion": False}], ids=["default", "resnet18", "vector"])
def test_the_context_takes_a_small_share_of_a_run(scene, tmp_path, monkeypatch, capsys, args):
    teacher(tmp_path / "teacher.safetensors", **args)
    spent, real = [], SceneCanvas._kept

    def timed(self, *given):
        start = time.perf_counter()
        canvas = real(self, *given)
        spent.append(time.perf_counter() - start)
        return canvas

    monkeypatch.setattr(SceneCanvas, "_kept", timed)
    start = time.perf_counter()
    predict(scene, model=tmp_path / "teacher.safetensors", out=[tmp_path / "mask.tif"], threads=1)
    wall = time.perf_counter() - start
    share = sum(spent) / wall
    with capsys.disabled():
        print(f"\n{args or 'default'}: context {sum(spent):.2f} s of {wall:.1f} s, {100 * share:.1f} % of a {SIDE} x {SIDE} scene")
    assert len(spent) == 1
    if args.get("ggn") != "vector":  # an ablation, whose tiles cost less
        assert share <= SHARE


def test_a_tile_from_the_canvas_is_one_with_the_whole_context_of_its_own(scene, tmp_path, capsys):
    network, card = teacher(tmp_path / "teacher.safetensors")
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (card.mean, card.std))
    worst = 0.0
    with open_scene(scene) as source, torch.inference_mode():
        backend = TorchBackend(network, card, device="cpu", scene=source)
        values, valid = area_mean(*source.read(source.grid.window, (1, 2, 3)))
        known = torch.from_numpy(valid)[None]
        context = normalise(torch.from_numpy(values)[None], known, mean, std)
        for row, col in ((0, 0), (1000, 2003), (SIDE - TILE, SIDE - TILE), (77, 3111)):
            window = Window(row, col, TILE, TILE)
            image, there = source.read(window, (1, 2, 3))
            found = backend(image[None], there[None], [window])
            box = torch.tensor([[row, col, row + TILE, col + TILE]]) / SIDE
            tile = normalise(torch.from_numpy(image)[None], torch.from_numpy(there)[None], mean, std)
            given = Context(context, known, box, torch.zeros(1, dtype=torch.int64))
            expected = upsample(network(tile, given).logits, (TILE, TILE)).numpy()
            elsewhere = upsample(network(tile, given._replace(image=-context)).logits, (TILE, TILE)).numpy()
            assert np.abs(elsewhere - expected).max() > 1e-3, "context matters to this network"
            worst = max(worst, float(np.abs(found - expected).max()))
    with capsys.disabled():
        print(f"\nlargest difference of a logit: {worst:.1e}")
    assert worst <= 1e-5
