"""Registration of feature maps: where an encoder's cells lie on its image, and resampling that respects it.

A map at stride s need not have its cells in the middle of s x s pixels. Cell i of a network of padded convolutions is centred on pixel
s·i, that of a patchify network (ConvNeXt) on s·i + (s-1)/2, and TensorFlow's padding puts it on s·i + s-1. Treating one as the other
moves a context at an eighth of the scale by up to 108 pixels of the scene. So the *offset* of each map is measured: how far, in pixels
of the image, the nominal middle of a cell lies to the right of the middle of what the cell sees, o = s/2 - c, where c is the distance of
that middle from the image's left edge for cell 0. Encoders treat both axes alike.
"""

import copy
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PROBE_WIDTH = 1024
_PROBE_HEIGHT = 32

_THROUGH = re.compile(r"Squeeze|^SE|EffectiveSE|Attention|GlobalContext|GlobalResponse|DropPath|Dropout")
"""Modules whose effect is not local: the probe goes around them whole."""
_POINTWISE = re.compile(r"Norm|ReLU|ELU|Swish|SiLU|Mish|Sigmoid|Tanh")
"""Modules that act on each pixel: the probe goes around them where they hold no convolution."""


def cell_offsets(encoder: nn.Module, strides: tuple[int, ...]) -> tuple[float, ...]:
    """Measure the offset in pixels of each map that ``encoder`` makes, finest first.

    A copy of the encoder is made linear and all its kernels flat, so that the gradient of one cell with respect to a long strip of image
    is that cell's receptive field, whose centroid is its middle. The result is rounded to 0.01 pixel.

    Args:
        encoder: takes (1, C, H, W) and returns one map per stride.
        strides: of the maps, in pixels.

    Raises:
        RuntimeError: no map answers to the image.
    """
    probe = _linearised(encoder)
    channels = next(p.shape[1] for p in probe.parameters() if p.ndim == 4)
    strip = torch.ones(1, channels, _PROBE_HEIGHT, _PROBE_WIDTH, requires_grad=True)
    columns = torch.arange(_PROBE_WIDTH) + 0.5
    offsets = []
    for level, stride in zip(probe(strip), strides, strict=True):
        cell = _PROBE_WIDTH // (2 * stride)
        (gradient,) = torch.autograd.grad(level[0, :, :, cell].mean(), strip, retain_graph=True)
        weight = gradient.abs().double().sum(dim=(0, 1, 2))
        if not weight.sum() > 0:
            raise RuntimeError(f"the map at stride {stride} does not answer to the image")
        centre = float((weight * columns).sum() / weight.sum())
        offsets.append(round(stride * (cell + 0.5) - centre, 2) + 0.0)
    return tuple(offsets)


def _linearised(encoder: nn.Module) -> nn.Module:
    """Return a copy of ``encoder`` in which every kernel is flat and positive and nothing but convolutions and pooling is left."""
    probe = copy.deepcopy(encoder).float().cpu().eval()
    for parent in list(probe.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            holds_kernels = any(p.ndim == 4 for p in child.parameters())
            if _THROUGH.search(kind) or (_POINTWISE.search(kind) and not holds_kernels):
                setattr(parent, name, _Through())
            elif isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode, count_include_pad=False)
                setattr(parent, name, pool)
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            flat = 1.0 if parameter.ndim < 2 else parameter.shape[0] / parameter.numel()
            parameter.fill_(0.0 if name.endswith("bias") else flat)
    return probe


class _Through(nn.Module):
    """Returns its first argument."""

    def forward(self, features: Tensor, *_: object, **__: object) -> Tensor:
        return features


def rise(coarse: Tensor, factor: int, offset: float, size: tuple[int, int]) -> Tensor:
    """Up-sample (B, C, h, w) bilinearly by an integer ``factor``, repeating the edges, and cut the result to ``size``.

    Args:
        coarse: the map.
        factor: fine cells per coarse cell.
        offset: where fine cell 0 lies, in coarse cells from coarse cell 0; in (-1, 0].
        size: (height, width) of the result, at most ``factor`` times that of ``coarse``.
    """
    for dim, length in zip((2, 3), size, strict=True):
        cells = coarse.shape[dim]
        padded = F.pad(coarse, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0), mode="replicate")
        phases = []
        for phase in range(factor):
            at = phase / factor + offset
            first = 1 + math.floor(at)
            near = padded.narrow(dim, first, cells)
            weight = at - math.floor(at)
            phases.append(torch.lerp(near, padded.narrow(dim, first + 1, cells), weight) if weight else near)
        coarse = torch.stack(phases, dim=dim + 1).flatten(dim, dim + 1).narrow(dim, 0, length)
    return coarse


def crop(maps: Tensor, box: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes out of maps and resample them bilinearly, in float32; beyond a map's edge its last cells are repeated.

    It is what ``roi_align(aligned=True, sampling_ratio=1)`` gives inside the map and ``grid_sample(padding_mode="border")`` everywhere.
    As samples lie on a grid, it is two small matrix products, several times faster than either, and with a deterministic gradient.

    Args:
        maps: (M, C, h, w) of any precision.
        box: (N, 4) top, left, bottom, right in cells of the maps, counted from the outer edge of cell 0; need not be whole numbers.
        index: (N,) which map each box lies in.
        size: (height, width) of the result in samples; sample x of a box of width b lies in the middle of the x-th of ``width`` parts.

    Returns:
        (N, C, height, width) float32, channels last.
    """
    with torch.autocast(maps.device.type, enabled=False):
        box = box.float()
        if torch.compiler.is_compiling():  # a graph cannot slice at places that it does not know
            part = maps[index].float()
        else:
            part, box = _needed(maps, box, index)
        count, channels, height, width = part.shape
        rows = _hats(box[:, 0], box[:, 2], size[0], height).to(part.device)
        cols = _hats(box[:, 1], box[:, 3], size[1], width).to(part.device)
        # Channels last: the layout of the networks that read it, and mixing layouts costs more than the products.
        tall = rows @ part.permute(0, 2, 3, 1).reshape(count, height, width * channels)
        return (cols[:, None] @ tall.view(count, size[0], width, channels)).permute(0, 3, 1, 2)


def _needed(maps: Tensor, box: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells (N, C, eh, ew) that each box is made from, as float32, and the boxes in them.

    A canvas may be a thousand times larger than a tile's share of it, so only the shares are copied and widened.
    """
    limit = box.new_tensor(maps.shape[-2:])
    low, high = (box[:, :2] - 0.5).floor(), (box[:, 2:] + 0.5).ceil()
    extent = (high - low).amax(0).minimum(limit)
    start = low.clamp(min=0).minimum(limit - extent)
    height, width = (int(side) for side in extent.tolist())
    places = zip(index.tolist(), start.long().tolist(), strict=True)
    part = torch.stack([maps[m, :, row : row + height, col : col + width] for m, (row, col) in places])
    return part.float(), box - start.repeat(1, 2)


def _hats(low: Tensor, high: Tensor, samples: int, cells: int) -> Tensor:
    """Return (N, samples, cells) weights of linear interpolation at the middles of ``samples`` parts from ``low`` (N,) to ``high``."""
    middle = (torch.arange(samples, device=low.device) + 0.5) / samples
    at = (low[:, None] + middle * (high - low)[:, None] - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, :, None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
