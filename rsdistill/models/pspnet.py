"""PSPNet-D8 as the distillation papers train it: a dilated ResNet at output stride 8 and pyramid pooling (Zhao et al. 2017)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.models.backbones import Encoder
from rsdistill.models.network import Network
from rsdistill.models.pyramid import conv_block


class PSPNetArgs(Config):
    """Options of ``pspnet``."""

    encoder: str = Field("resnet18", description="Encoder: a ResNet of timm, or another network that timm can dilate.")
    bins: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(
        (1, 2, 3, 6), min_length=1, max_length=16, description="Sides of the pooled grids."
    )
    dim: int | None = Field(
        None, ge=4, le=4096, description="Channels of the features: by default 512 for encoders of 2048 channels and 128 for smaller ones."
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of features dropped before the classifier.")


class PSPNet(Network):
    """Dilated encoder, pyramid pooling, 3x3 bottleneck, classifier; an auxiliary head on the third stage while it trains.

    Pyramid pooling averages over the whole tile: it is here to reproduce published tables, and overlapping tiles differ.
    """

    Args = PSPNetArgs
    args: PSPNetArgs
    stride = 8

    def __init__(self, args: PSPNetArgs, bands: int, classes: int) -> None:
        super().__init__(args)
        self.encoder = Encoder(args.encoder, bands, output_stride=8)
        third, last = self.encoder.channels[-2:]
        dim = args.dim or (512 if last >= 2048 else 128)
        self.pools = nn.ModuleList(conv_block(last, max(1, last // len(args.bins)), kernel=1) for _ in args.bins)
        pooled = sum(max(1, last // len(args.bins)) for _ in args.bins)
        self.bottleneck = conv_block(last + pooled, dim)
        self.dropout = nn.Dropout2d(args.dropout)
        self.classifier = nn.Conv2d(dim, classes, 1)
        self.aux = nn.Sequential(conv_block(third, third // 4), nn.Dropout2d(args.dropout), nn.Conv2d(third // 4, classes, 1))

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The one encoder."""
        return (self.encoder,)

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, H/8, W/8), features (B, dim, H/8, W/8), the encoder's maps and, in training, auxiliary logits.

        Raises:
            ConfigError: it is being trained on a batch of one.
        """
        self.refuse_one_tile(image)
        stages = self.encoder(image)
        last = stages[-1]
        size = (last.shape[-2], last.shape[-1])
        pooled = [
            F.interpolate(block(F.adaptive_avg_pool2d(last, side)), size=size, mode="bilinear", align_corners=False)
            for side, block in zip(self.args.bins, self.pools, strict=True)
        ]
        features = self.bottleneck(torch.cat([last, *pooled], dim=1))
        aux = self.aux(stages[-2]) if self.training else None
        return Segmentation(self.classifier(self.dropout(features)), features, stages, aux)
