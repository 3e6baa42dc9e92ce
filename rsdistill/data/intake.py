"""What ``tile`` takes in: scenes that fit together, the labels of each, and the class table."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rsdistill.errors import ClassTableError, LabelError, SceneError
from rsdistill.geo.bands import match_bands
from rsdistill.geo.burning import VECTOR_SUFFIXES, BurnOptions, scan_fields
from rsdistill.geo.classes import COLORS, ClassTable, LandClass, load_class_table
from rsdistill.geo.labels import scan_classes
from rsdistill.geo.scenes import Scene
from rsdistill.reporting import Progress

_TABLE_NAMES = ("classes.toml", "classes.csv")


@dataclass(frozen=True)
class Intake:
    """One scene on its way into a tile set."""

    name: str
    """Unique in the tile set."""
    scene: Scene
    label: Path | None
    """A raster or vector file."""
    bands: tuple[int, ...] = ()
    """1-based numbers of the bands that are taken; known once scenes fit together."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.scene.grid.height, self.scene.grid.width


def at_rest(scene: Scene) -> Scene:
    """Return ``scene`` with its header read and its file closed: thousands may be known at a time, and few files open."""
    _ = scene.grid, scene.count, scene.dtype, scene.descriptions, scene.nodata, scene.block_shape, scene.color_bands
    scene.close()
    return scene


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for every scene: its stem, or ``<folder>_<stem>`` where several scenes share one.

    Raises:
        SceneError: that is not unique either.
    """
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths]
    places: dict[str, Path] = {}
    for name, path in zip(names, paths, strict=True):
        if name in places:
            raise SceneError(f"{places[name]} and {path} would both be called '{name}'", hint="rename one")
        places[name] = path
    return names


def fit_together(intakes: Sequence[Intake], wanted: Sequence[int | str]) -> tuple[tuple[Intake, ...], str]:
    """Choose the bands of every scene, and the type that holds all their pixels without loss.

    Names are looked up in each scene, so its bands may stand in any order. Without a wish all but alpha are taken, in the order of the
    first scene where the others have the same names.

    Raises:
        SceneError: two scenes differ in bands, or in types that none of them holds both of; names both.
    """
    first = intakes[0].scene
    bands = first.bands(list(wanted) or None)
    names = [first.descriptions[band - 1] for band in bands]
    fitting = []
    for one in intakes:
        theirs = one.scene.bands(list(wanted) or None)
        if len(theirs) != len(bands):
            known = f"{first.path} has bands {_listed(bands)}, {one.scene.path} has bands {_listed(theirs)}"
            raise SceneError(known, hint="choose bands that all have, such as --bands 1,2,3")
        fitting.append(replace(one, bands=theirs if wanted else match_bands(one.scene, theirs, names)))
    kinds = Counter(one.scene.dtype for one in intakes)
    most = max(kinds, key=lambda kind: sum(count for other, count in kinds.items() if np.can_cast(other, kind)))
    widest = next(one.scene for one in intakes if one.scene.dtype == most)
    for one in intakes:
        if not np.can_cast(one.scene.dtype, widest.dtype):
            pair = f"{widest.path} has pixels of type {widest.dtype}, {one.scene.path} of type {one.scene.dtype}"
            raise SceneError(pair, hint="convert one with gdal_translate -ot")
    return tuple(fitting), widest.dtype


def common_names(intakes: Sequence[Intake]) -> tuple[str | None, ...]:
    """What every scene that names the band taken calls it; None where two contradict each other, or no scene names it."""
    called = zip(*([one.scene.descriptions[band - 1] for band in one.bands] for one in intakes), strict=True)
    known = [set(filter(None, names)) for names in called]
    return tuple(names.pop() if len(names) == 1 else None for names in known)


def choose_table(path: Path | None, labels: Sequence[Path], beside: Sequence[Path], burn: BurnOptions, progress: Progress) -> ClassTable:
    """The class table: the file given, else ``classes.toml`` or ``classes.csv`` beside the labels, else what the labels hold.

    Args:
        path: class table given.
        labels: label files.
        beside: folders to look for a table in.
        burn: how polygons become classes.
        progress: is told which table was taken, unless it was given.

    Raises:
        ClassTableError: a broken table.
        LabelError: labels that do not tell their classes.
    """
    if path is not None:
        return load_class_table(path)
    for folder in dict.fromkeys(beside):
        for name in _TABLE_NAMES:
            if (folder / name).is_file():
                progress.message(f"classes: {folder / name}")
                return load_class_table(folder / name)
    rasters = [label for label in dict.fromkeys(labels) if label.suffix.lower() not in VECTOR_SUFFIXES]
    vectors = [label for label in dict.fromkeys(labels) if label.suffix.lower() in VECTOR_SUFFIXES]
    if not rasters and not vectors:
        raise ClassTableError("there are neither labels nor a class table", hint="give --classes, or --labels")
    if rasters and vectors:
        raise LabelError(f"classes cannot be guessed from rasters and polygons alike: {rasters[0]}, {vectors[0]}", hint="give --classes")
    table = scan_classes(rasters) if rasters else _named(scan_fields(vectors, burn))
    progress.warn(f"no class table was given; the labels hold: {', '.join(table.names)} (name and colour them with --classes FILE)")
    return table


def _named(names: Sequence[str]) -> ClassTable:
    """Classes of these names; a name that is a number is the class's id."""
    ids: list[int] = []
    for name in names:
        wanted = max(ids, default=-1) + 1
        with suppress(ValueError):
            wanted = int(name)
        ids.append(wanted)
    pairs = zip(ids, names, strict=True)
    rows = [LandClass(i, f"class {name}" if name.isdigit() else name, COLORS[k % len(COLORS)]) for k, (i, name) in enumerate(pairs)]
    return ClassTable(tuple(rows))


def _listed(bands: Sequence[int]) -> str:
    return ", ".join(map(str, bands))
