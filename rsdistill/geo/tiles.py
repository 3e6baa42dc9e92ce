"""Where samples lie: one tile as a record, and many as columns of numbers, since a tile set may hold a million."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import TileSetError
from rsdistill.geo.windows import Window

LAYER = "tiles"
SPLITS = ("train", "val", "test")
COLUMNS = ("scene", "row", "col", "height", "width", "split", "labelled")
"""What training reads of an index."""
CHUNK = 1 << 16
"""Tiles that are held as Python objects at a time; a million of them take half a gigabyte."""

Rows = NDArray[np.bool_] | NDArray[np.integer[Any]] | slice


class Tile(NamedTuple):
    """A sample's place."""

    scene: int
    """Index into the card's scenes."""
    window: Window
    split: str
    labelled: bool


@dataclass(frozen=True, eq=False)
class Tiles(Sequence[Tile]):
    """N tiles as columns, 26 bytes each; it reads, and compares, as a sequence of :class:`Tile`."""

    scene: NDArray[np.int32]
    """(N,) index into the card's scenes."""
    window: NDArray[np.int32]
    """(N, 4) row, col, height, width."""
    split: NDArray[np.uint8]
    """(N,) index into :data:`SPLITS`."""
    labelled: NDArray[np.bool_]
    """(N,)."""
    place: NDArray[np.int32]
    """(N,) position in the whole tile set, which picking keeps."""

    @staticmethod
    def of(tiles: Iterable[Tile]) -> "Tiles":
        """Return ``tiles`` as columns: those that are already, as they are; others count their places from 0."""
        if isinstance(tiles, Tiles):
            return tiles
        records = list(tiles)
        return Tiles(
            np.array([tile.scene for tile in records], np.int32),
            np.array([tile.window for tile in records], np.int32).reshape(-1, 4),
            np.array([SPLITS.index(tile.split) for tile in records], np.uint8),
            np.array([tile.labelled for tile in records], bool),
            np.arange(len(records), dtype=np.int32),
        )

    @staticmethod
    def joined(parts: Iterable["Tiles"]) -> "Tiles":
        """Return the tiles of ``parts``, one after the other."""
        columns = zip(*((part.scene, part.window, part.split, part.labelled, part.place) for part in parts), strict=True)
        return Tiles(*map(np.concatenate, columns))

    def pick(self, rows: Rows) -> "Tiles":
        """Return the tiles that a mask, an array of positions or a slice names."""
        return Tiles(self.scene[rows], self.window[rows], self.split[rows], self.labelled[rows], self.place[rows])

    def of_split(self, split: str) -> "Tiles":
        """Return the tiles of ``train``, ``val`` or ``test``."""
        return self.pick(self.split == SPLITS.index(split))

    def without_labels(self) -> "Tiles":
        """Return the same tiles with their labels hidden."""
        return replace(self, labelled=np.zeros_like(self.labelled))

    def __len__(self) -> int:
        return len(self.scene)

    @overload
    def __getitem__(self, position: int) -> Tile: ...
    @overload
    def __getitem__(self, position: slice) -> "Tiles": ...
    def __getitem__(self, position: int | slice) -> "Tile | Tiles":
        if isinstance(position, slice):
            return self.pick(position)
        window = Window(*self.window[position].tolist())
        return Tile(int(self.scene[position]), window, SPLITS[self.split[position]], bool(self.labelled[position]))

    def __iter__(self) -> Iterator[Tile]:
        for start in range(0, len(self), CHUNK):
            part = self.pick(slice(start, start + CHUNK))
            columns = (part.scene.tolist(), part.window.tolist(), part.split.tolist(), part.labelled.tolist())
            for scene, window, split, labelled in zip(*columns, strict=True):
                yield Tile(scene, Window(*window), SPLITS[split], labelled)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # arrays have none


def read_tiles(path: Path, sizes: Mapping[str, tuple[int, int]]) -> Tiles:
    """Return the tiles of the index ``path``.

    Args:
        path: of ``tiles.gpkg`` or ``tiles.parquet``.
        sizes: height and width of each scene by its name, in the order that ``Tiles.scene`` counts.

    Raises:
        TileSetError: the index is missing, damaged or empty, or a tile does not fit its scene.
    """
    places = {name: number for number, name in enumerate(sizes)}
    bounds = np.array(list(sizes.values()), np.int64).reshape(-1, 2)
    parts = [_columns(path, rows, places, bounds) for rows in _rows(path)]
    if not parts:
        raise TileSetError(f"{path} holds no tile", hint="run rsdistill tile again")
    tiles = Tiles.joined(parts)
    return replace(tiles, place=np.arange(len(tiles), dtype=np.int32))


def _columns(path: Path, rows: Sequence[tuple[Any, ...]], places: Mapping[str, int], bounds: NDArray[np.int64]) -> Tiles:
    names, *sides, splits, labelled = zip(*rows, strict=True)
    scene = np.array([places.get(name, -1) for name in names], np.int32)
    split = np.array([SPLITS.index(name) if name in SPLITS else len(SPLITS) for name in splits], np.uint8)
    strange = (scene < 0) | (split == len(SPLITS))
    if strange.any():
        bad = int(strange.argmax())
        raise TileSetError(f"{path} has a tile of scene '{names[bad]}' and split '{splits[bad]}'", hint=f"splits are {', '.join(SPLITS)}")
    try:
        window = np.array(sides, np.int64).T
    except (TypeError, ValueError, OverflowError):
        raise TileSetError(f"{path} is damaged: a tile's window is not four whole numbers", hint="run rsdistill tile again") from None
    start, size = window[:, :2], window[:, 2:]
    outside = ((start < 0) | (size < 1) | (size > bounds[scene]) | (start > bounds[scene] - size)).any(1)
    if outside.any():
        bad = int(outside.argmax())
        place = Window(*window[bad].tolist())
        raise TileSetError(f"{path} has a tile outside its scene '{names[bad]}': {place}", hint="run rsdistill tile again")
    return Tiles(scene, window.astype(np.int32), split, np.array(labelled, bool), np.zeros(len(scene), np.int32))


def _rows(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    """Yield scene, window, split and labelled of some tiles at a time; asking SQLite takes a thirtieth of importing geopandas."""
    if not path.is_file():
        raise TileSetError(f"{path} is missing", hint="run rsdistill tile again")
    if path.suffix == ".parquet":
        yield from _rows_of_parquet(path)
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            asked = database.execute(f"SELECT {', '.join(COLUMNS)} FROM {LAYER} ORDER BY fid")
            while rows := asked.fetchmany(CHUNK):
                yield rows
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise TileSetError(f"{path} is damaged: {error}", hint="run rsdistill tile again") from None


def _rows_of_parquet(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for part in file.iter_batches(CHUNK, columns=list(COLUMNS)):
                yield list(zip(*(part.column(name).to_pylist() for name in COLUMNS), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise TileSetError(f"{path} is damaged: {error}", hint="run rsdistill tile again") from None
