"""Distillation from a stronger teacher (dist): the ranking of classes in a pixel and of pixels in a class, not the values.

    L_inter = τ² · mean over valid p of 1 − ρ_k(q^S_pk, q^T_pk)        L_intra = τ² · mean over k of 1 − ρ_p(q^S_pk, q^T_pk)

q softmax of logits / τ (B, K, h, w), the student's logits resized to the teacher's; ρ_k Pearson's correlation over
classes, ρ_p over all valid pixels of the batch. 1 − ρ is computed as half the squared distance of standardised vectors:
0, not undefined, where both are constant.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from a Stronger Teacher, NeurIPS 2022, arXiv 2205.10536.

Differs from the authors' code: nodata is left out; plain KD stands beside it (``dist.kd=0`` gives the paper's loss).
Choose it when: the teacher is much stronger and more confident than the student can be, so that matching its
probabilities is too much to ask.
"""

from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Temperature, Weight, cover, labels_at, masked_mean, pearson_distance, size_of, upsample
from rsdistill.methods.kd import Relational


def inter_distance(student: Tensor, teacher: Tensor, part: Tensor) -> Tensor:
    """Return L_inter / τ² for two (B, K, h, w) maps of probabilities and the pixels in ``part`` (B, h, w)."""
    return masked_mean(pearson_distance(student, teacher, part[:, None], dim=1), part)


def intra_distance(student: Tensor, teacher: Tensor, part: Tensor) -> Tensor:
    """Return L_intra / τ² for two (B, K, h, w) maps of probabilities and the pixels in ``part`` (B, h, w)."""
    own, other = (maps.transpose(0, 1).flatten(1) for maps in (student, teacher))
    return pearson_distance(own, other, part.flatten()[None], dim=1).mean()


class DIST(Relational):
    """Relations between and within classes.

    Args:
        inter: λ of the relations between the classes of a pixel.
        intra: λ of the relations between the pixels of a class.
        tau: temperature of both.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    logits_suffice = True

    def __init__(
        self, *, inter: Weight = 1.0, intra: Weight = 1.0, tau: Temperature = 1.0, kd: Weight = 1.0, kd_tau: Temperature = 1.0
    ) -> None:
        super().__init__(kd, kd_tau, inter=inter, intra=intra)
        self.tau = tau

    def inter(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_inter."""
        return self.tau**2 * inter_distance(*self._probabilities(batch, student, teacher))

    def intra(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_intra."""
        return self.tau**2 * intra_distance(*self._probabilities(batch, student, teacher))

    def _probabilities(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> tuple[Tensor, Tensor, Tensor]:
        size = size_of(teacher.logits)
        part = labels_at(batch, size) != IGNORE
        first, second = ((cover(logits, part) / self.tau).softmax(1) for logits in (upsample(student.logits, size), teacher.logits))
        return first, second, part
