"""What a path is before GDAL sees it: the checks that keep folders, devices, texts and hostile VRTs out."""

import re
import stat
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from rsdistill.errors import SceneError

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".vrt")
"""Suffixes by which rasters are found in a folder; what a file is, its first bytes say."""

_MAGIC = (
    (b"II*\x00", "GTiff"),
    (b"MM\x00*", "GTiff"),
    (b"II+\x00", "GTiff"),
    (b"MM\x00+", "GTiff"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
)
_REMOTE = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")
_MAX_XML_BYTES = 16 << 20
_READ = "GeoTIFF, COG, JPEG 2000, PNG and JPEG are read"


class Source(NamedTuple):
    """A raster that passed the checks: the name GDAL gets, and the driver that alone may open it (None: GDAL chooses, remote only)."""

    name: str
    driver: str | None


def is_remote(path: Path | str) -> bool:
    """True for URLs and GDAL's virtual file systems, also where ``Path`` has folded ``://`` into ``:/``."""
    text = str(path)
    return text.startswith("/vsi") or bool(_REMOTE.match(text))


def check_source(path: Path | str, *, allow_vrt: bool = False, allow_remote: bool = False) -> Source:
    """Look at what ``path`` is and say how it may be opened.

    Raises:
        SceneError: missing, a folder, a device, empty, no raster of a known kind, or a VRT or URL without permission.
    """
    if is_remote(path):
        if not allow_remote:
            raise SceneError(f"{path} is remote", hint="copy it here, or give --allow-remote")
        text = str(path)
        return Source(text if text.startswith("/vsi") else _REMOTE.sub(r"\1://", text), None)
    path = Path(path)
    head = _head(path)
    driver = next((name for magic, name in _MAGIC if head.startswith(magic)), None)
    if driver is None and b"<VRTDataset" in head:
        if not allow_vrt:
            raise SceneError(f"{path} is a VRT, which may name any file", hint="give --allow-vrt if you trust it")
        _check_vrt(path)
        driver = "VRT"
    if driver is None:
        raise SceneError(f"{path} is not a raster: it begins with {head[:12]!r}", hint=f"{_READ}; convert others with gdal_translate")
    return Source(str(path.resolve()), driver)


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse a small XML file that defines no entities.

    Raises:
        ValueError: too long, not XML, or with a DOCTYPE (which is how a few lines become gigabytes).
    """
    if path.stat().st_size > _MAX_XML_BYTES:
        raise ValueError("it is longer than 16 MiB")
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("it defines entities")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"it is not XML: {error}") from None


def _head(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise SceneError(f"{path} does not exist", hint="check the path") from None
    except (OSError, ValueError) as error:
        raise SceneError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint="check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise SceneError(f"{path} is a folder", hint="name a raster file")
    if not stat.S_ISREG(status.st_mode):
        raise SceneError(f"{path} is not a regular file", hint="name a raster file")
    if status.st_size == 0:
        raise SceneError(f"{path} is empty", hint="copy it again")
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise SceneError(f"cannot read {path}: {error.strerror}", hint="check its permissions") from None


def _check_vrt(path: Path) -> None:
    """Let a VRT name only real rasters inside its own folder, and run no code."""
    try:
        root = parse_xml(path)
    except ValueError as error:
        raise SceneError(f"{path} cannot be taken: {error}", hint="build the VRT again with gdalbuildvrt") from None
    folder = path.resolve().parent
    for element in root.iter():
        text = (element.text or "").strip()
        if element.tag.startswith("PixelFunction") or element.tag == "Expression":
            raise SceneError(f"{path} holds a pixel function", hint="only VRTs that mosaic, cut or pick bands are read")
        if "/vsi" in text or "://" in text:
            raise SceneError(f"{path} names a remote source: {text[:80]}", hint="only sources inside its own folder are read")
        if element.tag in ("SourceFilename", "SourceDataset"):
            base = folder if element.get("relativeToVRT") == "1" else Path.cwd()
            resolved = (base / text).resolve()
            if not resolved.is_relative_to(folder):
                raise SceneError(f"{path} names a source outside its folder: {text[:80]}", hint="put the VRT beside its sources")
            check_source(resolved)
