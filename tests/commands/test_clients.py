"""Exported models in the programs they are made for, each run where a variable of the environment names it.

``RSDISTILL_GEODEEP`` names GeoDeep's command line (AGPL, never imported: ``python -m venv geodeep && geodeep/bin/pip install geodeep``),
``RSDISTILL_ORT117`` a Python with the onnxruntime that Deepness pins (``pip install onnxruntime==1.17.0 'numpy<2'``).
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from scipy.ndimage import median_filter

from rsdistill.commands.export import export
from rsdistill.commands.predict import predict
from rsdistill.geo.windows import Plan, plan
from rsdistill.models import ModelCard, build_network, save_model

GEODEEP, ORT117 = os.environ.get("RSDISTILL_GEODEEP", ""), os.environ.get("RSDISTILL_ORT117", "")
SIDE, MARGIN = 128, 16
SIZE = SIDE + 2 * (SIDE - 2 * MARGIN), SIDE + 3 * (SIDE - 2 * MARGIN)
"""Windows of one step fill the scene: every client then cuts it alike."""
CLIENT = """
import sys
import numpy as np, onnxruntime
assert sys.argv[4] in ("", onnxruntime.__version__), onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
tiles = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([session.run(None, {"image": tiles[k : k + 3]})[0].argmax(1) for k in range(0, len(tiles), 3)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a scene, a student, its export and the mask that torch makes at the windows of the export."""
    folder = tmp_path_factory.mktemp("clients")
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (3, SIZE[0] // 32, SIZE[1] // 32)), np.ones((32, 32))).astype(np.uint8)
    transform = rasterio.transform.from_origin(500_000, 2_800_000, 0.5, 0.5)
    shape = {"count": 3, "height": SIZE[0], "width": SIZE[1], "dtype": "uint8"}
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", crs="EPSG:32640", transform=transform, **shape) as scene:
        scene.write(image)
    torch.manual_seed(3)
    network = build_network("tiny", {}, 3, 4)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    classes = [{"id": i, "name": f"class {i}", "color": "#11aa33"} for i in range(4)]
    given = {"mean": (100, 110, 90), "std": (40, 35, 30), "tile": SIDE, "margin": MARGIN, "pixel_size": 0.5}
    save_model(folder / "model.safetensors", network, ModelCard(arch="tiny", classes=classes, bands=(1, 2, 3), **given))
    export(folder / "model.safetensors")
    predict(folder / "scene.tif", model=folder / "model.safetensors", out=[folder / "torch.tif"], tile=SIDE, margin=MARGIN)
    return folder


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read().squeeze()


def test_this_machines_onnxruntime_gives_the_mask_that_torch_gives(folder: Path) -> None:
    check_onnxruntime(folder, sys.executable, "")


@pytest.mark.skipif(not ORT117, reason="RSDISTILL_ORT117 names no Python with onnxruntime 1.17.0")
def test_the_onnxruntime_of_deepness_gives_the_mask_that_torch_gives(folder: Path) -> None:
    check_onnxruntime(folder, ORT117, "1.17.0")


def check_onnxruntime(folder: Path, python: str, version: str) -> None:
    """Run the export in an interpreter of its own, as a client does, and put its tiles together."""
    windows: Plan = plan(*SIZE, SIDE, MARGIN, SIDE)
    places = [windows.placement(i, j) for i in range(len(windows.rows)) for j in range(len(windows.cols))]
    image = read(folder / "scene.tif").astype(np.float32) / 255
    np.save(folder / "tiles.npy", np.stack([image[:, *one.read.slices] for one in places]))
    paths = [str(folder / name) for name in ("model.onnx", "tiles.npy", "answers.npy")]
    subprocess.run([python, "-c", CLIENT, *paths, version], check=True, timeout=200)
    mask = np.full(SIZE, 255, np.uint8)
    for (seen, core), answer in zip(places, np.load(folder / "answers.npy"), strict=True):
        mask[core.slices] = answer[core.relative_to(seen).slices]
    wanted = read(folder / "torch.tif")
    assert len(places) == 12
    assert len(np.unique(wanted)) > 2
    assert (mask == wanted).mean() >= 0.999


@pytest.mark.skipif(not GEODEEP, reason="RSDISTILL_GEODEEP does not name GeoDeep's command line")
def test_geodeep_gives_the_mask_that_torch_gives(folder: Path) -> None:
    command = [GEODEEP, folder / "scene.tif", folder / "model.onnx", "-t", "mask", "-o", folder / "geodeep.tif", "-q"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    given, wanted = read(folder / "geodeep.tif"), read(folder / "torch.tif")
    assert (given == median_filter(wanted, 5)).mean() >= 0.9999  # it smooths every mask, which no metadata turns off
    assert (given == wanted).mean() >= 0.99
