"""Writers of rasters: strips of any height go in from top to bottom, a checked cloud-optimised GeoTIFF comes out.

The strips are kept in a sparse, tiled GeoTIFF beside the result, in whole rows of blocks (other writes leave holes and cost three times
as much), and copied into the COG last: a palette added to a finished COG would break its layout, and writing into a COG directly would
buffer the whole scene. Then the result is read back and compared, because GDAL does not report every write that a full disk swallowed.
Nothing is taken from the scene's own file but its grid.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, get_args
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from rsdistill.errors import DiskError, MaskError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic, refuse_existing
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.windows import Grid
from rsdistill.outputs.behind import Behind
from rsdistill.outputs.cog import (
    BLOCK,
    Compression,
    Piece,
    add_palette,
    add_scale,
    block_rows,
    check_options,
    checksum,
    copy_to_cog,
    failing,
    quiet,
    virtual_raster,
    writing,
)
from rsdistill.outputs.masks import read_mask
from rsdistill.outputs.styles import aux_xml, class_style

ROWS = 64
"""Rows that are turned into what is stored at once: all of a strip's beside the strip itself would be as large as it, or several times."""
SHARE_NODATA = 255
SHARE_STEPS = 254
"""Figures between 0 and 1 are stored as uint8 0…254 with scale 1/254."""

LABELS: Mapping[str, Any] = MappingProxyType({"compress": "packbits"})
"""How strips of labels are compressed: runs are what labels are made of, and nothing else costs as little."""
FIGURES: Mapping[str, Any] = MappingProxyType({"compress": "deflate", "zlevel": 1})
"""How strips of anything else are."""


class _Abandoned(BaseException):
    """The block ended badly: throw the partial files away."""


class StripWriter:
    """Base of the writers: takes strips in row order and publishes a COG when its ``with`` block ends well."""

    resampling: Literal["MODE", "AVERAGE"]
    strips_as: Mapping[str, Any]
    """How the strips are compressed until the result is made of them."""

    def __init__(
        self,
        path: Path,
        grid: Grid,
        bands: Sequence[str],
        dtype: str,
        nodata: int,
        *,
        compress: Compression = "deflate",
        creation_options: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Name the result; nothing is written before the ``with`` block.

        Raises:
            ConfigError: a creation option that is not free.
            OutputExistsError: the result exists, without ``overwrite``.
        """
        self.path, self.grid, self.bands, self.dtype, self.nodata = Path(path), grid, tuple(bands), np.dtype(dtype), nodata
        self.compress, self.options, self.tags = compress, check_options(creation_options or {}), dict(tags or {})
        refuse_existing([self.path], overwrite)
        self._rows, self._other = (np.empty((len(self.bands), BLOCK, grid.width), self.dtype) for _ in range(2))
        self._next = 0
        self._sums: list[int] = []

    def __enter__(self) -> Self:
        shape = {"height": self.grid.height, "width": self.grid.width, "count": len(self.bands), "dtype": self.dtype, "nodata": self.nodata}
        layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "sparse_ok": True, "bigtiff": "if_safer"}
        with ExitStack() as stack:
            self._partial = stack.enter_context(atomic(self.path))
            self._strips = self._partial.with_name(self._partial.name + ".strips")
            with writing(self.path):
                self._file = stack.enter_context(rasterio.open(self._strips, "w", driver="GTiff", **self.strips_as, **shape, **layout))
            self._behind = stack.enter_context(Behind())
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._open:
                if error is not None:
                    raise _Abandoned
                self._finish()
        except _Abandoned:
            return  # the block's own error goes on as it is

    def _write(self, values: NDArray[Any], row: int) -> None:
        """Take (bands, h, width) values for ``row`` and those below, which must follow what was written before."""
        if row != self._next or row + values.shape[1] > self.grid.height or values.shape[::2] != self._rows.shape[::2]:
            raise ValueError(
                f"{values.shape} values for row {row} do not follow row {self._next} of {self.grid.height} x {self.grid.width}"
            )
        while values.shape[1]:
            filled = self._next % BLOCK
            taken = min(BLOCK - filled, values.shape[1])
            self._rows[:, filled : filled + taken] = values[:, :taken]
            self._next += taken
            values = values[:, taken:]
            if self._next % BLOCK == 0 or self._next == self.grid.height:
                self._flush(filled + taken)

    def _flush(self, height: int) -> None:
        """Hand the buffered rows to the thread that encodes them, and go on with the other buffer."""
        self._behind(self._encode, self._rows[:, :height], self._next - height)
        self._rows, self._other = self._other, self._rows

    def _encode(self, rows: NDArray[Any], row: int) -> None:
        with rasterio.Env(), failing(self.path):
            self._file.write(rows, window=RasterWindow(0, row, self.grid.width, rows.shape[1]))
        self._sums.append(checksum(rows))

    def _finish(self) -> None:
        """Make the COG, check it, and put the sidecars in place."""
        if self._next != self.grid.height:
            raise ValueError(f"{self.path}: {self._next} of {self.grid.height} rows were written")
        self._behind.wait()
        self._file.close()
        self._publish(self._virtual([Piece(self._strips)]), self._partial, self._sums)
        self._strips.unlink()
        self._sidecars()

    def assemble(self, pieces: Sequence[Piece]) -> None:
        """Make the result of rasters that lie side by side, in place of strips; what none of them covers has no data.

        Raises:
            RasterioError: a piece cannot be read.
            DiskError: the result cannot be written.
        """
        virtual = self._virtual(pieces)
        with atomic(self.path) as partial:
            self._publish(virtual, partial, [checksum(rows) for _, rows in block_rows(virtual)])
            self._sidecars()

    def _virtual(self, pieces: Sequence[Piece]) -> str:
        return virtual_raster(pieces, self.grid, self.dtype.name, self.nodata, self.bands, tags=self.tags, decorate=self._decorate)

    def _publish(self, virtual: str, partial: Path, sums: Sequence[int]) -> None:
        with writing(self.path):
            copy_to_cog(virtual, partial, self.resampling, self.compress, self.options)
        check_pixels(partial, sums, self.path)

    def _decorate(self, band: ET.Element) -> None:
        """Add to a band of the virtual raster what this kind of raster carries."""
        raise NotImplementedError

    def _sidecars(self) -> None:
        """Write the files beside the result, or remove those that an older result left."""
        self.path.with_name(self.path.name + ".aux.xml").unlink(missing_ok=True)


class LabelRasterWriter(StripWriter):
    """Writer of a mask: class ids with palette, names, nodata, and the QGIS style beside it."""

    resampling = "MODE"
    strips_as = LABELS

    def __init__(self, path: Path, grid: Grid, table: ClassTable, **options: Any) -> None:
        """Name the result; ``options`` are the keyword arguments of :class:`StripWriter`."""
        super().__init__(path, grid, ["class"], np.dtype(table.dtype).name, table.nodata, **options)
        self.table = table

    def write(self, row: int, index: NDArray[np.uint8]) -> None:
        """Take the rows from ``row`` on: (h, width) class index 0…K−1, or 255 where there is no data."""
        for top in range(0, len(index), ROWS):
            self._write(self.table.to_ids(index[top : top + ROWS])[np.newaxis], row + top)

    def _decorate(self, band: ET.Element) -> None:
        add_palette(band, self.table)

    def _sidecars(self) -> None:
        write_sidecars(self.path, self.table)


class FloatRasterWriter(StripWriter):
    """Writer of figures between 0 and 1 (confidence, probabilities): uint8 0…254 with scale 1/254, nodata 255."""

    resampling = "AVERAGE"
    strips_as = FIGURES

    def __init__(self, path: Path, grid: Grid, bands: Sequence[str] = ("confidence",), **options: Any) -> None:
        """Name the result and its bands; ``options`` are the keyword arguments of :class:`StripWriter`."""
        super().__init__(path, grid, bands, "uint8", SHARE_NODATA, **options)

    def write(self, row: int, values: NDArray[np.floating[Any]]) -> None:
        """Take the rows from ``row`` on: (h, width) or (bands, h, width) values in [0, 1], NaN where there is no data."""
        values = np.asarray(values, np.float32).reshape(len(self.bands), -1, self.grid.width)
        for top in range(0, values.shape[1], ROWS):
            steps = np.rint(values[:, top : top + ROWS] * SHARE_STEPS).clip(0, SHARE_STEPS)
            self._write(np.where(np.isnan(steps), np.float32(SHARE_NODATA), steps).astype(np.uint8), row + top)

    def _decorate(self, band: ET.Element) -> None:
        add_scale(band, 1 / SHARE_STEPS)


def check_pixels(made: Path, sums: Sequence[int], path: Path) -> None:
    """Compare the raster ``made`` with the checksums of its block rows.

    Raises:
        DiskError: it holds other pixels, or cannot be read; the message names ``path``, what it was to become.
    """
    try:
        same = [checksum(rows) for _, rows in block_rows(made)] == list(sums)
    except RasterioError as error:
        raise DiskError(f"{path} cannot be read back: {error}", hint="check the disk's space and health") from error
    if not same:
        raise DiskError(f"{path} reads back other pixels than were written", hint="check the disk's space and health")


def write_sidecars(path: Path, table: ClassTable) -> None:
    """Write class names (``.aux.xml``) and the QGIS style (``.qml``) beside the mask ``path``."""
    for name, text in ((path.name + ".aux.xml", aux_xml(table)), (path.stem + ".qml", class_style(table))):
        with atomic(path.with_name(name)) as partial:
            partial.write_text(text, encoding="utf-8")


def restyle(mask: Path, table: ClassTable) -> None:
    """Give the mask ``mask`` the colours and names of ``table``: palette, ``.aux.xml`` and ``.qml``.

    A palette sits in front of the pixels of a COG, so the file is written anew, with the same pixels, tags and compression.

    Raises:
        MaskError: it is no mask, or holds a value that is no class of ``table``.
    """
    with open_scene(mask) as scene:
        for _ in read_mask(scene, table):
            pass
        grid, dtype, nodata = scene.grid, scene.dtype, scene.nodata[0]
    if dtype != table.dtype:
        raise MaskError(f"{mask} is {dtype}, a mask of these classes is {table.dtype}", hint="ids from 255 on need uint16: predict again")
    with quiet(), rasterio.open(mask) as file:
        tags, before = file.tags(), file.profile.get("compress", "none")
    with atomic(mask) as partial:
        kept = None if nodata is None else int(nodata)
        compress: Compression = before if before in get_args(Compression) else "deflate"
        virtual = virtual_raster([Piece(mask)], grid, dtype, kept, ["class"], tags=tags, decorate=lambda band: add_palette(band, table))
        with writing(mask):
            copy_to_cog(virtual, partial, "MODE", compress, {})
        check_pixels(partial, [checksum(rows) for _, rows in block_rows(mask)], mask)
    write_sidecars(mask, table)
