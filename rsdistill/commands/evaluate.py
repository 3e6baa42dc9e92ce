"""``evaluate``: whole scenes against their labels, mapped by a model or read from masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from rsdistill.config import argument, run_file
from rsdistill.errors import ClassTableError, ConfigError, LabelError
from rsdistill.inference.settings import MapConfig
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.geo.classes import ClassTable
    from rsdistill.geo.tile_index import TileSet
    from rsdistill.inference.evaluation import Measured, Subject
    from rsdistill.inference.mapping import Mapper
    from rsdistill.metrics import Boundary, Confusion, Scores

RESULTS = ("metrics.json", "report.html")


class EvaluateConfig(MapConfig):
    """Options of ``evaluate``."""

    scenes: tuple[Path, ...] = argument("Scenes, or folders of scenes (default: those of the tile set's split).", default=())
    mask: tuple[Path, ...] = Field((), description="Mask to evaluate in place of a model (repeat for more, in the order of the scenes).")
    labels: tuple[Path, ...] = Field((), description="Folder of labels, or label files (default: <stem>_label beside each scene).")
    label_field: str | None = Field(None, description="Field of vector labels that holds the class (default: class_id).")
    burn: str | None = Field(None, description="Class of all polygons of vector labels, for files of one class.")
    background: str | None = Field(None, description="Class of pixels outside all polygons (default: no label).")
    classes: Path | None = Field(None, description="Class table that says what label values mean (default: the model's or the mask's).")
    tiles: Path | None = Field(None, description="Tile set whose scenes are evaluated where none are named (default WORK/tiles).")
    split: Literal["train", "val", "test"] = Field("val", description="Split of the tile set; only pixels of its tiles count.")
    seam: bool = Field(False, description="Also map with windows of twice the side: how often do the maps differ near cuts and elsewhere?")
    beside: Path | None = Field(None, description="Second model to measure and to show beside it in the report, such as teacher.")
    out: Path | None = Field(None, description="Folder of the results (default WORK/evaluation).")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out or self.work / "evaluation"


class _Beside(NamedTuple):
    """The second model, and what it made of the same scenes."""

    mapper: "Mapper"
    measured: "list[Measured]"
    figures: dict[str, Any]


def evaluate(scenes: Any = (), *, progress: Progress = SILENT, **options: Any) -> Result:
    """Measure a model, or masks, against the labels of whole scenes.

    Without scenes the validation split of the tile set is measured. The mean IoU is over the classes that the labels hold. The result is
    WORK/evaluation/ with metrics.json and report.html.
    """
    config = EvaluateConfig.of(scenes=(scenes,) if isinstance(scenes, str | Path) else scenes, **options)
    _refuse_contradictions(config)
    from rsdistill.geo.files import refuse_existing_in
    from rsdistill.geo.locking import locked

    with locked(config.folder):
        refuse_existing_in(config.folder, RESULTS, config.overwrite)
        return _evaluate(config, progress)


def _refuse_contradictions(config: EvaluateConfig) -> None:
    with_model = {"model": "a mask needs no model", "beside": "a second model stands beside a first", "seam": "a mask has no windows"}
    for name, hint in with_model.items():
        if config.mask and getattr(config, name):
            raise ConfigError(f"--mask and --{name} exclude each other", hint=hint)


def _evaluate(config: EvaluateConfig, progress: Progress) -> Result:
    from rsdistill.metrics import Boundary

    tile_set = _tile_set(config)
    subjects = _subjects(config, tile_set, progress)
    mapper = None if config.mask else _mapper(config, config.model, tile_set, progress)
    table = _class_table(config, tile_set, mapper, subjects)
    if not config.scenes and not config.mask:  # the tile set's labels, which hold ids
        table = table.by_id()
    boundary = Boundary(len(table))
    measured = _measure(config, table, mapper, subjects, boundary, progress)
    total = _sum(measured)
    scores = total.scores(table.names, boundary)
    beside = _beside(config, tile_set, table, subjects, progress)
    figures = scores.as_dict() | _details(config, mapper, table, total, measured) | _seam(config, mapper, subjects)
    figures |= {"beside": beside.figures} if beside is not None else {}
    notes = _notes(config, mapper, tile_set, total, subjects)
    for note in notes:
        progress.warn(note)
    _write(config, figures, table, mapper, measured, beside, notes)
    return Result(paths=tuple(config.folder / name for name in RESULTS), data=figures, tables=(_screen(scores),))


def _tile_set(config: EvaluateConfig) -> "TileSet | None":
    """The tile set that was named or stands in the workspace; it has to be there only where no scene and no mask is named."""
    from rsdistill.geo.tile_index import load_tile_set

    folder = config.tiles or config.work / "tiles"
    needed = config.tiles is not None or not (config.scenes or config.mask)
    return load_tile_set(folder) if needed or folder.exists() else None


def _subjects(config: EvaluateConfig, tile_set: "TileSet | None", progress: Progress) -> "list[Subject]":
    """What is to be evaluated: what was named, else the tile set's split."""
    from rsdistill.geo.scenes import find_scenes
    from rsdistill.inference.evaluation import named_subjects, split_subjects

    if tile_set is not None and not config.scenes and not config.mask:
        if config.labels:
            raise ConfigError("--labels are given, but neither SCENES nor --mask", hint="a tile set has its own labels")
        return split_subjects(tile_set, config.split)
    scenes = find_scenes(config.scenes, progress=progress) if config.scenes else []
    return named_subjects(scenes, config.mask, config.labels)


def _mapper(config: EvaluateConfig, model: Path | None, tile_set: "TileSet | None", progress: Progress) -> "Mapper":
    """What maps the scenes; those of a tile set are opened as they were for tiling."""
    from rsdistill.inference.loading import find_model
    from rsdistill.inference.mapping import Mapper

    if tile_set is not None and not config.scenes:
        card = tile_set.card
        opened = {"nodata": config.nodata or card.nodata or (), "allow_vrt": card.allow_vrt, "allow_remote": card.allow_remote}
        config = config.model_copy(update=opened)
    return Mapper(config, find_model(config.work, model), progress)


def _class_table(
    config: EvaluateConfig, tile_set: "TileSet | None", mapper: "Mapper | None", subjects: "Sequence[Subject]"
) -> "ClassTable":
    """What labels mean: the table that was given, else the model's; for masks, else the workspace's or the mask's own.

    Raises:
        ClassTableError: the table that was given has other classes than the model.
    """
    from rsdistill.geo.classes import load_class_table
    from rsdistill.geo.labels import scan_classes
    from rsdistill.outputs.masks import mask_table

    if config.classes is not None:
        table = load_class_table(config.classes)
        if mapper is not None and set(table.ids) != set(mapper.table.ids):
            ours, theirs = (", ".join(map(str, sorted(ids))) for ids in (table.ids, mapper.table.ids))
            raise ClassTableError(f"{config.classes} has classes {ours}; {mapper.path} answers {theirs}", hint="give the model's classes")
        return table
    if mapper is not None:
        return mapper.table
    own = mask_table(config.mask[0])
    if tile_set is not None and (own is None or set(own.ids) <= set(tile_set.table.ids)):
        return tile_set.label_table
    return own or scan_classes([*config.mask, *(subject.label for subject in subjects)])


def _measure(
    config: EvaluateConfig,
    table: "ClassTable",
    mapper: "Mapper | None",
    subjects: "Sequence[Subject]",
    boundary: "Boundary",
    progress: Progress,
) -> "list[Measured]":
    from rsdistill.geo.burning import BurnOptions
    from rsdistill.inference.evaluation import measure
    from rsdistill.outputs.report import picture_side

    burn, side = BurnOptions(config.label_field, config.burn, config.background), picture_side(len(subjects))
    measured = []
    with progress.task("evaluate", total=len(subjects)) as bar:
        for subject in subjects:
            measured.append(measure(subject, table, mapper, boundary, burn=burn, side=side))
            bar.advance(1, scene=subject.name)
    return measured


def _beside(
    config: EvaluateConfig, tile_set: "TileSet | None", table: "ClassTable", subjects: "Sequence[Subject]", progress: Progress
) -> "_Beside | None":
    """Measure the second model on the same scenes.

    Raises:
        ClassTableError: it answers other classes.
    """
    if config.beside is None:
        return None
    from rsdistill.metrics import Boundary

    mapper, boundary = _mapper(config, config.beside, tile_set, progress), Boundary(len(table))
    if set(mapper.table.ids) != set(table.ids):
        raise ClassTableError(f"{mapper.path} answers other classes than are measured", hint="--beside takes a model of the same classes")
    measured = _measure(config, table, mapper, subjects, boundary, progress)
    figures = _sum(measured).scores(table.names, boundary).as_dict()
    named = {"model": str(mapper.path), **{key: figures[key] for key in ("miou", "pixel_accuracy", "boundary_iou")}}
    return _Beside(mapper, measured, named)


def _sum(measured: "Sequence[Measured]") -> "Confusion":
    """What was counted in all scenes; nothing is a LabelError."""
    from rsdistill.inference.findings import listed
    from rsdistill.metrics import Confusion

    total = Confusion(len(measured[0].confusion.matrix))
    for one in measured:
        total.add(one.confusion)
    if not total.matrix.any():
        missing = f"{total.unpredicted} labelled pixels, none" if total.unpredicted else "no labelled pixel"
        where = listed([one.subject.label for one in measured])
        raise LabelError(f"{missing} with a prediction in {where}", hint="do labels and scenes lie at the same place?")
    return total


def _details(
    config: EvaluateConfig, mapper: "Mapper | None", table: "ClassTable", total: "Confusion", measured: "Sequence[Measured]"
) -> dict[str, Any]:
    """What ``metrics.json`` says beside the scores."""
    scenes = []
    for one in measured:
        scores = one.confusion.scores(table.names).as_dict()
        figures = {key: scores[key] for key in ("miou", "pixel_accuracy")}
        files = {"raster": str(one.subject.raster), "label": str(one.subject.label)}
        scenes.append({"name": one.subject.name, **files, **figures, "pixels": int(one.confusion.matrix.sum())})
    of = ({"model": str(mapper.path)} if mapper else {}) | ({} if config.scenes or config.mask else {"split": config.split})
    return {**of, "unpredicted_pixels": total.unpredicted, "scenes": scenes}


def _seam(config: EvaluateConfig, mapper: "Mapper | None", subjects: "Sequence[Subject]") -> dict[str, Any]:
    if mapper is None or not config.seam:
        return {}
    from rsdistill.inference.seams import Seams, add_seams

    seams = Seams.none()
    for subject in subjects:
        add_seams(seams, mapper, subject.raster)
    return {"seam": seams.as_dict()}


def _notes(
    config: EvaluateConfig, mapper: "Mapper | None", tile_set: "TileSet | None", total: "Confusion", subjects: "Sequence[Subject]"
) -> tuple[str, ...]:
    """What a reader of the figures has to know."""
    from rsdistill.inference.evaluation import trained_on

    notes = [f"{total.unpredicted} labelled pixels have no prediction and are left out"] if total.unpredicted else []
    seen = trained_on(tile_set, subjects) if tile_set is not None and mapper is not None and config.scenes else []
    if seen:
        notes.append(f"pixels of {', '.join(seen)} were trained on, so these figures flatter; without SCENES only held-out tiles count")
    return tuple(notes)


def _write(
    config: EvaluateConfig,
    figures: dict[str, Any],
    table: "ClassTable",
    mapper: "Mapper | None",
    measured: "Sequence[Measured]",
    beside: "_Beside | None",
    notes: tuple[str, ...],
) -> None:
    from rsdistill.geo.files import atomic
    from rsdistill.inference.findings import Findings, write_findings

    metrics, page = (config.folder / name for name in RESULTS)
    own = config.folder / "evaluate.run.toml"
    with atomic(own) as part:
        part.write_text(run_file(_resolved(config, mapper, beside), "evaluate"), encoding="utf-8")
    runs, tiles = [own], config.tiles or config.work / "tiles"
    if mapper is not None:
        trained = [mapper.path.with_name(f"{name}.run.toml") for name in ("teacher", mapper.path.stem)]
        runs = [tiles.with_name(f"{tiles.name}.run.toml"), *trained, *runs]
    second = (beside.mapper.path.stem, beside.measured) if beside is not None else None
    found = Findings(figures, table, measured, mapper.path if mapper is not None else None, second, notes)
    write_findings(metrics, page, found, runs, photos=config.window is None, nodata=config.nodata)


def _resolved(config: EvaluateConfig, mapper: "Mapper | None", beside: "_Beside | None") -> EvaluateConfig:
    """Return ``config`` with all written out that was found in the workspace."""
    own: dict[str, Any] = {"out": config.folder, "beside": beside and beside.mapper.path}
    if mapper is not None:
        own |= {"model": mapper.path} | {name: getattr(mapper.config, name) for name in ("tile", "backend", "precision")}
    return config.model_copy(update=own | ({} if config.scenes or config.mask else {"tiles": config.tiles or config.work / "tiles"}))


def _screen(scores: "Scores") -> Table:
    figures = scores.as_dict()
    rows = [(name, _percent(one["iou"]), _percent(one["f1"]), f"{one['pixels']}") for name, one in figures["per_class"].items()]
    rows.append(("mean", _percent(figures["miou"]), "", f"{int(scores.pixels.sum())}"))
    named = f"pixel accuracy {_percent(figures['pixel_accuracy'])} %, boundary IoU {_percent(figures['boundary_iou'])} %"
    return Table(named, ("class", "IoU %", "F1 %", "pixels"), tuple(rows))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
