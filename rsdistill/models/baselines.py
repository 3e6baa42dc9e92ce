"""Baselines whose decoders come from segmentation-models-pytorch, read where the last features are instead of after up-sampling."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.models.backbones import smp_network
from rsdistill.models.network import Network


class BaselineArgs(Config):
    """Options of the baselines."""

    encoder: str = Field("mobilenet_v2", description="Encoder: a name of segmentation-models-pytorch or of timm.")


class Baseline(Network):
    """An encoder, and a decoder of segmentation-models-pytorch."""

    Args = BaselineArgs
    args: BaselineArgs
    decoder_class: ClassVar[str]
    decoder_options: ClassVar[dict[str, int]] = {}

    def __init__(self, args: BaselineArgs, bands: int, classes: int) -> None:
        super().__init__(args)
        network = smp_network(self.decoder_class, args.encoder, bands, classes, **self.decoder_options)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.classifier: nn.Conv2d = network.segmentation_head[0]
        self.encoder.name = args.encoder

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The one encoder."""
        return (self.encoder,)

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits and features at stride 4, and the encoder's maps from stride 4 on."""
        maps = self.encoder(image)
        features = self.decoder(maps)
        return Segmentation(self.classifier(features), features, tuple(maps[-4:]))


class FPN(Baseline):
    """Feature pyramid network (Kirillov et al. 2019), its GroupNorm replaced by BatchNorm, which makes no seams between tiles."""

    decoder_class = "FPN"


class DeepLabV3Plus(Baseline):
    """DeepLabV3+ (Chen et al. 2018); its image pooling sees the whole tile, so that overlapping tiles differ a little."""

    decoder_class = "DeepLabV3Plus"
    decoder_options: ClassVar[dict[str, int]] = {"encoder_output_stride": 16}

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """As the base class.

        Raises:
            ConfigError: it is being trained on a batch of one.
        """
        self.refuse_one_tile(image)
        return super().forward(image, context)


class SegFormerArgs(BaselineArgs):
    """Options of ``segformer``."""

    encoder: str = Field("mit_b0", description="Encoder: mit_b0 to mit_b5 are the paper's; or another of the two libraries.")


class SegFormer(Baseline):
    """SegFormer (Xie et al. 2021): its transformer encoder sees the whole tile, so that overlapping tiles differ a little."""

    Args = SegFormerArgs
    decoder_class = "Segformer"
