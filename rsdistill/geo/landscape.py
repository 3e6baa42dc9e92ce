"""The land that synthetic scenes show: parcels, roads, a town, a river and trees, as exact planes of labels, heights and looks."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Rect = tuple[int, int, int, int]
"""Top, left, bottom, right."""
Color = tuple[float, ...]

OUTSIDE, WATER, TREES, MEADOW, CROPLAND, SOIL, SEALED, BUILDING = range(8)
KEPT_CLEAR = (WATER, SEALED, BUILDING)
"""No tree stands on these."""

DEEP = (36.0, 44.0, 47.0)
"""Colour of water and of shadow alike."""
SAND, LAWN, EARTH, ROAD, YARD = (
    (176.0, 162.0, 132.0),
    (104.0, 122.0, 70.0),
    (150.0, 126.0, 98.0),
    (128.0, 126.0, 124.0),
    (150.0, 146.0, 140.0),
)
CROPS = ((84.0, 112.0, 58.0), (110.0, 134.0, 66.0), (184.0, 168.0, 104.0), (162.0, 154.0, 90.0), (140.0, 114.0, 88.0))
ROOFS = ((168.0, 96.0, 74.0), (150.0, 88.0, 70.0), (178.0, 112.0, 84.0), (124.0, 120.0, 116.0), (182.0, 176.0, 168.0), (100.0, 94.0, 92.0))
GREY_ROOFS = ROOFS[3:]
CROWN_SPACING = 8


@dataclass
class Land:
    """What lies where, in planes of one size; first on a board with straight axes, then :meth:`seen` turned and bent."""

    label: Bytes
    """(H, W) class."""
    parcel: NDArray[np.int32]
    """(H, W) index into ``looks``."""
    tall: Bytes
    """(H, W) how many pixels of shadow the thing throws."""
    shade: NDArray[np.int16]
    """(H, W) brightness added by the slope of a roof or the side of a crown."""
    stripes: Float
    """(H, W) furrows, about −1…1."""
    looks: list[Color] = field(default_factory=list)
    """A parcel's red, green, blue."""

    @classmethod
    def empty(cls, height: int, width: int) -> "Land":
        """Land without anything on it."""
        shape = height, width
        return cls(
            label=np.zeros(shape, np.uint8),
            parcel=np.zeros(shape, np.int32),
            tall=np.zeros(shape, np.uint8),
            shade=np.zeros(shape, np.int16),
            stripes=np.zeros(shape, np.float32),
        )

    def fill(self, rect: Rect, label: int, color: Color, tall: int = 0) -> tuple[slice, slice]:
        """Make ``rect`` a parcel of its own; return its place in the planes."""
        top, left, bottom, right = rect
        area = np.s_[top:bottom, left:right]
        self.label[area], self.parcel[area], self.tall[area], self.stripes[area] = label, len(self.looks), tall, 0
        self.looks.append(color)
        return area

    def seen(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> "Land":
        """The planes looked up at (rows, cols), each (H, W)."""
        at = rows, cols
        return Land(self.label[at], self.parcel[at], self.tall[at], self.shade[at], self.stripes[at], self.looks)


def draw_land(rng: np.random.Generator, height: int, width: int) -> Land:
    """Draw land of ``height`` × ``width`` pixels with every class on it; below 1024 pixels, fields and town shrink with the scene."""
    scale = float(np.clip(min(height, width) / 1024, 0.35, 1.0))
    side = int(1.05 * np.hypot(height, width) + 120)
    rows, cols = _bend(rng, (height, width), side, scale)
    town = int(0.3 * height), int(0.74 * width)
    board = _settle(rng, side, (int(rows[town]), int(cols[town])), scale)
    land = board.seen(rows, cols)
    river, lake = _banks(rng, (height, width), scale)
    bank = np.minimum(river, lake)
    _flood(land, bank, (land.parcel == 0) & (river < lake))
    town_distance = np.hypot(np.arange(height)[:, None] - town[0], np.arange(width)[None, :] - town[1]) / (0.4 * min(height, width))
    _plant(rng, land, bank, town_distance)
    return land


def noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> Float:
    """Smooth (H, W) noise of mean 0 and deviation near 1: random knots ``wavelength`` pixels apart, joined by cubic B-splines."""
    weights = []
    for length in shape:
        away = np.abs(np.arange(length)[:, None] / wavelength + 1 - np.arange(int(length / wavelength) + 4)[None, :])
        weights.append(np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6))
    knots = rng.standard_normal((weights[0].shape[1], weights[1].shape[1]))
    return np.asarray(2.0 * (weights[0] @ knots @ weights[1].T), np.float32)


def _bend(rng: np.random.Generator, shape: tuple[int, int], side: int, scale: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column on a square board of ``side`` that each scene pixel shows: turned about the middle and gently bent."""
    turn = rng.uniform(0.15, 0.5) * rng.choice([-1, 1])
    row, col = np.ogrid[: shape[0], : shape[1]]
    row, col = row - shape[0] / 2, col - shape[1] / 2
    rows = np.cos(turn) * row + np.sin(turn) * col + 22 * scale * noise(rng, shape, 420 * scale)
    cols = np.cos(turn) * col - np.sin(turn) * row + 22 * scale * noise(rng, shape, 420 * scale)
    rows, cols = (np.clip(axis + side / 2, 0, side - 1).astype(np.intp) for axis in (rows, cols))
    return rows, cols


def _cut(rng: np.random.Generator, rect: Rect, longest: float, gap: int) -> list[Rect]:
    """Halve ``rect`` unevenly until no side is longer than ``longest``, leaving ``gap`` pixels free at each cut."""
    top, left, bottom, right = rect
    height, width = bottom - top, right - left
    if max(height, width) <= longest:
        return [rect]
    at = int(rng.uniform(0.36, 0.64) * max(height, width) - gap / 2)
    if height > width:
        first, second = (top, left, top + at, right), (top + at + gap, left, bottom, right)
    else:
        first, second = (top, left, bottom, left + at), (top, left + at + gap, bottom, right)
    return _cut(rng, first, longest, gap) + _cut(rng, second, longest, gap)


def _tint(rng: np.random.Generator, color: Color) -> Color:
    return tuple((np.array(color) + rng.normal(0, 8) + rng.normal(0, 3, 3)).tolist())


def _settle(rng: np.random.Generator, side: int, town: tuple[int, int], scale: float) -> Land:
    """Divide a board: roads between districts, streets and houses in those near ``town``, fields in all others."""
    board = Land.empty(side, side)
    board.fill((0, 0, side, side), SEALED, ROAD)
    for district in _cut(rng, (0, 0, side, side), 620 * scale, 12):
        top, left, bottom, right = district
        away = np.hypot((top + bottom) / 2 - town[0], (left + right) / 2 - town[1])
        if away < 380 * scale or (top <= town[0] < bottom and left <= town[1] < right):
            board.fill(district, SEALED, _tint(rng, ROAD))
            for block in _cut(rng, district, 170, 9):
                _build(rng, board, block)
        else:
            _farm(rng, board, district, scale)
    return board


def _farm(rng: np.random.Generator, board: Land, district: Rect, scale: float) -> None:
    """Lay out crops, ploughed land, meadow and bare soil, with grassy or trodden baulks between them."""
    grassy = rng.random() < 0.6
    board.fill(district, MEADOW if grassy else SOIL, _tint(rng, LAWN if grassy else EARTH))
    for rect in _cut(rng, district, max(90.0, 250 * scale), 4):
        kind = int(rng.choice([CROPLAND, MEADOW, SOIL], p=[0.66, 0.2, 0.14]))
        if kind != CROPLAND:
            board.fill(rect, kind, _tint(rng, LAWN if kind == MEADOW else EARTH))
            continue
        area = board.fill(rect, CROPLAND, _tint(rng, CROPS[rng.integers(len(CROPS))]))
        height, width = rect[2] - rect[0], rect[3] - rect[1]
        across = np.arange(height)[:, None] if width > height else np.arange(width)[None, :]
        period = rng.uniform(4.5, 8.0)
        tramlines = across % (9 * period) < 2.5
        board.stripes[area] = rng.uniform(0.5, 1.0) * np.sin(2 * np.pi * across / period) - 1.2 * tramlines


def _build(rng: np.random.Generator, board: Land, block: Rect) -> None:
    """Lay out a block of the town: halls on a yard, or houses with gabled roofs in gardens."""
    halls = rng.random() < 0.25
    board.fill(block, SEALED if halls else MEADOW, _tint(rng, YARD if halls else LAWN))
    for top, left, bottom, right in _cut(rng, block, 110 if halls else 56, 0):
        inset = rng.integers(6, 13, 4).tolist()
        roof = top + inset[0], left + inset[1], bottom - inset[2], right - inset[3]
        height, width = roof[2] - roof[0], roof[3] - roof[1]
        if min(height, width) < 10 or rng.random() < 0.08:
            continue
        colors = GREY_ROOFS if halls else ROOFS
        area = board.fill(roof, BUILDING, _tint(rng, colors[rng.integers(len(colors))]), tall=int(rng.integers(9, 20)))
        lit = np.arange(height)[:, None] < height // 2 if width > height else np.arange(width)[None, :] < width // 2
        board.shade[area] = np.where(lit, 1, -1) * (4 if halls else 20)


def _banks(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> tuple[Float, Float]:
    """Two (H, W) distances to the bank in pixels, below 0 in the water: of a meandering river and of a lake."""
    row, col = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    swings = [rng.uniform(0.5, 1) * a * np.sin(row / (b * scale) + rng.uniform(0, 6.3)) for a, b in ((90, 190), (40, 83), (9, 31))]
    course = rng.uniform(0.28, 0.44) * shape[1] + scale * sum(swings)
    width = scale * (34 + 7 * np.sin(row / (130 * scale)))
    river = np.abs(col - course) / np.hypot(1, np.gradient(course, axis=0)) - width
    lake = np.hypot(row - rng.uniform(0.68, 0.8) * shape[0], (col - rng.uniform(0.72, 0.84) * shape[1]) / 1.3) - 95 * scale
    rough = scale * (4 * noise(rng, shape, 46 * scale) + noise(rng, shape, 9))
    return np.asarray(river + rough, np.float32), np.asarray(lake + rough + 34 * scale * noise(rng, shape, 75 * scale), np.float32)


def _flood(land: Land, bank: Float, bridge: NDArray[np.bool_]) -> None:
    """Let the water in, but not over the ``bridge``: houses that it would touch are gone whole, streets end at the sand."""
    touched = np.isin(land.parcel, np.unique(land.parcel[bank < 12])) & (land.label == BUILDING)
    garden = next((index for index, color in enumerate(land.looks) if color[1] > max(color[0], color[2])), 0)
    land.label[touched], land.parcel[touched], land.tall[touched], land.shade[touched] = MEADOW, garden, 0, 0
    for reach, label, color in ((5, SOIL, SAND), (0, WATER, DEEP)):
        area = (bank < reach) & ~bridge
        land.label[area], land.parcel[area], land.tall[area], land.stripes[area] = label, len(land.looks), 0, 0
        land.looks.append(color)


def _plant(rng: np.random.Generator, land: Land, bank: Float, town: NDArray[np.float64]) -> None:
    """Plant woods away from the ``town``, riverside trees and single ones; a tree is the disc of its crown, lit from the upper left."""
    height, width = land.label.shape
    grid = np.mgrid[0:height:CROWN_SPACING, 0:width:CROWN_SPACING].reshape(2, -1)
    tops = np.minimum(grid + rng.integers(0, CROWN_SPACING - 1, grid.shape), [[height - 1], [width - 1]])
    row, col = tops
    score = noise(rng, (height, width), 0.17 * min(height, width)) + 0.3 * noise(rng, (height, width), 40) - 3 * np.exp(-(town**2))
    wood = score > np.quantile(score, 0.83)
    places = [wood[row, col], (bank[row, col] > 6) & (bank[row, col] < 30), land.label[row, col] == MEADOW]
    planted = rng.random(len(row)) < np.select(places, [1.0, 0.35, 0.04], 0.002)
    planted &= ~np.isin(land.label[row, col], KEPT_CLEAR)
    ground = np.ones((height, width), bool)
    ground[row[planted], col[planted]] = False
    top_row, top_col = ndimage.distance_transform_edt(ground, return_distances=False, return_indices=True)
    tree = rng.random((height, width), np.float32)[top_row, top_col]
    down, right = (np.arange(height)[:, None] - top_row) / (4.5 + 4 * tree), (np.arange(width)[None, :] - top_col) / (4.5 + 4 * tree)
    reach = np.where(wood, 1.7, 1.0)  # woods close the gaps between crowns, single trees stay round
    inside = (np.hypot(down, right) < reach) & ~np.isin(land.label, KEPT_CLEAR)
    land.label[inside], land.tall[inside], land.stripes[inside] = TREES, 9, 0
    land.parcel[inside] = len(land.looks) + (4 * tree[inside]).astype(np.int32)
    land.looks += [(58.0, 82.0, 46.0), (66.0, 88.0, 50.0), (52.0, 76.0, 48.0), (76.0, 92.0, 54.0)]
    land.shade[inside] = (-22 * (0.6 * right + 0.8 * down) - 14 * (down**2 + right**2) + 10)[inside]
