"""GeoTIFFs of a tile set: written window by window, and read back before they are believed."""

import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as Area

from rsdistill.errors import DiskError
from rsdistill.geo.libtiff import quieten
from rsdistill.geo.windows import Grid, Window

STRIP = 512
"""Rows that are worked on at a time: whole rows of the blocks that are written."""
_BLOCK = 256


class RasterWriter:
    """A tiled, compressed GeoTIFF under construction; a context manager.

    GDAL's errors at closing are lost in rasterio: a file cut short by a full disk reads back without complaint, and wrong. So every
    window's checksum is kept and compared with what the closed file holds.

    Args:
        path: file to make; it must not exist.
        grid: size and place.
        bands: number of bands C.
        dtype: of the pixels.
        nodata: value that means nothing.
        names: description of every band.
        palette: red, green, blue of values, for one band of uint8.
        masked: write validity as a mask inside the file.

    Raises:
        DiskError: what was written does not read back.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        bands: int,
        dtype: str,
        nodata: float | None = None,
        names: Sequence[str | None] = (),
        palette: Mapping[int, tuple[int, int, int]] | None = None,
        masked: bool = False,
    ) -> None:
        self._path, self._masked = path, masked
        self._sums: list[tuple[Window, int]] = []
        layout: dict[str, Any] = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "zlevel": 6}
        layout |= {"predictor": 1 if palette or np.dtype(dtype).kind == "f" else 2, "BIGTIFF": "IF_SAFER", "SPARSE_OK": True}
        quieten()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._dataset: Any = rasterio.open(
                path, "w", driver="GTiff", height=grid.height, width=grid.width, count=bands, dtype=dtype, nodata=nodata,
                crs=grid.crs, transform=grid.transform, **layout,
            )  # fmt: skip
        for band, name in enumerate(names, start=1):
            if name:
                self._dataset.set_band_description(band, name)
        if palette:
            self._dataset.write_colormap(1, {value: (*color, 255) for value, color in palette.items()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._dataset.close()
        if kind is None:
            self._verify()

    def write(self, window: Window, values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
        """Write (C, h, w) values, and their (h, w) validity where the raster is masked; windows must not overlap."""
        area = _area(window)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            self._dataset.write(values, window=area)
            if self._masked and valid is not None:
                self._dataset.write_mask(valid, window=area)
        self._sums.append((window, zlib.crc32(np.ascontiguousarray(values, dtype=self._dataset.dtypes[0]).data)))

    def _verify(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(self._path) as dataset:
                    whole = all(zlib.crc32(dataset.read(window=_area(window)).data) == expected for window, expected in self._sums)
        except (RasterioError, OSError):
            whole = False
        if not whole:
            raise DiskError(f"{self._path} does not read back as it was written", hint="the disk may be full or failing")


def _area(window: Window) -> Area:
    return Area(window.col, window.row, window.width, window.height)
