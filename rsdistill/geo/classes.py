"""The class table: which label values mean which class, and how classes are called and coloured."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsdistill.config import read_toml
from rsdistill.errors import ClassTableError, ConfigError, LabelError, nearest

IGNORE = 255
"""Class index of pixels that take part in nothing; the same number as ``rsdistill.batches.IGNORE``, which needs torch."""
MAX_CLASSES = 254
COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee7733",
    "#0077bb", "#33bbee", "#009988", "#cc3311", "#ee3377", "#999933", "#882255", "#44aa99",
)  # fmt: skip
"""Colours for classes that name none: Paul Tol's bright and vibrant schemes, which colour-blind people can tell apart."""
_KEYS = ("id", "name", "color", "sources")


@dataclass(frozen=True)
class LandClass:
    """One class: its id in masks, its name, its colour ``#rrggbb``, and the label values that mean it (default: its id)."""

    id: int
    name: str
    color: str
    sources: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", (self.id,))
        if not 0 <= self.id <= 65534:
            raise ClassTableError(f"class id {self.id} ('{self.name}') is out of range", hint="ids are 0 to 65534")
        if not self.name.strip() or any(ord(letter) < 32 for letter in self.name):
            raise ClassTableError(f"class {self.id} has no readable name: {self.name!r}", hint="give it a name of one line")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.color):
            raise ClassTableError(f"class '{self.name}' has the colour {self.color!r}", hint="colours are written '#rrggbb'")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue in 0…255."""
        value = int(self.color[1:], 16)
        return value >> 16, value >> 8 & 255, value & 255


@dataclass(frozen=True)
class ClassTable:
    """The classes in their order (the order of indices 0…K−1), and label values that mean nothing.

    Raises:
        ClassTableError: no class, too many, or an id, name or label value that is used twice.
    """

    classes: tuple[LandClass, ...]
    ignore: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ClassTableError(f"a class table of {len(self.classes)} classes", hint=f"1 to {MAX_CLASSES} classes are possible")
        _refuse_twice("class id", [one.id for one in self.classes])
        _refuse_twice("class name", [one.name for one in self.classes])
        _refuse_twice("label value", [*(value for one in self.classes for value in one.sources), *dict.fromkeys(self.ignore)])

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def ids(self) -> tuple[int, ...]:
        """Mask id of every class."""
        return tuple(one.id for one in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every class."""
        return tuple(one.name for one in self.classes)

    @property
    def colors(self) -> tuple[str, ...]:
        """Colour ``#rrggbb`` of every class."""
        return tuple(one.color for one in self.classes)

    @property
    def dtype(self) -> str:
        """Type of masks and aligned labels: uint8, or uint16 where an id is 255 or more."""
        return "uint16" if max(self.ids) >= 255 else "uint8"

    @property
    def nodata(self) -> int:
        """Value of mask pixels that have no class: the highest of :attr:`dtype`."""
        return int(np.iinfo(self.dtype).max)

    def find(self, name: str | int) -> LandClass:
        """The class of that name or id.

        Raises:
            ClassTableError: there is none.
        """
        for one in self.classes:
            if str(name) in (one.name, str(one.id)):
                return one
        raise ClassTableError(f"no class is called '{name}'{nearest(str(name), self.names)}", hint="classes: " + ", ".join(self.names))

    def to_index(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn label values of any integer type into class indices 0…K−1; values to ignore become 255.

        Raises:
            LabelError: values that the table does not know; says which and how many.
        """
        index, known = self._look_up(np.asarray(values))
        if not known.all():
            unknown, counts = np.unique(np.asarray(values)[~known], return_counts=True)
            listed = ", ".join(f"{value} ({count} pixels)" for value, count in zip(unknown[:5], counts[:5], strict=True))
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise LabelError(f"label value {listed}{more} is not in the class table", hint="add it to a class's sources, or to ignore")
        return index

    def from_ids(self, ids: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn mask ids back into class indices; what is no id of the table, :attr:`nodata` above all, becomes 255."""
        table = np.full(self.nodata + 1, IGNORE, np.uint8)
        table[list(self.ids)] = np.arange(len(self))
        return np.asarray(table[ids])

    def to_ids(self, index: NDArray[Any]) -> NDArray[Any]:
        """Turn class indices into mask ids of :attr:`dtype`; 255 becomes :attr:`nodata`."""
        table = np.full(256, self.nodata, dtype=self.dtype)
        table[: len(self)] = self.ids
        if table.dtype == index.dtype == np.uint8:  # a quarter of the cost of an index
            return np.frombuffer(bytearray(np.ascontiguousarray(index).data).translate(table.tobytes()), np.uint8).reshape(index.shape)
        return np.asarray(table[index])

    @classmethod
    def from_card(cls, classes: Sequence[Mapping[str, Any]], ignore: Sequence[int] = ()) -> Self:
        """The table that a model's, a mask's or a tile set's card holds.

        Label values are the sources; ids too, so that masks are labels as well, and nodata is ignored, where no class claims that value.
        """
        sources = [tuple(int(value) for value in one.get("sources") or (one["id"],)) for one in classes]
        claimed = {*ignore, *(value for values in sources for value in values)}
        rows = []
        for k, (one, values) in enumerate(zip(classes, sources, strict=True)):
            id_, color = int(one["id"]), str(one.get("color", COLORS[k % len(COLORS)]))
            rows.append(LandClass(id_, str(one["name"]), color, values if id_ in claimed else (*values, id_)))
        table, known = cls(tuple(rows)), {value for row in rows for value in row.sources}
        return cls(table.classes, tuple(value for value in dict.fromkeys((*ignore, table.nodata)) if value not in known))

    def by_id(self) -> "ClassTable":
        """The table for rasters of ids, such as masks and aligned labels: a class's only label value is its id, and nodata is ignored."""
        classes = tuple(replace(one, sources=(one.id,)) for one in self.classes)
        return ClassTable(classes, tuple(value for value in dict.fromkeys((*self.ignore, self.nodata)) if value not in self.ids))

    def to_card(self) -> list[dict[str, Any]]:
        """Id, name, colour and sources of every class, as cards hold them."""
        return [{"id": one.id, "name": one.name, "color": one.color, "sources": list(one.sources)} for one in self.classes]

    def to_toml(self) -> str:
        """The table as the TOML text that :func:`load_class_table` reads."""
        import tomli_w

        return tomli_w.dumps({"ignore": list(self.ignore), "class": self.to_card()})

    @cached_property
    def _sorted_sources(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        pairs = [(value, i) for i, one in enumerate(self.classes) for value in one.sources]
        pairs = sorted([*pairs, *((value, IGNORE) for value in set(self.ignore))])
        return np.array([value for value, _ in pairs], np.int64), np.array([i for _, i in pairs], np.uint8)

    def _look_up(self, values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Index and "the table knows it" of every value."""
        sources, targets = self._sorted_sources
        if values.dtype == np.uint8:
            index, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
            inside = (sources >= 0) & (sources < 256)
            index[sources[inside]], known[sources[inside]] = targets[inside], True
            return index[values], known[values]
        place = np.searchsorted(sources, values).clip(max=len(sources) - 1)
        known = sources[place] == values
        return np.where(known, targets[place], np.uint8(IGNORE)), known


def load_class_table(path: Path) -> ClassTable:
    """Read a class table: TOML with ``ignore`` and ``[[class]]``, or CSV with the columns id, name, color, sources.

    In a CSV several sources stand in one cell, parted by spaces, semicolons, or commas in quotes; a row named ``ignore`` lists values to
    ignore.

    Raises:
        ClassTableError: the file cannot be read, or what it says makes no table.
    """
    try:
        if path.suffix.lower() == ".csv":
            return _from_csv(path)
        return _from_toml(read_toml(path))
    except ConfigError as error:
        raise ClassTableError(str(error), hint="a class table is TOML or CSV: id, name, color, sources") from None
    except ClassTableError as error:
        raise ClassTableError(f"{path}: {error}", hint=error.hint) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ClassTableError(f"{path} is not a class table: {error}", hint="each class has id, name and color = '#rrggbb'") from None


def _from_toml(content: dict[str, Any]) -> ClassTable:
    for key in content:
        if key not in ("ignore", "class"):
            raise ClassTableError(f"unknown key '{key}'{nearest(key, ('ignore', 'class'))}", hint="keys: ignore, [[class]]")
    classes = []
    for position, row in enumerate(content.get("class", [])):
        for key in row:
            if key not in _KEYS:
                raise ClassTableError(f"unknown key '{key}' in a class{nearest(key, _KEYS)}", hint="keys: " + ", ".join(_KEYS))
        if "id" not in row or "name" not in row:
            raise ClassTableError(f"class number {position + 1} lacks its id or name", hint="each [[class]] has id and name")
        sources = tuple(_whole(value) for value in row.get("sources", ()))
        classes.append(LandClass(_whole(row["id"]), str(row["name"]), row.get("color", COLORS[position % len(COLORS)]), sources))
    return ClassTable(tuple(classes), tuple(_whole(value) for value in content.get("ignore", ())))


def _from_csv(path: Path) -> ClassTable:
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        rows, columns = list(reader), [name.strip() for name in reader.fieldnames or ()]
    except (OSError, csv.Error) as error:
        raise ClassTableError(f"cannot be read: {error}", hint="check the path") from None
    if missing := [name for name in ("id", "name") if name not in columns]:
        first = ", ".join(columns) or "none"
        hint = "columns are parted by commas: id,name,color,sources"
        raise ClassTableError(f"no column {' and no '.join(missing)} (found: {first})", hint=hint)
    content: dict[str, Any] = {"class": [], "ignore": []}
    for row in rows:
        if None in row:
            hint = 'several sources stand in one cell: "1,7" or 1;7'
            raise ClassTableError(f"the row {','.join(filter(None, list(row.values())[:-1]))} has more cells than columns", hint=hint)
        cells = {str(key).strip(): (value or "").strip() for key, value in row.items() if key is not None}
        sources = [_number(value) for value in re.split(r"[,;\s]+", cells.pop("sources", "")) if value]
        if cells.get("name") == "ignore":
            content["ignore"] += sources or [_number(cells.get("id", ""))]
            continue
        entry: dict[str, Any] = {**{key: value for key, value in cells.items() if value}, "id": _number(cells.get("id", ""))}
        content["class"].append({**entry, "sources": sources} if sources else entry)
    return _from_toml(content)


def _number(text: str) -> int:
    return _whole(int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ClassTableError(f"{value!r} is not a whole number", hint="ids, sources and ignore are whole numbers")
    return value


def _refuse_twice(what: str, values: Sequence[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ClassTableError(f"{what} {value!r} stands twice in the class table", hint="each may stand once, ignore included")
        seen.add(value)
