"""Channel-wise distillation (cwd): where in the image each channel looks.

    φ(x)_{c,p} = softmax over p of x_{c,p} / τ        L = τ² · mean over images b, channels c of Σ_p φ^T_cp log(φ^T_cp / φ^S_cp)

x logits (B, K, h, w) or features (B, D, h, w), the student's resized to the teacher's and, where D differs, brought to
its channels by a 1 × 1 convolution; C counts the matched channels. Masked pixels leave both softmaxes. Images without a
valid pixel leave the mean.

Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, arXiv 2011.13256.

Differs from the authors' code: nodata is left out of the softmax; the adapter is left out where channels agree, so that
L is 0 for equal networks.
Choose it when: a few salient objects matter (buildings, ships, roads): each channel's softmax weighs the pixels where
it fires, not the ground.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Temperature, Weight, adapter, labels_at, masked_mean, size_of, upsample
from rsdistill.methods.kd import Relational


def channel_divergence(student: Tensor, teacher: Tensor, part: Tensor, tau: float) -> Tensor:
    """Return L for two (B, C, h, w) maps and the pixels in ``part`` (B, h, w)."""
    pixels = part.flatten(1)[:, None]
    never = torch.finfo(student.dtype).min / 2  # −∞ in effect; an image of −∞ alone would have no softmax
    log_student, log_teacher = (torch.where(pixels, maps.flatten(2) / tau, never).log_softmax(2) for maps in (student, teacher))
    divergence = tau**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(2).mean(1)
    return masked_mean(divergence, pixels.any(2)[:, 0])


class CWD(Relational):
    """Channel-wise distillation of logits and of features.

    Args:
        logits: λ of the term on logits.
        features: λ of the term on features.
        tau: temperature of both.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    def __init__(
        self, *, logits: Weight = 3.0, features: Weight = 50.0, tau: Temperature = 4.0, kd: Weight = 1.0, kd_tau: Temperature = 1.0
    ) -> None:
        super().__init__(kd, kd_tau, logits=logits, features=features)
        self.tau = tau
        self.adapter: nn.Module = nn.Identity()
        self.logits_suffice = "features" not in self.weights

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the 1 × 1 convolution that the features need."""
        if "features" in self.weights and isinstance(self.adapter, nn.Identity):
            self.adapter = adapter(student.features, teachers[0].features)

    def logits(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L on logits."""
        return self._divergence(batch, student.logits, teacher.logits)

    def features(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L on features."""
        return self._divergence(batch, self.adapter(student.features), teacher.features)

    def _divergence(self, batch: Batch, student: Tensor, teacher: Tensor) -> Tensor:
        size = size_of(teacher)
        return channel_divergence(upsample(student, size), teacher, labels_at(batch, size) != IGNORE, self.tau)
