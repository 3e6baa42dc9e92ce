"""An exported model in the program it is made for: GeoDeep's own command line, run where RSDISTILL_GEODEEP names it.

GeoDeep is AGPL and never imported: ``python -m venv geodeep && geodeep/bin/pip install geodeep``, then set the variable to
``geodeep/bin/geodeep``.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import rasterio
import torch
from scipy.ndimage import median_filter

from rsdistill.commands.export import export
from rsdistill.models import ModelCard, build_network, save_model

GEODEEP = os.environ.get("RSDISTILL_GEODEEP", "")
SIDE, OVERLAP = 128, 32

pytestmark = pytest.mark.skipif(not GEODEEP, reason="RSDISTILL_GEODEEP does not name GeoDeep's command line")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    network = build_network("tiny", {}, 3, 4)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    classes = [{"id": 10 * i, "name": f"class {i}", "color": "#11aa33"} for i in range(4)]
    card = ModelCard(
        arch="tiny", classes=classes, bands=(1, 2, 3), mean=(100, 110, 90), std=(40, 35, 30), tile=SIDE, margin=OVERLAP // 2, pixel_size=0.5
    )
    save_model(tmp_path / "model.safetensors", network, card)
    return export(tmp_path / "model.safetensors").paths[0]


def starts(length: int) -> list[int]:
    """Where GeoDeep's windows begin: evenly from the edge, the last one at the other edge."""
    found = list(range(0, length - SIDE + 1, SIDE - OVERLAP))
    return found if found[-1] == length - SIDE else [*found, length - SIDE]


def expected(graph: Path, image: np.ndarray) -> np.ndarray:
    """The graph's own answer at GeoDeep's windows, each without half the overlap on inner sides, and GeoDeep's median filter after."""
    session = onnxruntime.InferenceSession(graph)
    height, width = image.shape[1:]
    mask, pad = np.zeros((height, width), np.uint8), OVERLAP // 2
    for left in starts(width):
        for top in starts(height):
            tile = image[None, :, top : top + SIDE, left : left + SIDE].astype(np.float32) / 255
            answer = session.run(None, {"image": tile})[0][0].argmax(0)
            rows = slice(pad * (top > 0), SIDE - pad * (top + SIDE < height))
            cols = slice(pad * (left > 0), SIDE - pad * (left + SIDE < width))
            mask[top : top + SIDE, left : left + SIDE][rows, cols] = answer[rows, cols]
    return median_filter(mask, 5)


def test_geodeep_gives_the_graphs_own_mask(exported: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (3, 20, 25)), np.ones((16, 16))).astype(np.uint8)
    transform = rasterio.transform.from_origin(500_000, 2_800_000, 0.5, 0.5)
    shape = {"count": 3, "height": image.shape[1], "width": image.shape[2], "dtype": "uint8"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", crs="EPSG:32640", transform=transform, **shape) as scene:
        scene.write(image)
    mask = tmp_path / "mask.tif"
    command = [GEODEEP, str(tmp_path / "scene.tif"), str(exported), "-t", "mask", "-o", str(mask), "-q"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    with rasterio.open(mask) as made:
        given = made.read(1)
    wanted = expected(exported, image)
    assert len(np.unique(wanted)) > 1
    assert (given == wanted).mean() >= 0.99
