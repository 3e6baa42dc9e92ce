"""The GINet-style teacher: a local branch on the tile, guided by a global branch on the scene made small.

GINet here is the *global injection network* of Zhu, Zhang, Han, Chen, Tang, Cheng, Jiao, TGRS 2024 (doi 10.1109/TGRS.2024.3482688), not the
Graph Interaction Network of ECCV 2020. Only its abstract is at hand: two branches trained end to end, global-guided normalisation, local
affinity distillation. Everything else is a choice of ours, so this is GINet-style and reproduces no number of the paper.

Information flows from global to local only. The global branch is therefore run once a scene (:meth:`GINet.encode_context`), and each
tile cuts what it needs out of its maps (:meth:`GINet.decode`).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.models.backbones import STRIDES, Encoder
from rsdistill.models.context import Canvas, GlobalBranch, full_size_logits
from rsdistill.models.local import LocalArgs, LocalBranch
from rsdistill.models.network import Network
from rsdistill.models.pyramid import conv_block
from rsdistill.models.registration import crop
from rsdistill.models.thumbnail import Surroundings, Thumbnail

Stride = Literal[4, 8, 16, 32]


class GINetArgs(LocalArgs):
    """Options of ``ginet``."""

    ggn: Literal["spatial", "vector", "none"] = Field(
        "spatial", description="Guidance by a map of the context, by its mean (one vector a window of the context), or none."
    )
    ggn_strides: tuple[Stride, ...] = Field((4, 8, 16, 32), description="Strides of the local maps that are guided.")
    fusion: bool = Field(True, description="Whether the head also reads the global mask feature at the tile's place.")
    shared_encoder: bool = Field(
        False, description="One encoder for tile and context: half the parameters, and the tiles' batch statistics for both."
    )
    hidden: int = Field(64, ge=4, le=1024, description="Channels between the two convolutions that make the guidance.")
    context_ratio: int = Field(8, ge=1, le=256, description="Scene pixels per context pixel; part of what was learned.")
    thumbnail_from: int = Field(
        0,
        ge=0,
        description="Scenes with a longer side than this are also seen whole, at 1/64 of their size; 16000 is a good value, 0: none.",
    )
    thumbnail_drop: float = Field(0.5, ge=0, le=1, description="Share of contexts that are trained without their scene's thumbnail.")


class GINetLiteArgs(GINetArgs):
    """Options of ``ginet-lite``."""

    encoder: str = Field("mobilenetv4_conv_small_050", description="Encoder of both branches: a convolutional network of timm.")
    ggn_strides: tuple[Stride, ...] = Field((16, 32), description="Strides of the local maps that are guided.")
    fusion: bool = Field(False, description="Whether the head also reads the global mask feature at the tile's place.")
    shared_encoder: bool = Field(True, description="One encoder for tile and context.")


class Branches(NamedTuple):
    """What GINet's training looks at."""

    fused: Segmentation
    """The network's answer for the tile, with the context-free auxiliary logits."""
    local: Segmentation
    """Auxiliary logits of the tile; features: its local map, averaged to k x k cells of the context (N, D, k, k)."""
    global_: Segmentation
    """Logits of the whole context (M, K, h, w) at its full size; features: the global map at the tile's k x k cells (N, D, k, k)."""


class _Place(NamedTuple):
    """Where tiles lie in their contexts; kept on the CPU, whose arithmetic decides what is cut out of the canvas."""

    pixels: Tensor
    """(N, 4) top, left, bottom, right in context pixels."""
    scale: Tensor
    """(N, 2) context pixels per tile pixel, down and across."""
    context: Tensor
    """(N,) the index of each tile's context."""


def _place(image: Tensor, canvas: Canvas, box: Tensor, index: Tensor) -> _Place:
    pixels = box.float().cpu() * torch.tensor([*canvas.size, *canvas.size])
    return _Place(pixels, (pixels[:, 2:] - pixels[:, :2]) / torch.tensor(image.shape[-2:]), index.cpu())


class GINet(Network):
    """Two branches, the local one guided by the global one.

    The encoders are separate by default: at an eighth of the scale the same ground looks different, and two sets of batch statistics do
    not mix well. ``ggn="none"`` and ``fusion=False`` leave a global branch that is trained but not heard, for ablations.
    """

    Args = GINetArgs
    args: GINetArgs
    needs_context = True

    def __init__(self, args: GINetArgs, bands: int, classes: int) -> None:
        super().__init__(args)
        guided = () if args.ggn == "none" else tuple(stride for stride in STRIDES if stride in args.ggn_strides)
        self.guided_levels = tuple(STRIDES.index(stride) for stride in guided)
        self.local = LocalBranch(args, bands, classes, guided)
        own = None if args.shared_encoder else Encoder(args.encoder, bands)
        channels = self.local.encoder.channels
        self.context = GlobalBranch(own, channels, args.dim, args.hidden, args.norm, classes, self.guided_levels)
        far = None if args.shared_encoder or not args.thumbnail_from else Encoder(args.encoder, bands)
        self.thumbnail = Thumbnail(far, channels, args.dim) if args.thumbnail_from else None
        self.head = conv_block(2 * args.dim if args.fusion else args.dim, args.dim, args.norm)
        self.dropout = nn.Dropout(args.dropout)
        self.classifier = nn.Conv2d(args.dim, classes, 1)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The tile's encoder and, unless it is shared, those of the context and of the thumbnail."""
        others = (self.context.encoder, self.thumbnail.encoder if self.thumbnail else None)
        return (self.local.encoder, *(encoder for encoder in others if encoder is not None))

    @property
    def context_ratio(self) -> int:
        """As the base class."""
        return self.args.context_ratio

    @property
    def thumbnail_from(self) -> int:
        """As the base class."""
        return self.args.thumbnail_from

    @property
    def _context_encoder(self) -> Encoder:
        return self.context.encoder or self.local.encoder

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, H/4, W/4), features (B, D, H/4, W/4), the encoder's maps and auxiliary logits (B, K, H/16, W/16).

        Raises:
            ValueError: no context was given.
        """
        return self.decode(image, *self._canvas_of(context))

    def encode_context(self, image: Tensor, valid: Tensor, around: Surroundings | None = None) -> Canvas:
        """Run the global branch.

        Args:
            image: (M, C, h, w) context images of any size, normalised.
            valid: (M, h, w) bool.
            around: from :meth:`surroundings`, where there is a thumbnail to see.

        Returns:
            Maps from which :meth:`decode` cuts what a tile needs.
        """
        far = None
        if around is not None and self.thumbnail is not None:
            size = (image.shape[-2], image.shape[-1])
            far = self.thumbnail.seen_from(around, size, self.thumbnail.encoder or self.local.encoder, self._context_encoder)
        frozen = self._frozen(self.context.encoder, image)
        return self.context(self._context_encoder, image, valid, pooled=self.args.ggn == "vector", frozen=frozen, far=far)

    def surroundings(self, wider: Context) -> Surroundings | None:
        """Look at thumbnails; one without a valid pixel is not shown, and in training others are left out at random.

        Args:
            wider: thumbnails of whole scenes, and where context images lie in them.

        Returns:
            What :meth:`encode_context` takes; None from a network without a second level.
        """
        if self.thumbnail is None:
            return None
        frozen = self._frozen(self.thumbnail.encoder, wider.image)
        features = self.thumbnail(self.thumbnail.encoder or self.local.encoder, wider.image, wider.valid, frozen=frozen)
        shown = wider.valid.flatten(1).any(1)[wider.index].cpu()
        if self.training:
            shown &= torch.rand(len(shown)) >= self.args.thumbnail_drop
        return Surroundings(features, (wider.image.shape[-2], wider.image.shape[-1]), wider.box, wider.index, shown)

    def _frozen(self, encoder: Encoder | None, image: Tensor) -> bool:
        """The tiles' statistics are the encoder's own where it is shared; statistics of a few images would spoil pretrained ones."""
        return self.training and (encoder is None or (self.pretrained and len(image) < 4))

    def canvas_part(self, canvas: Canvas, rows: slice, cols: slice, *, half: bool = False) -> Canvas:
        """Return a copy of the part of ``canvas`` in these context pixels, see :meth:`Canvas.part`."""
        return canvas.part(rows, cols, [STRIDES[level] for level in self.guided_levels], half=half)

    def decode(self, image: Tensor, canvas: Canvas, box: Tensor, index: Tensor) -> Segmentation:
        """Segment tiles.

        Args:
            image: (N, C, H, W) tiles.
            canvas: from :meth:`encode_context`; may be of half precision.
            box: (N, 4) top, left, bottom, right of each tile in [0, 1] of its context image; it may reach beyond.
            index: (N,) which context each tile lies in.
        """
        return self._decode(image, canvas, box, index)[0]

    def training_outputs(self, image: Tensor, context: Context | None) -> Branches:
        """Return the answers of both branches for tiles (N, C, H, W) and their contexts.

        Raises:
            ValueError: no context was given.
        """
        canvas, box, index = self._canvas_of(context)
        fused, local = self._decode(image, canvas, box, index)
        cells = self.affinity_cells((image.shape[-2], image.shape[-1]))
        pooled = F.adaptive_avg_pool2d(local, cells)
        aux = fused.logits if fused.aux is None else fused.aux
        seen = self._cut(canvas.mask, 0, cells, _place(image, canvas, box, index))
        logits = full_size_logits(canvas, self._context_encoder)
        return Branches(fused, Segmentation(aux, pooled), Segmentation(logits, seen))

    def affinity_cells(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Cells k of the global map under a tile of (height, width) pixels: those whose relations local affinity distillation compares."""
        side = STRIDES[0] * self.args.context_ratio
        return max(1, round(tile[0] / side)), max(1, round(tile[1] / side))

    def _canvas_of(self, context: Context | None) -> tuple[Canvas, Tensor, Tensor]:
        if context is None:
            raise ValueError(f"{type(self).__name__} needs the scene's context")
        around = None if context.wider is None else self.surroundings(context.wider)
        return self.encode_context(context.image, context.valid, around), context.box, context.index

    def _decode(self, image: Tensor, canvas: Canvas, box: Tensor, index: Tensor) -> tuple[Segmentation, Tensor]:
        stages = self.local.encoder(image)
        place = _place(image, canvas, box, index)
        guidance = [
            maps[index] if self.args.ggn == "vector" else self._cut(maps, level, (stages[level].shape[-2], stages[level].shape[-1]), place)
            for level, maps in zip(self.guided_levels, canvas.guidance, strict=True)
        ]
        local, aux = self.local(stages, guidance)
        fused = local
        if self.args.fusion:
            seen = self._cut(canvas.mask, 0, (local.shape[-2], local.shape[-1]), place)
            fused = torch.cat([local, seen.to(local.dtype)], dim=1)
        features = self.head(fused)
        return Segmentation(self.classifier(self.dropout(features)), features, stages, aux), local

    def _cut(self, maps: Tensor, level: int, cells: tuple[int, int], place: _Place) -> Tensor:
        """Resample the canvas map of ``level`` at the tiles' cells, (N, channels, *cells), where both encoders really see them."""
        # Both maps' cells lie off their nominal middles, each by its encoder's offset: in context pixels, the difference is the shift.
        shift = self._context_encoder.offsets[level] - self.local.encoder.offsets[level] * place.scale
        return crop(maps, (place.pixels + shift.repeat(1, 2)) / STRIDES[level], place.context, cells)


class GINetLite(GINet):
    """GINet as a student: one light encoder, guided at strides 16 and 32; the context costs it 1 to 3 % more."""

    Args = GINetLiteArgs
