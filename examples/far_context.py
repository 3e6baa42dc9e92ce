"""Only what lies far outside a tile says its class: a GINet-style teacher sees it, the same network without its global branch cannot.

python examples/far_context.py [folder] [steps]
"""

import sys
from pathlib import Path

import rsdistill
from rsdistill.geo.synthetic import SIDES, Drawn, far_context, write_drawn

SIZE = 1024, 2048
TILE = 64
"""No labelled tile reaches a beacon: labels keep as far away from beacons as a tile is wide."""


def compare(folder: Path, steps: int) -> dict[str, float]:
    """Train both teachers; return their mIoU on blocks that neither has seen, and GINet's where all beacons are inverted."""
    drawn = far_context(*SIZE, seed=0, reach=TILE)
    inverted = Drawn(255 - drawn.image + 1, drawn.valid, drawn.label)  # from 1…255 to 255…1: 0 would be nodata
    for stem, one in {"scene": drawn, "inverted": inverted}.items():
        write_drawn(folder, one, SIDES, stem=stem, labels=f"{stem}_label")
    rsdistill.tile([folder / "scene.tif"], classes=folder / "classes.toml", work=folder, tile=TILE, overwrite=True)
    scores = {}
    for arch in ("ginet", "local"):
        out = folder / f"{arch}.safetensors"
        trained = rsdistill.train_teacher(work=folder, arch=arch, out=out, steps=steps, overwrite=True, validation="tile")
        scores[arch] = trained.data["miou"]
    where = {"labels": [folder / "inverted_label.tif"], "out": folder / "swapped", "overwrite": True}
    swapped = rsdistill.evaluate(folder / "inverted.tif", model=folder / "ginet.safetensors", tile=TILE, margin=0, **where)
    return scores | {"ginet, beacons inverted": swapped.data["miou"]}


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("far_context")
    for name, miou in compare(where, int(sys.argv[2]) if len(sys.argv) > 2 else 300).items():
        print(f"{name:<24} mIoU {100 * miou:5.1f} %   (chance: 33.3 %)")
