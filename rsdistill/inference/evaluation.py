"""One scene against its label: what is evaluated, and where; strips of a model's map or of a mask are compared as they come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import ConfigError, LabelError, TileSetError
from rsdistill.geo.burning import BurnOptions
from rsdistill.geo.classes import IGNORE, ClassTable
from rsdistill.geo.labels import find_labels, open_labels
from rsdistill.geo.scenes import Scene, open_scene
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.windows import Window
from rsdistill.inference.mapping import Mapper
from rsdistill.metrics import Boundary, Confusion
from rsdistill.outputs.masks import read_mask
from rsdistill.outputs.pictures import SmallMap


@dataclass(frozen=True)
class TileArea:
    """The pixels that some windows of a scene cover."""

    windows: tuple[Window, ...]

    def __call__(self, window: Window) -> NDArray[np.bool_]:
        """Return the (h, w) pixels of ``window`` that are covered."""
        inside = np.zeros((window.height, window.width), bool)
        for one in self.windows:
            inside[one.intersection(window).relative_to(window).slices] = True
        return inside


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a scene, its label, and the mask that stands for its map where there is one."""

    raster: Path
    """The file whose grid is evaluated: the mask, else the scene."""
    label: Path
    scene: Path | None = None
    area: TileArea | None = None
    """Where labels count; None for everywhere."""

    @property
    def name(self) -> str:
        """What it is called."""
        return (self.scene or self.raster).stem


@dataclass(frozen=True)
class Measured:
    """What was found in one scene."""

    subject: Subject
    confusion: Confusion
    label: SmallMap
    """All of it, also where it does not count."""
    counted: SmallMap
    """The label where it counts."""
    prediction: SmallMap


def named_subjects(scenes: Sequence[Path], masks: Sequence[Path], labels: Sequence[Path]) -> list[Subject]:
    """Return the masks, or without any the scenes, each with its label.

    Args:
        scenes: what is mapped; or what the masks show, one for each of them, or none.
        masks: masks to evaluate.
        labels: files or folders; without any, labels are looked for beside the scenes.

    Raises:
        LabelError: a scene or mask without label.
        ConfigError: not as many scenes as masks.
    """
    if masks and scenes and len(scenes) != len(masks):
        raise ConfigError(f"{len(scenes)} scenes and {len(masks)} masks", hint="name the scene of each mask, or none")
    rasters, named = masks or scenes, scenes or masks
    found = []
    for raster, path, label in zip(rasters, named, find_labels(named, labels), strict=True):
        if label is None:
            raise LabelError(f"{path} has no label", hint=f"name it with --labels, or call it {path.stem}_label")
        found.append(Subject(raster, label, path if scenes else None))
    return found


def split_subjects(tile_set: TileSet, split: str) -> list[Subject]:
    """Return the labelled scenes of a tile set's split; of a scene that several splits share, the pixels of this split's tiles.

    Raises:
        TileSetError: the split has no labelled tile.
    """
    found = []
    for number, entry in enumerate(tile_set.card.scenes):
        own = tile_set.tiles.pick(tile_set.tiles.scene == number)
        wanted = [tile for tile in own.of_split(split) if tile.labelled]
        if wanted and entry.label is not None:
            shared = len(own.of_split(split)) < len(own)
            area = TileArea(tuple(tile.window for tile in wanted)) if shared else None
            scene = tile_set.path(entry.path)
            found.append(Subject(scene, tile_set.path(entry.label), scene, area))
    if not found:
        raise TileSetError(f"{tile_set.folder} has no labelled tile in split '{split}'", hint="choose another --split")
    return found


def measure(subject: Subject, table: ClassTable, mapper: Mapper | None, boundary: Boundary, *, burn: BurnOptions, side: int) -> Measured:
    """Compare one scene with its label, strip by strip.

    Args:
        subject: the scene or mask, and its label.
        table: what label values mean, and the classes that are counted.
        mapper: what maps the scene; without one ``subject.raster`` is a mask.
        boundary: counts the scene's contours too.
        burn: how vector labels become classes.
        side: longest side in pixels of the small maps that are kept.

    Raises:
        InputError: scene, mask or label cannot be taken.
    """
    opened = open_scene(subject.raster) if mapper is None else mapper.open(subject.raster)
    with opened as scene, open_labels(subject.label, scene, table, burn) as labels:
        frame = scene.grid.window if mapper is None else mapper.frame(scene)
        small = [SmallMap(frame.height, frame.width, side) for _ in range(3)]
        found = Measured(subject, Confusion(len(table)), *small)
        boundary.start(frame.height, frame.width)
        for row, prediction in _predictions(scene, table, mapper):
            window = Window(frame.row + row, frame.col, *prediction.shape)
            label = labels.read(window)
            found.label.add(row, label)
            if subject.area is not None:
                label[~subject.area(window)] = IGNORE
            found.confusion.update(prediction, label)
            boundary.update(prediction, label)
            found.counted.add(row, label)
            found.prediction.add(row, prediction)
        boundary.finish()
    return found


def trained_on(tile_set: TileSet, subjects: Sequence[Subject]) -> list[str]:
    """Return the names of the scenes that ``tile_set`` has training tiles in."""
    scenes = set(tile_set.of_split("train").scene.tolist())
    trained = {(tile_set.folder / tile_set.card.scenes[number].path).resolve() for number in scenes}
    return [subject.name for subject in subjects if subject.scene is not None and subject.scene.resolve() in trained]


def _predictions(scene: Scene, table: ClassTable, mapper: Mapper | None) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (row, (h, W) class index in the order of ``table``) of a mask, or of what a model makes of a scene."""
    if mapper is None:
        for window, index in read_mask(scene, table):
            yield window.row, index
        return
    for strip in mapper.strips(scene):
        same = mapper.table.ids == table.ids
        yield strip.row, strip.labels if same else table.from_ids(mapper.table.to_ids(strip.labels))
