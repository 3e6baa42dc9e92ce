"""Local affinity distillation (lad): inside a GINet teacher, the global branch learns how pixels of a tile relate from the local branch.

    ``mse``: L = mean over i, j of (A^g_ij − A^l_ij)²,   A_ij = cos(f_i, f_j)
    ``kl``:  L = mean over i of Σ_j P^l_ij log(P^l_ij / P^g_ij),   P = softmax over j of A / τ

f features on the k × k cells of one tile, k = tile / (4 r): those of the global branch are cropped from its mask
feature, those of the local branch pooled; the means run over cells that take part and then over tiles. The student is
the global branch, the teacher the local one, whose gradient is cut: L trains the global branch only. It does not see a
rotation or a gain of the channels, so their numbers may differ.

Zhu, Zhang, Han, Chen, Tang, Cheng, Jiao: GINet (global injection network), TGRS 2024, 10.1109/TGRS.2024.3482688. (Not
Label-Assisted Distillation.)

Derived: the abstract says that relations inside local features are distilled into global ones, patch by patch; cosine
affinity, k and both losses are ours.
Choose it when: training a teacher with context; it is a term of ``train-teacher``, not a ``--method``.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import Method, Temperature, Weight, affinity_distance, labels_at, masked_mean, size_of, unit, upsample

WARM_UP = 0.1
"""Share of the run over which the term grows to its weight."""
LEAST_CELLS = 4
"""Below this side, a tile has too few cells in the context for relations to mean much."""


def affinity_divergence(student: Tensor, teacher: Tensor, part: Tensor, tau: float) -> Tensor:
    """Return the ``kl`` form for (B, D', P) and (B, D, P) columns and the cells in ``part`` (B, P)."""
    outside = ~part[:, None, :]

    def log_rows(columns: Tensor) -> Tensor:
        columns = unit(columns.masked_fill(outside, 0), 1)
        return (columns.mT @ columns / tau).masked_fill(outside, torch.finfo(columns.dtype).min / 2).log_softmax(2)

    divergence = F.kl_div(log_rows(student), log_rows(teacher), reduction="none", log_target=True).masked_fill(outside, 0).sum(2)
    return masked_mean(divergence.masked_fill(~part, 0).sum(1) / part.sum(1).clamp(min=1), part.any(1))


class LAD(Method):
    """Local affinity distillation.

    Args:
        weight: λ of the term ``lad``, reached after a linear warm-up over the first tenth of the run.
        mode: distance between affinities (``mse``), divergence of their softmax (``kl``), or ``none``.
        tau: temperature of ``kl``.
    """

    def __init__(self, *, weight: Weight = 1.0, mode: Literal["mse", "kl", "none"] = "mse", tau: Temperature = 0.1) -> None:
        super().__init__(lad=0.0 if mode == "none" else weight)
        self.mode, self.tau = mode, tau
        self.warmth = 1.0

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Note where a tile has too few cells."""
        cells = min(size_of(student.features))
        note = f"lad compares {cells} x {cells} cells a tile, too few for relations to mean much: larger tiles, or a smaller context ratio"
        if "lad" in self.weights and cells < LEAST_CELLS and note not in self.notes:
            self.notes.append(note)

    def schedule(self, progress: float) -> None:
        """Let the term grow over the first tenth of the run."""
        self.warmth = min(1.0, progress / WARM_UP)

    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``lad`` for the global branch as student and the local branch as teacher, on the same cells of the same tiles."""
        if "lad" not in self.weights:
            return {}
        teacher = teachers[0].features
        features = upsample(student.features, size_of(teacher))
        part = labels_at(batch, size_of(teacher)) != IGNORE
        columns = features.flatten(2), teacher.flatten(2), part.flatten(1)
        distance = affinity_distance(*columns) if self.mode == "mse" else affinity_divergence(*columns, self.tau)
        return {"lad": self.warmth * distance}
