"""What the results of each scene are called, and the names that are refused before anything is computed."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rsdistill.errors import ConfigError, OutputExistsError, nearest
from rsdistill.geo.files import refuse_existing
from rsdistill.inference.products import Products
from rsdistill.outputs import WRITERS
from rsdistill.outputs.styles import own_style

RASTERS = (".tif", ".tiff")
STYLED = (*RASTERS, ".fgb", ".geojson", ".parquet")
"""Results that have a style in a file beside them."""


def name_products(
    scenes: Sequence[Path],
    out: Sequence[Path],
    confidence: Path | None,
    probabilities: Path | None,
    *,
    overwrite: bool,
    may_stand: Callable[[Path, Products], bool] | None = None,
) -> dict[Path, Products]:
    """Return the files that each scene becomes.

    Args:
        scenes: what is mapped.
        out: files, or folders (which get a mask each), or names with ``{stem}``.
        confidence: as ``out``, of the raster of confidence.
        probabilities: as ``out``, of the raster of probabilities.
        overwrite: whether results may be replaced.
        may_stand: says of a scene whether its results may stand all the same, since an earlier run is gone on with that made them.

    Raises:
        ConfigError: a suffix that no writer takes, or one name for two results.
        OutputExistsError: a result exists without ``overwrite``, or somebody's file where a style or a run file goes; or a result would
            replace a scene.
    """
    several = len(scenes) > 1
    named = {}
    for scene in scenes:
        named[scene] = Products(
            tuple(_place(one, scene, several, WRITERS) for one in out),
            confidence and _place(confidence, scene, several, RASTERS, "_confidence"),
            probabilities and _place(probabilities, scene, several, RASTERS, "_probabilities"),
        )
    _refuse_twice(named)
    for scene, products in named.items():
        for path in products.paths:
            _refuse_source(path, scenes)
        if not overwrite:
            _refuse_foreign(products.paths)
        refuse_existing(products.paths, overwrite or (may_stand is not None and may_stand(scene, products)))
    return named


def _place(out: Path, scene: Path, several: bool, suffixes: Collection[str], ending: str = "") -> Path:
    """Return the file that ``out`` means for ``scene``."""
    if out.name.lower() in WRITERS:
        raise ConfigError(f"{out} is a suffix without a name", hint=f"for example {out.with_name('mask' + out.name)}")
    if "{stem}" in str(out):
        path = Path(str(out).replace("{stem}", scene.stem))
    elif out.is_dir() or not out.suffix:
        path = out / f"{scene.stem}{ending}.tif"
    elif several:
        raise ConfigError(f"{out} names one file, but there are several scenes", hint="name a folder, or a file with {stem} in its name")
    else:
        path = out
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"no writer for '{path.suffix}' ({path}){nearest(path.suffix, suffixes)}", hint="use " + " ".join(suffixes))
    return path


def _refuse_foreign(paths: Sequence[Path]) -> None:
    """Refuse to write a style or a run file over one that is not ours."""
    for path in paths:
        style, run = path.with_suffix(".qml"), path.with_name(f"{path.stem}.run.toml")
        foreign = [style] if path.suffix.lower() in STYLED and style.is_file() and not own_style(style) else []
        foreign += [run] if run.is_file() and not run.read_bytes().startswith(b"command = ") else []
        if foreign:
            raise OutputExistsError(f"{foreign[0]} is not ours", hint="give --overwrite to replace it, or the result another name")


def _refuse_twice(named: dict[Path, Products]) -> None:
    taken: dict[Path, Path] = {}
    for scene, products in named.items():
        if len({path.resolve() for path in products.paths}) < len(products.paths):
            raise ConfigError(f"a result of {scene} is named twice", hint="each result needs a name of its own")
        for path in products.paths:
            other = taken.setdefault(path.resolve(), scene)
            if other != scene:
                raise ConfigError(f"{scene} and {other} would both become {path}", hint="scenes of one name need runs of their own")


def _refuse_source(path: Path, scenes: Sequence[Path]) -> None:
    """Refuse a result that is a scene, be it by another path or link."""
    for scene in scenes:
        if path.exists() and scene.exists() and path.samefile(scene):
            raise OutputExistsError(f"{path} is the scene {scene} itself", hint="name another file for the result")
