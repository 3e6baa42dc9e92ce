"""Normalised feature distillation (nfd): features without their magnitude.

    f̂_cp = (f_cp − mean_p f_c) / sd_p f_c        L = mean over images, channels c and valid pixels p of (f̂^S_cp − f̂^T_cp)²

f features (B, D, h, w), the student's brought to the teacher's channels by a 1 × 1 convolution where D differs and
resized to its size; mean and sd of a channel run over the valid pixels of one image. L = 2 (1 − ρ), ρ the correlation
of a channel between the networks: it lies in [0, 4] and does not see a gain or an offset of a channel. A constant
channel has no shape and counts as 0.

Liu, Yang, Chen: Normalized Feature Distillation for Semantic Segmentation, 2022, arXiv 2207.05256.

Differs from the paper: nodata takes no part in mean, sd and L; λ 1 is ours.
Choose it when: as the plain feature baseline; at equal time it is hard to beat.
"""

from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Temperature, Weight, adapter, labels_at, masked_mean, pearson_distance, size_of, upsample
from rsdistill.methods.kd import Relational


def normalised_distance(student: Tensor, teacher: Tensor, part: Tensor) -> Tensor:
    """Return L for two (B, D, h, w) features and the pixels in ``part`` (B, h, w)."""
    pixels = part.flatten(1)
    distance = 2 * pearson_distance(student.flatten(2), teacher.flatten(2), pixels[:, None], dim=2)
    return masked_mean(distance.mean(1), pixels.any(1))


class NFD(Relational):
    """Normalised features.

    Args:
        weight: λ of the term ``features``.
        kd: λ of plain KD beside it.
        kd_tau: temperature of that KD.
    """

    def __init__(self, *, weight: Weight = 1.0, kd: Weight = 1.0, kd_tau: Temperature = 1.0) -> None:
        super().__init__(kd, kd_tau, features=weight)
        self.adapter: nn.Module = nn.Identity()

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the 1 × 1 convolution that the features need."""
        if "features" in self.weights and isinstance(self.adapter, nn.Identity):
            self.adapter = adapter(student.features, teachers[0].features)

    def features(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L."""
        size = size_of(teacher.features)
        return normalised_distance(upsample(self.adapter(student.features), size), teacher.features, labels_at(batch, size) != IGNORE)
