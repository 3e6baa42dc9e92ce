"""What every network of this package is: image in, Segmentation out at its own stride, and what it says of itself."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.errors import ConfigError


class Network(nn.Module, ABC):
    """A network that segments.

    A subclass takes ``(args, bands, classes)`` and declares its options as ``Args``; :func:`rsdistill.models.build_network` is the way
    to make one. Images are (B, C, H, W) float, normalised, 0 where not valid; H and W are multiples of :attr:`stride`.
    """

    Args: ClassVar[type[Config]]
    stride: int = 32
    """Heights and widths of images are multiples of it."""
    needs_context: bool = False
    """Whether :meth:`forward` must be given the scene's context."""
    pretrained: bool = False
    """Whether encoder weights were loaded into this object (they are the start of a training, and not stored)."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The parts that take pretrained weights; empty where there are none."""
        return ()

    @property
    def context_ratio(self) -> int | None:
        """Scene pixels along the side of a pixel of the context that it reads; None where it reads none."""
        return None

    @property
    def thumbnail_from(self) -> int:
        """Longest side in pixels of scenes whose context comes without a thumbnail of the whole; 0 where none has one."""
        return 0

    def refuse_one_tile(self, image: Tensor) -> None:
        """Check that a network that pools tiles to one cell has batch statistics to normalise it by.

        Raises:
            ConfigError: it is being trained on a batch of one.
        """
        if self.training and len(image) == 1:
            name = type(self).__name__
            raise ConfigError(f"{name} pools a tile to one cell, which a batch of one cannot normalise", hint="give --batch 2 or more")

    @abstractmethod
    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, h, w) and features (B, D, h, w) of ``image`` at the network's own stride."""
