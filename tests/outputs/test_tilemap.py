"""The picture of a tile set: every tile in its place and colour."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.tile_index import TileRow
from rsdistill.geo.windows import Window
from rsdistill.outputs.tilemap import MOST_SCENES, SPLIT_COLORS, ScenePanel, draw_tile_map

TABLE = ClassTable((LandClass(1, "field", "#f0d060"), LandClass(2, "water", "#2060e0")))


def panel(name: str, splits: tuple[str, ...]) -> ScenePanel:
    """A black scene with a tile of each split side by side."""
    tiles = [TileRow(name, Window(0, 100 * k, 100, 100), split, True, 1.0, (0.5, 0.5)) for k, split in enumerate(splits)]
    return ScenePanel(name, (100, 100 * len(splits)), np.zeros((20, 20 * len(splits), 3), np.uint8), tiles)


def near(picture: np.ndarray, color: tuple[float, ...], tolerance: float = 0.03) -> np.ndarray:
    return np.abs(picture - np.array(color)).max(axis=2) < tolerance


def test_every_tile_has_the_colour_of_its_split(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tiles.png"
    draw_tile_map(path, [panel("a", ("train", "val", "train"))], TABLE, {"train": (300, 100), "val": (0, 50), "test": (0, 0)})
    picture = imread(path)[..., :3]
    left = picture[:, : picture.shape[1] // 2]
    ground = 80 / 335  # black of a scene, lifted so that blue and black are told apart
    columns = []
    for split in ("train", "val"):
        mixed = tuple(0.42 * one + 0.58 * ground for one in to_rgb(SPLIT_COLORS[split]))
        columns.append(np.flatnonzero(near(left, mixed).any(0)))
    assert columns[0].min() < columns[1].min() < columns[1].max() < columns[0].max()
    bars = picture[:, picture.shape[1] // 2 :]
    widths = [near(bars, to_rgb(SPLIT_COLORS[split])).sum(1).max() for split in ("train", "val")]
    assert widths[0] / widths[1] == pytest.approx(0.75, abs=0.03)  # the longest bars: 75 and 100 %
    assert not near(bars, to_rgb(SPLIT_COLORS["test"])).any()


def test_many_scenes_are_counted_though_not_drawn(tmp_path: Path) -> None:
    scenes = [panel(f"s{k}", ("train",)) for k in range(MOST_SCENES + 3)]
    draw_tile_map(tmp_path / "tiles.png", scenes, TABLE, {"train": (1, 1), "val": (0, 0), "test": (0, 0)})
    assert (tmp_path / "tiles.png").stat().st_size > 1000
