"""The global branch: a scene made small becomes a canvas of maps, from which every tile cuts what it needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsdistill.models.backbones import Encoder
from rsdistill.models.ggn import Guide
from rsdistill.models.pyramid import Laterals, conv_block, raised, top_down
from rsdistill.models.registration import rise

_WIDE = 5
"""Side in cells of the window of the coarsest map that guides see averaged: fixed, so that a canvas made in windows stays the same."""

_MIN_CELLS = 2
"""Least side of the coarsest map: a single cell has no batch statistics."""


class Canvas(NamedTuple):
    """What the global branch knows of M context images; it lives as long as the scene is being mapped."""

    guidance: tuple[Tensor, ...]
    """Per guided stride s, finest first: (M, 2D, h/s, w/s) gamma and beta; (M, 2D, 1, 1) where the guidance is a vector."""
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
            image: (M, C, h, w) of any size: edges are repeated up to the encoder's stride, and cut off again.
            valid: (M, h, w) bool.
            pooled: average the guidance over the valid context.
            frozen: the encoder normalises with its running statistics and leaves them alone.
        """
        size = (image.shape[-2], image.shape[-1])
        image, valid = _padded(image * valid[:, None], valid, encoder.strides[-1])
        with running_statistics(encoder) if frozen else nullcontext():
            stages = encoder(image)
        pyramid = top_down(self.laterals(stages), encoder.strides, encoder.offsets)
        wide = F.avg_pool2d(pyramid[-1], _WIDE, stride=1, padding=_WIDE // 2, count_include_pad=False)
        guidance = []
        for level, guide in zip(self.guided, self.guides, strict=True):
            maps, stride = pyramid[level], encoder.strides[level]
            spread = raised(wide, encoder.strides, encoder.offsets, len(pyramid) - 1, level, maps.shape[-2:])
            made = guide(torch.cat([maps, spread], dim=1))
            guidance.append(_mean_over(made, valid, stride) if pooled else _cut_to(made, size, stride))
        mask = _cut_to(self.mask(pyramid[0]), size, encoder.strides[0])
        return Canvas(tuple(guidance), mask, self.classifier(mask), size)


def full_size_logits(canvas: Canvas, encoder: Encoder) -> Tensor:
    """Return the canvas's logits (M, K, h, w) up-sampled to the pixels of the context, where the encoder's cells really lie."""
    stride = encoder.strides[0]
    middle = stride / 2 - encoder.offsets[0]
    return rise(canvas.logits, stride, (0.5 - middle) / stride, canvas.size)


@contextmanager
def running_statistics(encoder: nn.Module) -> Iterator[None]:
    """Let the BatchNorms of ``encoder`` use their running statistics, untouched, for the length of the block."""
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _padded(image: Tensor, valid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    down, right = (max(_MIN_CELLS * stride, -(-side // stride) * stride) - side for side in (height, width))
    if not (down or right):
        return image, valid
    return F.pad(image, (0, right, 0, down), mode="replicate"), F.pad(valid, (0, right, 0, down))


def _cut_to(maps: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Drop the cells that lie wholly in the padding."""
    return maps[..., : -(-size[0] // stride), : -(-size[1] // stride)]


def _mean_over(maps: Tensor, valid: Tensor, stride: int) -> Tensor:
    """Return the mean (M, C, 1, 1) of maps over the valid part of each context; 0 where nothing is valid."""
    share = F.avg_pool2d(valid[:, None].to(maps.dtype), stride)
    return (maps * share).sum(dim=(2, 3), keepdim=True) / share.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
