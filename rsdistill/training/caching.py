"""What a frozen teacher says of every training tile, computed once and kept on disk in half precision.

A teacher sees a tile as it lies in the scene, whatever turns and flips the student is shown, so its logits depend on the tile alone (and,
in a scene larger than a context window, on the window that is drawn for it). At the teacher's own stride of 4 they take 2 · K / 16 bytes a
pixel: 0.75 for six classes.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from rsdistill.batches import Batch, Segmentation
from rsdistill.data import augment
from rsdistill.data.dataset import Composition, TileReader, collate, normalise
from rsdistill.data.pools import Pool
from rsdistill.errors import ConfigError
from rsdistill.geo.files import atomic
from rsdistill.geo.tile_index import TileSet
from rsdistill.models.pointwise import quicken
from rsdistill.reporting import Progress
from rsdistill.training.teachers import Ensemble, Teacher

LEAST = 1e-6
"""Smallest probability that is kept; half precision holds its logarithm with room to spare."""


class CachedTeacher(nn.Module):
    """Logits out of a file instead of a network; there are no features."""

    needs_context = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._maps: Any = np.load(path, mmap_mode="r")

    def forward(self, batch: Batch) -> Segmentation:
        """Return the logits (B, K, h, w) of the tiles of ``batch``, known by their places; features are (B, 0, h, w).

        Raises:
            ValueError: the batch does not say where its tiles are.
        """
        if batch.place is None:
            raise ValueError("a cached teacher knows tiles by their place, and this batch gives none")
        logits = torch.from_numpy(self._maps[batch.place.numpy()]).to(batch.image.device).float()
        return Segmentation(logits, logits[:, :0])


def cached(
    teacher: Teacher | Ensemble, tile_set: TileSet, folder: Path, mark: str, device: torch.device, progress: Progress, *, views: int = 1
) -> CachedTeacher:
    """Return ``teacher`` with its logits on all training tiles computed beforehand, or read from what an earlier run left.

    Args:
        teacher: what is asked.
        tile_set: its training tiles are what it is asked about; rows of other tiles stay empty, holes in the file where that is possible.
        folder: of all caches.
        mark: of all that decides the logits: the same mark finds the same file.
        device: computes.
        progress: told of each tile.
        views: turns and flips of a tile that the teacher is asked about, see :func:`ask`.

    Raises:
        DiskError: the cache does not fit.
    """
    path = folder / f"{hashlib.sha256(f'{mark} {views}'.encode()).hexdigest()[:20]}.npy"
    if not path.exists():
        quicken(teacher, device)
        with atomic(path) as part:
            _fill(part, teacher.to(device), tile_set, device, progress, views)
    return CachedTeacher(path)


def ask(teacher: Teacher | Ensemble, batch: Batch, views: int) -> Tensor:
    """Return the teacher's logits (B, K, h, w), or the logarithm of its mean probability over the first ``views`` elements of D4.

    Overhead imagery has no up, so all eight answers are about the same ground; their mean is a better answer than any one of them. A
    teacher that is asked once a tile can be asked eight times.
    """
    if views == 1:
        return teacher(batch).logits
    count = len(batch.image)
    total = torch.zeros(())
    for number in range(views):
        element = torch.full((count,), number)
        turned = augment.apply(batch, augment.Draw(element, torch.zeros(count), torch.ones(count)))
        total = total.to(batch.image.device) + augment.turn(teacher(turned).logits.float().softmax(1), augment.inverse(element))
    return (total / views).clamp_min(LEAST).log()


@torch.inference_mode()
def _fill(path: Path, teacher: Teacher | Ensemble, tile_set: TileSet, device: torch.device, progress: Progress, views: int) -> None:
    reader, pool = TileReader(tile_set), Pool(tile_set.tiles, tile_set)
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    one = Composition(1, 1, 0, teacher.needs_context, thumbnail_from=teacher.thumbnail_from)
    numbers = tile_set.of_split("train").place.tolist()
    maps: Any = None
    with progress.task("cache the teacher", total=len(numbers)) as bar:
        for number in numbers:
            window = pool.context_window(tile_set.tiles[number], np.random.default_rng(number))
            batch = normalise(collate(reader, [tile_set.tiles[number]], [window], one), mean, std, device)
            logits = ask(teacher, batch, views)[0].half().cpu().numpy()
            if maps is None:
                maps = open_memmap(path, mode="w+", dtype=np.float16, shape=(len(tile_set.tiles), *logits.shape))
            maps[number] = logits
            bar.advance()
    maps.flush()


def check_cacheable(method: str, logits_suffice: bool) -> None:
    """Refuse a method that reads more than logits.

    Raises:
        ConfigError: it does.
    """
    if not logits_suffice:
        raise ConfigError(f"--cache-teacher keeps logits, and {method} reads features too", hint="leave it out, or use kd, dist or mgsad")
