"""GDAL behind a seal: files opened and read so that they reach nothing else, with errors that name file and rows."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError

from rsdistill.errors import SceneError
from rsdistill.geo.sources import Source
from rsdistill.geo.windows import Window

T = TypeVar("T")

RETRY_SECONDS = 0.2
MAX_PIXELS = 1 << 40
"""A raster of more pixels (a square of a million) is taken for a broken header."""
MAX_BLOCK_BYTES = 512 << 20
"""A raster whose smallest readable piece is larger cannot be streamed."""
_SEAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "GDAL_VRT_ENABLE_PYTHON": "NO"}
_FAULTS = (RasterioError, OSError, ValueError, MemoryError)


def open_sealed(path: Path, source: Source) -> Any:
    """Open a raster for reading, its sidecars switched off, and check the header before anything is allocated.

    Raises:
        SceneError: GDAL cannot open it, or the header claims what cannot be read.
    """
    try:
        with rasterio.Env(**_SEAL), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(source.name, driver=source.driver) if source.driver else rasterio.open(source.name)
    except _FAULTS as error:
        raise SceneError(f"cannot open {path}: {_one_line(error)}", hint="gdalinfo tells more; the file may be damaged") from None
    try:
        _check_header(path, dataset)
    except SceneError:
        dataset.close()
        raise
    return dataset


def twice(read: Callable[[], T], reopen: Callable[[], None]) -> T:
    """Return what ``read`` returns; where the disk fails, as disks of a network do now and then, ``reopen`` and read once more."""
    try:
        return read()
    except RasterioIOError:
        time.sleep(RETRY_SECONDS)
        reopen()
        return read()


@contextmanager
def sealed_reading(path: Path, window: Window) -> Iterator[None]:
    """Turn what goes wrong while the rows of ``window`` are read into a SceneError."""
    try:
        with rasterio.Env(**_SEAL):
            yield
    except _FAULTS as error:
        rows = f"rows {window.row} to {window.stop[0] - 1}"
        raise SceneError(f"cannot read {rows} of {path}: {_one_line(error)}", hint="the file is damaged; copy it again") from error


def refuse_unrectified(path: Path, dataset: Any) -> None:
    """Refuse a raster that lies on Earth only by points or by a camera model.

    Raises:
        SceneError: ground control points or RPCs.
    """
    if dataset.gcps[0]:
        raise SceneError(f"{path} has ground control points but no transform", hint="rectify it: gdalwarp in.tif out.tif")
    if dataset.rpcs:
        raise SceneError(f"{path} has RPCs but no transform", hint="rectify it: gdalwarp -rpc in.tif out.tif")


def _check_header(path: Path, dataset: Any) -> None:
    if dataset.height * dataset.width > MAX_PIXELS:
        raise SceneError(f"{path} claims {dataset.height} x {dataset.width} pixels", hint="the header is broken; or cut the scene")
    for kind in dataset.dtypes:
        if "complex" in kind:
            raise SceneError(f"{path} has pixels of type {kind}", hint="whole and real numbers are read; complex ones are not")
    height, width = dataset.block_shapes[0]
    interleaved = dataset.interleaving is not None and dataset.interleaving.value.upper() == "PIXEL"
    size = height * width * (dataset.count if interleaved else 1) * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        stored = f"blocks of {height} x {width} pixels ({size >> 20} MiB)"
        raise SceneError(f"{path} is stored in {stored}", hint="tile it: gdal_translate -co TILED=YES")


def _one_line(error: BaseException) -> str:
    """GDAL's own words, which rasterio hangs behind its general ones."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200] or type(cause).__name__
