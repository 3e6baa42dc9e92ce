"""Cloud-optimised GeoTIFFs made in one step from a virtual raster, which carries what rasterio has no call for: palette, names, scaling."""

import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what GDAL's own errors become; rasterio.errors does not offer it
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window as RasterWindow

from rsdistill.errors import ConfigError, DiskError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.libtiff import quieten
from rsdistill.geo.windows import Grid, Window
from rsdistill.outputs.overviews import majority_levels

Compression = Literal["deflate", "zstd", "lzw", "lzma", "none"]
"""Lossless compressions; a lossy one would invent classes."""

BLOCK = 512
"""Side of the blocks, and rows that are read or written at once."""

FREE_OPTIONS = {
    "LEVEL": r"[1-9]|1\d|2[0-2]",
    "PREDICTOR": "YES|NO|STANDARD|FLOATING_POINT",
    "BLOCKSIZE": "64|128|256|512|1024|2048|4096",
    "BIGTIFF": "YES|NO|IF_NEEDED|IF_SAFER",
    "NUM_THREADS": r"[1-9]\d{0,2}|ALL_CPUS",
    "OVERVIEWS": "AUTO|IGNORE_EXISTING|FORCE_USE_EXISTING|NONE",
    "OVERVIEW_COUNT": r"[1-9]\d?",
    "OVERVIEW_COMPRESS": "AUTO|NONE|LZW|DEFLATE|ZSTD|LZMA",
    "SPARSE_OK": "TRUE|FALSE|YES|NO",
}
"""Creation options a person may give, and the values they may have (GDAL takes any, and some exhaust all memory).

The others of GDAL's COG driver would change pixels or have an option of their own.
"""

_TYPES = {"uint8": "Byte", "uint16": "UInt16"}

Decorate = Callable[[ET.Element], None]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep rasterio from warning of rasters without a transform: a scene may have none, and its mask then has none either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what GDAL says when a write fails into one DiskError that names ``path``; keep rasterio quiet."""
    with quiet(), failing(path):
        yield


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """As :func:`writing`, in threads: Python's filters of warnings belong to the process."""
    quieten()
    try:
        yield
    except (OSError, CPLE_BaseError) as error:
        raise DiskError(f"cannot write {path}: {error.__cause__ or error}", hint="check space, permission and the folder's name") from error


def check_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return creation options in capitals.

    Raises:
        ConfigError: one is not in :data:`FREE_OPTIONS`, or has a value that its pattern there does not know.
    """
    checked = {key.upper(): value.upper() for key, value in options.items()}
    for key, value in checked.items():
        if key not in FREE_OPTIONS:
            hint = "free are " + ", ".join(FREE_OPTIONS)
            if key == "COMPRESS":
                hint = (
                    f"--compress {value.lower() if value.lower() in get_args(Compression) else '|'.join(get_args(Compression))} says that"
                )
            raise ConfigError(f"creation option {key} cannot be given", hint=hint)
        if not re.fullmatch(FREE_OPTIONS[key], value):
            raise ConfigError(f"creation option {key} cannot be '{value}'", hint=f"possible is {FREE_OPTIONS[key]}")
    return checked


class Piece(NamedTuple):
    """A raster that a virtual one shows."""

    path: Path
    window: Window | None = None
    """Where it lies in the virtual raster; its size is the raster's own. None: it covers all."""
    first_band: int = 1


def virtual_raster(
    pieces: Sequence[Piece],
    grid: Grid,
    dtype: str,
    nodata: int | None,
    bands: Sequence[str],
    *,
    tags: Mapping[str, str],
    decorate: Decorate,
) -> str:
    """Return the XML of a virtual raster over ``pieces`` with this grid, nodata, band names and tags.

    What no piece covers is nodata; ``decorate`` adds what a band carries beyond that; ``dtype`` is uint8 or uint16.
    """
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        ET.SubElement(root, "SRS").text = grid.crs.to_wkt(version="WKT2_2019")
    if not grid.transform.is_identity:
        ET.SubElement(root, "GeoTransform").text = ",".join(repr(float(value)) for value in grid.transform.to_gdal())
    metadata = ET.SubElement(root, "Metadata")
    for key, value in tags.items():
        ET.SubElement(metadata, "MDI", key=key).text = value
    blocks = {"blockXSize": str(min(BLOCK, grid.width)), "blockYSize": str(min(BLOCK, grid.height))}  # GDAL's own 128 cost a quarter more
    for number, name in enumerate(bands, start=1):
        band = ET.SubElement(root, "VRTRasterBand", blocks, dataType=_TYPES[dtype], band=str(number))
        ET.SubElement(band, "Description").text = name
        if nodata is not None:
            ET.SubElement(band, "NoDataValue").text = str(nodata)
        decorate(band)
        for piece in pieces:
            _show(band, piece, number, dtype)
    return ET.tostring(root, encoding="unicode")


def _show(band: ET.Element, piece: Piece, number: int, dtype: str) -> None:
    """Append a piece to a band of a virtual raster; its size is told, so that GDAL opens it no sooner than it is read."""
    simple = ET.SubElement(band, "SimpleSource")
    ET.SubElement(simple, "SourceFilename", relativeToVRT="0").text = str(piece.path.absolute())
    ET.SubElement(simple, "SourceBand").text = str(piece.first_band + number - 1)
    if piece.window is None:
        return
    row, col, height, width = map(str, piece.window)
    size = {"RasterXSize": width, "RasterYSize": height, "BlockXSize": str(BLOCK), "BlockYSize": str(BLOCK)}
    ET.SubElement(simple, "SourceProperties", size, DataType=_TYPES[dtype])
    ET.SubElement(simple, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    ET.SubElement(simple, "DstRect", xOff=col, yOff=row, xSize=width, ySize=height)


def add_palette(band: ET.Element, table: ClassTable) -> None:
    """Append a class table's colours to a band of a virtual raster; values without a class stay black."""
    ET.SubElement(band, "ColorInterp").text = "Palette"
    colors = {one.id: one.rgb for one in table.classes}
    entries = ET.SubElement(band, "ColorTable")
    for value in range(max(colors) + 1):
        red, green, blue = colors.get(value, (0, 0, 0))
        ET.SubElement(entries, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")


def add_scale(band: ET.Element, scale: float) -> None:
    """Append a scale without offset to a band of a virtual raster."""
    ET.SubElement(band, "Offset").text = "0"
    ET.SubElement(band, "Scale").text = repr(scale)


def copy_to_cog(
    virtual: str, path: Path, resampling: Literal["MODE", "AVERAGE"], compress: Compression, options: Mapping[str, str]
) -> None:
    """Write the virtual raster to ``path`` with overviews.

    ``MODE`` is the only resampling for classes: GDAL's default, cubic, invents values that are none. Its levels are made here, for GDAL
    takes longer over them than over all the rest.
    """
    fixed = {"COMPRESS": compress.upper(), "OVERVIEW_RESAMPLING": resampling}
    free = {"BLOCKSIZE": str(BLOCK), "BIGTIFF": "IF_SAFER", "SPARSE_OK": "YES", "NUM_THREADS": "ALL_CPUS"} | dict(options)
    with ExitStack() as stack:
        if resampling == "MODE" and free.get("OVERVIEWS", "AUTO") == "AUTO":
            most = int(free["OVERVIEW_COUNT"]) if "OVERVIEW_COUNT" in free else None
            virtual = _with_levels(virtual, stack.enter_context(majority_levels(virtual, path, int(free["BLOCKSIZE"]), most)))
        rasterio.shutil.copy(virtual, path, driver="COG", **(free | fixed))
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


def _with_levels(virtual: str, levels: Sequence[Path]) -> str:
    """Return the virtual raster of one band with these overviews."""
    root = ET.fromstring(virtual)
    (band,) = root.iter("VRTRasterBand")
    for level in levels:
        overview = ET.SubElement(band, "Overview")
        ET.SubElement(overview, "SourceFilename", relativeToVRT="0").text = str(level.absolute())
        ET.SubElement(overview, "SourceBand").text = "1"
    return ET.tostring(root, encoding="unicode")


def block_rows(path: Path | str) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield a raster, or a virtual one by its XML, from top to bottom: first row, and (bands, ≤ :data:`BLOCK`, width) values."""
    with quiet():
        file = rasterio.open(path)
    with file:
        for row in range(0, file.height, BLOCK):
            yield row, file.read(window=RasterWindow(0, row, file.width, min(BLOCK, file.height - row)))


def checksum(values: NDArray[Any]) -> int:
    """Return the CRC-32 of an array's values."""
    return zlib.crc32(np.ascontiguousarray(values).data)
