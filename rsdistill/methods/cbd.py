"""Class-balanced distillation (cbd): rare classes have a say, in what the teacher teaches and in what labels teach.

    w_p = n_y(p)^(−α) / mean over valid q of n_y(q)^(−α),    n_k = valid pixels of class k in the batch
    L_distill = mean over valid p of  w_p τ² Σ_k q^T_pk log(q^T_pk / q^S_pk)
    L_labels  = mean over valid p of  w_p (−log q^S_p,y(p)) at τ = 1

z, q, τ as in kd; y(p) the label, and the pixels without one take no part. α = 0 is a mean over pixels (L_distill is then kd, L_labels
cross-entropy), α = 1 a mean over the classes that are there; in between, a class weighs n^(1−α) in all. The mean of w is 1, so λ means
what it means in kd.

Ours. On scenes a few classes cover almost everything: what a mean over pixels lets a small student forget first are roads and trees.
The weights come from losses for long-tailed classification: Cui, Jia, Lin, Song, Belongie: Class-Balanced Loss Based on Effective Number
of Samples, CVPR 2019, arXiv 1901.05555.

Differs from that paper: a power of each class's pixels in the batch, not an effective number in the data set; and it weighs distillation.
Choose it when: some classes are rare and all count the same, as they do in mIoU. Pixel accuracy pays for it.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Method, Temperature, Weight, cover, labels_at, masked_mean, size_of, upsample
from rsdistill.methods.kd import pixel_divergence


def balance(label: Tensor, classes: int, alpha: float) -> Tensor:
    """Return w (B, h, w) for a label (B, h, w): mean 1 over labelled pixels, 0 elsewhere."""
    known = label != IGNORE
    counts = torch.bincount(label[known], minlength=classes).clamp(min=1)
    weights = counts.double().pow(-alpha)[label.masked_fill(~known, 0)].masked_fill(~known, 0)
    return weights / masked_mean(weights, known).clamp(min=torch.finfo(weights.dtype).tiny)


class CBD(Method):
    """Class-balanced distillation.

    Args:
        weight: λ of the term ``distill``.
        labels: λ of the term ``labels``, beside the loop's own supervised terms.
        alpha: from 0, every pixel counts the same, to 1, every class does.
        tau: temperature of ``distill``.
    """

    logits_suffice = True

    def __init__(
        self, *, weight: Weight = 1.0, labels: Weight = 1.0, alpha: Annotated[float, Field(ge=0, le=1)] = 0.75, tau: Temperature = 1.0
    ) -> None:
        super().__init__(distill=weight, labels=labels)
        self.alpha, self.tau = alpha, tau

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``distill`` and ``labels``, both at the teacher's size."""
        teacher = teachers[0].logits
        label = labels_at(batch, size_of(teacher))
        known = label != IGNORE
        weights = balance(label, teacher.shape[1], self.alpha).to(teacher.dtype)
        logits = cover(upsample(student.logits, size_of(teacher)), known)
        terms = {}
        if "distill" in self.weights:
            terms["distill"] = masked_mean(weights * pixel_divergence(logits, cover(teacher, known), self.tau), known)
        if "labels" in self.weights:
            terms["labels"] = masked_mean(weights * F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none"), known)
        return terms
