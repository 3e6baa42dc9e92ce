"""Intra-class feature variation distillation (ifvd): how far each pixel lies from the centre of its own class.

    c_k = mean of f_p over the pixels of class k        M_p = cos(f_p, c_{y_p})        L = mean over valid p of (M^S_p − M^T_p)²

f features (B, D, h, w), the student's resized to the teacher's; y labels at that size; centres are those of one image,
and the gradient flows through pixel and centre. A class of a single pixel contributes 0, and the channels of the two
networks need not agree.

Wang, Zhou, Jiang, Bai, Xu: Intra-class Feature Variation Distillation for Semantic Segmentation, ECCV 2020,
10.1007/978-3-030-58571-6_21.

Differs from the authors' code: classes are one product with one-hot labels instead of a loop that resizes the label
once a class; nodata and unlabelled pixels are left out of centres and mean; λ 20 beside KD's 1 keeps the published
ratio of 200 to 10.
Choose it when: classes are internally diverse (roofs, crops in stages of growth) and labels are dense.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Temperature, Weight, cover, inverse_length, labels_at, masked_mean, size_of, unit, upsample
from rsdistill.methods.kd import Relational


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Return (B, K, h, w) bool membership for a (B, h, w) label; no class where it is IGNORE."""
    part = label != IGNORE
    return F.one_hot(label.masked_fill(~part, 0), classes).movedim(-1, 1).bool() & part[:, None]


def class_centres(features: Tensor, members: Tensor) -> Tensor:
    """Return (B, K, D) mean features of each class in each image, for (B, D, h, w) features and (B, K, h, w) members; 0 where absent."""
    sums = torch.einsum("bdhw,bkhw->bkd", features, members.to(features.dtype))
    return sums / members.sum((2, 3)).clamp(min=1)[..., None]


def variation(features: Tensor, members: Tensor) -> Tensor:
    """Return M, (B, h, w): the cosine between each pixel's features and its class's centre; 0 where no class is a member."""
    features = cover(features, members.any(1))
    along = torch.einsum("bdhw,bkd->bkhw", features, unit(class_centres(features, members), 2))
    return (along * members).sum(1) * inverse_length(features.square().sum(1))


def variation_gap(batch: Batch, student: Segmentation, teacher: Segmentation) -> tuple[Tensor, Tensor]:
    """Return (M^S − M^T, the pixels that take part), both (B, h, w) at the teacher's feature size."""
    size = size_of(teacher.features)
    members = one_hot(labels_at(batch, size), teacher.logits.shape[1])
    gap = variation(upsample(student.features, size), members) - variation(teacher.features, members)
    return gap, members.any(1)


class IFVD(Relational):
    """Intra-class feature variation.

    Args:
        weight: λ of the term ``variation``.
        kd: λ of plain KD beside it.
        kd_tau: temperature of that KD.
    """

    def __init__(self, *, weight: Weight = 20.0, kd: Weight = 1.0, kd_tau: Temperature = 1.0) -> None:
        super().__init__(kd, kd_tau, variation=weight)

    def variation(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L."""
        gap, part = variation_gap(batch, student, teacher)
        return masked_mean(gap.square(), part)
