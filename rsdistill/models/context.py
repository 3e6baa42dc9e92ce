"""The global branch: a scene made small becomes a canvas of maps, from which every tile cuts what it needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsdistill.models.backbones import STRIDES, Encoder
from rsdistill.models.ggn import Guide
from rsdistill.models.pyramid import Laterals, conv_block, raised, top_down
from rsdistill.models.registration import rise

_WIDE = 5
"""Side in cells of the window of the coarsest map that guides see averaged: fixed, so that a canvas made in windows stays the same."""

_FINEST = STRIDES[0]
"""Stride of the mask."""
_HALF = 65504.0
"""Largest number of half precision."""

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

    def part(self, rows: slice, cols: slice, strides: Sequence[int], *, half: bool = False) -> "Canvas":
        """Return a copy of the context pixels in ``rows`` and ``cols``, without logits, which no tile reads.

        Args:
            rows: begins on a cell of the coarsest map, and ends on one or with the canvas.
            cols: likewise.
            strides: of each map of :attr:`guidance`; of vectors they do not matter.
            half: keep maps of single precision in half precision.
        """

        def cut(maps: Tensor, stride: int) -> Tensor:
            part = maps if maps.shape[-2:] == (1, 1) else maps[..., _cells(rows, stride), _cells(cols, stride)]
            narrow = half and part.dtype == torch.float32
            return part.clamp(-_HALF, _HALF).half() if narrow else part.clone()

        guidance = tuple(cut(maps, stride) for maps, stride in zip(self.guidance, strides, strict=True))
        mask = cut(self.mask, _FINEST)
        return Canvas(guidance, mask, self.logits[:, :0, :0, :0], (rows.stop - rows.start, cols.stop - cols.start))

    def to(self, device: torch.device) -> "Canvas":
        """Return the canvas on ``device``."""
        return Canvas(tuple(maps.to(device) for maps in self.guidance), self.mask.to(device), self.logits.to(device), self.size)


def _cells(pixels: slice, stride: int) -> slice:
    return slice(pixels.start // stride, -(-pixels.stop // stride))


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

    def forward(self, encoder: Encoder, image: Tensor, valid: Tensor, *, pooled: bool, frozen: bool, far: Tensor | None = None) -> Canvas:
        """Return the canvas of context images.

        Args:
            encoder: of the context.
            image: (M, C, h, w) of any size: edges are repeated up to the encoder's stride, and cut off again.
            valid: (M, h, w) bool.
            pooled: average the guidance over the valid context.
            frozen: the encoder normalises with its running statistics and leaves them alone.
            far: (M, D, …) what lies beyond the context, added to its coarsest map.
        """
        size = (image.shape[-2], image.shape[-1])
        image, valid = to_stride(image * valid[:, None], valid, encoder.strides[-1])
        with running_statistics(encoder) if frozen else nullcontext():
            stages = encoder(image)
        laterals = self.laterals(stages)
        if far is not None:
            laterals[-1] = laterals[-1] + far
        pyramid = top_down(laterals, encoder.strides, encoder.offsets)
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


def padded_side(side: int, stride: int) -> int:
    """Return the side that an encoder of ``stride`` sees of an image of ``side`` pixels."""
    return max(_MIN_CELLS * stride, -(-side // stride) * stride)


def to_stride(image: Tensor, valid: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return images (M, C, h, w) with their edges repeated up to :func:`padded_side`, and their validity (M, h, w), False there."""
    down, right = (padded_side(side, stride) - side for side in image.shape[-2:])
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
