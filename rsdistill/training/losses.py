"""Supervised terms: cross-entropy, Dice and focal loss, all blind to ignored pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

from rsdistill.batches import IGNORE
from rsdistill.training.ranks import mean_over_ranks


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over labelled pixels, 0 where there is none.

    Where several processes share a step, each divides by the mean of their numbers of labelled pixels, so that the mean over processes is
    the mean over all pixels.

    Args:
        logits: (B, K, h, w) at any stride; resized bilinearly to the label.
        label: (B, H, W) int64, IGNORE where unlabelled.
        weight: (K,) weight of each class; the mean is then weighted alike.
    """
    if logits.shape[-2:] != label.shape[-2:]:
        logits = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits.float(), label, weight=weight, ignore_index=IGNORE, reduction="sum")
    known = label[label != IGNORE]
    share = torch.tensor(float(known.numel()), device=total.device) if weight is None else weight[known].sum()
    return total / mean_over_ranks(share).clamp_min(1e-12)


class Supervised(nn.Module):
    """The terms of ``names`` on logits at the label's size."""

    class_weight: Tensor | None

    def __init__(self, names: Sequence[str], class_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.others = nn.ModuleDict()
        if "dice" in names:
            self.others["dice"] = DiceLoss("multiclass", from_logits=True, ignore_index=IGNORE)
        if "focal" in names:
            self.others["focal"] = FocalLoss("multiclass", ignore_index=IGNORE)
        self.names = tuple(names)

    def forward(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return one unweighted scalar a term.

        Args:
            logits: (B, K, h, w).
            label: (B, H, W) int64 or IGNORE; all ignored gives 0.
        """
        terms = {"ce": cross_entropy(logits, label, self.class_weight)} if "ce" in self.names else {}
        if self.others:
            full = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
            known = bool((label != IGNORE).any())
            terms |= {name: loss(full, label) if known else full.sum() * 0 for name, loss in self.others.items()}
        return terms


def balanced_weights(pixels: Sequence[int]) -> Tensor:
    """Return (K,) class weights by inverse square root of their share of pixels, mean 1; a class without pixels gets the largest."""
    share = torch.tensor(pixels, dtype=torch.float32)
    share = share.clamp_min(max(1.0, float(share[share > 0].min()) if bool((share > 0).any()) else 1.0))
    weight = share.rsqrt()
    return weight / weight.mean()
