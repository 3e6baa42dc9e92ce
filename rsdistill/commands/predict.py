"""``predict``: scenes and a model in, georeferenced masks, polygons and pictures out."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rsdistill.config import argument
from rsdistill.errors import InputError
from rsdistill.inference.settings import ScaleConfig
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.inference.blending import Wanted
    from rsdistill.inference.mapping import Mapper
    from rsdistill.inference.products import Products


class PredictConfig(ScaleConfig):
    """Options of ``predict``."""

    scenes: tuple[Path, ...] = argument("Scenes, folders of them, or lists: a .txt of one path a line, a STAC .json.", min_length=1)
    out: tuple[Path, ...] = Field(
        (),
        description="File to write (repeat for more): .tif mask, .gpkg .fgb .geojson .parquet polygons, .png picture; for several scenes a "
        "folder, or a name with {stem} in it (default WORK/masks).",
    )
    confidence: Path | None = Field(None, description="Raster of the label's probability to write as well (.tif).")
    probabilities: Path | None = Field(None, description="Raster of all classes' probabilities to write as well (.tif).")
    pixel_size: float | None = Field(None, gt=0, description="Resample scenes to this pixel size, in units of their CRS, and map that.")
    min_area: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Polygons below this area (square metres, or square units) join a neighbour."
    )
    simplify: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Tolerance of simplified polygon outlines in metres (in pixels without a CRS); no gaps open.",
    )
    compress: Literal["deflate", "zstd", "lzw", "lzma", "none"] = Field("deflate", description="Compression of rasters.")
    co: dict[str, str] = Field({}, description="Further creation option of the COG driver, KEY=VALUE (repeat for more).")
    dry_run: bool = Field(False, description="Say what it would take (windows, memory, disk, time from two of them), and write nothing.")
    resume: bool = Field(False, description="Go on where an interrupted run of the same command stopped.")


@dataclass(frozen=True)
class Mapped:
    """What became of one scene."""

    scene: Path
    paths: tuple[Path, ...]
    classes: dict[str, int]
    """Count of pixels of each class."""
    data: dict[str, Any]


def predict(scenes: Any, *, progress: Progress = SILENT, executor: Executor | None = None, **options: Any) -> Result:
    """Map whole scenes with a model: every valid pixel gets a class, whatever the scene's size.

    Memory grows with the width of a scene and the size of a window, never with its height. The model is WORK/student.safetensors unless
    --model names another; an exported .onnx runs without torch. Of several scenes, those that fail are listed and the others mapped.
    --workers shares the work out among processes, --engine dask among machines, --shard among tasks of an array job. The result is one
    file per --out, named and coloured for QGIS, with a run file that repeats it.

    Args:
        scenes: rasters, or folders of rasters.
        progress: told of what happens.
        executor: any of concurrent.futures, to map shards on in place of --workers processes.
        options: those of PredictConfig.
    """
    config = PredictConfig.of(scenes=(scenes,) if isinstance(scenes, str | Path) else scenes, **options)
    from rsdistill.geo.scenes import find_scenes
    from rsdistill.inference.journal import unfinished
    from rsdistill.inference.loading import find_model
    from rsdistill.inference.mapping import Mapper
    from rsdistill.inference.naming import name_products
    from rsdistill.inference.run_files import earlier_choice, stands
    from rsdistill.inference.scaling import threads_a_worker

    found, model = find_scenes(config.scenes, progress=progress), find_model(config.work, config.model)
    done = partial(stands, config=config, model=model)
    named = name_products(
        found,
        config.out or (config.work / "masks",),
        config.confidence,
        config.probabilities,
        overwrite=config.overwrite or config.dry_run,
        may_stand=(lambda scene, products: unfinished(products.paths[0]) or done(scene, products)) if config.resume else None,
    )
    kept = config.resume and not config.overwrite
    finished = {scene: products for scene, products in named.items() if kept and done(scene, products)}
    for scene in finished:
        progress.message(f"{scene}: finished by an earlier run")
    left = {scene: products for scene, products in named.items() if scene not in finished}
    spread = config.scaled or executor is not None
    used = config.model_copy(update={"threads": threads_a_worker(config)}) if spread else config
    mapper = Mapper(used, model, progress, pixel_size=config.pixel_size)
    mapper.earlier = earlier_choice(left.values(), finished.values()) if config.resume else None
    made = _made(left, mapper, config, executor) if left else Result(data={"model": str(mapper.path), "scenes": []})
    told = [{"scene": str(scene), "paths": [str(path) for path in products.paths]} for scene, products in finished.items()]
    data = made.data | {"finished": told} if told else made.data
    return replace(made, paths=(*(path for products in finished.values() for path in products.paths), *made.paths), data=data)


def _made(named: dict[Path, "Products"], mapper: "Mapper", config: PredictConfig, executor: Executor | None) -> Result:
    """Map scenes in the way that was asked for."""
    if config.dry_run:
        return _rehearse(named, mapper, config.shard)
    if config.shard is not None:
        return _map_shards(named, mapper, config, config.shard)
    if config.scaled or executor is not None:
        return _map_on_workers(named, mapper, config, executor)
    mapped: list[Mapped] = []
    failures: list[str] = []
    for scene, products in named.items():
        try:
            mapped.append(_map(scene, products, mapper, config))
        except InputError as error:
            if len(named) == 1:
                raise
            failures.append(_failure(error))
    data = {"model": str(mapper.path), "scenes": [one.data for one in mapped]}
    tables = (_table(mapped[0]),) if len(named) == 1 else ()
    return Result(tuple(path for one in mapped for path in one.paths), data, tables, tuple(failures))


def _map(path: Path, products: "Products", mapper: "Mapper", config: PredictConfig) -> Mapped:
    """Map one scene into its files."""
    from contextlib import closing
    from shutil import rmtree
    from time import perf_counter

    from rsdistill.geo.caching import bounded_cache, cache_for
    from rsdistill.geo.files import refuse_existing
    from rsdistill.inference.engine import Stats
    from rsdistill.inference.journal import Journal, shards_of
    from rsdistill.inference.products import Look, write_products
    from rsdistill.inference.run_files import beside

    start, stats = perf_counter(), Stats()
    wanted = _wanted(products)
    with mapper.open(path) as scene, Journal(products.paths[0], mapper.mark(scene, wanted), resume=config.resume) as journal:
        if journal.rows:
            mapper.progress.message(f"{path}: {journal.rows} rows were mapped by an earlier run")
        overwrite = config.overwrite or journal.rows > 0  # what stands there is then this very map, of a run killed at its end
        refuse_existing(products.paths, overwrite)
        frame, interest = mapper.frame(scene), mapper.interest(scene)
        aoi = interest and interest.geometry
        look = Look(**_look(config, mapper), aoi=aoi, overwrite=overwrite)
        whole = frame == scene.grid.window and config.pixel_size is None
        with (
            beside(path, products, config, mapper),  # and before the journal goes: a run killed in between can still go on
            bounded_cache(cache_for(scene)),
            closing(mapper.strips(scene, wanted, stats, journal)) as strips,
        ):
            pixels = write_products(strips, scene.grid[frame], mapper.table, products, look, scene=path if whole else None)
    rmtree(shards_of(products.paths[0]), ignore_errors=True)  # of a run on workers that was interrupted: the map stands now
    _warn_of_nothing(mapper, path, pixels)
    classes = dict(zip(mapper.table.names, pixels, strict=True))
    data = {
        "scene": str(path),
        "paths": [str(one) for one in products.paths],
        "height": frame.height,
        "width": frame.width,
        "valid_pixels": sum(pixels),
        "classes": classes,
        "windows": stats.windows,
        "skipped": stats.skipped,
        "overlap_factor": stats.overlap_factor,
        "backend": mapper.config.backend,
        "precision": mapper.config.precision,
        "network_seconds": stats.network_seconds,
        "seconds": perf_counter() - start,
    }
    return Mapped(path, products.paths, classes, data)


def _failure(error: InputError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _warn_of_nothing(mapper: "Mapper", scene: Path, pixels: Sequence[int]) -> None:
    if not sum(pixels):
        mapper.progress.warn(f"{scene}: no pixel was mapped; what was asked for holds no data, or the middle of no pixel")


def _look(config: PredictConfig, mapper: "Mapper") -> dict[str, Any]:
    """Return how files are written, but for the polygons that they are cut to."""
    from rsdistill import __version__

    return {
        "compress": config.compress,
        "creation_options": config.co,
        "tags": {"RSDISTILL_VERSION": __version__, "RSDISTILL_COMMAND": "predict", "RSDISTILL_MODEL": mapper.digest},
        "min_area": config.min_area,
        "simplify": config.simplify,
    }


def _map_on_workers(named: dict[Path, "Products"], mapper: "Mapper", config: PredictConfig, executor: Executor | None) -> Result:
    """Map scenes shard by shard on processes, a cluster or the executor that was given."""
    from rsdistill.inference.loading import modules_for
    from rsdistill.inference.run_files import beside
    from rsdistill.inference.scaling import Scaling, pool_for, summary

    look = _look(config, mapper) | {"aoi": config.aoi and str(config.aoi.absolute())}

    def write_run(path: Path, products: "Products") -> None:
        with beside(path, products, config, mapper):
            pass

    scaling = Scaling(mapper, config, look, write_run, resume=config.resume)
    with pool_for(config, executor, modules_for(mapper.path, mapper.card), config.device) as pool:
        scaling.run(named, pool)
    if scaling.kept:
        mapper.progress.message(f"{scaling.kept} shards of maps that failed are kept: with --resume only the others are made")
    mapped = [
        Mapped(one.scene, one.products.paths, dict(zip(mapper.table.names, one.pixels, strict=True)), one.data) for one in scaling.assembled
    ]
    for done in scaling.assembled:
        _warn_of_nothing(mapper, done.scene, done.pixels)
    told = [one.data | {"classes": one.classes} for one in mapped]
    data = {"model": str(mapper.path), "scenes": told, "retries": scaling.retries, "deaths": scaling.deaths}
    tables = (*((_table(mapped[0]),) if len(named) == len(mapped) == 1 else ()), summary(scaling))
    return Result(tuple(path for one in mapped for path in one.paths), data, tables, tuple(scaling.failures), kept=scaling.kept)


def _map_shards(named: dict[Path, "Products"], mapper: "Mapper", config: PredictConfig, shard: str) -> Result:
    """Map one shard of each scene."""
    from rsdistill.inference.array_jobs import make_one_shard, parse_shard

    index, count = parse_shard(shard)
    look = _look(config, mapper) | {"aoi": config.aoi and str(config.aoi.absolute())}
    made, failures = [], []
    for path, products in named.items():
        try:
            made.append(make_one_shard(mapper, path, products, index, count, look, overwrite=config.overwrite))
        except InputError as error:
            if len(named) == 1:
                raise
            failures.append(_failure(error))
    shards = [{"scene": card.scene, "path": str(path), "window": card.window, **card.facts} for path, card in made]
    data = {"model": str(mapper.path), "shard": index, "shards": count, "scenes": shards}
    return Result(tuple(path for path, _ in made), data, failures=tuple(failures))


def _rehearse(named: dict[Path, "Products"], mapper: "Mapper", shard: str | None) -> Result:
    """Return what mapping each scene, or one shard of each, would take."""
    from rsdistill.inference.array_jobs import parse_shard
    from rsdistill.inference.estimate import Estimate, estimate, estimate_shard

    how: Callable[..., Estimate] = estimate
    if shard:
        index, count = parse_shard(shard)
        how = partial(estimate_shard, index=index, count=count)
    rows, data = [], []
    for path, products in named.items():
        with mapper.open(path) as scene:
            one = how(mapper, scene, _wanted(products))
        data.append({"scene": str(path), "paths": [str(product) for product in products.paths], **vars(one)})
        sizes = (f"{one.memory_bytes / 1e6:.0f} MB", f"{one.disk_bytes / 1e6:.0f} MB", f"{one.seconds:.0f} s")
        rows.append((path.name, f"{one.windows}", f"{one.forward_passes}", f"{one.overlap_factor:.2f}", *sizes))
    columns = ("scene", "windows", "passes", "overlap", "memory", "disk", "network")
    return Result(data={"model": str(mapper.path), "scenes": data}, tables=(Table("what it would take", columns, tuple(rows)),))


def _wanted(products: "Products") -> "Wanted":
    from rsdistill.inference.blending import Wanted

    return Wanted(confidence=products.confidence is not None, probabilities=products.probabilities is not None)


def _table(one: Mapped) -> Table:
    total = max(1, sum(one.classes.values()))
    rows = tuple((name, f"{count}", f"{100 * count / total:.1f} %") for name, count in one.classes.items())
    return Table(one.scene.name, ("class", "pixels", "share"), rows)
