"""Rasters made small for the eye: reads of every n-th pixel, brightness stretched, classes painted, all in memory that the picture sets."""

import warnings
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.geo.opening import open_sealed, sealed_reading
from rsdistill.geo.scenes import Scene
from rsdistill.geo.sources import check_source

Bytes = NDArray[np.uint8]

PERCENTILES = (2, 98)
"""Values below and above these become black and white."""
BASE, DARKEST = 0.88, 0.6
"""Brightness of painted classes, of 1, where a scene is as light as the class usually is, and where it is far darker."""
CACHE_MB = 64
"""Of blocks that GDAL keeps: each is looked at once, and its own default grows with the machine."""


def small_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of the picture of a raster, the longer side at most ``side`` pixels; never larger than the raster."""
    step = max(1.0, max(height, width) / side)
    return ceil(height / step), ceil(width / step)


def picture_bands(scene: Scene) -> tuple[int, ...]:
    """The bands that stand for red, green and blue: the first three, or the first one."""
    bands = scene.bands()
    return bands[:3] if len(bands) >= 3 else bands[:1]


def small_mask(mask: Path, table: ClassTable, side: int) -> Bytes:
    """Return the (h, w) class index of a mask, 255 where it has none, the longer side at most ``side`` pixels.

    Raises:
        SceneError: the file is no raster, or damaged.
    """
    with Scene(mask) as raster:
        ids = _decimated(raster, _size(raster, side), (1,), Resampling.nearest)[0]
    whole = np.nan_to_num(ids, nan=table.nodata).astype(np.int64).clip(0, table.nodata)
    return table.from_ids(whole)


def small_scene(scene: Scene, side: int) -> tuple[Bytes, NDArray[np.bool_]]:
    """Return (h, w, 3) colours of a scene and where it holds data, the longer side at most ``side`` pixels.

    The pixels of :func:`small_mask` at the same ``side`` lie at the same places.
    """
    bands = picture_bands(scene)
    values = _decimated(scene, _size(scene, side), bands, Resampling.average)
    valid = np.asarray(np.isfinite(values).all(axis=0))
    return stretch(values, valid), valid


def stretch(values: NDArray[Any], valid: NDArray[np.bool_]) -> Bytes:
    """Turn (3 or 1, h, w) values of any unit into (h, w, 3) colours between their percentiles; black where not ``valid``.

    All bands share one range, so that a photograph keeps its hues.
    """
    picture = np.zeros((*valid.shape, 3), np.uint8)
    if valid.any():
        low, high = np.percentile(values[:, valid].astype(np.float32), PERCENTILES)
        share = (np.nan_to_num(values.astype(np.float32)) - low) / max(float(high - low), 1e-12)
        picture[:] = np.where(valid, share.clip(0, 1) * 255, 0).astype(np.uint8).transpose(1, 2, 0)
    return picture


def paint(index: Bytes, colors: Sequence[str], rest: str = "#ffffff") -> Bytes:
    """Turn (h, w) class indices into (h, w, 3) colours; what has no class gets ``rest``."""
    palette = np.full((256, 3), _rgb(rest), np.uint8)
    palette[: len(colors)] = [_rgb(color) for color in colors]
    return np.asarray(palette[index])


def shade(colors: Bytes, index: Bytes, scene: Bytes) -> Bytes:
    """Lay the scene's texture over painted classes: what is darker than its class usually is darkens them.

    Than its class, because one that is dark as a whole, like water, would leave the colour of its legend.
    """
    light = scene.mean(axis=2, dtype=np.float32) / 255
    for value in np.unique(index):
        light[index == value] -= np.median(light[index == value])
    return np.asarray((colors * (BASE + light).clip(DARKEST, 1)[..., None]).round().astype(np.uint8))


def class_png(index: Bytes, colors: Sequence[str]) -> bytes:
    """Return (h, w) class indices as a PNG with a palette; 255 is transparent."""
    palette = {**{i: (*_rgb(color), 255) for i, color in enumerate(colors)}, IGNORE: (0, 0, 0, 0)}
    return _encoded("PNG", index[np.newaxis], palette)


def photo_jpeg(picture: Bytes, quality: int = 80) -> bytes:
    """Return (h, w, 3) colours as a JPEG."""
    return _encoded("JPEG", picture.transpose(2, 0, 1), None, quality=quality)


def _size(raster: Scene, side: int) -> tuple[int, int]:
    return small_size(raster.grid.height, raster.grid.width, side)


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def _encoded(driver: str, bands: Bytes, palette: dict[int, tuple[int, int, int, int]] | None, **options: Any) -> bytes:
    count, height, width = bands.shape
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver, height=height, width=width, count=count, dtype="uint8", **options) as file:
            file.write(bands)
            if palette is not None:
                file.write_colormap(1, palette)
        return bytes(memory.read())


def _decimated(scene: Scene, size: tuple[int, int], bands: Sequence[int], how: Resampling) -> NDArray[np.float32]:
    """(C, h, w) values of a whole raster, NaN where it holds no data; overviews are used where there are some."""
    source = check_source(scene.path, allow_vrt=True, allow_remote=True)  # the scene was opened, so it may be read
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB), sealed_reading(scene.path, scene.grid.window), open_sealed(scene.path, source) as file:
        values = file.read(list(bands), out_shape=(len(bands), *size), resampling=how, out_dtype="float32")
        valid = file.dataset_mask(out_shape=size) > 0
    empty = [values[i] == scene.nodata[band - 1] for i, band in enumerate(bands) if scene.nodata[band - 1] is not None]
    if len(empty) == len(bands):
        valid &= ~np.logical_and.reduce(empty)
    values[:, ~valid] = np.nan
    return np.asarray(values)


class SmallMap:
    """A label map that comes in strips, kept as every n-th pixel: a picture whose pixels are true pixels of the map."""

    def __init__(self, height: int, width: int, side: int) -> None:
        size = small_size(height, width, side)
        self._rows, self._cols = (_centres(length, count) for length, count in zip((height, width), size, strict=True))
        self.index = np.full(size, IGNORE, np.uint8)
        """(h, w) class index, 255 where there is none."""

    def add(self, row: int, index: Bytes) -> None:
        """Take the (h, W) rows of the map from ``row`` on."""
        first, stop = np.searchsorted(self._rows, (row, row + len(index)))
        self.index[first:stop] = index[self._rows[first:stop] - row][:, self._cols]


def _centres(length: int, count: int) -> NDArray[np.intp]:
    """The pixels in the middles of ``count`` equal parts of ``length`` pixels."""
    return np.floor((np.arange(count) + 0.5) * length / count).astype(np.intp)
