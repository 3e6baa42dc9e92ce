"""Draws docs/assets/demo.png, the picture of the README, from what ``make demo`` left.

python docs/draw_demo.py [demo]
"""

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.enums import Resampling

from rsdistill.geo.classes import ClassTable, load_class_table
from rsdistill.geo.files import atomic

PIXELS = 640
"""Side of a panel."""


def main(demo: Path) -> None:
    """Draw the scene, its labels and the student's mask side by side."""
    table = load_class_table(demo / "classes.toml")
    panels = {
        "scene": photograph(demo / "scene.tif"),
        "labels": painted(read(demo / "labels.tif", Resampling.mode)[0], table),
        "student's mask": painted(read(demo / "mask.tif", Resampling.mode)[0], table),
    }
    mpl.use("agg")
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 4.5), layout="constrained")
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture)
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_axis_off()
    patches = [Patch(color=one.color, label=one.name) for one in table.classes]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    with atomic(Path(__file__).parent / "assets" / "demo.png") as part:
        figure.savefig(part, dpi=160, bbox_inches="tight", pad_inches=0.05)


def read(path: Path, resampling: Resampling) -> NDArray[np.uint8]:
    """Return all bands of ``path``, at most PIXELS wide and high."""
    with rasterio.open(path) as raster:
        scale = PIXELS / max(raster.shape)
        shape = raster.count, round(raster.height * scale), round(raster.width * scale)
        return np.asarray(raster.read(out_shape=shape, resampling=resampling))


def photograph(path: Path) -> NDArray[np.uint8]:
    """Return a scene's colours (h, w, 3), white where it holds no data."""
    bands = read(path, Resampling.average)
    with rasterio.open(path) as raster:
        valid = raster.dataset_mask(out_shape=bands.shape[1:]) > 0
    return np.where(valid, bands, 255).astype(np.uint8).transpose(1, 2, 0)


def painted(ids: NDArray[np.uint8], table: ClassTable) -> NDArray[np.uint8]:
    """Return class ids (h, w) in their colours (h, w, 3); white where there is no class."""
    palette = np.full((256, 3), 255, np.uint8)
    for one in table.classes:
        palette[one.id] = one.rgb
    return palette[ids]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
