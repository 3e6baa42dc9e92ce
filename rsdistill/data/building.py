"""A tile set made from scenes that fit together: labels aligned, tiles split, then statistics, context, index and card."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsdistill.data.intake import Intake, common_names
from rsdistill.data.layout import Layout, SplitRule, class_pixels, lay_out, split_tiles, without_spoiled
from rsdistill.data.tiling import BandStatistics, Summary, Tally, align, count_chunks, cut_chips, summarise
from rsdistill.errors import InputError, LabelError, SceneError, TileSetError
from rsdistill.geo.burning import BurnOptions
from rsdistill.geo.classes import ClassTable
from rsdistill.geo.context import RATIO
from rsdistill.geo.labels import open_labels
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.sources import is_remote
from rsdistill.geo.tile_index import (
    FORMAT_VERSION,
    INDEX,
    SceneEntry,
    TileRow,
    TileSetCard,
    nearby_path,
    write_card,
    write_index,
)
from rsdistill.geo.tiles import LAYER, SPLITS
from rsdistill.outputs.pictures import small_scene
from rsdistill.outputs.styles import Category, add_layer_style, qml
from rsdistill.outputs.tilemap import MOST_SCENES, SIDE, SPLIT_COLORS, ScenePanel, draw_tile_map
from rsdistill.reporting import Progress, Task

MAP = "tiles.png"
"""Picture of the splits and class shares in a tile set's folder."""
_VERSIONED = ("rsdistill", "torchgeo", "rasterio", "numpy")


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


class Built(NamedTuple):
    """What was made."""

    card: TileSetCard
    tiles: dict[str, int]
    """Per split, the number of tiles."""
    changes: tuple[Change, ...]
    failures: tuple[str, ...]
    """A sentence for every scene left out."""


class _Aligned(NamedTuple):
    """One scene whose labels lie on its grid."""

    tally: Tally
    change: Change | None
    failure: str | None = None


def build(recipe: Recipe, folder: Path, progress: Progress) -> Built:
    """Write a tile set into ``folder``; every scene is read twice, chunk by chunk.

    Raises:
        LabelError, SceneError: a file cannot be read, unless bad ones are skipped.
        TileSetError: no tile is left for training.
    """
    for name in ("labels", "context"):
        (folder / name).mkdir()
    layout = lay_out(recipe.intakes, recipe.tile, recipe.overlap, recipe.rule)
    aligned = _align(recipe, layout, folder, progress)
    names, grids = [one.name for one in recipe.intakes], [one.scene.grid for one in recipe.intakes]
    classes = np.concatenate([one.tally.classes for one in aligned])
    valid = np.concatenate([one.tally.valid for one in aligned])
    found = split_tiles(layout, classes, valid, names, recipe.rule, recipe.min_valid)
    rows = without_spoiled(found, names, grids)
    if len(rows) < len(found):
        progress.message(f"{len(found) - len(rows)} tiles left out: another scene's validation or test tile shows the same ground")
    _judge(recipe, aligned, rows, found, progress)
    kept = [one for one, part in zip(recipe.intakes, aligned, strict=True) if part.failure is None]
    statistics = _summarise(recipe, kept, rows, folder, progress)
    write_index(folder, rows, {one.name: one.scene.grid for one in kept}, recipe.table)
    legend = [Category(split, split, color) for split, color in SPLIT_COLORS.items()]
    add_layer_style(folder / INDEX, LAYER, qml(vector=legend, field="split"))
    card = _card(recipe, kept, layout, rows, statistics, folder)
    write_card(folder, card)
    draw_tile_map(folder / MAP, _panels(kept, rows, folder), recipe.table, card.class_pixels)
    (folder / "classes.toml").write_text(recipe.table.to_toml(), encoding="utf-8")
    tiles = {split: sum(row.split == split for row in rows) for split in SPLITS}
    return Built(card, tiles, tuple(one.change for one in aligned if one.change), tuple(one.failure for one in aligned if one.failure))


def _align(recipe: Recipe, layout: Layout, folder: Path, progress: Progress) -> list[_Aligned]:
    aligned = []
    with progress.task("labels", total=sum(count_chunks(one.scene.grid) for one in recipe.intakes)) as task:
        for i, one in enumerate(recipe.intakes):
            windows = layout.of_scene(i)
            try:
                aligned.append(_align_one(recipe, one, Tally(windows, len(recipe.table)), _label_path(folder, one), task))
            except (SceneError, LabelError) as error:
                if not recipe.skip_bad:
                    raise
                progress.warn(f"left out: {error}")
                aligned.append(_Aligned(Tally(windows, len(recipe.table)), None, str(error)))
                _label_path(folder, one).unlink(missing_ok=True)
    failures = [one.failure for one in aligned if one.failure]
    if len(failures) == len(aligned):
        raise InputError(f"no scene is left: {failures[0]}", hint="rsdistill check looks at each")
    return aligned


def _align_one(recipe: Recipe, one: Intake, tally: Tally, path: Path, task: Task) -> _Aligned:
    with one.scene as scene:
        if one.label is None:
            align(scene, one.bands, None, recipe.table, tally, path, task)
            return _Aligned(tally, None)
        with open_labels(one.label, scene, recipe.table, recipe.burn) as labels:
            totals = align(scene, one.bands, labels, recipe.table, tally, path, task)
            if labels.how == "copied":
                return _Aligned(tally, None)
            return _Aligned(tally, Change(one.name, labels.how, tuple(labels.areas().tolist()), tuple(totals.tolist())))


def _judge(recipe: Recipe, aligned: Sequence[_Aligned], rows: Sequence[TileRow], found: Sequence[TileRow], progress: Progress) -> None:
    """Say what training would stumble over in ``rows``, the tiles kept of those ``found``; refuse what nothing can be learnt from."""
    if not any(row.split == "train" for row in rows):
        reason = "nodata everywhere, or less valid pixels than --min-valid" if not found else "all of them went to validation and test"
        if any(row.split == "train" for row in found):
            reason = "all others show the same ground as validation or test tiles of another scene"
        scenes = ", ".join(str(one.scene.path) for one in recipe.intakes[:3]) + (", …" if len(recipe.intakes) > 3 else "")
        raise TileSetError(f"no tile for training in {scenes}: {reason}", hint="check --nodata, --min-valid and the split")
    pairs = [(one, part) for one, part in zip(recipe.intakes, aligned, strict=True) if one.label is not None and part.failure is None]
    if empty := [one.name for one, part in pairs if not part.tally.classes.any()]:
        progress.warn(f"no labelled pixel in {', '.join(empty)}: check the labels' CRS and the class table's ignore")
    labelled = {row.split for row in rows if row.labelled}
    if "train" not in labelled and not recipe.unlabelled:
        raise TileSetError("no training tile holds a label", hint="check the labels' CRS and extent, and the class table's ignore")
    for split in ("train", "val"):
        wanted = split == "train" or recipe.rule.wanted.get("val") or recipe.rule.named.get("val")
        if wanted and split not in labelled:
            progress.warn(f"no labelled tile for {split}: a smaller --tile cuts the scenes into more blocks")


def _summarise(recipe: Recipe, kept: Sequence[Intake], rows: Sequence[TileRow], folder: Path, progress: Progress) -> BandStatistics:
    statistics = BandStatistics(len(kept[0].bands))
    with progress.task("statistics", total=sum(count_chunks(one.scene.grid) for one in kept)) as task:
        for one in kept:
            path = _label_path(folder, one)
            ours = [row for row in rows if row.scene == one.name]
            training = [row.window for row in ours if row.split == "train"]
            files = Summary(_context_path(folder, one), path if path.exists() else None, _majority_path(folder, one))
            with one.scene as scene:
                summarise(scene, one.bands, recipe.dtype, training, recipe.table, files, statistics, task)
                if recipe.chips:
                    cut_chips(scene, one.bands, recipe.dtype, ours, recipe.table, files.aligned, folder / "chips")
    return statistics


def _panels(kept: Sequence[Intake], rows: Sequence[TileRow], folder: Path) -> list[ScenePanel]:
    """What the picture shows of each scene, seen in its context raster; scenes that are not drawn are only counted."""
    panels = []
    for number, one in enumerate(kept):
        photo = np.zeros((1, 1, 3), np.uint8)
        if number < MOST_SCENES:
            with open_scene(_context_path(folder, one)) as small:
                photo, _ = small_scene(small, SIDE)
        panels.append(ScenePanel(one.name, one.size, photo, [row for row in rows if row.scene == one.name]))
    return panels


def _label_path(folder: Path, one: Intake) -> Path:
    return folder / "labels" / f"{one.name}.tif"


def _context_path(folder: Path, one: Intake) -> Path:
    return folder / "context" / f"{one.name}.ctx{RATIO}.tif"


def _majority_path(folder: Path, one: Intake) -> Path:
    return folder / "context" / f"{one.name}.lab{RATIO}.tif"


def _card(
    recipe: Recipe, kept: Sequence[Intake], layout: Layout, rows: Sequence[TileRow], statistics: BandStatistics, folder: Path
) -> TileSetCard:
    first = kept[0].scene
    return TileSetCard(
        format_version=FORMAT_VERSION,
        tile=recipe.tile,
        overlap=recipe.overlap,
        classes=tuple(recipe.table.to_card()),
        ignore=recipe.table.ignore,
        bands=kept[0].bands,
        band_names=common_names(kept),
        mean=statistics.mean,
        std=statistics.std,
        dtype=recipe.dtype,
        nodata=recipe.nodata,
        pixel_size=first.grid.pixel_size if first.grid.georeferenced else None,
        context_ratio=RATIO,
        split_by=recipe.rule.by,
        seed=recipe.rule.seed,
        versions={name: _version(name) for name in _VERSIONED},
        scenes=tuple(_entry(recipe, one, rows, folder, kept[0].bands) for one in kept),
        class_pixels=class_pixels(rows, len(recipe.table)),
        allow_vrt=recipe.allow_vrt,
        allow_remote=recipe.allow_remote,
    )


def _entry(recipe: Recipe, one: Intake, rows: Sequence[TileRow], folder: Path, bands: tuple[int, ...]) -> SceneEntry:
    """The scene's entry: its split is told where all its tiles went to one."""
    path, label = one.scene.path, _label_path(folder, one)
    inside, remote = path.is_relative_to(folder), is_remote(path)
    splits = {row.split for row in rows if row.scene == one.name}
    return SceneEntry.model_validate(
        {
            "name": one.name,
            "path": path.relative_to(folder).as_posix() if inside else str(path) if remote else str(path.resolve()),
            "nearby": None if inside or remote else nearby_path(path, recipe.home),
            "label": _inside(folder, label),
            "context": _inside(folder, _context_path(folder, one)),
            "context_label": _inside(folder, _majority_path(folder, one)),
            "height": one.size[0],
            "width": one.size[1],
            "split": next(iter(splits)) if len(splits) == 1 else None,
            "fingerprint": one.scene.fingerprint,
            "bands": None if one.bands == bands else one.bands,
        }
    )


def _inside(folder: Path, path: Path) -> str | None:
    return path.relative_to(folder).as_posix() if path.exists() else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
