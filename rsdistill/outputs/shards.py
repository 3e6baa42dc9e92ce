"""Shards on disk: rectangles of a map in files of their own, each of which says what it is a part of.

A shard is a GeoTIFF of class ids and, where they were asked for, of the shares that go with them, one band each. A tag holds its card:
which rectangle of which map it is, and everything that map depends on. A shard that nothing was left for is a card in a file of text.
"""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError

from rsdistill.config import Config
from rsdistill.errors import ClassTableError
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.files import atomic
from rsdistill.geo.windows import Grid, Window
from rsdistill.outputs.cog import Piece, block_rows, quiet
from rsdistill.outputs.geotiff import FIGURES, LABELS, SHARE_NODATA, SHARE_STEPS, StripWriter

TAG = "RSDISTILL_SHARD"
EMPTY_SUFFIX = ".empty"
MAX_CARD_BYTES = 1 << 22


class ShardCard(Config):
    """What a shard says of itself."""

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    window: tuple[int, int, int, int] | None
    """Row, column, height and width in the scene; None where nothing was left."""
    frame: tuple[int, int, int, int]
    """The same of the whole map."""
    crs: str | None
    transform: tuple[float, float, float, float, float, float]
    """Of the whole map."""
    classes: tuple[dict[str, Any], ...]
    ignore: tuple[int, ...] = ()
    confidence: bool = False
    probabilities: bool = False
    scene: str
    pictured: bool = False
    """Whether the map covers all of its scene, which pictures can then show beneath the classes."""
    mark: dict[str, Any]
    """All that the map depends on: two shards belong together only where they have one mark."""
    look: dict[str, Any] = Field(default_factory=dict)
    """How the map is to be written."""
    pixels: tuple[int, ...] = ()
    """Count of each class in the rectangle."""
    facts: dict[str, int | float] = Field(default_factory=dict)
    """What the shard took."""

    @property
    def grid(self) -> Grid:
        """Of the whole map."""
        return Grid(*self.frame[2:], None if self.crs is None else CRS.from_wkt(self.crs), Affine(*self.transform))

    @property
    def place(self) -> Window | None:
        """The rectangle, counted from the corner of the map."""
        return None if self.window is None else Window(*self.window).relative_to(Window(*self.frame))

    @property
    def table(self) -> ClassTable:
        """The map's classes."""
        return ClassTable.from_card([dict(entry) for entry in self.classes], self.ignore)

    @property
    def bands(self) -> list[str]:
        """What each band of a shard's file holds."""
        odds = [f"probability of {name}" for name in self.table.names] if self.probabilities else []
        return ["class", *(["confidence"] if self.confidence else []), *odds]


def grid_card(grid: Grid) -> dict[str, Any]:
    """Return the keys of a card that hold ``grid``."""
    crs = None if grid.crs is None else grid.crs.to_wkt(version="WKT2_2019")
    return {"crs": crs, "transform": tuple(float(value) for value in grid.transform[:6])}


class ShardWriter(StripWriter):
    """Writer of a shard: strips go in, the file appears with the last of them."""

    resampling = "MODE"

    def __init__(self, path: Path, card: ShardCard) -> None:
        """Name the file of a shard that is not empty."""
        place = card.place
        if place is None:
            raise ValueError(f"{path}: an empty shard has no pixels")
        self.card, self.table = card, card.table
        self.strips_as = FIGURES if len(card.bands) > 1 else LABELS
        options = {"OVERVIEWS": "NONE", "LEVEL": "1", "NUM_THREADS": "1"}  # shards are made side by side: the cores are taken
        dtype = np.dtype(self.table.dtype).name
        super().__init__(path, card.grid[place], card.bands, dtype, self.table.nodata, creation_options=options, overwrite=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.tags[TAG] = self.card.model_dump_json()
        super().__exit__(kind, error, trace)

    def write(self, row: int, labels: NDArray[np.uint8], shares: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Take the rows from ``row`` on.

        Args:
            row: counted from the first of the shard.
            labels: (h, width) class index, or 255 where there is no data.
            shares: one (h, width) array in [0, 1] for each band after the first; NaN where there is no data.
        """
        values = np.empty((1 + len(shares), *labels.shape), self.dtype)
        values[0] = self.table.to_ids(labels)
        for band, share in zip(values[1:], shares, strict=True):
            steps = np.rint(share * SHARE_STEPS)
            band[:] = np.where(np.isnan(steps), np.float32(SHARE_NODATA), steps)
        self._write(values, row)

    def _decorate(self, band: Any) -> None:
        """Shards carry no palette: they are parts, and a palette allows one band only."""


def write_empty(path: Path, card: ShardCard) -> None:
    """Write the marker of a shard that nothing was left for."""
    with atomic(path) as part:
        part.write_text(card.model_dump_json(), encoding="utf-8")


def read_card(path: Path) -> ShardCard | None:
    """Return the card of a shard or of an empty shard's marker; None for what is neither, or is cut short."""
    try:
        if path.suffix == EMPTY_SUFFIX:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_CARD_BYTES else ""
        else:
            with quiet(), rasterio.open(path, driver="GTiff") as file:
                text = file.tags().get(TAG, "")
        card = ShardCard(**json.loads(text))
        _ = card.table, card.grid
    except (OSError, ValueError, TypeError, ValidationError, ClassTableError, CRSError, RasterioError):
        return None
    return card


def pieces_of(shards: Iterable[tuple[Path, ShardCard]], first_band: int = 1) -> list[Piece]:
    """Return where the rasters among ``shards`` lie in their map, to be shown from their band ``first_band`` on."""
    return [Piece(path, card.place, first_band) for path, card in shards if card.place is not None]


def unreadable(shards: Iterable[tuple[Path, ShardCard]]) -> list[Path]:
    """Return those of some shards whose pixels cannot be decoded."""
    broken = []
    for path, card in shards:
        try:
            if card.window is not None:
                deque(block_rows(path), 0)
        except RasterioError:
            broken.append(path)
    return broken
