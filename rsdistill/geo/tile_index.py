"""The tile set on disk: ``tiles.gpkg`` (where each tile lies and what it is for) and ``tileset.json`` (the card)."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from rsdistill.errors import ClassTableError, DiskError, TileSetError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.sources import is_remote
from rsdistill.geo.tiles import CHUNK, LAYER, SPLITS, Tiles, read_tiles
from rsdistill.geo.windows import Grid, Window

FORMAT_VERSION = 1
CARD, INDEX, LARGE_INDEX = "tileset.json", "tiles.gpkg", "tiles.parquet"
MOST_ROWS = 1_000_000
"""Tiles of an index that QGIS can edit, a GeoPackage; one of more is GeoParquet, which is a fraction of its size."""


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SceneEntry(_Card):
    """One scene of a tile set. Paths without a leading slash count from the tile set's folder."""

    name: str
    path: str
    """Where the scene was when the tiles were laid, absolute; or inside the tile set, where tiling had to write it anew."""
    nearby: str | None = None
    """The same, seen from the tile set's folder: found where both were moved together."""
    label: str | None
    """Aligned label raster of class ids; None for a scene without labels."""
    context: str
    """Area means of the scene's bands by the context ratio."""
    context_label: str | None
    """Majority class ids by the context ratio, of training tiles only; None where there are none."""
    height: PositiveInt
    width: PositiveInt
    split: Literal["train", "val", "test"] | None
    """Where the whole scene went; None where it was split by blocks."""
    fingerprint: str
    bands: tuple[PositiveInt, ...] | None = None
    """1-based numbers of the bands that were selected, where they are not those of the first scene."""


class TileSetCard(_Card):
    """What a tile set says of itself."""

    format_version: int
    tile: Annotated[int, Field(ge=1, le=4096)]
    """Side of a tile in pixels; tiles of smaller scenes are smaller."""
    overlap: int
    classes: tuple[dict[str, Any], ...]
    ignore: tuple[int, ...]
    bands: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """1-based numbers of the first scene's bands that were selected."""
    band_names: tuple[str | None, ...]
    """What all scenes that name the band call it."""
    mean: tuple[FiniteFloat, ...]
    """Per selected band, over the valid pixels of training tiles, each counted once, in the scenes' own units."""
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...]
    """Likewise; 1 for a band that does not vary."""
    dtype: str
    nodata: tuple[float, ...] | None
    """Values given for bands that declare no nodata: one, or one a band."""
    pixel_size: tuple[float, float] | None
    """Height and width of the first scene's pixels in units of its CRS; None without a CRS."""
    context_ratio: PositiveInt
    split_by: Literal["block", "scene"]
    seed: int
    versions: dict[str, str]
    scenes: tuple[SceneEntry, ...]
    class_pixels: dict[str, tuple[int, ...]]
    """Per split, labelled pixels of each class, as tiles hold them."""
    allow_vrt: bool = False
    allow_remote: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("mean", "std", "band_names"):
            if len(getattr(self, name)) != len(self.bands):
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {len(self.bands)} bands")
        if self.class_pixels.keys() != set(SPLITS) or any(len(counts) != len(self.classes) for counts in self.class_pixels.values()):
            raise ValueError("class_pixels has one number a class for each split")
        if self.dtype not in np.sctypeDict or np.dtype(self.dtype).kind not in "uif":
            raise ValueError(f"dtype {self.dtype!r} is no type of pixels")
        for entry in self.scenes:
            if len(entry.bands or self.bands) != len(self.bands):
                raise ValueError(f"scene {entry.name!r} has {len(entry.bands or ())} bands of {len(self.bands)}")
            for file in filter(None, (entry.label, entry.context, entry.context_label)):
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise ValueError(f"{file!r} of scene {entry.name!r} lies outside the tile set")
        return self

    def bands_of(self, scene: int) -> tuple[int, ...]:
        """1-based numbers of the bands that were selected of scene number ``scene``."""
        return self.scenes[scene].bands or self.bands


@dataclass(frozen=True)
class TileSet:
    """A tile set that was read from its folder."""

    folder: Path
    card: TileSetCard
    table: ClassTable
    """Classes by their ids, as the aligned labels hold them; their nodata is ignored."""
    tiles: Tiles

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles", Tiles.of(self.tiles))

    @property
    def label_table(self) -> ClassTable:
        """Classes by the values of the labels that were given, before they were brought to the scenes' grids."""
        return ClassTable.from_card(self.card.classes, self.card.ignore)

    def of_split(self, split: str) -> Tiles:
        """The tiles of ``train``, ``val`` or ``test``."""
        return self.tiles.of_split(split)

    def path(self, name: str) -> Path:
        """Where a file is that the card names: a scene at its old place or as near to the tile set as it was, or a file of the tile set.

        Raises:
            TileSetError: it is gone.
        """
        moved = next((entry.nearby for entry in self.card.scenes if entry.path == name), None)
        for place in (name, moved):
            if place is not None and (self.folder / place).exists():
                return self.folder / place
        if is_remote(name):
            return Path(name)
        raise TileSetError(f"{name} of the tile set {self.folder} is gone", hint="put it back, or run rsdistill tile again")


class TileRow(NamedTuple):
    """One line of ``tiles.gpkg``."""

    scene: str
    window: Window
    split: str
    labelled: bool
    valid: float
    """Share of the tile's pixels that hold data."""
    shares: tuple[float, ...]
    """Share of the tile's pixels that each class takes."""


def load_tile_set(folder: Path | str) -> TileSet:
    """Read a tile set. The split is what ``tiles.gpkg`` says, so it may be edited in QGIS.

    Raises:
        TileSetError: there is none, it is damaged or of another format version, or a tile does not fit its scene.
    """
    folder = Path(folder)
    card = read_card(folder)
    table = _table(folder, card)
    tiles = read_tiles(index_path(folder), {entry.name: (entry.height, entry.width) for entry in card.scenes})
    return TileSet(folder, card, table, tiles)


def index_path(folder: Path) -> Path:
    """Return where the index of a tile set's folder is: ``tiles.gpkg``, or ``tiles.parquet`` where that stands alone."""
    large = folder / LARGE_INDEX
    return large if large.exists() and not (folder / INDEX).exists() else folder / INDEX


def read_card(folder: Path) -> TileSetCard:
    """Read ``tileset.json`` of a tile set's folder.

    Raises:
        TileSetError: it is missing, not ours, or of another format version.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TileSetError(f"{folder} holds no {CARD}", hint="run rsdistill tile, or name its folder with --tiles") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TileSetError(f"cannot read {path}: {error}", hint="run rsdistill tile again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise TileSetError(f"{path} has format version {version}, not {FORMAT_VERSION}", hint="run rsdistill tile again")
    try:
        return TileSetCard.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise TileSetError(f"{path} is damaged: {place}: {first['msg']}", hint="run rsdistill tile again") from None


def _table(folder: Path, card: TileSetCard) -> ClassTable:
    try:
        return ClassTable.from_card(card.classes, card.ignore).by_id()
    except (ClassTableError, KeyError, TypeError, ValueError) as error:
        raise TileSetError(f"{folder / CARD} is damaged: classes: {error}", hint="run rsdistill tile again") from None


def write_card(folder: Path, card: TileSetCard) -> None:
    """Write ``tileset.json``."""
    (folder / CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")


def write_index(folder: Path, rows: Sequence[TileRow], grids: Mapping[str, Grid], table: ClassTable) -> None:
    """Write ``tiles.gpkg``, or ``tiles.parquet`` for more than :data:`MOST_ROWS`.

    It holds one footprint a tile, in the first scene's CRS; in pixels (column, −row) where any scene has none.

    Args:
        folder: of the tile set.
        rows: the tiles.
        grids: of the scenes, by name.
        table: whose class ids name the columns ``class_<id>``.

    Raises:
        DiskError: the file does not hold all tiles.
    """
    path = folder / (INDEX if len(rows) <= MOST_ROWS else LARGE_INDEX)
    from rsdistill.geo.footprints import write_frames  # reading a tile set does without, and saves a second

    try:
        write_frames(path, LAYER, _frames(rows, grids, table))
        whole = len(read_tiles(path, {name: (grid.height, grid.width) for name, grid in grids.items()})) == len(rows)
    except (RuntimeError, OSError, ValueError, TileSetError):  # pyogrio's errors are RuntimeErrors, pyarrow's ValueErrors
        whole = False
    if not whole:
        raise DiskError(f"cannot write {path} whole", hint="check the disk's space and health")


def _frames(rows: Sequence[TileRow], grids: Mapping[str, Grid], table: ClassTable) -> Iterator[Any]:
    """Yield the lines of an index as GeoDataFrames of :data:`CHUNK` tiles each: all at once would take a kilobyte a tile."""
    import geopandas

    from rsdistill.geo.footprints import outlines

    crs = None if any(grid.crs is None for grid in grids.values()) else next(iter(grids.values())).crs
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        windows = np.array([row.window for row in part], np.int64).reshape(-1, 4)
        shares = np.array([row.shares for row in part], np.float64).reshape(-1, len(table))
        fields = {name: [getattr(row, name) for row in part] for name in ("split", "labelled", "valid")}
        columns: dict[str, Any] = {"scene": [row.scene for row in part], **dict(zip(Window._fields, windows.T, strict=True)), **fields}
        columns |= {f"class_{id_}": shares[:, k] for k, id_ in enumerate(table.ids)}
        runs = [(scene, len(list(run))) for scene, run in groupby(columns["scene"])]
        ends = np.cumsum([length for _, length in runs])
        drawn = [outlines(grids[scene], windows[end - length : end], crs) for (scene, length), end in zip(runs, ends, strict=True)]
        yield geopandas.GeoDataFrame(columns, geometry=np.concatenate(drawn), crs=crs and crs.to_wkt())


def nearby_path(scene: Path, folder: Path) -> str:
    """The way from a tile set's folder to a scene, with forward slashes."""
    return Path(os.path.relpath(scene.resolve(), folder.resolve())).as_posix()
