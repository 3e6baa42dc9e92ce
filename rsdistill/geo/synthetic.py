"""Scenes drawn with exact labels: a land-cover photograph, and the task that only far context decides."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from scipy import ndimage

from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.geo.files import atomic
from rsdistill.geo.landscape import BUILDING, CROPLAND, DEEP, MEADOW, OUTSIDE, SEALED, SOIL, TREES, WATER, Bytes, Land, draw_land, noise

Mask = NDArray[np.bool_]


def _table(*rows: tuple[int, str, str]) -> ClassTable:
    return ClassTable(tuple(LandClass(*row) for row in rows), ignore=(OUTSIDE,))


LAND_COVER = _table(
    (WATER, "water", "#2f7ed8"),
    (TREES, "trees", "#1b7837"),
    (MEADOW, "meadow", "#a6d96a"),
    (CROPLAND, "cropland", "#f0d264"),
    (SOIL, "bare soil", "#b5855a"),
    (SEALED, "sealed", "#8c8c8c"),
    (BUILDING, "building", "#d7301f"),
)
DARK_SIDE, BRIGHT_SIDE = 1, 2
SIDES = _table((DARK_SIDE, "dark side", "#5e3c99"), (BRIGHT_SIDE, "bright side", "#e66101"))

GRID = Affine(0.5, 0.0, 352_000.0, 0.0, -0.5, 6_170_000.0)
CRS = "EPSG:32720"
"""UTM zone 20 south, half a metre a pixel: the sun stands in the north, so shadows fall down the picture, as eyes expect relief."""

MOTTLE = np.array([0, 1.5, 6.0, 8.0, 6.0, 9.0, 4.0, 2.0], np.float32)
"""How much each class varies over metres, in digital numbers."""
STRIPES = 11.0
"""Amplitude of furrows in digital numbers."""
SENSOR_NOISE = 2.5


class Drawn(NamedTuple):
    """A drawn scene and the truth about each of its pixels."""

    image: Bytes
    """(3, H, W) red, green, blue; 0 exactly where not valid, at least 1 elsewhere."""
    valid: Mask
    """(H, W) True inside the photograph's irregular footprint."""
    label: Bytes
    """(H, W) class id; 0 where there is no truth."""


class DrawnFiles(NamedTuple):
    """The files of a drawn scene."""

    scene: Path
    labels: Path
    classes: Path


def draw_land_cover(height: int, width: int, seed: int = 0) -> Drawn:
    """Draw an aerial photograph of farmland, woods, a river, a lake and a town, half a metre a pixel.

    Water and shadow have one colour and one texture, so that only what lies around tells them apart; a ploughed field differs from bare
    soil by its furrows alone, a grey roof from a yard by its shadow. Ids and names are those of :data:`LAND_COVER`.

    Args:
        height: rows, at least 128; every class is there from 256 on.
        width: columns, likewise.
        seed: the same seed draws the same bytes.
    """
    rng = np.random.default_rng(seed)
    land = draw_land(rng, height, width)
    valid = _footprint(rng, height, width)
    image = _photograph(rng, land)
    return Drawn(image * valid, valid, land.label * valid)


def _photograph(rng: np.random.Generator, land: Land) -> Bytes:
    """Colour the land, let the shadows fall, and see it through haze, lens and sensor: (3, H, W), 1…255."""
    shape = land.label.shape
    looks = np.array(land.looks, np.float32)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.8)
    mottle = MOTTLE[land.label] * (0.8 * noise(rng, shape, 70) + 0.5 * noise(rng, shape, 11) + grain)
    relief = mottle + STRIPES * land.stripes + land.shade
    light = 1 + 0.05 * np.linspace(1, -1, shape[1], dtype=np.float32) + 0.04 * noise(rng, shape, max(shape) / 2.5)
    dark = _shadow(land.tall) | (land.label == WATER)
    veil = ndimage.gaussian_filter(np.where(dark, np.float32(0.97), np.float32(0)), 0.7)
    ripples = 1.5 * noise(rng, shape, 30)
    image = np.empty((3, *shape), np.uint8)
    for band in range(3):
        lit = ndimage.gaussian_filter((looks[land.parcel, band] + relief) * light, 0.6)
        seen = lit + veil * (DEEP[band] + ripples - lit) + SENSOR_NOISE * rng.standard_normal(shape, np.float32)
        image[band] = np.clip(np.rint(seen), 1, 255)
    return image


def _shadow(tall: Bytes) -> Mask:
    """Where something up to the left and above hides the sun, which stands as high as shadows are long."""
    shadow = np.zeros(tall.shape, bool)
    for step in range(1, int(tall.max()) + 1):
        down, right = step, step // 2
        caster = tall[: tall.shape[0] - down, : tall.shape[1] - right]
        shadow[down:, right:] |= caster > tall[down:, right:] + step
    return shadow


def _footprint(rng: np.random.Generator, height: int, width: int) -> Mask:
    """The rim of a mosaic of photographs: slanting, stepped where one exposure ends, one corner never flown."""
    row, col = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    steps = rng.uniform(0, 0.012, (2, 7))
    left, top = 0.008 + steps[0][(row * 6.99).astype(int)], 0.004 + steps[1][(col * 6.99).astype(int)]
    slant = rng.uniform(0.005, 0.02, 2)
    corner = np.floor(((1 - row) + (1 - col)) * 40) / 40 > 0.15
    return np.asarray((col > left + slant[0] * row) & (row > top + slant[1] * col) & corner)


def far_context(height: int, width: int, seed: int = 0, *, region: int = 256, reach: int = 64) -> Drawn:
    """Draw a scene whose every labelled pixel looks like all others: only a beacon further away than ``reach`` says the class.

    Square regions of even grey noise hold one beacon in the middle, dark or bright, which gives the whole region its class (:data:`SIDES`).
    Pixels nearer than ``reach`` to a beacon carry no label, so a tile of at most ``reach`` pixels with a label shows none of it, and
    nothing but chance answers without context. ``256 − image`` is the same task with the answers swapped.

    Args:
        height: rows.
        width: columns.
        seed: of noise and of the beacons.
        region: side of a region in pixels; its beacon is a quarter as wide.
        reach: distance from a beacon within which there are no labels; less than three eighths of ``region``.

    Raises:
        ValueError: ``reach`` leaves no labels.
    """
    if not 0 < reach < 3 * region / 8:
        raise ValueError(f"reach {reach} leaves no labels in a region of {region}")
    rng = np.random.default_rng(seed)
    rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
    count = (-(-height // region), -(-width // region))
    sides = rng.permutation(np.arange(count[0] * count[1]) % 2).reshape(count) + DARK_SIDE
    side = sides[rows // region, cols // region]
    away = np.maximum(np.abs(rows % region - (region - 1) / 2), np.abs(cols % region - (region - 1) / 2)) - region / 8
    grey = np.where(away < 0, np.where(side == BRIGHT_SIDE, 224.0, 32.0), 128.0)
    image = np.clip(np.rint(grey + 10 * rng.standard_normal((3, height, width))), 1, 255).astype(np.uint8)
    return Drawn(image, np.ones((height, width), bool), np.where(away > reach, side, OUTSIDE).astype(np.uint8))


def write_land_cover(folder: Path, *, size: int | tuple[int, int] = 2048, seed: int = 0) -> DrawnFiles:
    """Write :func:`draw_land_cover` of ``size`` (side, or height and width) to ``folder``; see :func:`write_drawn`."""
    height, width = (size, size) if isinstance(size, int) else size
    return write_drawn(folder, draw_land_cover(height, width, seed), LAND_COVER)


def write_drawn(folder: Path, drawn: Drawn, table: ClassTable, stem: str = "scene", labels: str = "labels") -> DrawnFiles:
    """Write ``scene.tif``, ``labels.tif`` (both UTM, tiled, with overviews, nodata 0) and ``classes.toml``; replace what was there.

    Raises:
        DiskError: the folder cannot be written.
    """
    files = DrawnFiles(folder / f"{stem}.tif", folder / f"{labels}.tif", folder / "classes.toml")
    _write_raster(files.scene, drawn.image, Resampling.average)
    _write_raster(files.labels, drawn.label[None], Resampling.mode, {one.id: one.rgb for one in table.classes})
    with atomic(files.classes) as part:
        part.write_text(table.to_toml(), encoding="utf-8")
    return files


def _write_raster(path: Path, bands: Bytes, overviews: Resampling, palette: dict[int, tuple[int, int, int]] | None = None) -> None:
    count, height, width = bands.shape
    shape = {"dtype": "uint8", "count": count, "height": height, "width": width, "nodata": 0, "crs": CRS, "transform": GRID}
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with atomic(path) as part, rasterio.open(part, "w", **shape, **layout) as file:
        file.write(bands)
        if palette:
            file.write_colormap(1, palette)
        file.build_overviews([2**level for level in range(1, 8) if min(height, width) >> level >= 128], overviews)
