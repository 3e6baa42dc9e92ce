"""The TIFF library inside rasterio, kept from writing to stderr by itself: what goes wrong reaches Python as an exception all the same."""

import contextlib
import ctypes
from functools import cache
from pathlib import Path

import rasterio

_FOLDERS = ("rasterio.libs", "rasterio/.dylibs")
"""Where wheels carry their libraries. A rasterio built from source uses the system's, which is left as it is."""


@cache
def quieten() -> None:
    """Take its printing handler of errors away, in this process; GDAL's own handlers of each file stay."""
    packages = Path(rasterio.__file__).parents[1]
    for library in (found for folder in _FOLDERS for found in (packages / folder).glob("libtiff*")):
        with contextlib.suppress(AttributeError, OSError):
            take = ctypes.CDLL(str(library)).TIFFSetErrorHandler
            take.argtypes, take.restype = [ctypes.c_void_p], ctypes.c_void_p
            take(None)
