"""GDAL's block cache, bounded: who streams rows once and whole has no use for more than the blocks they stand in."""

from contextlib import AbstractContextManager

import numpy as np
import rasterio

from rsdistill.geo.scenes import Scene

CACHE_BYTES = 32 << 20
"""Enough for two rows of 512-pixel blocks of a scene 10 000 pixels wide; GDAL alone would take a twentieth of all memory."""


def bounded_cache(size: int = CACHE_BYTES) -> AbstractContextManager[object]:
    """Return a context in which GDAL caches at most ``size`` bytes of decoded blocks."""
    return rasterio.Env(GDAL_CACHEMAX=size)  # a number means bytes here, and MB in the environment's variable


def cache_for(scene: Scene) -> int:
    """Return the bytes of two rows of blocks of ``scene``, :data:`CACHE_BYTES` at least.

    Less than a row of blocks would be worse than any amount: each block would be decoded once a band.
    """
    row = scene.block_shape[0] * scene.grid.width * scene.count * np.dtype(scene.dtype).itemsize
    return max(CACHE_BYTES, 2 * row)
