"""GDAL's block cache, bounded: what streams rows once and whole has no use for more than the blocks it stands in."""

from contextlib import AbstractContextManager

import rasterio

CACHE_BYTES = 64 << 20
"""Enough for two rows of 512-pixel blocks of a scene 20 000 pixels wide; GDAL alone would take a twentieth of all memory."""


def bounded_cache(size: int = CACHE_BYTES) -> AbstractContextManager[object]:
    """Return a context in which GDAL caches at most ``size`` bytes of decoded blocks."""
    return rasterio.Env(GDAL_CACHEMAX=size)
