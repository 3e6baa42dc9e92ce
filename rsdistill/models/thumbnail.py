"""The second level of context: a thumbnail of the whole scene, read onto the coarsest map of the context.

A context window of 512 pixels shows 4096 pixels of the scene, and its global branch sees no further. In a larger scene the thumbnail, at
an eighth of the context's scale again, shows the rest. One cell of its map at stride 4 covers as much ground as one of the context's at
stride 32, and that is where it is added, before the context's top-down path. The weights that add it begin at zero, and in training it is
left out at random: a network with a thumbnail works without one.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsdistill.models.backbones import Encoder
from rsdistill.models.context import padded_side, running_statistics, to_stride
from rsdistill.models.pyramid import Laterals, top_down
from rsdistill.models.registration import crop


class Surroundings(NamedTuple):
    """What the thumbnail's encoder knows of the scenes around M context images."""

    features: Tensor
    """(T, D, h/4, w/4) of T thumbnails."""
    size: tuple[int, int]
    """Height and width of the thumbnails in pixels."""
    box: Tensor
    """(M, 4) top, left, bottom, right of each context image in [0, 1] of its thumbnail."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    """(M,) int64: which thumbnail each context image lies in."""
    shown: Tensor
    """(M,) bool: False leaves the thumbnail of a context image out."""


class Thumbnail(nn.Module):
    """Encoder, laterals and top-down path of thumbnails, and the convolution that adds them to the context."""

    def __init__(self, encoder: Encoder | None, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.laterals = Laterals(channels, dim)
        self.added = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.added.weight)
        if self.added.bias is not None:
            nn.init.zeros_(self.added.bias)

    def forward(self, encoder: Encoder, image: Tensor, valid: Tensor, *, frozen: bool) -> Tensor:
        """Return features (T, D, h/4, w/4) of thumbnails (T, C, h, w) of any size, valid (T, h, w).

        With ``frozen``, the encoder normalises with its running statistics and leaves them alone.
        """
        image, _ = to_stride(image * valid[:, None], valid, encoder.strides[-1])
        with running_statistics(encoder) if frozen else nullcontext():
            stages = encoder(image)
        features: Tensor = self.added(top_down(self.laterals(stages), encoder.strides, encoder.offsets)[0])
        return features

    def seen_from(self, around: Surroundings, context: tuple[int, int], own: Encoder, theirs: Encoder) -> Tensor:
        """Return what is added to the coarsest map (M, D, …) of context images of (height, width), 0 where nothing is shown.

        Args:
            around: from :meth:`forward`.
            context: size of the context images in pixels.
            own: encoder of the thumbnails.
            theirs: encoder of the context.
        """
        coarsest, stride = theirs.strides[-1], own.strides[0]
        box = around.box.float().cpu() * torch.tensor([*around.size, *around.size])
        scale = (box[:, 2:] - box[:, :2]) / torch.tensor(context)
        sides = [padded_side(side, coarsest) for side in context]
        # The box of all cells, of those in the padding too; cells lie off their nominal middles as in every other crop.
        box = torch.cat([box[:, :2], box[:, :2] + scale * torch.tensor(sides)], dim=1)
        shift = own.offsets[0] - theirs.offsets[-1] * scale
        cut = crop(around.features, (box + shift.repeat(1, 2)) / stride, around.index.cpu(), (sides[0] // coarsest, sides[1] // coarsest))
        return cut * around.shown.to(cut)[:, None, None, None]
