"""The global branch: a scene made small becomes a canvas of maps, from which every tile cuts what it needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.models.backbones import Encoder
from rsdistill.models.ggn import Guide
from rsdistill.models.pyramid import Laterals, conv_block, raised, top_down

_WIDE = 5
"""Cells of the coarsest map that ``wide`` averages on each side: a fixed window, so that a canvas made in windows stays the same."""

_MIN_CELLS = 2
"""Sides of the coarsest map: a single cell has no batch statistics."""


class Canvas(NamedTuple):
    """What the global branch knows of M context images; lives as long as the scene is being mapped."""

    guidance: tuple[Tensor, ...]
    """Per guided stride s, finest first: (M, 2D, h/s, w/s) gamma and beta; (M, 2D, 1, 1) where guidance is a vector."""
    mask: Tensor
    """(M, D, h/4, w/4) the global mask feature."""
    logits: Tensor
    """(M, K, h/4, w/4) the global branch's own answer."""
    size: tuple[int, int]
    """Height and width of the context images in pixels."""


class GlobalBranch(nn.Module):
    """Laterals, top-down path, guides and mask head of the context, and its encoder unless that is shared with the tiles."""

    def __init__(
        self, encoder: Encoder | None, channels: Sequence[int], dim: int, hidden: int, norm: str, classes: int, guided: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.guided = tuple(guided)
        self.laterals = Laterals(channels, dim)
        self.guides = nn.ModuleList(Guide(dim, hidden) for _ in self.guided)
        self.mask = conv_block(dim, dim, norm)
        self.classifier = nn.Conv2d(dim, classes, 1)

    def forward(self, encoder: Encoder, image: Tensor, valid: Tensor, *, pooled: bool, frozen: bool) -> Canvas:
        """Return the canvas of context images.

        Args:
            encoder: of the context.
            image: (M, C, h, w).
            valid: (M, h, w) bool.
            pooled: average the guidance over the valid context.
            frozen: normalise with the encoder's running statistics and leave them alone.
        """
        size = (image.shape[-2], image.shape[-1])
        image, valid = _padded(image * valid[:, None], valid, encoder.strides[-1])
        with running_statistics(encoder) if frozen else torch.no_grad() if False else _nothing():
            stages = encoder(image)
        pyramid = top_down(self.laterals(stages), encoder.strides, encoder.offsets)
        wide = F.avg_pool2d(pyramid[-1], _WIDE, stride=1, padding=_WIDE // 2, count_include_pad=False)
        guidance = []
        for level, guide in zip(self.guided, self.guides, strict=True):
            maps = pyramid[level]
            spread = raised(wide, encoder.strides, encoder.offsets, len(pyramid) - 1, level, maps.shape[-2:])
            made = guide(torch.cat([maps, spread], dim=1))
            stride = encoder.strides[level]
            guidance.append(_mean_over(made, valid, stride) if pooled else _cut_to(made, size, stride))
        mask = self.mask(pyramid[0])
        logits = self.classifier(mask)
        return Canvas(tuple(guidance), _cut_to(mask, size, encoder.strides[0]), _cut_to(logits, size, encoder.strides[0]), size)
