"""Only what lies far outside a tile says its class: a GINet-style teacher sees it, the same network without its global branch cannot.

    python examples/far_context.py [folder] [steps] [picture.png]

Prints the share of right pixels, of both on blocks that neither has seen, and draws what they make of the scene.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio

import rsdistill
from rsdistill.geo.synthetic import SIDES, Drawn, far_context, write_drawn

SIZE = 1024, 2048
TILE = 64
"""No labelled tile reaches a beacon: labels keep as far away from beacons as a tile is wide. So contexts are trained whole."""


def compare(folder: Path, steps: int) -> dict[str, float]:
    """Train both teachers and map with them; return their pixel accuracy on unseen blocks, and GINet's where all beacons are inverted."""
    drawn = far_context(*SIZE, seed=0, reach=TILE)
    inverted = Drawn(255 - drawn.image + 1, drawn.valid, drawn.label)  # from 1…255 to 255…1: 0 would be nodata
    for stem, one in {"scene": drawn, "inverted": inverted}.items():
        write_drawn(folder, one, SIDES, stem=stem, labels=f"{stem}_label")
    rsdistill.tile([folder / "scene.tif"], classes=folder / "classes.toml", work=folder, tile=TILE, overwrite=True)
    scores, how = {}, {"tile": TILE, "margin": 0, "overwrite": True}
    for arch in ("ginet", "local"):
        out = folder / f"{arch}.safetensors"
        trained = rsdistill.train_teacher(work=folder, arch=arch, out=out, steps=steps, overwrite=True, validation="tile", context_side=512)
        scores[arch] = trained.data["pixel_accuracy"]
        rsdistill.predict(folder / "scene.tif", model=out, out=[folder / f"{arch}.tif"], **how)
    how |= {"model": folder / "ginet.safetensors"}
    swapped = rsdistill.evaluate(folder / "inverted.tif", labels=[folder / "inverted_label.tif"], out=folder / "swapped", **how)
    rsdistill.predict(folder / "inverted.tif", out=[folder / "ginet, beacons inverted.tif"], **how)
    return scores | {"ginet, beacons inverted": swapped.data["pixel_accuracy"]}


def draw(folder: Path, scores: dict[str, float], picture: Path) -> None:
    """Draw the scene, its labels and the three masks side by side, a quarter of their size."""
    titles = {"scene": "scene", "scene_label": "labels", **{name: f"{name}: {100 * right:.0f} %" for name, right in scores.items()}}
    figure, axes = plt.subplots(1, len(titles), figsize=(15, 2.1), layout="constrained")
    colours = np.array([[255, 255, 255], *(one.rgb for one in SIDES.classes)], np.uint8)
    for axis, (stem, title) in zip(axes, titles.items(), strict=True):
        with rasterio.open(folder / f"{stem}.tif") as raster:
            small = raster.read(out_shape=(raster.count, raster.height // 4, raster.width // 4))
        axis.imshow(small.transpose(1, 2, 0) if len(small) == 3 else colours[np.where(small[0] <= len(SIDES), small[0], 0)])
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    where, steps, picture = (*sys.argv[1:], *("far_context", "300", "far_context.png")[len(sys.argv) - 1 :])
    shares = compare(Path(where), int(steps))
    print(*(f"{name:<24}{100 * share:5.1f} % of pixels right   (chance: 50 %)" for name, share in shares.items()), sep="\n")
    draw(Path(where), shares, Path(picture))
