"""A tile set made from scenes that fit together: labels aligned, tiles split, then statistics, context, index and card."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsdistill.data.intake import Intake, common_names
from rsdistill.data.layout import Layout, class_pixels, lay_out, split_tiles, without_spoiled
from rsdistill.data.per_scene import (
    Aligned,
    Change,
    Each,
    Recipe,
    SceneWork,
    align_scene,
    context_path,
    label_path,
    majority_path,
    one_by_one,
    summarise_scene,
)
from rsdistill.data.tiling import BandStatistics
from rsdistill.errors import InputError, TileSetError
from rsdistill.geo.context import RATIO
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.sources import is_remote
from rsdistill.geo.tile_index import (
    FORMAT_VERSION,
    INDEX,
    SceneEntry,
    TileRow,
    TileSetCard,
    index_path,
    nearby_path,
    write_card,
    write_index,
)
from rsdistill.geo.tiles import LAYER, SPLITS
from rsdistill.outputs.pictures import small_scene
from rsdistill.outputs.styles import Category, add_layer_style, qml
from rsdistill.outputs.tilemap import MOST_SCENES, SIDE, SPLIT_COLORS, ScenePanel, draw_tile_map
from rsdistill.reporting import Progress

MAP = "tiles.png"
"""Picture of the splits and class shares in a tile set's folder."""
_VERSIONED = ("rsdistill", "torchgeo", "rasterio", "numpy")


class Built(NamedTuple):
    """What was made."""

    card: TileSetCard
    tiles: dict[str, int]
    """Per split, the number of tiles."""
    changes: tuple[Change, ...]
    failures: tuple[str, ...]
    """A sentence for every scene left out."""


def build(recipe: Recipe, folder: Path, progress: Progress, each: Each = one_by_one) -> Built:
    """Write a tile set into ``folder``; every scene is read twice, chunk by chunk, where ``each`` has it done.

    Raises:
        LabelError, SceneError: a file cannot be read, unless bad ones are skipped.
        TileSetError: no tile is left for training.
    """
    for name in ("labels", "context"):
        (folder / name).mkdir()
    layout = lay_out(recipe.intakes, recipe.tile, recipe.overlap, recipe.rule)
    aligned = _align(recipe, layout, folder, progress, each)
    names, grids = [one.name for one in recipe.intakes], [one.scene.grid for one in recipe.intakes]
    classes = np.concatenate([one.tally.classes for one in aligned])
    valid = np.concatenate([one.tally.valid for one in aligned])
    found = split_tiles(layout, classes, valid, names, recipe.rule, recipe.min_valid)
    rows = without_spoiled(found, names, grids)
    if len(rows) < len(found):
        progress.message(f"{len(found) - len(rows)} tiles left out: another scene's validation or test tile shows the same ground")
    _judge(recipe, aligned, rows, found, progress)
    kept = [one for one, part in zip(recipe.intakes, aligned, strict=True) if part.failure is None]
    of_scene = _by_scene(rows)
    statistics = _summarise(recipe, kept, of_scene, folder, progress, each)
    write_index(folder, rows, {one.name: one.scene.grid for one in kept}, recipe.table)
    legend = [Category(split, split, color) for split, color in SPLIT_COLORS.items()]
    if index_path(folder).name == INDEX:  # GeoParquet has no room for a style
        add_layer_style(folder / INDEX, LAYER, qml(vector=legend, field="split"))
    card = _card(recipe, kept, rows, of_scene, statistics, folder)
    write_card(folder, card)
    draw_tile_map(folder / MAP, _panels(kept, of_scene, folder), recipe.table, card.class_pixels)
    (folder / "classes.toml").write_text(recipe.table.to_toml(), encoding="utf-8")
    tiles = {split: sum(row.split == split for row in rows) for split in SPLITS}
    return Built(card, tiles, tuple(one.change for one in aligned if one.change), tuple(one.failure for one in aligned if one.failure))


def _align(recipe: Recipe, layout: Layout, folder: Path, progress: Progress, each: Each) -> list[Aligned]:
    alone = replace(recipe, intakes=())
    works = [SceneWork(alone, one, folder.absolute(), tuple(layout.of_scene(i))) for i, one in enumerate(recipe.intakes)]
    with progress.task("labels", total=sum(work.chunks for work in works)) as task:
        aligned = list(each(align_scene, works, task))
    for failure in (one.failure for one in aligned if one.failure):
        progress.warn(f"left out: {failure}")
    failures = [one.failure for one in aligned if one.failure]
    if len(failures) == len(aligned):
        raise InputError(f"no scene is left: {failures[0]}", hint="rsdistill check looks at each")
    return aligned


def _judge(recipe: Recipe, aligned: Sequence[Aligned], rows: Sequence[TileRow], found: Sequence[TileRow], progress: Progress) -> None:
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
        raise TileSetError(f"no training tile of {recipe.home} holds a label", hint="check the labels' CRS and the table's ignore")
    for split in ("train", "val"):
        wanted = split == "train" or recipe.rule.wanted.get("val") or recipe.rule.named.get("val")
        if wanted and split not in labelled:
            progress.warn(f"no labelled tile for {split}: a smaller --tile cuts the scenes into more blocks")


def _by_scene(rows: Sequence[TileRow]) -> Mapping[str, list[TileRow]]:
    found: dict[str, list[TileRow]] = defaultdict(list)
    for row in rows:
        found[row.scene].append(row)
    return found


def _summarise(
    recipe: Recipe, kept: Sequence[Intake], of_scene: Mapping[str, list[TileRow]], folder: Path, progress: Progress, each: Each
) -> BandStatistics:
    alone, statistics = replace(recipe, intakes=()), BandStatistics(len(kept[0].bands))
    works = []
    for one in kept:
        rows = tuple(of_scene[one.name])
        training = tuple(row.window for row in rows if row.split == "train")
        works.append(SceneWork(alone, one, folder.absolute(), training, rows if recipe.chips else ()))
    with progress.task("statistics", total=sum(work.chunks for work in works)) as task:
        for part in each(summarise_scene, works, task):
            statistics.join(part)
    return statistics


def _panels(kept: Sequence[Intake], of_scene: Mapping[str, list[TileRow]], folder: Path) -> list[ScenePanel]:
    """What the picture shows of each scene, seen in its context raster; scenes that are not drawn are only counted."""
    panels = []
    for number, one in enumerate(kept):
        photo = np.zeros((1, 1, 3), np.uint8)
        if number < MOST_SCENES:
            with open_scene(context_path(folder, one)) as small:
                photo, _ = small_scene(small, SIDE)
        panels.append(ScenePanel(one.name, one.size, photo, of_scene[one.name]))
    return panels


def _card(
    recipe: Recipe,
    kept: Sequence[Intake],
    rows: Sequence[TileRow],
    of_scene: Mapping[str, list[TileRow]],
    statistics: BandStatistics,
    folder: Path,
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
        scenes=tuple(_entry(recipe, one, of_scene[one.name], folder, kept[0].bands) for one in kept),
        class_pixels=class_pixels(rows, len(recipe.table)),
        allow_vrt=recipe.allow_vrt,
        allow_remote=recipe.allow_remote,
    )


def _entry(recipe: Recipe, one: Intake, rows: Sequence[TileRow], folder: Path, bands: tuple[int, ...]) -> SceneEntry:
    """The scene's entry: its split is told where all its tiles went to one."""
    path, label = one.scene.path, label_path(folder, one)
    inside, remote = path.is_relative_to(folder), is_remote(path)
    splits = {row.split for row in rows}
    return SceneEntry.model_validate(
        {
            "name": one.name,
            "path": path.relative_to(folder).as_posix() if inside else str(path) if remote else str(path.resolve()),
            "nearby": None if inside or remote else nearby_path(path, recipe.home),
            "label": _inside(folder, label),
            "context": _inside(folder, context_path(folder, one)),
            "context_label": _inside(folder, majority_path(folder, one)),
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
