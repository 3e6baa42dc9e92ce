"""Multi-granularity semantic alignment distillation (mgsad): pixels within a class, and neighbours' affinities as a critic sees them.

    L_variation = mean over valid p of d² + mean over valid p of |d|,        d_p = M^S_p − M^T_p (see ifvd)
    q_ij = p_i p_j,   a_ij = q log(q / p_i) + (1 − q) log((1 − q) / (1 − p_i))   for each class and each of the 8 neighbours j of pixel i
    L_affinity = (1 − step / steps) · BCE(D(a^S), 0)

p softmax of the logits (B, K, H, W); replicated border; q, p, 1 − q and 1 − p clamped to [1e-4, 1];
a is (B, 8K, H, W), 0 where i or j is masked; images without a valid pixel are not shown to the critic D (five 4 × 4
convolutions of stride 2: tiles of at least 32 pixels). D's own loss is ½ BCE(D(a^T), 0) + ½ BCE(D(a^S), 1).

Zhang et al.: Multi-granularity semantic alignment distillation learning for remote sensing image semantic segmentation,
Frontiers of Computer Science 2022, 10.1007/s11704-022-1505-y.

Differs from the authors' code: its pixel-wise term takes the softmax after ``view(-1, K)`` without a permute, which
mixes neighbouring pixels of one channel; here it is kd. How the paper weighs its parts against each other is uncertain:
λ 10, 200 and 0.1 are the released ones.
The critic sees the logits' own grid instead of the tile's (``scale = 1``), which is interpolated and 16 times dearer at stride 4.
Choose it when: boundaries between land-cover classes matter and a step may cost twice as much; ``mgsad.affinity=0``
drops the critic.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rsdistill.batches import IGNORE, Batch, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.methods.base import Temperature, Weight, cover, detached, full_precision, labels_at, masked_mean, size_of, upsample
from rsdistill.methods.critics import AffinityCritic, bce, held
from rsdistill.methods.ifvd import variation_gap
from rsdistill.methods.kd import Relational

FLOOR = 1e-4
"""Least probability inside a logarithm."""
LEAST_SIDE = 32
"""Least side of a map that five halvings leave a cell of."""
NEIGHBOURS = tuple((row, col) for row in (0, 1, 2) for col in (0, 1, 2) if (row, col) != (1, 1))


def affinities(logits: Tensor, part: Tensor) -> Tensor:
    """Return a, (B, 8K, H, W) grouped by neighbour, for (B, K, H, W) logits and the pixels in ``part`` (B, H, W)."""
    height, width = part.shape[1:]
    p = cover(logits, part).softmax(1)
    log_p, log_rest = p.clamp(FLOOR, 1).log(), (1 - p).clamp(FLOOR, 1).log()
    around = F.pad(p, (1, 1, 1, 1), mode="replicate")
    kept = F.pad(part[:, None].to(p.dtype), (1, 1, 1, 1), mode="replicate") > 0

    def towards(row: int, col: int) -> Tensor:
        window = (..., slice(row, row + height), slice(col, col + width))
        product = p * around[window]
        q, rest = product.clamp(FLOOR, 1), (1 - product).clamp(FLOOR, 1)
        return (q * (q.log() - log_p) + rest * (rest.log() - log_rest)).masked_fill(~(part[:, None] & kept[window]), 0)

    return torch.cat([towards(row, col) for row, col in NEIGHBOURS], 1)


class MGSAD(Relational):
    """Variation within classes, and a critic of neighbours' affinities.

    Args:
        variation: λ of the variation within classes.
        affinity: λ of the critic's verdict, which fades to 0 over the run; 0 leaves the critic out.
        scale: the critic sees maps of 1/scale of the tile (1 in the paper); by default the teacher's logits as they are, or 32 pixels.
        kd: λ of plain KD beside them.
        kd_tau: temperature of that KD.
    """

    logits_suffice = True

    def __init__(
        self,
        *,
        variation: Weight = 200.0,
        affinity: Weight = 0.1,
        scale: Annotated[int, Field(ge=1)] | None = None,
        kd: Weight = 10.0,
        kd_tau: Temperature = 1.0,
    ) -> None:
        super().__init__(kd, kd_tau, variation=variation, affinity=affinity)
        self.scale = scale
        self.fade = 1.0

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make the critic."""
        if "affinity" in self.weights and self.critic is None:
            logits = teachers[0].logits
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            self.critic = AffinityCritic(8 * logits.shape[1]).to(logits.device, dtype)

    def schedule(self, progress: float) -> None:
        """Let the critic's verdict fade to 0 over the run."""
        self.fade = 1 - progress

    def variation(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_variation."""
        gap, part = variation_gap(batch, student, teacher)
        return masked_mean(gap.square() + gap.abs(), part)

    def affinity(self, batch: Batch, student: Segmentation, teacher: Segmentation) -> Tensor:
        """Return L_affinity.

        Raises:
            ConfigError: the map is too small for the critic.
        """
        maps = self._shown(batch, student, self._grid(batch, teacher))
        with held(self.critic) as critic:
            return self.fade * bce(critic(maps), 0.0) if len(maps) else maps.sum()

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return ``affinity``."""
        if self.critic is None:
            return {}
        with full_precision(student):
            size = self._grid(batch, teachers[0])
            fake, real = (self._shown(batch, detached(outputs), size) for outputs in (student, teachers[0]))
            if not len(real):
                return {"affinity": real.sum()}
            return {"affinity": (bce(self.critic(real), 0.0) + bce(self.critic(fake), 1.0)) / 2}

    def _grid(self, batch: Batch, teacher: Segmentation) -> tuple[int, int]:
        """Return the size of the maps that the critic sees."""
        tile = size_of(batch.label)
        if self.scale is not None:
            size = tile[0] // self.scale, tile[1] // self.scale
        else:
            height, width = (max(side, min(whole, LEAST_SIDE)) for side, whole in zip(size_of(teacher.logits), tile, strict=True))
            size = height, width
        if min(size) < LEAST_SIDE:
            problem = f"mgsad's critic needs maps of at least {LEAST_SIDE} pixels, not {size[0]} x {size[1]}"
            raise ConfigError(problem, hint="larger tiles, or mgsad.affinity=0")
        return size

    @staticmethod
    def _shown(batch: Batch, outputs: Segmentation, size: tuple[int, int]) -> Tensor:
        """Return the affinities that the critic sees at ``size``, of the images with a valid pixel."""
        part = labels_at(batch, size) != IGNORE
        seen = part.flatten(1).any(1)
        return affinities(upsample(outputs.logits, size)[seen], part[seen])
