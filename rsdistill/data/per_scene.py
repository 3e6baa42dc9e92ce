"""One scene's part of a tile set: what is read of it and written for it, by whichever process has it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rsdistill.data.intake import Intake
from rsdistill.data.layout import SplitRule
from rsdistill.data.tiling import BandStatistics, Summary, Tally, align, count_chunks, cut_chips, summarise
from rsdistill.errors import LabelError, SceneError
from rsdistill.geo.burning import BurnOptions
from rsdistill.geo.caching import bounded_cache
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.context import RATIO
from rsdistill.geo.labels import open_labels
from rsdistill.geo.tile_index import TileRow
from rsdistill.geo.windows import Window
from rsdistill.reporting import Task

CACHE_BYTES = 256 << 20
"""512 rows of three bands, 170 000 pixels wide: a scene that is stored in whole rows is still decoded once a pass."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a tile set becomes."""

    intakes: tuple[Intake, ...]
    table: ClassTable
    dtype: str
    burn: BurnOptions
    tile: int
    overlap: int
    rule: SplitRule
    min_valid: float
    home: Path
    """Folder that the tile set will stand in."""
    nodata: tuple[float, ...] | None = None
    chips: bool = False
    skip_bad: bool = False
    unlabelled: bool = False
    """Scenes without labels are welcome, so there may be no label at all."""
    allow_vrt: bool = False
    allow_remote: bool = False


class Change(NamedTuple):
    """What bringing a scene's labels to its grid did."""

    scene: str
    how: str
    """resampled or burnt."""
    source: tuple[float, ...]
    """Per class, the area in the label file, in scene pixels."""
    grid: tuple[int, ...]
    """Per class, pixels on the grid."""


class Aligned(NamedTuple):
    """One scene whose labels lie on its grid."""

    tally: Tally
    change: Change | None
    failure: str | None = None


class SceneWork(NamedTuple):
    """What is done to one scene by itself, in this process or another: values that pickle."""

    recipe: Recipe
    """Without its intakes."""
    one: Intake
    folder: Path
    """Of the tile set under construction."""
    windows: tuple[Window, ...]
    """All tiles when labels are aligned, those for training when scenes are summed up."""
    rows: tuple[TileRow, ...] = ()
    """Tiles to cut chips of."""

    @property
    def chunks(self) -> int:
        """How much progress it is."""
        return count_chunks(self.one.scene, self.one.bands)


Made = TypeVar("Made")
Each = Callable[[Callable[[SceneWork, Task], Any], Sequence[SceneWork], Task], Iterator[Any]]
"""Yields what a call makes of each work, in their order, and tells the task of it."""


def one_by_one(call: Callable[[SceneWork, Task], Made], works: Sequence[SceneWork], task: Task) -> Iterator[Made]:
    """Do all works in this process."""
    return (call(work, task) for work in works)


def align_scene(work: SceneWork, task: Task) -> Aligned:
    """Write a scene's labels on its grid, and count what its tiles hold.

    Raises:
        SceneError, LabelError: a file cannot be read, unless bad ones are skipped.
    """
    """Write a scene's labels on its grid, and count what its tiles hold.

    Raises:
        SceneError, LabelError: a file cannot be read, unless bad ones are skipped.
    """
    recipe, one, path = work.recipe, work.one, label_path(work.folder, work.one)
    tally = Tally(work.windows, len(recipe.table))
    try:
        with bounded_cache(CACHE_BYTES):
            return _align_one(recipe, one, tally, path, task)
    except (SceneError, LabelError) as error:
        if not recipe.skip_bad:
            raise
        path.unlink(missing_ok=True)
        return Aligned(Tally(work.windows, len(recipe.table)), None, str(error))


def _align_one(recipe: Recipe, one: Intake, tally: Tally, path: Path, task: Task) -> Aligned:
    with one.scene as scene:
        if one.label is None:
            align(scene, one.bands, None, recipe.table, tally, path, task)
            return Aligned(tally, None)
        with open_labels(one.label, scene, recipe.table, recipe.burn) as labels:
            totals = align(scene, one.bands, labels, recipe.table, tally, path, task)
            if labels.how == "copied":
                return Aligned(tally, None)
            return Aligned(tally, Change(one.name, labels.how, tuple(labels.areas().tolist()), tuple(totals.tolist())))


def summarise_scene(work: SceneWork, task: Task) -> BandStatistics:
    """Write a scene's context and chips; return the statistics of its training tiles.

    Raises:
        SceneError: rows cannot be read.
    """
    """Write a scene's context and chips; return the statistics of its training tiles.

    Raises:
        SceneError: rows cannot be read.
    """
    recipe, one, folder = work.recipe, work.one, work.folder
    path, statistics = label_path(folder, one), BandStatistics(len(one.bands))
    files = Summary(context_path(folder, one), path if path.exists() else None, majority_path(folder, one))
    with one.scene as scene, bounded_cache(CACHE_BYTES):
        summarise(scene, one.bands, recipe.dtype, work.windows, recipe.table, files, statistics, task)
        if recipe.chips:
            cut_chips(scene, one.bands, recipe.dtype, work.rows, recipe.table, files.aligned, folder / "chips")
    return statistics


def label_path(folder: Path, one: Intake) -> Path:
    """Return where the labels on the scene's grid go."""
    """Return where the labels on the scene's grid go."""
    return folder / "labels" / f"{one.name}.tif"


def context_path(folder: Path, one: Intake) -> Path:
    """Return where the scene made small goes."""
    """Return where the scene made small goes."""
    return folder / "context" / f"{one.name}.ctx{RATIO}.tif"


def majority_path(folder: Path, one: Intake) -> Path:
    """Return where the labels made small go."""
    """Return where the labels made small go."""
    return folder / "context" / f"{one.name}.lab{RATIO}.tif"
