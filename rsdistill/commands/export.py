"""``export``: a model in, a file that other programs run: ONNX for QGIS (Deepness) and GeoDeep, or a torch.export archive."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rsdistill.config import RunConfig, argument, run_file
from rsdistill.errors import CheckpointError, ConfigError, MissingExtraError
from rsdistill.reporting import SILENT, Progress, Result, Table

if TYPE_CHECKING:
    from torch import Tensor

    from rsdistill.inference.scores import Floats
    from rsdistill.inference.served import Served
    from rsdistill.models.card import ModelCard
    from rsdistill.models.network import Network

IR_VERSION = 9
"""The newest ONNX file version that onnxruntime 1.17 reads, which is what Deepness pins."""
OPSET = 18
TOLERANCE = 1e-5
ROUNDINGS = 4
"""Largest difference of a probability to torch's that an export may have, and the same in units of what torch itself rounds off."""
DEFAULT_TILE = 512
MEDIA_TYPES = {".onnx": "application/octet-stream; application=onnx", ".pt2": "application/octet-stream; application=pytorch"}
ARTIFACTS = {".onnx": "onnx", ".pt2": "torch.export.save"}


class ExportConfig(RunConfig):
    """Options of ``export``."""

    model: Path | None = argument("Model file, or the name of one in WORK (default student).", default=None)
    out: Path | None = Field(None, description="File to write, .onnx or .pt2 (default MODEL with the suffix .onnx).")
    tile: int | None = Field(
        None, ge=1, description="Side of the tiles that the client will feed, in pixels (default: the tiles it was trained on)."
    )

    @property
    def source(self) -> Path:
        """The model file."""
        named = self.model or Path("student")
        inside = self.work / f"{named}.safetensors"
        return inside if inside.exists() and not named.exists() else (named if self.model else inside)


def export(model: Path | str | None = None, *, progress: Progress = SILENT, **options: Any) -> Result:
    """Write a model as other programs run it: pixels divided by 255 in, class probabilities out.

    The graph holds the normalisation and the softmax, and is compared with torch before it is kept. A network that needs the scene's
    context, such as a GINet teacher, cannot be exported: distill it first. The result is an .onnx (QGIS with Deepness, GeoDeep) or .pt2
    file, with a STAC item beside it.
    """
    config = ExportConfig.of(model=model, **options)
    from rsdistill.geo.files import refuse_existing
    from rsdistill.models.card import read_card

    source = config.source
    card = read_card(source)
    out = config.out or source.with_suffix(".onnx")
    if out.suffix not in ARTIFACTS:
        raise ConfigError(f"no writer for '{out.suffix}' ({out})", hint="use .onnx or .pt2")
    item, run = (out.with_name(out.name + suffix) for suffix in (".stac.json", ".run.toml"))
    refuse_existing((out, item, run), config.overwrite)
    if out.suffix == ".onnx":
        _need_onnx()

    side, network, served = _served(source, card, config.tile)
    progress.message(f"{source}: {card.arch}, tiles of {side} x {side} pixels, {len(card.classes)} classes")
    difference = _write_onnx(served, card, side, out) if out.suffix == ".onnx" else _write_archive(served, card, side, out)
    _write_beside(out, item, run, config, card, side, network)
    data = {"model": str(out), "tile": side, "classes": list(card.class_names), "parity": difference, "bytes": out.stat().st_size}
    rows = (
        ("tile", f"{side} x {side}"),
        ("size", f"{out.stat().st_size / 1e6:.2f} MB"),
        ("largest difference to torch", f"{difference:.1e}"),
    )
    return Result(paths=(out, item), data=data, tables=(Table(f"{out.name}", ("", ""), rows),))


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


def _served(source: Path, card: "ModelCard", tile: int | None) -> tuple[int, "Network", "Served"]:
    """Load the network and wrap it; return the side of its tiles, a multiple of its stride.

    Raises:
        CheckpointError: the network needs the scene's context, or the side does not fit its stride.
    """
    from rsdistill.inference.served import Served
    from rsdistill.models import load_model

    network, card = load_model(source)
    if network.needs_context:
        raise CheckpointError(
            f"{source} ({card.arch}) reads the whole scene beside each tile, which no client can feed it",
            hint="rsdistill distill makes a student that reads tiles alone; export that",
        )
    side = tile or -(-(card.tile or DEFAULT_TILE) // network.stride) * network.stride
    if side % network.stride:
        raise ConfigError(f"tile {side} is not a multiple of {network.stride}, the stride of {source}", hint="choose a multiple of it")
    return side, network, Served(network, card).eval()


def _write_onnx(served: "Served", card: "ModelCard", side: int, out: Path) -> float:
    """Write the graph to ``out`` and return the largest difference of its probabilities to torch's."""
    import onnx
    import torch

    from rsdistill.geo.files import atomic
    from rsdistill.inference.served import probe

    example = probe(card, side, count=2, seed=0)
    with _quiet():
        program = torch.onnx.export(
            served,
            (example,),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("tiles", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    graph = program.model_proto  # type: ignore[union-attr]  # None comes only from the exporter that dynamo=False names
    _tidy(graph)
    onnx.helper.set_model_props(graph, _metadata(card, side))
    onnx.checker.check_model(graph, full_check=True)
    with atomic(out) as part:
        part.write_bytes(graph.SerializeToString())
        return _difference(served, card, side, lambda image: _onnx_answer(part, image), out)


def _tidy(graph: Any) -> None:
    """Give ``graph`` the file version that older runtimes read, and take out what the exporter noted about our source code."""
    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version, graph.doc_string = "rsdistill", "", ""
    for holder in (
        graph,
        graph.graph,
        *graph.graph.node,
        *graph.graph.input,
        *graph.graph.output,
        *graph.graph.value_info,
        *graph.graph.initializer,
    ):
        del holder.metadata_props[:]
        holder.doc_string = ""


def _metadata(card: "ModelCard", side: int) -> dict[str, str]:
    """What clients read of the file: Deepness looks for ``tile_size``, GeoDeep and Deepness's documentation for ``tiles_size``."""
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(card.class_names)},
        "tile_size": side,
        "tiles_size": side,
        "tiles_overlap": min(80, round(200 * (card.margin or 0) / side)),
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "seg_thresh": 0,
        "seg_small_segment": 0,
    }
    if centimetres := _resolution(card):
        values["resolution"] = centimetres
    return {key: json.dumps(value) for key, value in values.items()} | {"rsdistill": card.model_dump_json()}


def _resolution(card: "ModelCard") -> float | None:
    """Centimetres a pixel; None where the card knows none, or only one in degrees."""
    size = card.pixel_size[0] if isinstance(card.pixel_size, tuple) else card.pixel_size
    return round(100 * size, 3) if size is not None and size >= 1e-3 else None


def _difference(served: "Served", card: "ModelCard", side: int, run: Callable[["Tensor"], "Floats"], out: Path) -> float:
    """Return the largest difference between ``run``'s probabilities and torch's, on three tiles that are not the example.

    Raises:
        CheckpointError: it is more than rounding explains.
    """
    from rsdistill.inference.served import answer, probe, rounding

    image = probe(card, side, count=3, seed=1)
    difference = float(abs(run(image) - answer(served, image)).max())
    if not difference <= max(TOLERANCE, ROUNDINGS * rounding(served, image)):
        message = f"the export {out.name} differs from torch by {difference:.1e} in a probability"
        raise CheckpointError(message, hint="nothing was written; report it")
    return difference


def _onnx_answer(path: Path, image: "Tensor") -> "Floats":
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image.numpy()})[0]


def _write_archive(served: "Served", card: "ModelCard", side: int, out: Path) -> float:
    """Write a torch.export archive to ``out`` and return the largest difference of its probabilities to torch's."""
    import torch

    from rsdistill.geo.files import atomic
    from rsdistill.inference.served import answer, probe

    with _quiet():
        program = torch.export.export(
            served, (probe(card, side, count=2, seed=0),), dynamic_shapes=({0: torch.export.Dim("tiles", min=1)},)
        )
        with atomic(out) as part:
            torch.export.save(program, part, extra_files={"rsdistill.json": card.model_dump_json()})
            again = torch.export.load(part).module()
            return _difference(served, card, side, lambda image: answer(again, image), out)


def _write_beside(out: Path, item: Path, run: Path, config: ExportConfig, card: "ModelCard", side: int, network: "Network") -> None:
    """Write the STAC item and the configuration."""
    from rsdistill.geo.files import atomic
    from rsdistill.outputs.stac import model_item

    names = card.band_names or (None,) * len(card.bands)
    content = model_item(
        out,
        architecture=card.arch,
        bands=[name or f"band {number}" for name, number in zip(names, card.bands, strict=True)],
        classes=[dict(one) for one in card.classes],
        side=side,
        artifact=ARTIFACTS[out.suffix],
        media_type=MEDIA_TYPES[out.suffix],
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        hyperparameters={
            "method": card.method,
            "tile": side,
            "margin": card.margin,
            "seed": card.seed,
            "encoder": card.arch_args.get("encoder"),
        },
    )
    with atomic(item) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic(run) as part:
        part.write_text(run_file(config, "export"), encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter (prints, log records, warnings about its own dependencies) off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
