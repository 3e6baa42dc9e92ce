"""What stands beside a raster: world file, mask and GDAL's .aux.xml, read by us and never by GDAL.

GDAL follows sidecars blindly: an ``.ovr`` that is a VRT, or an ``.aux.xml`` that names an overview file, makes it open whatever they
say, the network included. So scenes are opened with sidecars switched off, and the three things a sidecar may tell (place, mask,
nodata) are taken from it here, after a look. Overviews are never needed: everything is read at full resolution.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from rsdistill.errors import SceneError
from rsdistill.geo.sources import Source, check_source, parse_xml

_MAX_WORLD_BYTES = 4096


@dataclass(frozen=True)
class Sidecars:
    """What the files beside a raster say of it; None where they say nothing."""

    transform: Affine | None = None
    crs: CRS | None = None
    nodata: tuple[float | None, ...] = ()
    """Per band of ``.aux.xml``."""
    mask: Source | None = None
    ignored: tuple[str, ...] = ()
    """A sentence for every sidecar that was not taken."""


def read_sidecars(path: Path) -> Sidecars:
    """Return what the sidecars of the raster at ``path`` say; a sidecar that cannot be trusted is ignored and named."""
    ignored: list[str] = []
    transform: Affine | None = None
    crs: CRS | None = None
    nodata: tuple[float | None, ...] = ()
    pam = path.with_name(path.name + ".aux.xml")
    if pam.is_file():
        try:
            transform, crs, nodata = _read_pam(pam)
        except (ValueError, OSError, CRSError) as error:
            ignored.append(f"{pam} is ignored: {error}")
    for world in _world_files(path):
        try:
            transform = _read_world_file(world)
        except (ValueError, OSError) as error:
            ignored.append(f"{world} is ignored: {error}")
    mask = None
    mask_path = path.with_name(path.name + ".msk")
    if mask_path.exists():
        try:
            mask = _checked_mask(mask_path)
        except SceneError as error:
            ignored.append(f"{mask_path} is ignored: {error}")
    return Sidecars(transform, crs, nodata, mask, tuple(ignored))


def _world_files(path: Path) -> list[Path]:
    """The world file of ``path`` (at most one): ``.tfw``, ``.tifw`` or ``.wld`` for ``.tif``."""
    suffix = path.suffix.lstrip(".")
    if len(suffix) < 2:
        return []
    names = (f".{suffix[0]}{suffix[-1]}w", f".{suffix}w", ".wld")
    return [world for name in names if (world := path.with_suffix(name)).is_file()][:1]


def _read_world_file(path: Path) -> Affine:
    """Six lines: x size, row rotation, column rotation, y size, x and y of the centre of the upper left pixel."""
    if path.stat().st_size > _MAX_WORLD_BYTES:
        raise ValueError("it is longer than six numbers")
    values = [float(word) for word in path.read_text(encoding="ascii").replace(",", ".").split()]
    if len(values) != 6 or not all(math.isfinite(value) for value in values):
        raise ValueError("it does not hold six numbers")
    a, d, b, e, x, y = values
    return Affine(a, b, x, d, e, y) @ Affine.translation(-0.5, -0.5)


def _read_pam(path: Path) -> tuple[Affine | None, CRS | None, tuple[float | None, ...]]:
    root = parse_xml(path)
    for element in root.iter("Metadata"):
        if element.get("domain") == "OVERVIEWS" or any(item.get("key") == "OVERVIEW_FILE" for item in element):
            raise ValueError("it names an overview file")
    transform, crs = None, None
    if (text := root.findtext("GeoTransform")) is not None:
        values = [float(word) for word in text.split(",")]
        if len(values) != 6:
            raise ValueError("its GeoTransform does not hold six numbers")
        transform = Affine.from_gdal(*values)
    if text := root.findtext("SRS"):
        crs = CRS.from_wkt(text)
    bands = root.findall("PAMRasterBand")
    nodata = tuple(float(text) if (text := band.findtext("NoDataValue")) else None for band in bands)
    return transform, crs, nodata


def _checked_mask(path: Path) -> Source:
    source = check_source(path)
    if source.driver != "GTiff":
        raise SceneError("a mask is a GeoTIFF", hint="write it again with gdal_translate -b mask")
    return source
