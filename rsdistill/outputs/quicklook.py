"""The quick look: a mask as a picture with legend and scale bar, over its scene where one is given; fit for a page of a paper."""

from math import cos, floor, log10, radians
from pathlib import Path
from typing import Any

import numpy as np

from rsdistill.errors import MaskError, SceneError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.windows import Grid
from rsdistill.outputs.pictures import paint, shade, small_mask, small_scene

SIDE = 1600
"""Longest side of the picture in pixels."""
INCHES = 6.0
"""Longest side of the picture on paper."""
THINNEST = 0.2
"""Inches that the other side has at least: a scene one pixel high is still seen."""
BAR_SHARE = 0.3
"""Largest share of the picture's width that the scale bar takes."""
METRES_A_DEGREE = 111_320.0
INK = "#222222"


def draw_quicklook(mask: Path, path: Path, table: ClassTable, *, scene: Path | None = None) -> None:
    """Draw a mask as a PNG with the classes that it shows and a scale bar; the rows of the file run down, whatever its transform.

    Args:
        mask: label raster of the table's ids; only every n-th pixel is read, so its size costs no memory.
        path: the PNG; its parent folder is made.
        table: names and colours.
        scene: raster on the mask's grid; its light and dark is laid over the classes.

    Raises:
        DiskError: the picture cannot be written.
        MaskError: the mask cannot be read.
        SceneError: the scene cannot be read, or has another size than the mask.
    """
    try:
        index = small_mask(mask, table, SIDE)
        with open_scene(mask) as raster:
            grid = raster.grid
    except SceneError as error:
        raise MaskError(str(error), hint=error.hint) from None
    picture = paint(index, table.colors)
    if scene is not None:
        with open_scene(scene, allow_vrt=True, allow_remote=True) as raster:
            _check_size(raster, mask, grid)
            colors, valid = small_scene(raster, SIDE)
        picture = np.where(valid[..., None], shade(picture, index, colors), picture)
    shown = [k for k in range(len(table)) if (index == k).any()]
    figure = _figure(picture, grid, [(table.names[k], table.colors[k]) for k in shown])
    with atomic(path) as part:
        figure.savefig(part, dpi=SIDE / INCHES, bbox_inches="tight", pad_inches=0.06)


def scale_bar(grid: Grid, share: float = BAR_SHARE) -> tuple[float, str]:
    """Return the length of a scale bar in pixels along a row, and what stands under it.

    The length is 1, 2 or 5 times a power of ten, at most ``share`` of the grid's width. Degrees are turned into metres at the grid's
    middle; without a CRS the bar counts pixels.
    """
    metres = _metres_a_pixel(grid)
    most = share * grid.width * (metres or 1.0)
    power = 10.0 ** floor(log10(most))
    length = power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))
    if metres is None:
        return length, f"{length:g} pixels"
    return length / metres, f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m" if length >= 1 else f"{100 * length:g} cm"


def _metres_a_pixel(grid: Grid) -> float | None:
    if grid.crs is None or not (grid.crs.is_geographic or grid.crs.is_projected):
        return None
    if not grid.crs.is_geographic:
        return float(grid.pixel_size[1] * grid.crs.linear_units_factor[1])
    a, _, _, d, _, _ = grid.transform[:6]
    latitude = (grid.transform @ (grid.width / 2, grid.height / 2))[1]
    return float(METRES_A_DEGREE * ((a * cos(radians(latitude))) ** 2 + d**2) ** 0.5)


def _check_size(scene: Scene, mask: Path, grid: Grid) -> None:
    theirs = (scene.grid.height, scene.grid.width)
    if theirs != (grid.height, grid.width):
        raise SceneError(
            f"{scene.path} is {theirs[0]} x {theirs[1]} pixels, {mask} is {grid.height} x {grid.width}", hint="give the mask's own scene"
        )


def _figure(picture: Any, grid: Grid, legend: list[tuple[str, str]]) -> Any:
    """The picture, its legend on the right, the scale bar under its left corner."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = (max(INCHES * length / max(picture.shape), THINNEST) for length in picture.shape[:2])
    figure = Figure(figsize=(width, height))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.imshow(picture, interpolation="none", extent=(0, grid.width, grid.height, 0), aspect="auto")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color="#888888", linewidth=0.5)
    if legend:
        patches = [Patch(facecolor=color, edgecolor="#888888", linewidth=0.5, label=name) for name, color in legend]
        panel.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, labelcolor=INK)
    _add_scale_bar(panel, grid, 72 * height)
    return figure


def _add_scale_bar(panel: Any, grid: Grid, height: float) -> None:
    """Draw the scale bar 9 points below a picture that is ``height`` points high."""
    length, text = scale_bar(grid)
    line, place = -9 / height, panel.get_xaxis_transform()
    panel.plot([0, length], [line, line], transform=place, color=INK, linewidth=2.5, clip_on=False, solid_capstyle="butt")
    style = {"textcoords": "offset points", "annotation_clip": False, "color": INK, "fontsize": 9}
    panel.annotate(text, (length, line), xycoords=place, xytext=(5, -3), **style)
    panel.set_xlim(0, grid.width)
    panel.set_ylim(grid.height, 0)
