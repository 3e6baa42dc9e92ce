"""Scenes that a path stands for: a file, a folder, a text with one path a line, or a STAC catalogue on disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from rsdistill.errors import SceneError
from rsdistill.geo.sources import RASTER_SUFFIXES, is_remote

SUFFIXES = (".json", ".txt")
"""Suffixes of files that name scenes."""
MAX_BYTES = 64 << 20
"""A listing of more is refused unread."""
_LOCAL = "file://"
_ASIDE = {"thumbnail", "overview", "metadata"}
"""Roles of assets that are no scenes."""


def named_by(path: Path) -> list[Path]:
    """Return the scenes that ``path`` stands for: the rasters in a folder, by name; those that a listing names; or itself.

    Raises:
        SceneError: a listing cannot be taken.
    """
    if not path.is_dir():
        return scenes_in(path) if path.suffix.lower() in SUFFIXES else [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in RASTER_SUFFIXES and not file.name.startswith("."))


def scenes_in(path: Path) -> list[Path]:
    """Return the scenes that the file ``path`` names, in its order; relative paths count from the folder of the file they stand in.

    A STAC item, item collection, collection or catalogue is followed down to its items, each of which has one raster among its assets.

    Raises:
        SceneError: it cannot be read, is no STAC, leads to the network, or an item does not say which of several rasters is meant.
    """
    if path.suffix.lower() == ".txt":
        lines = (line.strip() for line in _text(path).splitlines())
        return [_place(path, line) for line in lines if line and not line.startswith("#")]
    return list(_rasters(path, set()))


def _rasters(path: Path, seen: set[Path]) -> Iterator[Path]:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{path} is not JSON: {error}", hint="lists of scenes are STAC, or a text of one path a line") from None
    kind = content.get("type") if isinstance(content, dict) else None
    try:
        if kind in ("Feature", "FeatureCollection"):
            for item in [content] if kind == "Feature" else content["features"]:
                yield _asset(path, item)
        elif kind in ("Catalog", "Collection"):
            for link in content["links"]:
                if link["rel"] in ("item", "child"):
                    yield from _rasters(_followed(path, link["href"]), seen)
        else:
            raise SceneError(f"{path} is no STAC item, collection or catalogue", hint="its type is one of these in capitals")
    except (KeyError, TypeError, AttributeError) as error:
        raise SceneError(f"{path} is damaged: {error!r}", hint="validate it with stac-validator") from None


def _followed(path: Path, href: str) -> Path:
    if is_remote(href) and not href.startswith(_LOCAL):
        raise SceneError(f"{path} leads to {href}", hint="catalogues are read from disk: copy it here with its items")
    return _referred(path, href)


def _referred(path: Path, href: str) -> Path:
    """Return the file that a reference in STAC leads to: a URL, relative or not, with blanks and the like encoded."""
    if href.startswith(_LOCAL):
        return Path(url2pathname(urlsplit(href).path))
    place = _place(path, href)
    return place if is_remote(href) or place.exists() else _place(path, unquote(href))


def _asset(path: Path, item: dict[str, Any]) -> Path:
    """Return the one raster of an item: of several, that with the role ``data``."""
    rasters = {
        name: asset
        for name, asset in item["assets"].items()
        if Path(asset["href"]).suffix.lower() in RASTER_SUFFIXES and not _ASIDE & set(asset.get("roles") or ())
    }
    meant = {name: asset for name, asset in rasters.items() if "data" in (asset.get("roles") or ())} if len(rasters) > 1 else rasters
    if len(meant) != 1:
        found = ", ".join(meant or rasters) or "none"
        hint = "give one asset the role data, or join bands: gdalbuildvrt -separate"
        raise SceneError(f"item {item.get('id')} in {path} has not one raster, but: {found}", hint=hint)
    return _referred(path, next(iter(meant.values()))["href"])


def _place(listing: Path, named: str) -> Path:
    return Path(named) if is_remote(named) else listing.parent / named


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SceneError(f"{path} is longer than {MAX_BYTES >> 20} MiB", hint="divide it")
        return path.read_text(encoding="utf-8-sig")  # Windows begins texts with a mark
    except (OSError, ValueError) as error:
        raise SceneError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", hint="check the path") from None
