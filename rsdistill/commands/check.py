"""``check``: what a long run would stumble over, found in scenes, labels, class tables, tile sets and models before it starts."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from rsdistill.config import Config, argument
from rsdistill.errors import InputError, RsdistillError
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.scenes import Scene
    from rsdistill.models.card import ModelCard

Kind = Literal["scene", "label", "class table", "tile set", "model"]


class CheckConfig(Config):
    """Options of ``check``."""

    paths: tuple[Path, ...] = argument("Scenes, labels, class tables, tile sets, models, or folders of them.", min_length=1)
    labels: tuple[Path, ...] = Field((), description="Labels of the scenes, as tile takes them: files or a folder, raster or vector.")
    label_field: str | None = Field(None, description="Field of vector labels that holds the class.")
    burn: str | None = Field(None, description="Class of all polygons of vector labels without such a field.")
    headers: bool = Field(False, description="Look at headers only; without it every pixel and weight is read once.")
    nodata: tuple[float, ...] = Field((), description="Nodata of scenes that declare none: one value, or one a band.")
    allow_vrt: bool = Field(False, description="Take VRTs whose sources lie in their folder.")
    allow_remote: bool = Field(False, description="Take URLs.")


class Candidate(NamedTuple):
    """One path, and what it will be taken for."""

    path: Path
    kind: Kind
    scene: Path | None = None
    """Of a label: its scene, where that was named too."""


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


def check(paths: Path | str | Iterable[Path | str], *, progress: Progress = SILENT, **options: Any) -> Result:
    """Say what a long run would stumble over, before it starts.

    Scenes are read whole, labels are held against their scenes and the class tables named with them, scenes against the models; tile sets
    and models are opened as training and prediction will open them. Notes tell what is legal but costs time or accuracy. One bad file
    ends with exit 2, some of many with 6. The result is the list of paths that are fit.
    """
    config = CheckConfig.of(paths=[paths] if isinstance(paths, str | Path) else paths, **options)
    candidates = _candidates(config, progress)
    company = _company(candidates)
    findings = []
    with progress.task("checking", total=len(candidates)) as bar:
        for candidate in candidates:
            findings.append(_examine(candidate, company, config))
            bar.advance()
    bad = [(finding, finding.error) for finding in findings if finding.error]
    if bad and len(findings) == 1:
        raise bad[0][1]
    rows = tuple((str(one.path), one.kind, "bad" if one.error else "fit", "; ".join(one.notes)) for one in findings)
    return Result(
        paths=tuple(one.path for one in findings if not one.error),
        data={"checked": [_record(finding) for finding in findings]},
        tables=(Table("checked", ("path", "kind", "", "notes"), rows),),
        failures=tuple(f"{error} ({error.hint})" for _, error in bad),
    )


def kind_of(path: Path) -> Kind:
    """Say by its name what ``path`` will be taken for."""
    from rsdistill.geo.burning import VECTOR_SUFFIXES

    suffix = path.suffix.lower()
    if path.is_dir():
        return "tile set"
    if suffix in (".toml", ".csv"):
        return "class table"
    if suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".onnx"):
        return "model"
    return "label" if suffix in VECTOR_SUFFIXES or path.stem.endswith("_label") or path.stem == "labels" else "scene"


def _record(finding: Finding) -> dict[str, Any]:
    error = str(finding.error) if finding.error else None
    return {"path": str(finding.path), "kind": finding.kind, "fit": error is None, "error": error, "notes": finding.notes}


def _candidates(config: CheckConfig, progress: Progress) -> list[Candidate]:
    """Name every path once: those of ``paths``, and the label of each scene among ``labels`` or beside it."""
    from rsdistill.geo.labels import find_labels

    found = {path: Candidate(path, kind_of(path)) for path in _expand(config.paths)}
    scenes = [path for path, candidate in found.items() if candidate.kind == "scene"]
    for scene, label in zip(scenes, find_labels(scenes, config.labels), strict=True):
        if label is not None:
            found[label] = Candidate(label, "label", scene)
        elif config.labels:
            progress.warn(f"{scene} has no label in {', '.join(map(str, config.labels))}")
    return list(found.values())


def _expand(paths: Iterable[Path]) -> list[Path]:
    """Replace folders by what is in them, but for tile sets, which are folders."""
    from rsdistill.geo.sources import RASTER_SUFFIXES

    known = (*RASTER_SUFFIXES, ".safetensors")
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not (path / "tileset.json").exists():
            inside = sorted(file for file in path.iterdir() if _is_candidate(file, known))
            if not inside:
                raise InputError(f"{path} holds no scene, label or model", hint="name files, or a tile set's folder")
            found += inside
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _is_candidate(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder's entry is looked at: a tile set, or a file of a known kind that is not the picture of a training run."""
    if path.name.startswith(".") or path.name.endswith(".curves.png"):
        return False
    return (path / "tileset.json").exists() if path.is_dir() else path.suffix.lower() in suffixes


def _company(candidates: Iterable[Candidate]) -> Company:
    """Read the class tables and cards that others are held against; those that cannot be read are reported where they stand."""
    from rsdistill.geo.classes import load_class_table
    from rsdistill.models.card import read_card

    tables, cards = [], []
    for candidate in candidates:
        try:
            if candidate.kind == "class table":
                tables.append(load_class_table(candidate.path))
            elif candidate.kind == "model":
                cards.append((candidate.path, read_card(candidate.path)))
        except RsdistillError:
            continue
    return Company(tuple(tables), tuple(cards))


def _examine(candidate: Candidate, company: Company, config: CheckConfig) -> Finding:
    looks: dict[Kind, Callable[[], list[str]]] = {
        "scene": lambda: _look_at_scene(candidate.path, company, config),
        "label": lambda: _look_at_label(candidate, company, config),
        "class table": lambda: _look_at_table(candidate.path),
        "tile set": lambda: _look_at_tile_set(candidate.path),
        "model": lambda: _look_at_model(candidate.path, config),
    }
    finding = Finding(candidate.path, candidate.kind)
    try:
        finding.notes = looks[candidate.kind]()
    except RsdistillError as error:
        finding.error = error
    return finding


def _look_at_scene(path: Path, company: Company, config: CheckConfig) -> list[str]:
    from rsdistill.geo.inspection import header_notes, palette_notes, pixel_notes
    from rsdistill.geo.scenes import open_scene

    with open_scene(path, nodata=config.nodata or None, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote) as scene:
        notes = [*scene.ignored_sidecars, *header_notes(scene), *palette_notes(scene)]
        for model, card in company.cards:
            notes += _fit(scene, model, card)
        return notes if config.headers else notes + pixel_notes(scene)


def _fit(scene: "Scene", model: Path, card: "ModelCard") -> list[str]:
    """Hold a scene against a model as ``predict`` will.

    Raises:
        SceneError: bands are missing, or values that the model was not trained on are possible.
    """
    from rsdistill.inference.fitting import band_notes, bands_for, check_type, name_doubts, size_doubts

    bands = bands_for(scene, card, model)
    check_type(scene, card, model)
    return [*band_notes(scene, card, bands), *name_doubts(scene, card, model, bands), *size_doubts(scene, card, model)]


def _look_at_label(candidate: Candidate, company: Company, config: CheckConfig) -> list[str]:
    from rsdistill.geo.burning import VECTOR_SUFFIXES, BurnOptions, read_polygons
    from rsdistill.geo.inspection import class_notes
    from rsdistill.geo.labels import open_labels, scan_classes
    from rsdistill.geo.scenes import open_scene

    path, vector = candidate.path, candidate.path.suffix.lower() in VECTOR_SUFFIXES
    if not company.tables or (vector and candidate.scene is None):
        missing = "name its scene" if company.tables else "name a class table"
        if vector:
            return [f"{len(read_polygons(path))} polygons; {missing} to check their classes"]
        return [f"{', '.join(scan_classes([path]).names)}; {missing} to check them"]
    notes: list[str] = []
    for table in company.tables:
        with ExitStack() as stack:
            scene = stack.enter_context(open_scene(candidate.scene or path, allow_vrt=config.allow_vrt, allow_remote=config.allow_remote))
            labels = stack.enter_context(open_labels(path, scene, table, BurnOptions(config.label_field, config.burn)))
            notes += [] if labels.how == "copied" else [f"{labels.how} on its scene's grid"]
            notes += [] if config.headers else class_notes(labels, scene, table)
    return notes


def _look_at_table(path: Path) -> list[str]:
    from rsdistill.geo.classes import load_class_table

    table = load_class_table(path)
    twins = sorted({color for color in table.colors if table.colors.count(color) > 1})
    wide = ["ids from 255 on: masks are uint16"] if table.dtype == "uint16" else []
    return [f"{len(table)} classes", *wide, *(f"{color} stands for several classes" for color in twins)]


def _look_at_tile_set(path: Path) -> list[str]:
    from rsdistill.geo.scenes import open_scene
    from rsdistill.training.prepare import open_tile_set
    from rsdistill.training.settings import TrainingConfig

    tile_set = open_tile_set(TrainingConfig.of(tiles=path))
    card, notes = tile_set.card, [f"{len(tile_set.tiles)} tiles"]
    for entry in card.scenes:
        for name in filter(None, (entry.label, entry.context, entry.context_label)):
            tile_set.path(name)
        with open_scene(tile_set.path(entry.path), allow_vrt=card.allow_vrt, allow_remote=card.allow_remote) as scene:
            if scene.fingerprint != entry.fingerprint:
                notes.append(f"{entry.name} has changed since it was tiled: tile again")
    for name, pixels in zip(tile_set.table.names, card.class_pixels["train"], strict=True):
        notes += [] if pixels else [f"no training pixel of {name}"]
    return notes


def _look_at_model(path: Path, config: CheckConfig) -> list[str]:
    from rsdistill.models.card import read_card

    card = read_card(path)
    notes = [f"{card.arch}, {len(card.bands)} bands, {len(card.classes)} classes"]
    if config.headers:
        return notes
    from rsdistill.models import load_model

    network, _ = load_model(path)
    return notes + (["reads the whole scene beside each tile"] if network.needs_context else [])
