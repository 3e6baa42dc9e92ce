"""The picture of a tile set: where the tiles of each split lie, and how much of each class they hold."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic
from rsdistill.geo.tile_index import TileRow
from rsdistill.outputs.pictures import Bytes

SPLIT_COLORS = {"train": "#4477aa", "val": "#ee7733", "test": "#aa3377"}
"""Apart in hue and in brightness, also for colour-blind people."""
MOST_SCENES = 9
"""Scenes that are drawn; all are counted."""
SIDE = 900
"""Longest side of a scene in the picture, in pixels."""
INK, RULE = "#222222", "#d0d0d0"


class ScenePanel(NamedTuple):
    """One scene of the picture."""

    name: str
    size: tuple[int, int]
    """Height and width of the scene in pixels."""
    photo: Bytes
    """(h, w, 3) colours."""
    tiles: Sequence[TileRow]


def draw_tile_map(path: Path, scenes: Sequence[ScenePanel], table: ClassTable, class_pixels: Mapping[str, Sequence[int]]) -> None:
    """Draw a tile set as a PNG.

    Args:
        path: the PNG; its parent folder is made.
        scenes: at most :data:`MOST_SCENES` of them are drawn.
        table: names and colours of the K classes.
        class_pixels: per split, K labelled pixels.

    Raises:
        DiskError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    shown = scenes[:MOST_SCENES]
    columns = min(3, len(shown))
    rows = ceil(len(shown) / columns)
    figure = Figure(figsize=(min(4.2, 7.5 / columns) * columns + 3.6, max(3.4, min(4.2, 7.5 / columns) * rows)), layout="constrained")
    maps, bars = figure.subfigures(1, 2, squeeze=False, width_ratios=(min(4.2, 7.5 / columns) * columns, 3.6))[0]
    panels = maps.subplots(rows, columns, squeeze=False).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, scene in zip(maps.axes, shown, strict=False):
        _draw_scene(panel, scene)
    counts = {split: sum(tile.split == split for scene in scenes for tile in scene.tiles) for split in SPLIT_COLORS}
    _draw_shares(bars, table, class_pixels, counts)
    left = len(scenes) - len(shown)
    if left:
        maps.supxlabel(f"and {left} more scenes", fontsize=8, color=INK)
    with atomic(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight", pad_inches=0.08)


def _draw_scene(panel: Any, scene: ScenePanel) -> None:
    """Draw the footprints over the scene in grey; tiles without labels are outlines only."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    height, width = scene.size
    panel.imshow(scene.photo.mean(axis=2), cmap="gray", vmin=-80, vmax=255, extent=(0, width, height, 0))
    for split, color in SPLIT_COLORS.items():
        for labelled in (True, False):
            found = [tile.window for tile in scene.tiles if tile.split == split and tile.labelled == labelled]
            boxes = [Rectangle((box.col, box.row), box.width, box.height) for box in found]
            face = (*_rgb(color), 0.42 if labelled else 0.0)
            panel.add_collection(PatchCollection(boxes, facecolor=face, edgecolor=color, linewidth=0.7))
    panel.set_title(f"{scene.name}, {width} x {height}", loc="left", fontsize=9, color=INK)
    panel.set(xlim=(0, width), ylim=(height, 0), aspect="equal")


def _draw_shares(figure: Any, table: ClassTable, class_pixels: Mapping[str, Sequence[int]], counts: Mapping[str, int]) -> None:
    """Draw each split's share of labelled pixels a class as bars beside one another."""
    splits = [split for split in SPLIT_COLORS if counts[split]]
    panel = figure.subplots()
    thickness = 0.8 / max(1, len(splits))
    for position, split in enumerate(splits):
        total = max(1, sum(class_pixels[split]))
        shares = [100 * pixels / total for pixels in class_pixels[split]]
        places = [k + (position - (len(splits) - 1) / 2) * thickness for k in range(len(table))]
        noun = "tile" if counts[split] == 1 else "tiles"
        panel.barh(places, shares, height=0.9 * thickness, color=SPLIT_COLORS[split], label=f"{split}: {counts[split]} {noun}")
    panel.set_yticks(range(len(table)), table.names, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("share of labelled pixels, %", fontsize=8, color=INK)
    panel.tick_params(color=RULE, labelsize=8)
    panel.grid(axis="x", color=RULE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color(RULE)
    panel.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(splits), handlelength=1)


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = bytes.fromhex(color[1:])
    return red / 255, green / 255, blue / 255
