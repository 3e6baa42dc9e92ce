"""What a distillation method is, and the arithmetic that all of them share."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.batches import IGNORE, Batch, Segmentation


class Method(nn.Module, ABC):
    """What goes from teachers to a student: tensors in, named and unweighted loss terms out.

    The training loop owns ``eval()``, ``no_grad()``, devices, autocast and gradient steps. Hyper-parameters are keyword arguments of
    ``__init__``. Modules that depend on the networks' channels (adapters, critics) are made by :meth:`setup`, which the loop calls
    once before it builds optimisers and which the first ``forward`` calls by itself otherwise.
    """

    teachers: ClassVar[int] = 1
    """How many teachers :meth:`forward` takes; 0 for a baseline that needs none."""
    critic: nn.Module | None
    weights: dict[str, float]
    """Weight of every term that :meth:`forward` returns; :meth:`schedule` may change it as training goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = None
        self.weights = {}

    def setup(self, student: Segmentation, *teachers: Segmentation) -> None:
        """Make what depends on the networks' shapes, from one example output each; does nothing the second time."""

    def schedule(self, progress: float) -> None:
        """Set weights for the training step at ``progress`` in [0, 1] of the run."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch that the student sees (teachers always see ``batch``); the next :meth:`forward` gets ``batch`` itself."""
        return batch

    @abstractmethod
    def forward(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the named, unweighted terms of the student's loss; each a finite scalar, 0 where no pixel takes part."""

    def critic_terms(self, batch: Batch, student: Segmentation, *teachers: Segmentation) -> dict[str, Tensor]:
        """Return the terms of the critic's own loss, on detached outputs."""
        return {}


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, K, h, w) maps to ``size`` bilinearly on pixel areas (``align_corners=False``)."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
