"""Scenes with holes, what they become, and an executor that hides nothing."""

from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import noise

OPTIONS = {"tile": 48, "margin": 8, "threads": 1}
NAMES = ("mask.tif", "mask.gpkg", "shares.tif", "odds.tif")


class Inline(Executor):
    """Runs what it is given at once, in this thread; remembers it."""

    def __init__(self):
        self.calls = []

    def submit(self, call, /, *arguments):
        future = Future()
        self.calls.append(arguments)
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


class Case(NamedTuple):
    """Scenes and a workspace."""

    root: Path
    scene: Path
    work: Path

    def products(self, folder):
        """Names for everything that a scene can become."""
        folder.mkdir(exist_ok=True)
        paths = [folder / name for name in NAMES]
        return {"out": paths[:2], "confidence": paths[2], "probabilities": paths[3]}

    def bytes_in(self, folder):
        """The rasters, and the polygons as rows."""
        import geopandas

        rasters = [(folder / name).read_bytes() for name in NAMES if name.endswith(".tif")]
        frame = geopandas.read_file(folder / NAMES[1], layer="mask")
        return rasters, sorted(zip(frame.class_id, frame.geometry.to_wkb(), frame.confidence, strict=True))


def holed(height, width, bands=3, seed=0):
    """Noise in patches, with nodata in the middle and a corner."""
    rough = noise(bands, -(-height // 5), -(-width // 5), seed)
    image = np.kron(rough, np.ones((1, 5, 5), np.uint8))[:, :height, :width] + noise(bands, height, width, seed + 1) // 8
    image[:, height // 3 : height // 2, width // 4 : 3 * width // 4] = 0
    image[:, : height // 5, : width // 5] = 0
    return image
