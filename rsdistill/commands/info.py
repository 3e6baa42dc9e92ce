"""``info``: what a scene, a mask, a tile set, a model or a class table is, in words or as data."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rsdistill.config import Config, RunConfig, argument
from rsdistill.errors import InputError
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.scenes import Scene

EXACT_PIXELS = 1 << 26
"""Larger scenes are sampled to tell how much of them holds data."""
SAMPLE_SIDE = 512
SAMPLES = 8
"""Sampled windows along each side of a scene."""


class InfoConfig(Config):
    """Options of ``info``."""

    path: Path = argument("Scene, mask, tile set (a folder), model or class table; or the name of a model in WORK.")
    work: Path = RunConfig.model_fields["work"]  # type: ignore[assignment]  # a field, default and words and all
    nodata: tuple[float, ...] = Field((), description="Nodata where the file declares none: one value, or one a band (r,g,b).")
    allow_vrt: bool = Field(False, description="Read VRT files, whose sources must lie in their folder.")
    allow_remote: bool = Field(False, description="Read scenes from URLs and cloud storage.")


def info(path: Any, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Say what a file is, and what rsdistill would do with it.

    A scene is opened, and read in part where it is large; of a model only the header is read. The result is a table on the screen, or
    with --json the same as data.
    """
    config = InfoConfig.of(path=path, **options)
    from rsdistill.geo.sources import is_remote

    target, named = config.path, config.work / f"{config.path}.safetensors"
    if is_remote(target):
        return _scene(config)
    if not target.exists() and named.exists():
        target = named
    if not target.exists():
        raise InputError(f"there is no {target}", hint=f"name a file, a tile set's folder, or a model in {config.work}")
    if target.is_dir():
        return _tile_set(target)
    if target.suffix == ".safetensors":
        return _model(target)
    if target.suffix.lower() in (".toml", ".csv"):
        return _class_table(target)
    return _scene(config)


def _scene(config: InfoConfig) -> Result:
    from rsdistill.geo.inspection import header_notes
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
            "bands": [{"number": number, "name": scene.descriptions[number - 1]} for number in scene.bands()],
            "alpha": scene.count > len(scene.color_bands),
            "dtype": scene.dtype,
            "crs": grid.crs and grid.crs.to_string(),
            "pixel_size": list(grid.pixel_size) if grid.georeferenced else None,
            "unit": grid.crs and grid.crs.units_factor[0],
            "bounds": _bounds(scene),
            "rotated": grid.rotated,
            "nodata": list(scene.nodata),
            "valid_share": valid,
            "valid_share_is_exact": exact,
            "blocks": list(scene.block_shape),
            "overviews": _overviews(scene, config),
            "notes": [*scene.ignored_sidecars, *header_notes(scene)],
        }
        facts |= {"classes": table.to_card()} if table else {"predict": _windows(scene)}
    return Result(data=facts, tables=(_listed(config.path, facts), *([_classes(table)] if table else [])))


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
    """What ``predict`` would run at its usual tile and margin."""
    from rsdistill.geo.windows import plan

    laid = plan(scene.grid.height, scene.grid.width, 1024, 128, 32)
    return {"windows": len(laid), "tile": list(laid.tile), "margin": laid.margin, "overlap_factor": round(laid.overlap_factor, 3)}
