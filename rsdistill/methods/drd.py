"""Dual relation distillation (drd): which pixels resemble each other, and which channels do.

    R^s = X̂ᵀX̂ (P × P, pixels unit over channels)      R^c = X̃X̃ᵀ (D × D, channels unit over pixels)
    L_s = mean (R^s_T − R^s_S)²      L_c = mean (R^c_T − R^c_S)²

X features (D, P) of one image over its valid pixels, the student's resized to the teacher's; the mean runs over pairs
(n² or D²), then over the images with a valid pixel. R^s is never built (see ``gram_distance``) and needs no equal
channels; R^c does, by a 1 × 1 convolution.
With ``form = softmax``, R^s is the row softmax of XᵀX / √D on maps pooled to at most 33 × 33 cells, R^c that of XXᵀ /
√n, and L the sum of squares of a row, averaged over rows.

Li, Shan, Wang, Lv, Luo, Chen: Building Lightweight Semantic Segmentation Models for Aerial Images Using Dual Relation
Distillation, 2025, arXiv 2506.20688.

Derived: written from the abstract and standard practice; there is no released code to compare with.
Choose it when: layout matters more than colour (parcels, street grids), and teacher and student differ much in width.
"""

from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import (
    Temperature,
    Weight,
    adapter,
    affinity_distance,
    cover,
    inverse_length,
    labels_at,
    masked_mean,
    size_of,
    upsample,
)
from rsdistill.methods.kd import Relational

MOST_CELLS = 33
"""Side of the largest map whose P × P relations are built."""


def spatial_distance(student: Tensor, teacher: Tensor, part: Tensor) -> Tensor:
    """Return L_s for (B, D', h, w) and (B, D, h, w) features and the pixels in ``part`` (B, h, w)."""
    return affinity_distance(student.flatten(2), teacher.flatten(2), part.flatten(1))


def channel_products(maps: Tensor, part: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return X Xᵀ, (B, D, D), over the pixels in ``part`` (B, h, w) for (B, D, h, w) ``maps``, or A X Xᵀ Aᵀ for a ``mix`` A (D', D)."""
    pixels = cover(maps, part).flatten(2)
    products = pixels @ pixels.mT
    return products if mix is None else mix @ products @ mix.mT


def channel_distance(student: Tensor, teacher: Tensor, part: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return L_c for (B, D', h, w) and (B, D, h, w) features and the pixels in ``part`` (B, h, w).

    ``mix`` (D, D') brings the student's channels to the teacher's. It is applied to their products, which are few, not to the pixels.
    """

    def relations(products: Tensor) -> Tensor:
        scale = inverse_length(products.diagonal(dim1=1, dim2=2))
        return products * scale[:, :, None] * scale[:, None, :]

    gap = relations(channel_products(student, part, mix)) - relations(channel_products(teacher, part))
    return masked_mean(gap.square().mean((1, 2)), part.flatten(1).any(1))


def spatial_softmax_distance(student: Tensor, teacher: Tensor, part: Tensor) -> Tensor:
    """Return the softmax form of L_s; cells are means over their valid pixels."""
    size = min(MOST_CELLS, part.shape[1]), min(MOST_CELLS, part.shape[2])
    share = F.adaptive_avg_pool2d(part[:, None].to(student.dtype), size)
    kept = share.flatten(1) > 0
    outside = ~kept[:, None, :]

    def rows(maps: Tensor) -> Tensor:
        cells = (F.adaptive_avg_pool2d(cover(maps, part), size) / share.masked_fill(share == 0, 1)).flatten(2)
        scores = cells.mT @ cells / sqrt(maps.shape[1])
        return scores.masked_fill(outside, torch.finfo(scores.dtype).min / 2).softmax(2)

    return masked_mean((rows(student) - rows(teacher)).square().sum(2), kept)


def channel_softmax_distance(student: Tensor, teacher: Tensor, part: Tensor, mix: Tensor | None = None) -> Tensor:
    """Return the softmax form of L_c."""
    count = part.flatten(1).sum(1)
    scale = count.clamp(min=1).to(student.dtype).rsqrt()[:, None, None]
    rows = [(products * scale).softmax(2) for products in (channel_products(student, part, mix), channel_products(teacher, part))]
    return masked_mean((rows[0] - rows[1]).square().sum(2).mean(1), count > 0)


class DRD(Relational):
    """Dual relations of features.

    Args:
        spatial: λ of the relations between pixels.
        channel: λ of the relations between channels.
        form: ``cosine``, or the row ``softmax`` of products.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    def __init__(
        self,
        *,
        spatial: Weight = 10.0,
        channel: Weight = 10.0,
        form: Literal["cosine", "softmax"] = "cosine",
        kd: Weight = 1.0,
        kd_tau: Temperature = 1.0,
    ) -> None:
        super().__init__(kd, kd_tau, spatial=spatial, channel=channel)
        cosine = form == "cosine"
        self.spatial_distance = spatial_distance if cosine else spatial_softmax_distance
        self.channel_distance = channel_distance if cosine else channel_softmax_distance
        self.adapter: nn.Module = nn.Identity()

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the 1 × 1 convolution that the relations between channels need."""
        if "channel" in self.weights and isinstance(self.adapter, nn.Identity):
            self.adapter = adapter(student.features, teachers[0].features)

    def spatial(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_s."""
        size = size_of(teacher.features)
        return self.spatial_distance(upsample(student.features, size), teacher.features, labels_at(batch, size) != IGNORE)

    def channel(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_c."""
        size = size_of(teacher.features)
        mix = self.adapter.weight[:, :, 0, 0] if isinstance(self.adapter, nn.Conv2d) else None
        return self.channel_distance(upsample(student.features, size), teacher.features, labels_at(batch, size) != IGNORE, mix)
