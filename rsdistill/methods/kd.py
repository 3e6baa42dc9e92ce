"""Knowledge distillation (kd): the student matches the teacher's class probabilities, pixel by pixel.

    L = τ² · mean over valid p of  w_p Σ_k q^T_pk log(q^T_pk / q^S_pk),    q = softmax over classes of z / τ

z logits (B, K, h, w), the student's resized to the teacher's; w_p = 1, or 1 − JS(teacher, its auxiliary head) with
``js``, the Jensen-Shannon divergence in bits, which lies in [0, 1]. The mean runs over the valid pixels of the batch,
so λ depends neither on the batch size nor on K. Gradient at a valid pixel: τ (q^S − q^T) / (valid pixels), which sums
to 0 over the classes.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.

Differs from published code: segmentation repositories use four reductions under this name (per pixel, per element = 1/K
of it, summed over the batch = B times it, 'batchmean' = P times it), and none leaves nodata out.
Choose it when: always first. It costs least, needs logits only (a teacher's cached logits will do), and few methods
beat it at equal time.
"""

from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.methods.base import Method, Temperature, Weight, cover, labels_at, masked_mean, nearest_pixels, size_of, upsample


def pixel_divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return τ² KL(teacher ‖ student) a pixel, (B, h, w), from two (B, K, h, w) maps of logits."""
    log_student, log_teacher = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
    return tau**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def distillation(student: Tensor, teacher: Tensor, part: Tensor, tau: float, trust: Tensor | None = None) -> Tensor:
    """Return L for student logits of any size, teacher logits (B, K, h, w), the pixels in ``part`` and their ``trust``, both (B, h, w)."""
    divergence = pixel_divergence(cover(upsample(student, size_of(teacher)), part), cover(teacher, part), tau)
    return masked_mean(divergence if trust is None else divergence * trust, part)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in bits, (B, h, w) in [0, 1], between the classes of two (B, K, h, w) maps of logits."""
    logs = torch.stack([first.log_softmax(1), second.log_softmax(1)])
    middle = logs.logsumexp(0) - log(2)
    return (logs.exp() * (logs - middle)).sum(2).mean(0).clamp(min=0) / log(2)


class KD(Method):
    """Pixel-wise distillation of logits.

    Args:
        weight: λ of the term ``kd``.
        tau: temperature; 4 is the usual second try.
        js: trust the teacher less where its auxiliary head disagrees: there it saw what lies outside the tile, which the student cannot.
        where: ``labelled`` pixels, or all ``valid`` ones, which lets unlabelled tiles teach.
    """

    def __init__(
        self, *, weight: Weight = 1.0, tau: Temperature = 1.0, js: bool = False, where: Literal["labelled", "valid"] = "labelled"
    ) -> None:
        super().__init__(kd=weight)
        self.tau, self.js, self.where = tau, js, where
        self.semi_supervised = where == "valid"
        self.logits_suffice = not js

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``kd``.

        Raises:
            ConfigError: ``js`` with a teacher that has no auxiliary head.
        """
        if "kd" not in self.weights:
            return {}
        (teacher,) = teachers
        size = size_of(teacher.logits)
        part = labels_at(batch, size) != IGNORE if self.where == "labelled" else nearest_pixels(batch.valid, size)
        trust = self._trust(teacher, part) if self.js else None
        return {"kd": distillation(student.logits, teacher.logits, part, self.tau, trust)}

    def _trust(self, teacher: Segmentation, part: Tensor) -> Tensor:
        if teacher.aux is None:
            raise ConfigError("kd.js compares the teacher with its auxiliary head, and this teacher has none", hint="leave kd.js out")
        aux = upsample(teacher.aux, size_of(teacher.logits))
        return 1 - disagreement(cover(teacher.logits, part), cover(aux, part))


class Relational(Method):
    """A method of terms that stand beside plain KD: alone, relations fix logits only up to what they do not see, and students get worse.

    Every term in ``weights`` is a method of that name: ``(batch, student, teacher) -> scalar``.

    Args:
        kd: λ of the term ``kd``; 0 leaves it out.
        kd_tau: temperature of that term.
        weights: λ of the method's own terms.
    """

    def __init__(self, kd: float, kd_tau: float, **weights: float) -> None:
        super().__init__(kd=kd, **weights)
        self.kd_tau = kd_tau

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        (teacher,) = teachers
        return {term: getattr(self, term)(batch, student, teacher) for term in self.weights}

    def kd(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return the mean divergence over the labelled pixels."""
        return distillation(student.logits, teacher.logits, labels_at(batch, size_of(teacher.logits)) != IGNORE, self.kd_tau)
