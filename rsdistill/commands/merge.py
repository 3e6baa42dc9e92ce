"""``merge``: the shards of maps in, the maps themselves out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rsdistill.config import RunConfig, argument, run_file
from rsdistill.errors import ConfigError, InputError, OutputExistsError
from rsdistill.reporting import SILENT, Progress, Result

if TYPE_CHECKING:
    from rsdistill.inference.products import Products


class MergeConfig(RunConfig):
    """Options of ``merge``."""

    shards: tuple[Path, ...] = argument("Folders of shards, or the shards themselves.", min_length=1)
    out: tuple[Path, ...] = Field(
        (),
        description="File to write (repeat for more): .tif mask, .gpkg .fgb .geojson .parquet polygons, .png picture; for several maps a "
        "folder, or a name with {stem} in it (default: the mask that the shards stand beside).",
    )
    confidence: Path | None = Field(None, description="Raster of the label's probability to write as well (.tif).")
    probabilities: Path | None = Field(None, description="Raster of all classes' probabilities to write as well (.tif).")
    min_area: float | None = Field(None, ge=0, allow_inf_nan=False, description="As in predict (default: what the shards were made with).")
    simplify: float | None = Field(None, ge=0, allow_inf_nan=False, description="As in predict (default: what the shards were made with).")
    compress: Literal["deflate", "zstd", "lzw", "lzma", "none"] | None = Field(
        None, description="Compression of rasters (default: what the shards were made with)."
    )


def merge(shards: Any, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Put the shards of predict --shard together: rasters without a trace of the cuts, polygons whole across them.

    Shards that are missing, or belong to another run, are named and nothing is written. The shards stay where they are. The result is
    what predict would have written in one piece, byte for byte but for the time stamps inside a GeoPackage.
    """
    config = MergeConfig.of(shards=(shards,) if isinstance(shards, str | Path) else shards, **options)
    from rsdistill.inference.merging import find_shards

    found = find_shards(config.shards)
    named = _named(list(found), config)
    shards_of_all = {file.resolve() for files in found.values() for file in files}
    for path in (path for products in named.values() for path in products.paths):
        if path.resolve() in shards_of_all:
            raise OutputExistsError(f"{path} is one of the shards itself", hint="name another file for the result")
    made: list[dict[str, Any]] = []
    failures: list[str] = []
    with progress.task("merge", len(found)) as task:
        for base, files in found.items():
            try:
                made.append(_merge(base, files, named[base], config))
            except InputError as error:
                if len(found) == 1:
                    raise
                failures.append(f"{error} ({error.hint})" if error.hint else str(error))
            task.advance()
    return Result(tuple(Path(path) for one in made for path in one["paths"]), {"maps": made}, failures=tuple(failures))


def _named(bases: list[Path], config: MergeConfig) -> "dict[Path, Products]":
    """Return the files that each map becomes; ``bases`` are the names, without suffix, that its shards begin with."""
    from rsdistill.inference.naming import name_products

    asked = {Path(f"{base}.shards"): base for base in bases}
    shares = (config.confidence, config.probabilities)
    how: dict[str, Any] = {"overwrite": config.overwrite}
    if config.out:
        return {asked[one]: products for one, products in name_products(list(asked), config.out, *shares, **how).items()}
    return {base: name_products([one], (Path(f"{base}.tif"),), *shares, **how)[one] for one, base in asked.items()}


def _merge(base: Path, files: list[Path], products: "Products", config: MergeConfig) -> dict[str, Any]:
    """Put one map together and return what is to be told of it."""
    import shutil
    from time import perf_counter

    from rsdistill.geo.files import atomic
    from rsdistill.geo.locking import locked
    from rsdistill.inference.merging import gather, look_of, write_map
    from rsdistill.inference.sharding import canvas_folders

    start, shards = perf_counter(), gather(files)
    for wanted, there, name in (
        (products.confidence, shards.card.confidence, "confidence"),
        (products.probabilities, shards.card.probabilities, "probabilities"),
    ):
        if wanted and not there:
            raise ConfigError(f"the shards of {base} hold no {name}", hint=f"predict --shard makes it with --{name}")
    changed = {name: value for name in ("min_area", "simplify", "compress") if (value := getattr(config, name)) is not None}
    with locked(products.paths[0]):
        pixels = write_map(shards, products, look_of(shards.card, overwrite=config.overwrite, changed=changed))
    own = {"shards": tuple(files), "out": products.outs, "confidence": products.confidence, "probabilities": products.probabilities}
    text = run_file(config.model_copy(update=own), "merge")
    for run in sorted({path.with_name(f"{path.stem}.run.toml") for path in products.paths}):
        with atomic(run) as part:
            part.write_text(text, encoding="utf-8")
    for folder in canvas_folders(base):
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "scene": shards.card.scene,
        "paths": [str(path) for path in products.paths],
        "classes": dict(zip(shards.card.table.names, pixels, strict=True)),
        **shards.facts,
        "merge_seconds": perf_counter() - start,
    }
