"""How good a network is in the middle of training: mIoU over whole scenes or over the validation tiles."""

from typing import Literal

import numpy as np
import torch

from rsdistill.data.dataset import Composition, TileReader, collate, normalise, open_source, read_index
from rsdistill.data.pools import Pool
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.tile_index import TileSet
from rsdistill.geo.tiles import SPLITS
from rsdistill.geo.windows import Window
from rsdistill.inference.engine import strips
from rsdistill.inference.torch_backend import TorchBackend
from rsdistill.methods.base import upsample
from rsdistill.metrics import Confusion
from rsdistill.models.card import ModelCard
from rsdistill.models.network import Network
from rsdistill.training.loop import Validate


def validator(tile_set: TileSet, card: ModelCard, kind: Literal["auto", "scene", "tile"], device: torch.device) -> Validate:
    """Return the function that measures a network on the validation split of ``tile_set``.

    ``auto`` is whole scenes where validation scenes are whole, tiles where blocks of one scene were split. Whole scenes are mapped by the
    engine that ``predict`` uses, so what is validated is what will be written.
    """
    measured = tile_set.of_split("val")
    tiles = measured.pick(measured.labelled)
    scenes = np.unique(tiles.scene).tolist()
    whole = not any(np.isin(tile_set.of_split(split).scene, scenes).any() for split in SPLITS if split != "val")
    reader, pool = TileReader(tile_set), Pool(tiles, tile_set)
    mean, std = torch.tensor(card.mean), torch.tensor(card.std)

    def by_scene(network: Network) -> dict[str, float]:
        confusion = Confusion(len(tile_set.table))
        for index in scenes:
            scene_confusion(network, card, tile_set, index, device, confusion)
        return _figures(confusion, tile_set)

    def by_tile(network: Network) -> dict[str, float]:
        confusion = Confusion(len(tile_set.table))
        for number, tile in enumerate(tiles):
            window = pool.context_window(tile, np.random.default_rng(number))
            one = Composition(1, 1, 0, network.needs_context, thumbnail_from=network.thumbnail_from)
            batch = normalise(collate(reader, [tile], [window], one), mean, std, device)
            logits = upsample(network(batch.image, batch.context).logits.float(), (card.tile or 0, card.tile or 0))
            confusion.update(logits.max(1).indices, batch.label)
        return _figures(confusion, tile_set)

    return by_scene if kind == "scene" or (kind == "auto" and whole) else by_tile


def scene_confusion(network: Network, card: ModelCard, tile_set: TileSet, index: int, device: torch.device, confusion: Confusion) -> None:
    """Map scene ``index`` of ``tile_set`` and add its pixels to ``confusion``."""
    label = tile_set.card.scenes[index].label
    if label is None:
        return
    with open_source(tile_set, index) as scene, open_scene(tile_set.path(label)) as truth:
        bands = tile_set.card.bands_of(index)
        backend = TorchBackend(network, card, device=str(device), scene=scene, bands=bands)
        for strip in strips(scene, backend, bands=bands, tile=card.tile or 512, margin=card.margin or 0):
            rows = Window(strip.row, 0, *strip.labels.shape)
            confusion.update(strip.labels, read_index(truth, rows, tile_set.table))


def _figures(confusion: Confusion, tile_set: TileSet) -> dict[str, float]:
    scores = confusion.scores(tile_set.table.names)
    return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
