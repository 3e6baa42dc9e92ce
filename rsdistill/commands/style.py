"""``style``: names and colours of masks and polygons, written anew from a class table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rsdistill.config import Config, argument
from rsdistill.errors import MaskError, RsdistillError
from rsdistill.reporting import SILENT, Progress, Result

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable

MASKS = (".tif", ".tiff")
LAYERS = (".gpkg", ".fgb", ".geojson", ".parquet")


class StyleConfig(Config):
    """Options of ``style``."""

    files: tuple[Path, ...] = argument("Masks (.tif) and polygons (.gpkg, .fgb, .geojson, .parquet).", min_length=1)
    classes: Path | None = Field(None, description="Class table with the wanted names and colours (default: what stands beside the mask).")
    layer: str | None = Field(None, description="Layer of a GeoPackage (default: its only layer of polygons).")


def style(files: Any, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Give masks and polygons the names and colours of a class table.

    No pixel and no polygon changes. Without a class table a mask keeps its names and colours, and the files beside it that were lost are
    made again. The result is each file with its palette, names and QGIS style renewed.
    """
    config = StyleConfig.of(files=(files,) if isinstance(files, str | Path) else files, **options)
    done, failures = [], []
    with progress.task("styling", total=len(config.files)) as bar:
        for path in config.files:
            try:
                _restyle(path, config)
                done.append(path)
            except RsdistillError as error:
                if len(config.files) == 1:
                    raise
                failures.append(f"{error} ({error.hint})")
            bar.advance()
    return Result(paths=tuple(done), data={"styled": [str(path) for path in done]}, failures=tuple(failures))


def _restyle(path: Path, config: StyleConfig) -> None:
    if not path.is_file():
        raise MaskError(f"there is no file {path}", hint="name a mask or a file of polygons")
    if path.suffix.lower() in MASKS:
        from rsdistill.outputs.geotiff import restyle

        restyle(path, _wanted(path, config))
    elif path.suffix.lower() in LAYERS:
        from rsdistill.outputs.polygons import restyle_polygons

        restyle_polygons(path, _wanted(path, config), layer=config.layer)
    else:
        raise MaskError(f"{path} is neither a mask nor a file of polygons", hint="suffixes: " + " ".join((*MASKS, *LAYERS)))


def _wanted(path: Path, config: StyleConfig) -> "ClassTable":
    from rsdistill.geo.classes import load_class_table
    from rsdistill.outputs.masks import mask_table

    table = load_class_table(config.classes) if config.classes else mask_table(path)
    if table is None:
        raise MaskError(f"nothing beside {path} tells its classes", hint="give the class table with --classes")
    return table
