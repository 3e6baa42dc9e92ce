"""``tile``: scenes and labels in, a tile set out."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from rsdistill.config import argument, run_file
from rsdistill.errors import ConfigError, LabelError, SceneError
from rsdistill.inference.settings import PoolConfig
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.data.building import Built
    from rsdistill.data.intake import Intake
    from rsdistill.data.layout import SplitRule
    from rsdistill.data.per_scene import Recipe
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.scenes import Scene


class TileConfig(PoolConfig):
    """Options of ``tile``."""

    scenes: tuple[Path, ...] = argument("Scenes, folders of them, or lists: a .txt of one path a line, a STAC .json.", default=())
    labels: tuple[Path, ...] = Field(
        (), description="Labels: a folder or files, rasters or polygons, named as their scene or <stem>_label (default: beside the scene)."
    )
    classes: Path | None = Field(None, description="Class table, TOML or CSV (default: classes.toml beside the labels).")
    out: Path | None = Field(None, description="Folder of the tile set (default WORK/tiles).")
    tile: int | None = Field(
        None, ge=32, le=4096, multiple_of=32, description="Side of a tile in pixels (default: 512, or less where scenes are small)."
    )
    overlap: int = Field(0, ge=0, description="Pixels that neighbouring tiles share, less than a tile.")
    bands: tuple[int | str, ...] = Field((), description="Bands by number or name, in the order wanted: 4,3,2 (default: all but alpha).")
    nodata: tuple[float, ...] = Field((), description="Nodata of scenes that declare none: one value, or one a band: 255,255,255.")
    label_field: str | None = Field(None, description="Field of polygons that holds their class (default: class_id).")
    burn: str | None = Field(None, description="Class of all polygons, for files of one class.")
    background: str | None = Field(None, description="Class of pixels outside all polygons (default: no label).")
    split_by: Literal["block", "scene"] = Field("block", description="What goes to one split as a whole: blocks of scenes, or scenes.")
    val: float = Field(0.2, ge=0, lt=1, description="Share of blocks (or scenes) for validation.")
    test: float = Field(0.0, ge=0, lt=1, description="Share of blocks (or scenes) for testing.")
    val_scenes: tuple[str, ...] = Field((), description="Scenes for validation, by stem or pattern: t3,2024*; --val then counts no more.")
    test_scenes: tuple[str, ...] = Field((), description="Scenes for testing, likewise.")
    block: int | None = Field(None, ge=32, description="Side of a block in pixels, at least a tile (default: up to 8 tiles).")
    unlabelled: bool = Field(False, description="Take scenes without labels, for methods that learn from them.")
    min_valid: float = Field(0.0, ge=0, le=1, description="Leave out tiles with a lesser share of valid pixels; empty ones never count.")
    chips: bool = Field(False, description="Also cut every tile into georeferenced files, for other tools.")
    warp: bool = Field(False, description="Write rotated scenes anew with north up, by nearest neighbour.")
    require_crs: bool = Field(False, description="Refuse scenes without a CRS.")
    skip_bad: bool = Field(False, description="Leave out scenes that cannot be read, and say so at the end (exit 6).")
    max_memory: int | None = Field(
        None, ge=1, description="Memory in MB that the tile set may take, by an estimate from headers (default: what this machine has)."
    )
    allow_vrt: bool = Field(False, description="Take VRTs whose sources lie in their folder.")
    allow_remote: bool = Field(False, description="Take URLs.")
    dataset: str | None = Field(
        None, description="Instead of scenes: potsdam, vaihingen, deepglobe, inria, gid15, loveda, landcoverai or whdld."
    )
    root: Path | None = Field(None, description="Folder that --dataset was unpacked in.")
    protocol: str | None = Field(None, description="How --dataset is split: by its own rule, or by lists, train.txt, val.txt, test.txt.")

    @property
    def folder(self) -> Path:
        """Where the tile set goes."""
        return self.out or self.work / "tiles"


class _Sources(NamedTuple):
    """The files to read."""

    paths: list[Path]
    names: list[str]
    labels: list[Path | None]
    splits: dict[str, str]
    """Scenes that a dataset keeps for val or test."""
    table: "ClassTable | None"
    """The dataset's classes."""


def tile(scenes: Any = (), *, progress: Progress = SILENT, executor: Executor | None = None, **options: Any) -> Result:
    """Cut scenes and their labels into a tile set for training.

    Labels are brought to the scenes' grids, blocks are shared out to train and val so that no pixel is in both, and band statistics come
    from training pixels alone. Tiles are 512 pixels wide, or less where the scenes are so small that a split would leave too few. The
    result is WORK/tiles with tiles.gpkg, tileset.json, aligned label rasters and the scenes made small.

    Args:
        scenes: rasters, or folders of rasters.
        progress: told of what happens.
        executor: any of concurrent.futures, to work on several scenes at a time in place of --workers processes.
        options: those of TileConfig.
    """
    config = TileConfig.of(scenes=scenes, **options)
    from rsdistill.geo.caching import bounded_cache
    from rsdistill.geo.files import atomic, atomic_folder, refuse_existing_folder
    from rsdistill.geo.locking import locked
    from rsdistill.geo.tile_index import CARD

    refuse_existing_folder(config.folder, config.overwrite, CARD)
    _refuse_contradictions(config)
    recipe, failures = _recipe(_absolute(config) if config.scaled or executor else config, progress)
    from rsdistill.data.building import build
    from rsdistill.data.per_scene import CACHE_BYTES
    from rsdistill.inference.scaling import each_for

    with locked(config.folder):
        refuse_existing_folder(config.folder, config.overwrite, CARD)  # which another run may have finished meanwhile
        with atomic_folder(config.folder) as folder, bounded_cache(CACHE_BYTES):
            recipe = replace(recipe, intakes=tuple(_upright(one, folder) for one in recipe.intakes))
            with each_for(config, executor) as each:
                built = build(recipe, folder, progress, each)
        with atomic(config.folder.with_name(config.folder.name + ".run.toml")) as run:
            own = {"out": config.folder, "tile": recipe.tile}
            run.write_text(run_file(config.model_copy(update=own), "tile"), encoding="utf-8")
    return _result(config, recipe, built, failures)


def _absolute(config: TileConfig) -> TileConfig:
    """Return ``config`` with paths that mean the same to workers in another folder."""
    from rsdistill.inference.sharding import absolute

    return config.model_copy(update={name: tuple(map(absolute, getattr(config, name))) for name in ("scenes", "labels")})


def _refuse_contradictions(config: TileConfig) -> None:
    if not config.scenes and config.dataset is None:
        raise ConfigError("no scene was named", hint="rsdistill tile SCENE..., or --dataset NAME --root PATH")
    if config.dataset is not None and (config.scenes or config.labels or config.root is None):
        raise ConfigError("--dataset takes its scenes and labels from --root", hint="rsdistill tile --dataset potsdam --root PATH")
    if config.val + config.test >= 1:
        raise ConfigError(f"val {config.val:g} and test {config.test:g} leave nothing for training", hint="their sum is below 1")
    if config.burn is not None and config.label_field is not None:
        raise ConfigError("--burn and --label-field exclude each other", hint="--burn is for files of one class")


def _recipe(config: TileConfig, progress: Progress) -> tuple["Recipe", list[str]]:
    """Open scenes, find labels and classes (headers only, so that what is wrong is said at once), and name the scenes left out."""
    sources = _sources(config, progress)
    opened, failures = _take_in(config, sources, progress)
    from rsdistill.data.budget import refuse_too_much
    from rsdistill.data.intake import choose_table, fit_together
    from rsdistill.data.per_scene import Recipe  # torchgeo takes seconds: what is missing or broken is said before
    from rsdistill.data.sampling import ENOUGH_TILES, choose_tile
    from rsdistill.geo.burning import BurnOptions

    intakes, dtype = fit_together(opened, config.bands)
    _tell_bands(intakes, progress)
    burn = BurnOptions(config.label_field, config.burn, config.background)
    beside = [place if place.is_dir() else place.parent for place in (*config.labels, *(one.scene.path for one in intakes))]
    table = sources.table or choose_table(config.classes, [one.label for one in intakes if one.label], beside, burn, progress)
    side = config.tile or choose_tile([one.size for one in intakes if one.label] or [one.size for one in intakes])
    if config.tile is None:
        progress.message(f"tiles of {side} pixels: the largest of which the scenes hold {ENOUGH_TILES}, up to 512; --tile sets another")
    if config.overlap >= side:
        raise ConfigError(f"overlap {config.overlap} is not less than tile {side}", hint="overlap: a quarter of a tile is plenty")
    if config.block is not None and config.block < side:
        raise ConfigError(f"block {config.block} is less than tile {side}", hint="a block holds whole tiles")
    refuse_too_much(intakes, side, config.overlap, config.max_memory)
    recipe = Recipe(
        intakes, table, dtype, burn, side, config.overlap, _rule(config, sources), config.min_valid, config.folder,
        nodata=config.nodata or None, chips=config.chips, skip_bad=config.skip_bad, unlabelled=config.unlabelled,
        allow_vrt=config.allow_vrt, allow_remote=config.allow_remote,
    )  # fmt: skip
    return recipe, failures


def _tell_bands(intakes: Sequence["Intake"], progress: Progress) -> None:
    """Name the scenes whose bands stand in another order than those of the first."""
    turned = [one.scene.path for one in intakes if one.bands != intakes[0].bands]
    if turned:
        progress.message(f"bands stand in another order than in {intakes[0].scene.path}, and are taken by name: {_few(turned)}")


def _sources(config: TileConfig, progress: Progress) -> _Sources:
    """Find the scenes that were named, or those of a dataset, and the labels of each."""
    from rsdistill.data.intake import unique_names
    from rsdistill.geo.labels import find_labels
    from rsdistill.geo.scenes import find_scenes
    from rsdistill.geo.sources import is_remote

    table, splits = None, {}
    if config.dataset is not None and config.root is not None:
        from rsdistill.data.presets import open_preset

        found, table, rule = open_preset(config.dataset, config.root, config.protocol)
        progress.message(f"{config.dataset}: {rule}")
        found = [one for one in found if one.label is not None or config.unlabelled]
        if not found:
            raise LabelError(f"no scene of {config.dataset} in {config.root} has a label", hint="are the labels unpacked too?")
        paths, labels = [one.path for one in found], [one.label for one in found]
        names = unique_names(paths)
        splits = {name: one.split for name, one in zip(names, found, strict=True) if one.label and one.split in ("val", "test")}
    else:
        paths = find_scenes(config.scenes, progress=progress)
        labels, names = find_labels(paths, config.labels), unique_names(paths)
    pairs = zip(paths, labels, strict=True)
    missing = [path for path, label in pairs if label is None and (path.exists() or is_remote(path))]  # what is gone is said on opening
    if missing and not config.unlabelled:
        hint = "--labels names them (repeated for each file, or a folder); --unlabelled takes scenes without"
        raise LabelError(f"no label for {_few(missing)}", hint=hint)
    if missing:
        progress.message(f"without labels: {_few(missing)}")
    return _Sources(paths, names, labels, splits, table)


def _take_in(config: TileConfig, sources: _Sources, progress: Progress) -> tuple[list["Intake"], list[str]]:
    """Open every scene; return them, and a sentence for every scene left out."""
    from rsdistill.data.intake import Intake

    intakes: list[Intake] = []
    failures: list[str] = []
    for path, name, label in zip(sources.paths, sources.names, sources.labels, strict=True):
        try:
            intakes.append(Intake(name, _open(path, config, progress), label))
        except SceneError as error:
            if not config.skip_bad:
                raise
            failures.append(str(error))
            progress.warn(f"left out: {error}")
    if not intakes:
        raise SceneError(f"no scene is left: {failures[0]}", hint="rsdistill check looks at each")
    nowhere = [one.scene.path for one in intakes if not one.scene.grid.georeferenced]
    if nowhere and config.require_crs:
        raise SceneError(f"{nowhere[0]} has no CRS", hint="set it with gdal_edit.py -a_srs, or leave out --require-crs")
    if nowhere:
        progress.warn(f"no CRS, taken in pixel coordinates: {_few(nowhere)}")
    return intakes, failures


def _open(path: Path, config: TileConfig, progress: Progress) -> "Scene":
    from rsdistill.data.intake import at_rest
    from rsdistill.geo.scenes import open_scene

    scene = open_scene(path, nodata=config.nodata or None, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote)
    for sentence in scene.ignored_sidecars:
        progress.warn(sentence)
    if scene.grid.rotated and not config.warp:
        raise SceneError(f"{path} is rotated", hint="--warp writes it anew with north up; predict takes it as it is")
    return at_rest(scene)


def _upright(one: "Intake", folder: Path) -> "Intake":
    """The scene, or its north-up copy in the tile set where it is rotated."""
    if not one.scene.grid.rotated:
        return one
    from rsdistill.geo.scenes import open_scene
    from rsdistill.geo.warping import write_north_up

    path = folder / "scenes" / f"{one.name}.tif"
    path.parent.mkdir(exist_ok=True)
    with one.scene as scene:
        write_north_up(scene, path)
    return replace(one, scene=open_scene(path))


def _few(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def _rule(config: TileConfig, sources: _Sources) -> "SplitRule":
    from glob import escape

    from rsdistill.data.layout import SplitRule

    named = {
        split: wanted or tuple(escape(name) for name, found in sources.splits.items() if found == split)
        for split, wanted in (("val", config.val_scenes), ("test", config.test_scenes))
    }
    return SplitRule(config.split_by, {"val": config.val, "test": config.test}, named, config.block, config.seed)


def _result(config: TileConfig, recipe: "Recipe", built: "Built", failures: list[str]) -> Result:
    """What the command line prints: tiles and class shares of every split, and what bringing labels to the grid changed."""
    names, splits = recipe.table.names, [split for split, count in built.tiles.items() if count]
    totals = {split: max(1, sum(built.card.class_pixels[split])) for split in splits}
    rows = [("tiles", *(str(built.tiles[split]) for split in splits))]
    for k, name in enumerate(names):
        rows.append((name, *(f"{100 * built.card.class_pixels[split][k] / totals[split]:.1f} %" for split in splits)))
    tables = [Table("class shares", ("", *splits), tuple(rows))]
    changes = tuple(
        (change.scene, change.how, name, f"{before:.0f}", f"{after}", f"{100 * (after - before) / before:+.2f} %" if before else "")
        for change in built.changes
        for name, before, after in zip(names, change.source, change.grid, strict=True)
        if before or after
    )
    if changes:
        columns = ("scene", "labels were", "class", "area in pixels", "pixels on the grid", "change")
        tables.append(Table("labels brought to the scenes' grids", columns, changes))
    pixels = {split: dict(zip(names, counts, strict=True)) for split, counts in built.card.class_pixels.items()}
    moved = [
        {"scene": scene, "how": how, "source": dict(zip(names, source, strict=True)), "grid": dict(zip(names, grid, strict=True))}
        for scene, how, source, grid in built.changes
    ]
    data = {"tiles": built.tiles, "tile": recipe.tile, "scenes": len(built.card.scenes), "class_pixels": pixels, "labels": moved}
    return Result((config.folder,), data, tuple(tables), (*failures, *built.failures))
