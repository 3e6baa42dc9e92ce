"""Models as other programs run them: an ONNX graph or a torch.export archive, compared with torch before it is kept."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsdistill.errors import CheckpointError
from rsdistill.geo.files import atomic
from rsdistill.inference.scores import Floats
from rsdistill.inference.served import Served, answer, probe, rounding
from rsdistill.models.card import ModelCard
from rsdistill.models.network import Network

IR_VERSION = 9
"""The newest ONNX file version that onnxruntime 1.17 reads, which is what Deepness pins."""
OPSET = 18
MOST_OVERLAP = 50
"""Per cent: with more, clients spend most of their time on what they throw away."""
TOLERANCE = 1e-5
ROUNDINGS = 4
"""Largest difference of a probability to torch's that an export may have, and the same in units of what torch itself rounds off."""


def write_onnx(served: Served, card: ModelCard, side: int, out: Path) -> float:
    """Write the graph for tiles of ``side`` pixels to ``out``; return the largest difference of its probabilities to torch's.

    Raises:
        CheckpointError: it is more than rounding explains.
    """
    import onnx

    graph = onnx_graph(served, card, (side, side))
    tidy(graph, metadata(card, side, served.network.stride))
    onnx.checker.check_model(graph, full_check=True)
    with atomic(out) as part:
        part.write_bytes(graph.SerializeToString())
        return _difference(served, card, side, lambda image: onnx_answer(part, image), out)


def onnx_graph(served: Served, card: ModelCard, size: tuple[int, int]) -> Any:
    """Return the ONNX graph for any number of tiles of ``size`` (height, width)."""
    with quiet():
        program = torch.onnx.export(
            served,
            (probe(card, size, count=2, seed=0),),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("tiles", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return program.model_proto  # type: ignore[union-attr]  # None comes only from the exporter that dynamo=False names


def write_archive(served: Served, card: ModelCard, side: int, out: Path) -> float:
    """Write a torch.export archive likewise.

    Raises:
        CheckpointError: its answers differ by more than rounding explains.
    """
    with quiet():
        program = torch.export.export(
            served, (probe(card, (side, side), count=2, seed=0),), dynamic_shapes=({0: torch.export.Dim("tiles", min=1)},)
        )
        with atomic(out) as part:
            torch.export.save(program, part, extra_files={"rsdistill.json": card.model_dump_json()})
            again = torch.export.load(part).module()
            return _difference(served, card, side, lambda image: answer(again, image), out)


def tidy(graph: Any, properties: dict[str, str]) -> None:
    """Give ``graph`` the file version that older runtimes read and these properties; take out notes about our source code."""
    import onnx

    graph.ir_version = IR_VERSION
    graph.producer_name, graph.producer_version, graph.doc_string = "rsdistill", "", ""
    inner = graph.graph
    for holder in (graph, inner, *inner.node, *inner.input, *inner.output, *inner.value_info, *inner.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    onnx.helper.set_model_props(graph, properties)


def metadata(card: ModelCard, side: int, stride: int) -> dict[str, str]:
    """What clients read of the file: Deepness looks for ``tile_size``, GeoDeep and Deepness's documentation for ``tiles_size``."""
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(card.class_names)},
        "tile_size": side,
        "tiles_size": side,
        "tiles_overlap": _overlap(card.margin or 0, side, stride),
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1.0] * len(card.bands),
        "seg_thresh": 0,
        "seg_small_segment": 0,
    }
    if centimetres := _resolution(card):
        values["resolution"] = centimetres
    return {key: json.dumps(value) for key, value in values.items()} | {"rsdistill": card.model_dump_json()}


def _overlap(margin: int, side: int, stride: int) -> int:
    """Per cent of a tile that the next one sees again: the least that gives the margin and lets clients step by whole strides.

    Deepness takes whole numbers only. Where none does both, the margin is what counts.
    """
    least = min(MOST_OVERLAP, ceil(200 * margin / side))
    fits = (percent for percent in range(least, MOST_OVERLAP + 1) if floor(side * (percent / 100)) % stride == 0)
    return next(fits, least)


def _resolution(card: ModelCard) -> float | None:
    """Centimetres a pixel; None where the card knows none, or only one in degrees."""
    size = card.pixel_size[0] if isinstance(card.pixel_size, tuple) else card.pixel_size
    return round(100 * size, 3) if size is not None and size >= 1e-3 else None


def _difference(served: Served, card: ModelCard, side: int, run: Callable[[Tensor], Floats], out: Path) -> float:
    """Return the largest difference between ``run``'s probabilities and torch's, on three tiles that are not the example."""
    image = probe(card, (side, side), count=3, seed=1)
    difference = float(abs(run(image) - answer(served, image)).max())
    if not difference <= max(TOLERANCE, ROUNDINGS * rounding(served, image)):
        message = f"the export {out.name} differs from torch by {difference:.1e} in a probability"
        raise CheckpointError(message, hint="nothing was written; report it")
    return difference


def onnx_answer(path: Path, image: Tensor) -> Floats:
    """Return what onnxruntime makes of ``image`` with the graph in ``path``."""
    from rsdistill.inference.onnx_backend import open_session

    return open_session(path, None).run(None, {"image": image.numpy()})[0]


def operations(network: Network, bands: int, side: int) -> int:
    """Return the floating-point operations (two a multiplication with addition) of one tile, for a network that reads tiles alone."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, bands, side, side))
    return int(counter.get_total_flops())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter's chatter (prints, log records, warnings about its own dependencies) off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
