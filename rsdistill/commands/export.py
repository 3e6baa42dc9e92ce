"""``export``: a model in, what other programs run out: ONNX for QGIS (Deepness) and GeoDeep, a torch.export archive, or a hub folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rsdistill.config import RunConfig, argument, run_file
from rsdistill.errors import CheckpointError, ConfigError, MissingExtraError, TileSetError
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from rsdistill.inference.served import Served
    from rsdistill.models.card import ModelCard
    from rsdistill.models.network import Network
    from rsdistill.outputs.hub import ModelFacts

DEFAULT_TILE = 512
MEDIA_TYPES = {".onnx": "application/octet-stream; application=onnx", ".pt2": "application/octet-stream; application=pytorch"}
ARTIFACTS = {".onnx": "onnx", ".pt2": "torch.export.save"}
HUB_MARKER = "config.json"


class ExportConfig(RunConfig):
    """Options of ``export``."""

    model: Path | None = argument("Model file, or the name of one in WORK (default student).", default=None)
    format: Literal["onnx", "pt2", "hub"] | None = Field(None, description="What to make (default: what --out ends in, else onnx).")
    out: Path | None = Field(None, description="File to write, .onnx or .pt2, or a folder for hub (default: beside the model).")
    tile: int | None = Field(
        None, ge=1, description="Side of the tiles that the client will feed, in pixels (default: the tiles it was trained on)."
    )
    int8: bool = Field(False, description="Convolutions in eight-bit integers (.onnx), calibrated and measured on the tile set.")
    tiles: Path | None = Field(None, description="Tile set for --int8, and for what a hub folder tells (default WORK/tiles).")

    @property
    def source(self) -> Path:
        """The model file."""
        named = self.model or Path("student")
        inside = self.work / f"{named}.safetensors"
        return inside if inside.exists() and not named.exists() else (named if self.model else inside)

    @property
    def kind(self) -> str:
        """What is made: ``onnx``, ``pt2`` or ``hub``.

        Raises:
            ConfigError: the suffix of ``out`` is of no format, or of another than ``format``.
        """
        suffix = self.out.suffix if self.out else ""
        kind = self.format or (suffix[1:] if self.out else "onnx")
        if kind not in ("onnx", "pt2", "hub") or (kind != "hub" and self.out and suffix != f".{kind}"):
            raise ConfigError(f"no writer for '{suffix}' ({self.out})", hint="use .onnx or .pt2, or --format hub for a folder")
        if self.int8 and kind != "onnx":
            raise ConfigError(f"--int8 makes .onnx, not {kind}", hint="leave --int8 out, or name an .onnx file")
        return kind

    @property
    def target(self) -> Path:
        """What is written."""
        stem = self.source.stem
        return self.out or self.source.with_name(f"{stem}-hub" if self.kind == "hub" else f"{stem}{'.int8' * self.int8}.{self.kind}")

    @property
    def tile_folder(self) -> Path:
        """Where the tile set is."""
        return self.tiles or self.work / "tiles"

    def resolved(self, **found: Any) -> "ExportConfig":
        """Return these options with the files written out that were found in the workspace, and with what else was ``found``."""
        return self.model_copy(update={"model": self.source, "out": self.target, "format": self.kind, **found})


@dataclass(frozen=True)
class _Loaded:
    """A model that can be exported, and the tiles it is exported for."""

    card: "ModelCard"
    network: "Network"
    served: "Served"
    side: int


def export(model: Path | str | None = None, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Write a model as other programs run it: pixels divided by 255 in, class probabilities out.

    The graph holds the normalisation and the softmax, and is compared with torch before it is kept. A network that needs the scene's
    context, such as a GINet teacher, goes into a hub folder only: distill it first. The result is an .onnx (QGIS with Deepness, GeoDeep)
    or .pt2 file with a STAC item beside it, or a folder for a model hub.
    """
    config = ExportConfig.of(model=model, **options)
    from rsdistill.geo.locking import locked
    from rsdistill.models.card import read_card

    kind, card = config.kind, read_card(config.source)
    with locked(config.target):
        return _export_hub(config, card) if kind == "hub" else _export_file(config, card, progress)


def _export_file(config: ExportConfig, card: "ModelCard", progress: Progress) -> Result:
    from rsdistill.geo.files import refuse_existing

    kind, source, out = config.kind, config.source, config.target
    item, run = (out.with_name(out.name + suffix) for suffix in (".stac.json", ".run.toml"))
    refuse_existing((out, item, run), config.overwrite)
    if kind == "onnx":
        _need_onnx()
    loaded = _load(source, card, config.tile)
    progress.message(f"{source}: {card.arch}, tiles of {loaded.side} x {loaded.side} pixels, {len(card.classes)} classes")
    found = _write_int8(config, loaded, out, progress) if config.int8 else _write(loaded, out)
    _write_beside(out, item, run, config, loaded)
    data = {"model": str(out), "tile": loaded.side, "classes": list(card.class_names), **found, "bytes": out.stat().st_size}
    return Result(paths=(out, item), data=data, tables=(_table(out, data),))


def _write(loaded: _Loaded, out: Path) -> dict[str, float]:
    from rsdistill.inference.exporting import write_archive, write_onnx

    write = write_onnx if out.suffix == ".onnx" else write_archive
    return {"parity": write(loaded.served, loaded.card, loaded.side, out)}


def _write_int8(config: ExportConfig, loaded: _Loaded, out: Path, progress: Progress) -> dict[str, float]:
    """Write the quantised graph; return its mean IoU on the validation tiles, and the float graph's."""
    from tempfile import TemporaryDirectory

    from rsdistill.geo.tile_index import load_tile_set
    from rsdistill.inference.exporting import write_onnx
    from rsdistill.inference.quantising import quantise, validation_miou

    tile_set = load_tile_set(config.tile_folder)
    with TemporaryDirectory() as folder:
        exact = Path(folder) / "float32.onnx"
        parity = write_onnx(loaded.served, loaded.card, loaded.side, exact)
        progress.message(f"calibrating on training tiles of {tile_set.folder}, measuring on its validation tiles")
        quantise(exact, out, tile_set, loaded.card, loaded.side)
        before, after = validation_miou(exact, tile_set), validation_miou(out, tile_set)
    return {"parity": parity, "miou": before, "miou_int8": after, "miou_cost": before - after}


def _table(out: Path, data: dict[str, Any]) -> Table:
    rows = [("tile", f"{data['tile']} x {data['tile']}"), ("size", f"{data['bytes'] / 1e6:.2f} MB")]
    rows.append(("largest difference to torch", f"{data['parity']:.1e}"))
    if "miou_cost" in data:
        rows.append(("mIoU, float32", f"{100 * data['miou']:.2f} %"))
        rows.append(("mIoU, int8", f"{100 * data['miou_int8']:.2f} % ({-100 * data['miou_cost']:+.2f} points)"))
    return Table(out.name, ("", ""), tuple(rows))


def _need_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise MissingExtraError(
            f"export to .onnx needs {error.name}, which is not installed", hint="pip install 'rsdistill[onnx]'"
        ) from None
    del onnx, onnxruntime, onnxscript


def _load(source: Path, card: "ModelCard", tile: int | None) -> _Loaded:
    """Load the network and wrap it for tiles whose side is a multiple of its stride.

    Raises:
        CheckpointError: the network needs the scene's context.
        ConfigError: the side does not fit its stride.
    """
    from rsdistill.inference.served import Served
    from rsdistill.models import load_model

    network, card = load_model(source)
    if network.needs_context:
        raise CheckpointError(
            f"{source} ({card.arch}) reads the whole scene beside each tile, which no client can feed it",
            hint="rsdistill distill makes a student that reads tiles alone; export that",
        )
    side = tile or _side(card, network)
    if side % network.stride:
        raise ConfigError(f"tile {side} is not a multiple of {network.stride}, the stride of {source}", hint="choose a multiple of it")
    return _Loaded(card, network, Served(network, card).eval(), side)


def _side(card: "ModelCard", network: "Network") -> int:
    return -(-(card.tile or DEFAULT_TILE) // network.stride) * network.stride


def _write_beside(out: Path, item: Path, run: Path, config: ExportConfig, loaded: _Loaded) -> None:
    """Write the STAC item and the configuration."""
    from rsdistill.geo.files import atomic
    from rsdistill.outputs.stac import model_item

    card = loaded.card
    names = card.band_names or (None,) * len(card.bands)
    content = model_item(
        out,
        architecture=card.arch,
        bands=[name or f"band {number}" for name, number in zip(names, card.bands, strict=True)],
        classes=[dict(one) for one in card.classes],
        side=loaded.side,
        artifact=ARTIFACTS[out.suffix],
        media_type=MEDIA_TYPES[out.suffix],
        parameters=_size(loaded.network),
        hyperparameters={
            "method": card.method,
            "teachers": list(card.teachers) or None,
            "tile": loaded.side,
            "margin": card.margin,
            "seed": card.seed,
            "encoder": card.arch_args.get("encoder"),
        },
    )
    with atomic(item) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic(run) as part:
        part.write_text(run_file(config.resolved(tile=loaded.side), "export"), encoding="utf-8")


def _size(network: "Network") -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _export_hub(config: ExportConfig, card: "ModelCard") -> Result:
    from rsdistill.geo.files import atomic, atomic_folder, refuse_existing_folder
    from rsdistill.outputs.hub import write_hub

    source, out = config.source, config.target
    refuse_existing_folder(out, config.overwrite, HUB_MARKER)
    facts = _facts(config, card)
    with atomic_folder(out) as folder:
        write_hub(folder, source, card.model_dump(mode="json", exclude_none=True), facts)
    with atomic(out.with_name(f"{out.name}.run.toml")) as part:
        part.write_text(run_file(config.resolved(), "export"), encoding="utf-8")
    data = {"model": str(out), "classes": list(card.class_names), "parameters": facts.parameters, "operations": facts.operations}
    return Result(paths=(out,), data=data)


def _facts(config: ExportConfig, card: "ModelCard") -> "ModelFacts":
    """What a hub's page tells: of the network, of the tile set, and of an evaluation of this very model, where these are there."""
    from rsdistill.geo.scenes import open_scene
    from rsdistill.geo.tile_index import load_tile_set
    from rsdistill.inference.exporting import operations
    from rsdistill.models import load_model
    from rsdistill.outputs.hub import ModelFacts, training_area

    network, _ = load_model(config.source)
    side, area = config.tile or _side(card, network), None
    if config.tiles is not None or config.tile_folder.exists():
        tile_set = load_tile_set(config.tile_folder)
        grids = []
        for entry in tile_set.card.scenes:
            try:
                with open_scene(tile_set.path(entry.path), allow_vrt=tile_set.card.allow_vrt) as scene:
                    grids.append(scene.grid)
            except TileSetError:  # moved away since: the page then tells of the others
                continue
        area = training_area(grids) if grids else None
    return ModelFacts(
        config.source.stem,
        _size(network),
        None if network.needs_context else operations(network, len(card.bands), side),
        side,
        area,
        tuple(f"a teacher with the digest {digest[:12]}" for digest in card.teachers),
        _scores(config),
    )


def _scores(config: ExportConfig) -> dict[str, Any] | None:
    """The figures in WORK/evaluation, if they are this model's."""
    path = config.work / "evaluation" / "metrics.json"
    if not path.is_file():
        return None
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures if Path(figures.get("model", "")).resolve() == config.source.resolve() else None
