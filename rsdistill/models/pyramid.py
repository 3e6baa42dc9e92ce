"""The top-down pyramid that every branch and student here shares: encoder maps brought to one width and summed from coarse to fine."""

from collections.abc import Sequence

from torch import Tensor, nn

from rsdistill.models.registration import rise


def norm_layer(kind: str, channels: int, *, affine: bool = True) -> nn.Module:
    """Return the norm ``kind``: ``bn`` BatchNorm, or ``ln`` LayerNorm over each pixel's channels; neither makes seams between tiles."""
    return nn.BatchNorm2d(channels, affine=affine) if kind == "bn" else ChannelNorm(channels, affine=affine)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (B, C, H, W)."""

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=affine)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, H, W) for features of that shape."""
        normed: Tensor = self.norm(features.movedim(1, -1))
        return normed.movedim(-1, 1)


def conv_block(inputs: int, outputs: int, norm: str = "bn", kernel: int = 3) -> nn.Sequential:
    """Return convolution, norm, ReLU: (B, inputs, h, w) to (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), norm_layer(norm, outputs), nn.ReLU(inplace=True)
    )


class Laterals(nn.ModuleList):
    """One 1x1 convolution per encoder map, to a common width."""

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__(nn.Conv2d(inputs, dim, 1) for inputs in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps (B, dim, h, w), finest first."""
        return [lateral(features) for lateral, features in zip(self, maps, strict=True)]


def top_down(maps: Sequence[Tensor], strides: Sequence[int], offsets: Sequence[float]) -> list[Tensor]:
    """Add to each map (B, D, h, w) all coarser ones, up-sampled to where their cells really lie; finest first."""
    summed = [maps[-1]]
    for level in range(len(maps) - 2, -1, -1):
        summed.insert(0, maps[level] + raised(summed[0], strides, offsets, level + 1, level, maps[level].shape[-2:]))
    return summed


def raised(coarse: Tensor, strides: Sequence[int], offsets: Sequence[float], source: int, target: int, size: Sequence[int]) -> Tensor:
    """Up-sample the map of level ``source`` to the cells of level ``target``, cut to ``size``."""
    factor = strides[source] // strides[target]
    if factor == 1:
        return coarse
    # Middle of cell 0 from the image's edge is s/2 - offset; the difference is where the fine cell lies among the coarse ones.
    fine, wide = strides[target] / 2 - offsets[target], strides[source] / 2 - offsets[source]
    return rise(coarse, factor, (fine - wide) / strides[source], (size[0], size[1]))
