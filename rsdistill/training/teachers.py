"""Frozen teachers: model files made to look at the batches of a tile set, alone or as an ensemble."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsdistill.batches import Batch, Context, Segmentation
from rsdistill.errors import CheckpointError, ConfigError
from rsdistill.geo.tile_index import TileSet
from rsdistill.methods.base import size_of, upsample
from rsdistill.models.card import ModelCard
from rsdistill.models.checkpoints import load_model
from rsdistill.models.network import Network


class Teacher(nn.Module):
    """A frozen network that sees batches in its own normalisation, which need not be the student's."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
        """Freeze ``network``.

        Args:
            network: what answers.
            scale: (C,) factor that takes a batch's image to the network's normalisation; 1 by default.
            shift: (C,) added after that; 0 by default.
        """
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("scale", torch.ones(1) if scale is None else scale)
        self.register_buffer("shift", torch.zeros(1) if shift is None else shift)

    @property
    def needs_context(self) -> bool:
        """Whether it reads the context of its tiles."""
        return self.network.needs_context

    @property
    def thumbnail_from(self) -> int:
        """Longest side in pixels of scenes whose context comes without a thumbnail; 0 where none has one."""
        return self.network.thumbnail_from

    def forward(self, batch: Batch) -> Segmentation:
        """Return the network's answer for the tiles of ``batch``."""
        context = batch.context if self.needs_context else None
        return self.network(self._own(batch.image, batch.valid), None if context is None else self._seen(context))

    def _seen(self, context: Context) -> Context:
        wider = None if context.wider is None else self._seen(context.wider)
        return context._replace(image=self._own(context.image, context.valid), wider=wider)

    def _own(self, image: Tensor, valid: Tensor) -> Tensor:
        return (image * self.scale[:, None, None] + self.shift[:, None, None]) * valid[:, None]


class Ensemble(nn.Module):
    """Several teachers that answer as one: logits are the logarithm of their mean probability, features those of the first."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.needs_context = any(member.needs_context for member in members)
        self.thumbnail_from = max(member.thumbnail_from for member in members)

    def forward(self, batch: Batch) -> Segmentation:
        """Return the joint answer at the first member's stride."""
        outputs = [member(batch) for member in self.members]
        first = outputs[0]
        probabilities = [upsample(output.logits, size_of(first.logits)).softmax(1) for output in outputs]
        return first._replace(logits=torch.stack(probabilities).mean(0).clamp_min(1e-8).log(), aux=None)


Prepare = Callable[[Teacher, ModelCard, Path], Teacher]
"""Makes of a teacher, its card and its file what a method is given."""


def load_teachers(paths: Sequence[Path], wanted: int, tile_set: TileSet, prepare: Prepare | None = None) -> tuple[Teacher | Ensemble, ...]:
    """Load the teachers of a method that takes ``wanted``: more than one for a method that takes one answer together.

    Each passes through ``prepare``.

    Raises:
        CheckpointError: a file is no model, or reads other bands or answers other classes than ``tile_set`` has.
        ConfigError: more teachers than a method with several roles has roles for.
    """
    if not wanted:
        return ()
    teachers = [_load(path, tile_set, prepare) for path in paths]
    if len(teachers) <= wanted:
        return tuple(teachers)
    if wanted > 1:
        raise ConfigError(f"{len(teachers)} teachers for a method that takes {wanted}", hint="each of its teachers has a role of its own")
    return (Ensemble(teachers),)


def _load(path: Path, tile_set: TileSet, prepare: Prepare | None) -> Teacher:
    network, card = load_model(path)
    ours = tile_set.card
    _check_fit(card, network.context_ratio or ours.context_ratio, tile_set, path)
    mean, std = torch.tensor(card.mean), torch.tensor(card.std)
    teacher = Teacher(network, torch.tensor(ours.std) / std, (torch.tensor(ours.mean) - mean) / std)
    return teacher if prepare is None else prepare(teacher, card, path)


def _check_fit(card: ModelCard, ratio: int, tile_set: TileSet, path: Path) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "classes": ([entry["id"] for entry in card.classes], list(tile_set.table.ids)),
        "bands": (list(card.bands), list(tile_set.card.bands)),
        "context_ratio": (ratio, tile_set.card.context_ratio),
    }
    for what, (theirs, here) in pairs.items():
        if theirs != here:
            raise CheckpointError(
                f"{path} has {what} {theirs}; the tile set {tile_set.folder} has {here}", hint="train the teacher on this tile set"
            )
