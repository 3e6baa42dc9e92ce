"""``check``: what a long run would stumble over, found in scenes, labels, class tables, tile sets and models before it starts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rsdistill.config import Config, argument
from rsdistill.errors import InputError, RsdistillError
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.scenes import Scene
    from rsdistill.models.card import ModelCard

Kind = Literal["scene", "label", "class table", "tile set", "model"]
STRIP_ROWS = 512
UNDECLARED_SHARE = 0.01
"""A constant colour on more of the rim than this, with no nodata declared, is worth a word."""


class CheckConfig(Config):
    """Options of ``check``."""

    paths: tuple[Path, ...] = argument("Scenes, labels, class tables, tile sets, models, or folders of them.", min_length=1)
    headers: bool = Field(False, description="Look at headers only; without it every pixel is read once.")
    nodata: tuple[float, ...] = Field((), description="Nodata of scenes that declare none: one value, or one a band.")
    allow_vrt: bool = Field(False, description="Take VRTs whose sources lie in their folder.")
    allow_remote: bool = Field(False, description="Take URLs.")


@dataclass
class Finding:
    """What was found in one path."""

    path: Path
    kind: Kind
    error: RsdistillError | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Company:
    """What else was named, and so is checked together: labels against class tables, scenes against models."""

    tables: tuple["ClassTable", ...]
    cards: tuple[tuple[Path, "ModelCard"], ...]


def check(paths: Any, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Say what a long run would stumble over, before it starts.

    Scenes are read whole, labels are held against the class tables named with them, scenes against the models; tile sets and models are
    opened as training and prediction will open them. Notes tell what is legal but costs time or accuracy. One bad file ends with exit 2,
    some of many with 6. The result is the list of paths that are fit.
    """
    config = CheckConfig.of(paths=paths, **options)
    found = [(path, kind_of(path)) for path in _expand(config.paths)]
    company = _company(found)
    findings = []
    with progress.task("checking", total=len(found)) as bar:
        for path, kind in found:
            findings.append(_examine(path, kind, company, config))
            bar.advance()
    bad = [finding for finding in findings if finding.error]
    if bad and len(findings) == 1:
        raise bad[0].error  # type: ignore[misc]  # the list holds only findings with an error
    rows = tuple((str(one.path), one.kind, "bad" if one.error else "fit", "; ".join(one.notes)) for one in findings)
    checked = [{"path": str(one.path), "kind": one.kind, "fit": not one.error, "error": str(one.error or ""), "notes": one.notes} for one in findings]
    return Result(
        paths=tuple(one.path for one in findings if not one.error),
        data={"checked": checked},
        tables=(Table("checked", ("path", "kind", "", "notes"), rows),),
        failures=tuple(f"{one.error} ({one.error.hint})" for one in bad if one.error),
    )


def _expand(paths: Iterable[Path]) -> list[Path]:
    """Replace folders by what is in them, but for tile sets, which are folders."""
    from rsdistill.geo.sources import RASTER_SUFFIXES

    known = (*RASTER_SUFFIXES, ".safetensors")
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not (path / "tileset.json").exists():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in known and not file.name.startswith("."))
            if not inside:
                raise InputError(f"{path} holds no scene, label or model", hint="name files, or a tile set's folder")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def kind_of(path: Path) -> Kind:
    """Say by its name what ``path`` will be taken for."""
    if path.is_dir():
        return "tile set"
    if path.suffix.lower() in (".toml", ".csv"):
        return "class table"
    if path.suffix.lower() in (".safetensors", ".pt", ".pth", ".ckpt", ".onnx"):
        return "model"
    return "label" if path.stem.endswith("_label") or path.stem == "labels" else "scene"


def _company(found: list[tuple[Path, Kind]]) -> Company:
    """Read the class tables and cards that others are held against; those that cannot be read are reported where they stand."""
    from rsdistill.geo.classes import load_class_table
    from rsdistill.models.card import read_card

    tables, cards = [], []
    for path, kind in found:
        try:
            if kind == "class table":
                tables.append(load_class_table(path))
            elif kind == "model":
                cards.append((path, read_card(path)))
        except RsdistillError:
            continue
    return Company(tuple(tables), tuple(cards))


def _examine(path: Path, kind: Kind, company: Company, config: CheckConfig) -> Finding:
    looks: dict[Kind, Callable[[], list[str]]] = {
        "scene": lambda: _look_at_scene(path, company, config),
        "label": lambda: _look_at_label(path, company, config),
        "class table": lambda: _look_at_table(path),
        "tile set": lambda: _look_at_tile_set(path),
        "model": lambda: _look_at_model(path),
    }
    finding = Finding(path, kind)
    try:
        finding.notes = looks[kind]()
    except RsdistillError as error:
        finding.error = error
    return finding


def _look_at_scene(path: Path, company: Company, config: CheckConfig) -> list[str]:
    from rsdistill.geo.scenes import open_scene

    with open_scene(path, nodata=config.nodata or None, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote) as scene:
        notes = [*scene.ignored_sidecars, *_header_notes(scene)]
        for model, card in company.cards:
            notes += _fit(scene, model, card)
        return notes if config.headers else notes + _pixel_notes(scene)
