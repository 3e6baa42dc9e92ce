"""The local branch of GINet, and the network that is that branch alone: what the global branch is to be measured against."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.models.backbones import STRIDES, Encoder
from rsdistill.models.ggn import GlobalGuidedNorm, PlainNorm
from rsdistill.models.network import Network
from rsdistill.models.pyramid import Laterals, conv_block, top_down


class LocalArgs(Config):
    """Options of ``local``."""

    encoder: str = Field("mobilenetv2_100", description="Encoder of each branch: a convolutional network of timm.")
    dim: int = Field(64, ge=4, le=1024, description="Channels D of pyramids and features; 128 for a serious teacher.")
    norm: Literal["bn", "ln"] = Field(
        "bn", description="Norm outside the encoder: BatchNorm, or LayerNorm over each pixel's channels; others make seams between tiles."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of features dropped before the classifier.")


class LocalBranch(nn.Module):
    """Encoder, laterals, norms (guided where they are to be) and top-down path of a tile."""

    def __init__(self, args: LocalArgs, bands: int, classes: int, guided: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder = Encoder(args.encoder, bands)
        self.guided = tuple(stride in guided for stride in STRIDES)
        self.laterals = Laterals(self.encoder.channels, args.dim)
        self.norms = nn.ModuleList((GlobalGuidedNorm if guide else PlainNorm)(args.dim, args.norm) for guide in self.guided)
        self.aux = nn.Sequential(conv_block(args.dim, args.dim, args.norm), nn.Conv2d(args.dim, classes, 1))

    def forward(self, stages: Sequence[Tensor], guidance: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Return the local map (N, D, H/4, W/4) and logits (N, K, H/16, W/16) that have not seen the context.

        Args:
            stages: the encoder's maps.
            guidance: one (N, 2D, …) for each guided stride, finest first.
        """
        laterals = self.laterals(stages)
        given = iter(guidance)
        normed = [
            norm(lateral, next(given)) if guided else norm(lateral)
            for norm, lateral, guided in zip(self.norms, laterals, self.guided, strict=True)
        ]
        return top_down(normed, self.encoder.strides, self.encoder.offsets)[0], self.aux(laterals[2])


class Local(Network):
    """GINet's local branch alone, of the same size: what the global branch is to be measured against."""

    Args = LocalArgs
    args: LocalArgs

    def __init__(self, args: LocalArgs, bands: int, classes: int) -> None:
        super().__init__(args)
        self.local = LocalBranch(args, bands, classes)
        self.head = conv_block(args.dim, args.dim, args.norm)
        self.dropout = nn.Dropout(args.dropout)
        self.classifier = nn.Conv2d(args.dim, classes, 1)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The tile's encoder."""
        return (self.local.encoder,)

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, H/4, W/4), features (B, D, H/4, W/4), the encoder's maps and auxiliary logits (B, K, H/16, W/16)."""
        stages = self.local.encoder(image)
        local, aux = self.local(stages)
        features = self.head(local)
        return Segmentation(self.classifier(self.dropout(features)), features, stages, aux)
