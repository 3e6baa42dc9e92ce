"""Structured knowledge distillation (skd): pairs of nodes, and the whole map as a critic sees it.

    L_pairwise = mean over pairs i, j of (a^T_ij − a^S_ij)²,   a_ij = cos(f_i, f_j)
    L_holistic = − mean D(z^S)

f features pooled to nodes, the student's resized to the teacher's; the mean runs over pairs of nodes with a valid
pixel, then over images. D a SAGAN critic on logits z, the student's resized to the teacher's, both 0 on masked pixels;
images without a valid pixel are not shown to it. D's own loss is ``hinge``: mean max(0, 1 − D(z^T)) + mean max(0, 1 +
D(z^S)), or ``wgan-gp``: mean D(z^S) − mean D(z^T) + 10 · penalty.

Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019, arXiv 1903.04197
(and TPAMI 2020).

Differs from the authors' code: the norm in a_ij keeps its gradient (theirs is detached, which leaves a radial part);
nodes come from k × k average pooling as in later work, or with ``half`` from max pooling by half the map as released;
critic weights *and buffers* rest while the student steps.
Choose it when: shapes matter (roads, rivers, buildings) and there is time for a critic; ``skd.holistic=0`` makes it
cheap.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.methods.base import (
    Temperature,
    Weight,
    affinity_distance,
    cover,
    detached,
    full_precision,
    labels_at,
    size_of,
    upsample,
)
from rsdistill.methods.critics import HolisticCritic, gradient_penalty, held, hinge_loss, wasserstein_loss
from rsdistill.methods.kd import Relational

PENALTY = 10.0
"""Weight of WGAN-GP's gradient penalty."""


def average_nodes(features: Tensor, part: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return the sums over patch × patch pixels as (B, D, n), and which nodes hold a valid pixel (B, n); directions need no division."""
    kernel = min(patch, features.shape[2]), min(patch, features.shape[3])
    nodes = F.avg_pool2d(cover(features, part), kernel, ceil_mode=True)
    return nodes.flatten(2), F.max_pool2d(part[:, None].to(features.dtype), kernel, ceil_mode=True).flatten(1) > 0


def half_nodes(features: Tensor, part: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return the maxima over half the map (3 × 3 nodes where a side is odd) as (B, D, n), and which nodes hold a valid pixel (B, n)."""
    kernel = max(1, features.shape[2] // 2), max(1, features.shape[3] // 2)
    kept = F.max_pool2d(part[:, None].to(features.dtype), kernel, ceil_mode=True) > 0
    lowest = torch.finfo(features.dtype).min
    nodes = F.max_pool2d(features.masked_fill(~part[:, None], lowest), kernel, ceil_mode=True)
    return nodes.masked_fill(~kept, 0).flatten(2), kept.flatten(1)


class SKD(Relational):
    """Pairs of nodes, and a critic of the whole map.

    Args:
        pairwise: λ of the pairs; by default 10 with ``average`` nodes and 0.5 with ``half``.
        holistic: λ of the critic's verdict; 0 leaves the critic out.
        nodes: ``average`` over patch × patch cells, or the maximum over ``half`` the map.
        patch: side of an ``average`` node in feature cells.
        adversary: the critic's loss.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    def __init__(
        self,
        *,
        pairwise: Weight | None = None,
        holistic: Weight = 0.1,
        nodes: Literal["average", "half"] = "average",
        patch: Annotated[int, Field(ge=1)] = 2,
        adversary: Literal["hinge", "wgan-gp"] = "hinge",
        kd: Weight = 10.0,
        kd_tau: Temperature = 1.0,
    ) -> None:
        published = {"average": 10.0, "half": 0.5}[nodes]
        super().__init__(kd, kd_tau, pairwise=published if pairwise is None else pairwise, holistic=holistic)
        self.nodes = average_nodes if nodes == "average" else half_nodes
        self.patch, self.adversary = patch, adversary

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the critic."""
        if "holistic" in self.weights and self.critic is None:
            logits = teachers[0].logits
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            self.critic = HolisticCritic(logits.shape[1]).to(logits.device, dtype)

    def pairwise(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_pairwise."""
        size = size_of(teacher.features)
        part = labels_at(batch, size) != IGNORE
        nodes, kept = self.nodes(upsample(student.features, size), part, self.patch)
        return affinity_distance(nodes, self.nodes(teacher.features, part, self.patch)[0], kept)

    def holistic(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_holistic."""
        fake, _ = self._shown(batch, student, teacher)
        with held(self.critic) as critic:
            return -critic(fake).mean() if len(fake) else fake.sum()

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``holistic`` and, for ``wgan-gp``, ``penalty``."""
        if self.critic is None:
            return {}
        fake, real = self._shown(batch, detached(student), detached(teachers[0]))
        if not len(real):
            return {"holistic": real.sum()}
        with full_precision(student):
            scores = self.critic(real), self.critic(fake)
            if self.adversary == "hinge":
                return {"holistic": hinge_loss(*scores)}
            return {"holistic": wasserstein_loss(*scores), "penalty": PENALTY * gradient_penalty(self.critic, real, fake)}

    @staticmethod
    def _shown(batch: Batch, student: Segmentation, teacher: Segmentation) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's logits as the critic sees them: images with a valid pixel, 0 on masked pixels."""
        size = size_of(teacher.logits)
        part = labels_at(batch, size) != IGNORE
        seen = part.flatten(1).any(1)
        return cover(upsample(student.logits, size), part)[seen], cover(teacher.logits, part)[seen]
