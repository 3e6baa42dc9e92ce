"""Students: small networks for scenes, one dial from tiny to base.

A student is a light encoder without squeeze-excite or any pooling over the tile (so that overlapping tiles agree), and a narrow top-down
pyramid whose finest map, at stride 4, is classified. Any other convolutional network of timm can take the encoder's place.
"""

from pydantic import Field
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.models.backbones import Encoder
from rsdistill.models.network import Network
from rsdistill.models.pyramid import Laterals, conv_block, top_down


class StudentArgs(Config):
    """Options of the pyramid students."""

    encoder: str = Field("mobilenetv4_conv_small_050", description="Encoder: a convolutional network of timm.")
    dim: int = Field(32, ge=4, le=1024, description="Channels of the pyramid and of the features.")


class Student(Network):
    """A light encoder and a narrow pyramid, read at stride 4: :class:`Tiny`, :class:`Small` and :class:`Base` with other defaults."""

    Args = StudentArgs
    args: StudentArgs

    def __init__(self, args: StudentArgs, bands: int, classes: int) -> None:
        super().__init__(args)
        self.encoder = Encoder(args.encoder, bands)
        self.laterals = Laterals(self.encoder.channels, args.dim)
        self.head = conv_block(args.dim, args.dim)
        self.classifier = nn.Conv2d(args.dim, classes, 1)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The one encoder."""
        return (self.encoder,)

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, H/4, W/4), features (B, dim, H/4, W/4) and the encoder's four maps."""
        stages = self.encoder(image)
        pyramid = top_down(self.laterals(stages), self.encoder.strides, self.encoder.offsets)
        features = self.head(pyramid[0])
        return Segmentation(self.classifier(features), features, stages)


class TinyArgs(StudentArgs):
    """Options of ``tiny``."""

    encoder: str = Field("mobilenetv4_conv_small_035", description="Encoder: a convolutional network of timm.")
    dim: int = Field(24, ge=4, le=1024, description="Channels of the pyramid and of the features.")


class Tiny(Student):
    """The smallest student: 0.2 M parameters."""

    Args = TinyArgs


class Small(Student):
    """The student to begin with: 0.4 M parameters."""


class BaseArgs(StudentArgs):
    """Options of ``base``."""

    encoder: str = Field("mobilenetv2_100", description="Encoder: a convolutional network of timm.")
    dim: int = Field(64, ge=4, le=1024, description="Channels of the pyramid and of the features.")


class Base(Student):
    """The student that takes MobileNetV2's ImageNet weights: 1.9 M parameters."""

    Args = BaseArgs
