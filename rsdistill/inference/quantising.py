"""Exported graphs in eight-bit integers, and what that costs: calibrated on training tiles, measured on whole validation scenes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsdistill.errors import TileSetError
from rsdistill.geo.burning import BurnOptions
from rsdistill.geo.files import atomic
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.tiles import Tile
from rsdistill.geo.windows import Window
from rsdistill.inference.evaluation import measure, split_subjects
from rsdistill.inference.exporting import quiet, tidy
from rsdistill.inference.mapping import Mapper
from rsdistill.inference.settings import MapConfig
from rsdistill.metrics import Boundary, Confusion
from rsdistill.models.card import ModelCard

CALIBRATION_TILES = 48
"""Training tiles, evenly spread over the tile set, that tell the range of every layer."""
QUANTISED = ("Conv", "MatMul", "Gemm")
"""Layers that are worth it; normalisation, up-sampling and softmax stay in float32."""


def quantise(graph: Path, out: Path, tile_set: TileSet, card: ModelCard, side: int) -> None:
    """Write the ONNX file ``graph`` with its convolutions in eight-bit integers to ``out``; inputs and outputs stay float32.

    Raises:
        TileSetError: there is no training tile to calibrate on.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    tiles = tile_set.of_split("train")
    if not tiles:
        raise TileSetError(f"{tile_set.folder} has no training tile to calibrate on", hint="name another tile set with --tiles")
    step = max(1, len(tiles) // CALIBRATION_TILES)
    with atomic(out) as part, quiet():
        quantize_static(
            graph,
            part,
            _Feed(_calibration(tile_set, tiles[::step][:CALIBRATION_TILES], card, side)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(part)
        tidy(made, {one.key: one.value for one in onnx.load(graph).metadata_props})
        part.write_bytes(made.SerializeToString())


class _Feed:
    """Tiles in the form that onnxruntime's calibration asks for them."""

    def __init__(self, images: Iterator[NDArray[np.float32]]) -> None:
        self._images = images

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next tile as the graph's input, None after the last."""
        image = next(self._images, None)
        return None if image is None else {"image": image}


def _calibration(tile_set: TileSet, tiles: Sequence[Tile], card: ModelCard, side: int) -> Iterator[NDArray[np.float32]]:
    """Yield (1, C, side, side) pixels divided by 255 around each tile; what is not valid, or beyond the scene, is the mean."""
    mean = np.array(card.mean, np.float32)[:, None, None]
    for tile in tiles:
        entry, own = tile_set.card.scenes[tile.scene], tile_set.card
        path = tile_set.path(entry.path)
        with open_scene(path, nodata=own.nodata, allow_vrt=own.allow_vrt, allow_remote=own.allow_remote) as scene:
            window = _around(tile.window, side, entry.height, entry.width)
            pixels, valid = scene.read(window, own.bands_of(tile.scene))
        image = np.broadcast_to(mean, (len(card.bands), side, side)).copy()
        image[:, : window.height, : window.width] = np.where(valid, pixels, mean)
        yield image[None] / np.float32(255)


def _around(window: Window, side: int, height: int, width: int) -> Window:
    """The square of ``side`` pixels around the middle of ``window``, moved into the scene and cut where that is smaller."""
    row = min(max(0, window.row + (window.height - side) // 2), max(0, height - side))
    col = min(max(0, window.col + (window.width - side) // 2), max(0, width - side))
    return Window(row, col, min(side, height), min(side, width))


def validation_miou(model: Path, tile_set: TileSet) -> float:
    """Return the mean IoU of a model file over the validation tiles of a tile set, mapped as whole scenes.

    Raises:
        TileSetError: no validation tile is labelled.
    """
    card = tile_set.card
    options: dict[str, Any] = {"nodata": card.nodata or (), "allow_vrt": card.allow_vrt, "allow_remote": card.allow_remote}
    mapper = Mapper(MapConfig.of(**options), model)
    table = mapper.table.by_id()
    total, boundary = Confusion(len(table)), Boundary(len(table))
    for subject in split_subjects(tile_set, "val"):
        total.add(measure(subject, table, mapper, boundary, burn=BurnOptions(), side=1).confusion)
    return float(total.scores(table.names).miou)
