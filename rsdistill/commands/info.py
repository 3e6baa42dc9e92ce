"""``info``: what a scene, a mask, a tile set, a model or a class table is, in words or as data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rsdistill.config import Config, RunConfig, argument
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.scenes import Scene

EXACT_PIXELS = 1 << 26
"""Larger scenes are sampled to tell how much of them holds data."""
STRIDE = 32
"""What windows are a multiple of, with most networks."""
SAMPLE_SIDE = 512
ELSEWHERE = ("path", "classes", "class_pixels", "scenes")
"""Facts that a title or a table of their own shows."""
SAMPLES = 8
"""Sampled windows along each side of a scene."""


class InfoConfig(Config):
    """Options of ``info``."""

    path: Path = argument("Scene, mask, tile set (a folder), model or class table; or the name of a model in WORK.")
    work: Path = RunConfig.model_fields["work"]  # type: ignore[assignment]  # a field, default and words and all
    nodata: tuple[float, ...] = Field((), description="Nodata where the file declares none: one value, or one a band (r,g,b).")
    allow_vrt: bool = Field(False, description="Read VRT files, whose sources must lie in their folder.")
    allow_remote: bool = Field(False, description="Read scenes from URLs and cloud storage.")
    measure: bool = Field(False, description="Of a model also: parameters, GMACs of a tile of 512 pixels, tiles a second here.")


def info(path: Any, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Say what a file is, and what rsdistill would do with it.

    A scene is opened, and read in part where it is large; of a model only the header is read, unless it is to be measured. The result is a
    table on the screen, or with --json the same as data.
    """
    config = InfoConfig.of(path=path, **options)
    target = config.path
    if target.is_dir():
        return _tile_set(target)
    if target.suffix.lower() in (".toml", ".csv"):
        return _class_table(target)
    if target.suffix.lower() in (".safetensors", ".onnx") or (not target.suffix and not target.exists()):
        return _model(config)
    return _scene(config)


def _scene(config: InfoConfig) -> Result:
    from rsdistill.geo.inspection import header_notes, palette_notes
    from rsdistill.geo.scenes import open_scene
    from rsdistill.outputs.masks import mask_table

    with open_scene(config.path, nodata=config.nodata or None, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote) as scene:
        table = mask_table(config.path)
        grid = scene.grid
        valid, exact = valid_share(scene)
        facts: dict[str, Any] = {
            "kind": "mask" if table else "scene",
            "path": str(config.path),
            "height": grid.height,
            "width": grid.width,
            "bands": list(scene.bands()),
            "band_names": [scene.descriptions[number - 1] for number in scene.bands()],
            "alpha": scene.count > len(scene.color_bands),
            "dtype": scene.dtype,
            "crs": grid.crs and grid.crs.to_string(),
            "pixel_size": list(grid.pixel_size) if grid.georeferenced else None,
            "unit": grid.crs and grid.crs.units_factor[0],
            "bounds": _bounds(scene),
            "rotated": grid.rotated,
            "nodata": list(scene.nodata),
            "valid_share": valid,
            "valid_share_is_sampled": not exact,
            "blocks": list(scene.block_shape),
            "overviews": _overviews(scene, config),
            "notes": [*scene.ignored_sidecars, *header_notes(scene), *([] if table else palette_notes(scene))],
        }
        facts |= {"classes": table.to_card()} if table else {"predict": _windows(scene)}
    return Result(data=facts, told=True, tables=(_listed(config.path, facts), *([_classes(table)] if table else [])))


def valid_share(scene: "Scene") -> tuple[float, bool]:
    """Return the share of a scene's pixels that hold data, and whether all were read; of a large scene, windows spread evenly are."""
    from rsdistill.geo.windows import Window

    height, width = scene.grid.height, scene.grid.width
    if height * width <= EXACT_PIXELS:
        counts = [(int(valid.sum()), valid.size) for _, _, valid in scene.strips(scene.bands(), SAMPLE_SIDE)]
        return sum(count for count, _ in counts) / (height * width), True
    size = min(SAMPLE_SIDE, height), min(SAMPLE_SIDE, width)
    steps = range(SAMPLES)
    windows = {Window((height - size[0]) * i // (SAMPLES - 1), (width - size[1]) * j // (SAMPLES - 1), *size) for i in steps for j in steps}
    counts = [(int(valid.sum()), valid.size) for window in sorted(windows) for _, valid in [scene.read(window, scene.bands())]]
    return sum(count for count, _ in counts) / sum(total for _, total in counts), False


def _bounds(scene: "Scene") -> list[float]:
    """Left, bottom, right, top in the units of the CRS."""
    corners = [scene.grid.transform @ (col, row) for col in (0, scene.grid.width) for row in (0, scene.grid.height)]
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _overviews(scene: "Scene", config: InfoConfig) -> list[int]:
    """Factors of the smaller copies that the file holds."""
    from rsdistill.geo.opening import open_sealed
    from rsdistill.geo.sources import check_source

    dataset = open_sealed(scene.path, check_source(config.path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote))
    with dataset:
        return list(dataset.overviews(1))


def _windows(scene: "Scene") -> dict[str, Any]:
    """What ``predict`` runs with the windows that suit most models."""
    from rsdistill.geo.windows import plan
    from rsdistill.inference.loading import DEFAULT_TILE, TRAINED_TILE

    laid = plan(scene.grid.height, scene.grid.width, DEFAULT_TILE, TRAINED_TILE // 8, STRIDE)
    return {"windows": len(laid), "tile": list(laid.tile), "margin": laid.margin, "overlap_factor": round(laid.overlap_factor, 3)}


def _tile_set(folder: Path) -> Result:
    from rsdistill.geo.tile_index import load_tile_set
    from rsdistill.geo.tiles import SPLITS

    tile_set = load_tile_set(folder)
    card = tile_set.card
    facts: dict[str, Any] = {
        "kind": "tile set",
        "path": str(folder),
        "tile": card.tile,
        "overlap": card.overlap,
        "tiles": {split: len(tile_set.of_split(split)) for split in SPLITS},
        "unlabelled": sum(not tile.labelled for tile in tile_set.tiles),
        "scenes": [one.model_dump(include={"name", "path", "height", "width", "split"}) for one in card.scenes],
        "bands": list(card.bands),
        "band_names": list(card.band_names),
        "mean": list(card.mean),
        "std": list(card.std),
        "dtype": card.dtype,
        "pixel_size": card.pixel_size and list(card.pixel_size),
        "split_by": card.split_by,
        "seed": card.seed,
        "classes": tile_set.label_table.to_card(),
        "class_pixels": {split: list(pixels) for split, pixels in card.class_pixels.items()},
        "versions": card.versions,
    }
    columns = ("class", "id", "color", *card.class_pixels)
    shares = [_shares(pixels) for pixels in card.class_pixels.values()]
    rows = tuple((one.name, str(one.id), one.color, *cells) for one, *cells in zip(tile_set.table.classes, *shares, strict=True))
    sizes = tuple((one.name, f"{one.height} x {one.width}", one.split or "by blocks") for one in card.scenes)
    scenes = Table("scenes", ("scene", "size", "split"), sizes)
    return Result(data=facts, told=True, tables=(_listed(folder, facts), scenes, Table("share of labelled pixels", columns, rows)))


def _model(config: InfoConfig) -> Result:
    from rsdistill.errors import ConfigError
    from rsdistill.geo.classes import ClassTable
    from rsdistill.inference.loading import find_model, read_model_card

    path = find_model(config.work, config.path)
    if config.measure and path.suffix.lower() == ".onnx":
        raise ConfigError(f"{path} is an exported graph", hint="--measure takes the .safetensors file that it was made from")
    card = read_model_card(path)
    facts = {"kind": "model", "path": str(path), "bytes": path.stat().st_size, **card.model_dump(mode="json")}
    if config.measure:
        facts |= _cost(path)
    table = ClassTable.from_card([{"color": "#808080", **one} for one in card.classes])
    return Result(data=facts, told=True, tables=(_listed(path, facts), _classes(table)))


def _cost(path: Path) -> dict[str, float]:
    from rsdistill.inference.cost import cost
    from rsdistill.models.checkpoints import load_model

    network, card = load_model(path)
    return cost(network, len(card.bands))


def _class_table(path: Path) -> Result:
    from rsdistill.geo.classes import load_class_table

    table = load_class_table(path)
    facts = {"kind": "class table", "path": str(path), "classes": table.to_card(), "ignore": list(table.ignore), "mask_dtype": table.dtype}
    return Result(data=facts, told=True, tables=(_listed(path, facts), _classes(table)))


def _listed(path: Path, facts: dict[str, Any]) -> Table:
    """The facts as a table of two columns, but for those that are empty or stand elsewhere."""
    rows = ((key.replace("_", " "), _text(value)) for key, value in facts.items() if key not in ELSEWHERE)
    return Table(str(path), ("", ""), tuple((key, text) for key, text in rows if text))


def _classes(table: "ClassTable") -> Table:
    rows = tuple((one.name, str(one.id), one.color) for one in table.classes)
    return Table("classes", ("class", "id", "color"), rows)


def _shares(pixels: Sequence[int]) -> list[str]:
    return [f"{100 * count / max(1, sum(pixels)):.1f} %" for count in pixels]


def _text(value: Any) -> str:
    """One cell: numbers short, lists with commas, tables with their keys; nothing for what is unknown."""
    if value is None or value in ([], {}) or (isinstance(value, list) and not any(one is not None for one in value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        return ", ".join("none" if one is None else _text(one) for one in value)
    return str(value)
