"""CutMix: rectangles of one tile pasted into another, the same ones in images, validity, pseudo-labels and teachers' maps."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from rsdistill.batches import IGNORE, Batch
from rsdistill.methods.base import nearest_pixels, size_of

AREA = (0.25, 0.5)
"""Share of a tile that its boxes cover together, where they do not overlap."""


def draw_boxes(count: int, size: tuple[int, int], boxes: int, generator: torch.Generator) -> Tensor:
    """Return (count, H, W) bool on the CPU: True inside an odd number of ``boxes`` rectangles of random shape and place.

    Each image draws a total area from ``AREA``, shared equally; a box's height is that share to a random power, so that long and
    square boxes are equally likely on a logarithmic scale.
    """
    draw = torch.rand(count, boxes, 3, generator=generator)
    area = (AREA[0] + (AREA[1] - AREA[0]) * torch.rand(count, 1, generator=generator)) / boxes
    height = area ** draw[..., 0]
    sides = torch.stack([height, area / height], -1) * torch.tensor(size)
    start = (draw[..., 1:] * (torch.tensor(size) - sides)).round()
    stop = start + sides.round()
    inside = torch.zeros(count, *size, dtype=torch.bool)
    for box in range(boxes):
        first, end = start[:, box, :, None], stop[:, box, :, None]
        rows, cols = ((first[:, axis] <= at) & (at < end[:, axis]) for axis, at in enumerate(map(torch.arange, size)))
        inside ^= rows[:, :, None] & cols[:, None, :]
    return inside


class Mix(NamedTuple):
    """How a student's batch is made of a teacher's: rows shown as they are, then pairs of rows that share one tile."""

    plain: Tensor
    """(L,) int64 rows shown as they are."""
    base: Tensor
    """(M,) int64 rows that are pasted into."""
    pasted: Tensor
    """(M,) int64 rows that are pasted."""
    inside: Tensor
    """(M, H, W) bool: where the pasted row shows."""

    @classmethod
    def none(cls, batch: Batch) -> Self:
        """The batch as it is."""
        rows = torch.arange(len(batch.label), device=batch.label.device)
        return cls(rows, rows[:0], rows[:0], batch.valid[:0])

    @classmethod
    def draw(cls, batch: Batch, boxes: int, generator: torch.Generator) -> Self:
        """Labelled rows plain, each unlabelled one mixed with the next; without unlabelled rows the labelled ones are mixed besides."""
        device = batch.label.device
        plain = batch.labelled.nonzero().flatten()
        base = (~batch.labelled).nonzero().flatten()
        base = base if len(base) else plain
        inside = draw_boxes(len(base), size_of(batch.label), boxes, generator).to(device)
        return cls(plain, base, base.roll(1), inside)

    def maps(self, maps: Tensor) -> Tensor:
        """Return (B, D, h, w) or (B, H, W) maps of the teacher's batch as they lie in the student's: (L + M, …)."""
        flat = maps if maps.ndim == 4 else maps[:, None]
        inside = nearest_pixels(self.inside, size_of(maps))[:, None]
        mixed = torch.cat([flat[self.plain], torch.where(inside, flat[self.pasted], flat[self.base])])
        return mixed if maps.ndim == 4 else mixed[:, 0]

    def batch(self, batch: Batch) -> Batch:
        """Return the student's batch: mixed rows are unlabelled, and lie where the row that they are pasted into lies."""
        rows = torch.cat([self.plain, self.base])
        mixed = torch.arange(len(rows), device=rows.device) >= len(self.plain)
        context = batch.context
        return Batch(
            image=self.maps(batch.image),
            label=batch.label[rows].masked_fill(mixed[:, None, None], IGNORE),
            valid=self.maps(batch.valid),
            labelled=batch.labelled[rows] & ~mixed,
            context=None if context is None else context._replace(box=context.box[rows], index=context.index[rows]),
            box_in_scene=None if batch.box_in_scene is None else batch.box_in_scene[rows],
            place=None if batch.place is None else batch.place[rows.cpu()],
        )
