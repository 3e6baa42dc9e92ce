"""What a person should know of a scene or its labels before a long run: notes on what is legal but costs time or accuracy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import LabelError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.labels import Labels
from rsdistill.geo.scenes import Scene
from rsdistill.geo.windows import Window

STRIP_VALUES = 1 << 24
"""Values, of all bands together, that are held at once while a file is read."""
RIM_SHARE = 0.05
"""One grey on more of a scene's rim than this, with no nodata declared, is worth a word."""
STRIP_WIDTH = 4096
"""Scenes wider than this are slow to read in windows when they are stored in whole rows."""


def header_notes(scene: Scene) -> list[str]:
    """Return what the header alone tells."""
    grid, (rows, cols) = scene.grid, scene.block_shape
    notes = {
        "no CRS: results are in pixel coordinates": not grid.georeferenced,
        "rotated: predict maps it as it is, tile needs it warped to north-up": grid.rotated,
        f"stored in blocks of {rows} x {cols}: windows are slow to read; store it tiled": grid.width > STRIP_WIDTH and cols == grid.width,
    }
    return [note for note, holds in notes.items() if holds]


def palette_notes(scene: Scene) -> list[str]:
    """Return that a raster which is to be read as a scene holds numbers of colours."""
    note = "pixels are numbers of colours: rio convert or gdal_translate -expand rgb makes them intensities"
    return [] if scene.palette is None else [note]


def pixel_notes(scene: Scene) -> list[str]:
    """Read every pixel and return what that tells.

    Raises:
        SceneError: rows cannot be decoded.
    """
    bands, grid = scene.color_bands, scene.grid
    count, rim = 0, []
    low, high = np.full(len(bands), np.inf), np.full(len(bands), -np.inf)
    for window, values, valid in scene.strips(bands, _strip_rows(scene, len(bands))):
        edges = [values[:, :, 0], values[:, :, -1], *([values[:, 0]] if window.row == 0 else [])]
        rim += [*edges, *([values[:, -1]] if window.stop[0] == grid.height else [])]
        count += int(valid.sum())
        if valid.any():
            seen = values[:, valid]
            low, high = np.minimum(low, seen.min(axis=1)), np.maximum(high, seen.max(axis=1))
    if not count:
        return ["nodata everywhere"]
    notes = [f"band {band} is {value:g} everywhere" for band, value, most in zip(bands, low, high, strict=True) if value == most]
    undeclared = count == grid.height * grid.width and all(value is None for value in scene.nodata)
    return notes + (_rim_notes(np.concatenate(rim, axis=1)) if undeclared and not notes else [])


def _rim_notes(rim: NDArray[Any]) -> list[str]:
    """Suspect nodata in the (C, n) pixels of a scene's rim."""
    colors, counts = np.unique(rim, axis=1, return_counts=True)
    common, share = colors[:, counts.argmax()], counts.max() / counts.sum()
    if share <= RIM_SHARE or (common != common[0]).any():
        return []
    return [f"{share:.0%} of its rim is {common[0]:g}: give --nodata {common[0]:g} if that means nothing"]


def class_notes(labels: Labels, scene: Scene, table: ClassTable) -> list[str]:
    """Read every label and return what that tells.

    Raises:
        LabelError: a value that the class table does not know, or no label at all.
    """
    grid = scene.grid
    counts = np.zeros(256, np.int64)
    rows = _strip_rows(scene, 1)
    for row in range(0, grid.height, rows):
        index = labels.read(Window(row, 0, min(rows, grid.height - row), grid.width))
        counts += np.bincount(index.ravel(), minlength=256)
    pixels = counts[: len(table)]
    if not pixels.any():
        raise LabelError(f"{labels.source} labels no pixel of {scene.path}", hint="check its values, its CRS and what the table ignores")
    absent = [name for name, count in zip(table.names, pixels, strict=True) if not count]
    return [f"{pixels.sum() / counts.sum():.0%} labelled", *([f"without {', '.join(absent)}"] if absent else [])]


def _strip_rows(scene: Scene, bands: int) -> int:
    return max(1, min(512, STRIP_VALUES // (scene.grid.width * bands)))
