"""Multi-granularity distillation (mgd): two complementary teachers label what nobody labelled.

    L_pixel  = Σ over teachers t = wide, deep of  CE(z(mixed), ŷ_t(mixed)) + CE(z(labelled), ŷ_t(labelled))
    L_region = mean over images, pairs i, j of (cos(f_i, f_j) − cos(f^wide_i, f^wide_j))²      i, j of 7 × 7 average-pooled cells
    L_image  = mean over images and classes of |GAP z − GAP z^deep|

z, f the student's logits and features; ŷ_t = argmax of teacher t's logits, at tile resolution. Teachers see the batch
as it was loaded; the student sees its labelled tiles and, instead of its unlabelled ones, CutMixes of them
(``prepare``: boxes by exclusive or, a quarter to half of the tile), and what teachers said is mixed by the same boxes
(``forward``, which gets the batch as the teachers saw it). Each CE is the mean over the pixels that take part: labelled
ones of labelled tiles, valid ones of mixed tiles. GAP and pooling leave masked pixels out.

Qin, Wu, Li, Kang, Xiao, Zheng, Wang: Multi-granularity Distillation Scheme Towards Lightweight Semi-supervised Semantic
Segmentation, ECCV 2022, arXiv 2208.10169. (Not Masked Generative Distillation, which is called MGD too.)

Differs from the authors' code: teachers stay in eval mode (theirs drift in train mode); L_image is a mean, so that λ
0.3 stands for their 0.002 of a sum over 8 images and 19 classes; a dead cell has cosine 0 instead of NaN; each
unlabelled tile is mixed with the next of its batch instead of a second batch.
Choose it when: few tiles have labels and many do not. A threshold on pseudo-labels and hard-pixel mining (``ohem``) are
offered; both are off in the paper.
"""

from math import log
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Method, Weight, affinity_distance, cover, masked_mean, nearest_pixels, size_of, upsample
from rsdistill.methods.cutmix import Mix

REGIONS = 7
"""Cells a side of the region term."""
LEAST_HARD = 1 / 16
"""Share of the pixels that hard-pixel mining keeps at least."""

Share = Annotated[float, Field(ge=0, lt=1)]


def pseudo_labels(logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Return (B, H, W) labels by argmax of (B, K, h, w) logits at ``size``, IGNORE where the probability stays below ``threshold``."""
    logits = upsample(logits, size)
    if not threshold:
        return logits.max(1).indices  # on a CPU argmax over so few channels takes five times as long
    confidence, label = logits.softmax(1).max(1)
    return label.masked_fill(confidence < threshold, IGNORE)


def hard_mean(losses: Tensor, part: Tensor, ohem: float) -> Tensor:
    """Return the mean of the (B, H, W) cross-entropies in ``part``, 0 without any.

    With ``ohem`` > 0 only over pixels whose label has a probability below it, but at least the hardest sixteenth (online hard example
    mining, arXiv 1604.03540).
    """
    if ohem and part.any():
        values = losses.detach()[part]
        least = values.kthvalue(len(values) - int(LEAST_HARD * len(values))).values
        part = part & (losses.detach() >= least.clamp(max=-log(ohem)))
    return masked_mean(losses, part)


def regions(features: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, D, 49) pooled features, up to their length, and which cells (B, 49) hold a pixel of ``part`` (B, h, w)."""
    share = F.adaptive_avg_pool2d(part[:, None].to(features.dtype), REGIONS)
    return F.adaptive_avg_pool2d(cover(features, part), REGIONS).flatten(2), share.flatten(1) > 0


def pooled(logits: Tensor, part: Tensor) -> Tensor:
    """Return (B, K) mean logits over the pixels in ``part`` (B, h, w); 0 without any."""
    return cover(logits, part).sum((2, 3)) / part.sum((1, 2)).clamp(min=1)[:, None]


class MGD(Method):
    """Semi-supervised distillation from a wide and a deep teacher.

    Args:
        pixel: λ of the pseudo-labels.
        region: λ of the relations between regions, from the wide teacher.
        image: λ of the mean logits, from the deep teacher.
        threshold: least probability of a pseudo-label; 0 takes all.
        ohem: learn from pixels whose pseudo-label has a probability below it; 0 takes all.
        boxes: rectangles a mixed tile.
    """

    teachers = 2
    semi_supervised = True

    def __init__(
        self,
        *,
        pixel: Weight = 1.0,
        region: Weight = 100.0,
        image: Weight = 0.3,
        threshold: Share = 0.0,
        ohem: Share = 0.0,
        boxes: Annotated[int, Field(ge=1, le=16)] = 3,
    ) -> None:
        super().__init__(pixel=pixel, region=region, image=image)
        self.threshold, self.ohem, self.boxes = threshold, ohem, boxes
        self._mix: Mix | None = None

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Note where a single teacher stands in for two."""
        if len(teachers) == 1:
            self._note("mgd wants two teachers, a wide and a deep one; the one given serves as both")

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the labelled tiles and, in place of the unlabelled ones, CutMixes of them.

        Where no tile is unlabelled, CutMixes of the labelled ones with their labels hidden are added: the student's batch doubles.
        """
        if batch.labelled.all():
            self._note("mgd found no unlabelled tiles in a batch: labelled ones serve with their labels hidden")
        self._mix = Mix.draw(batch, self.boxes, generator)
        return self._mix.batch(batch)

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``pixel``, ``region`` and ``image`` for the view of ``batch`` that the last ``prepare`` gave the student."""
        mix = self._mix or Mix.none(batch)
        seen = mix.batch(batch)
        labelled = seen.labelled[:, None, None]
        part = seen.valid & (~labelled | (seen.label != IGNORE))
        terms = {}
        if "pixel" in self.weights:
            terms["pixel"] = self._pixel(mix, part, labelled, student, (teachers[0], teachers[-1]))
        if "region" in self.weights:
            terms["region"] = self._region(part, student.features, mix.maps(teachers[0].features))
        if "image" in self.weights:
            terms["image"] = self._image(part, student.logits, mix.maps(teachers[-1].logits))
        return terms

    def _pixel(self, mix: Mix, part: Tensor, labelled: Tensor, student: Segmentation, teachers: tuple[Segmentation, ...]) -> Tensor:
        size = size_of(part)
        log_probabilities = cover(upsample(student.logits, size), part).log_softmax(1)
        total = log_probabilities.new_zeros(())
        for teacher in teachers:
            label = mix.maps(pseudo_labels(teacher.logits, size, self.threshold)).masked_fill(~part, IGNORE)
            losses = F.nll_loss(log_probabilities, label, ignore_index=IGNORE, reduction="none")
            for group in (labelled, ~labelled):
                total = total + hard_mean(losses, group & (label != IGNORE), self.ohem)
        return total

    @staticmethod
    def _region(part: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        (own, own_kept), (other, other_kept) = (regions(maps, nearest_pixels(part, size_of(maps))) for maps in (student, teacher))
        return affinity_distance(own, other, own_kept & other_kept)

    @staticmethod
    def _image(part: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        parts = [nearest_pixels(part, size_of(maps)) for maps in (student, teacher)]
        gap = (pooled(student, parts[0]) - pooled(teacher, parts[1])).abs().mean(1)
        return masked_mean(gap, parts[0].flatten(1).any(1) & parts[1].flatten(1).any(1))

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)
