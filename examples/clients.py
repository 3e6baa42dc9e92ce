"""Measure in how many pixels GeoDeep's mask, made with an exported student, is ``predict``'s own: per cent, as a Markdown table.

    python examples/clients.py first-run/kd-0.safetensors dubai/dubai_t3.tif --geodeep geodeep/bin/geodeep --out clients

SCENE is taken whole, cut to sides that are multiples of the network's stride, and cut to sides that GeoDeep's windows fill exactly.
"""

import argparse
import subprocess
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window
from scipy.ndimage import median_filter

import rsdistill
from rsdistill.models import load_model

parser = argparse.ArgumentParser()
for name in ("model", "scene", "--geodeep", "--out"):
    parser.add_argument(name, type=Path)
given = parser.parse_args()
network, card = load_model(given.model)
ids = np.array([one["id"] for one in card.classes])
step = card.tile - 2 * card.margin


def cut(path: Path, unit: int, least: int = 0) -> Path:
    """Copy the upper left of the scene, its sides ``least`` and as many times ``unit`` as there is room for; GeoDeep cannot use JPEG."""
    with rasterio.open(given.scene) as scene:
        height, width = (least + (side - least) // unit * unit for side in scene.shape)
        profile = {"driver": "GTiff", "height": height, "width": width, "count": scene.count, "dtype": scene.dtypes[0], "tiled": True}
        with rasterio.open(path, "w", **profile, crs=scene.crs, transform=scene.transform) as copy:
            copy.write(scene.read(window=Window(0, 0, width, height)))
    return path


def mapped(scene: Path, name: str, **options: object) -> np.ndarray:
    """Return predict's mask."""
    rsdistill.predict(scene, out=[given.out / f"{name}.tif"], overwrite=True, **{"model": given.model, **options})
    return rasterio.open(given.out / f"{name}.tif").read(1)


given.out.mkdir(parents=True, exist_ok=True)
graph = rsdistill.export(given.model, out=given.out / "student.onnx", overwrite=True).paths[0]
cuts = {"as it is": (1, 0), "multiples of the stride": (network.stride, 0), "filled by GeoDeep's windows": (step, card.tile)}
print("| sides of the scene | predict | with the tile's windows | those, and the median |\n|---|---|---|---|")
for number, (name, sides) in enumerate(cuts.items()):
    scene, made = cut(given.out / f"scene{number}.tif", *sides), given.out / f"geodeep{number}.tif"
    made.unlink(missing_ok=True)
    subprocess.run([given.geodeep, scene, graph, "-t", "mask", "-o", made, "-q"], check=True, capture_output=True)
    theirs = ids[rasterio.open(made).read(1)]
    usual, same = mapped(scene, "usual"), mapped(scene, "same", tile=card.tile, margin=card.margin)
    smooth = ids[median_filter(np.searchsorted(ids, same).astype(np.uint8), 5)]
    print(f"| {name} |", " | ".join(f"{100 * (one == theirs).mean():.2f}" for one in (usual, same, smooth)), "|")
