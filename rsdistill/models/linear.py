"""The linear spectral classifier, which needs no library of encoders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsdistill.batches import Context, Segmentation
from rsdistill.config import Config
from rsdistill.models.network import Network


class Linear(Network):
    """One 1x1 convolution: logits are an affine map of a pixel's bands.

    Its state is exactly ``weight`` (K, C, 1, 1) and ``bias`` (K,), so that a person can write one by hand. It begins at zero: the loss is
    convex and has no symmetry to break.
    """

    Args = Config
    stride = 1

    def __init__(self, args: Config, bands: int, classes: int) -> None:
        super().__init__(args)
        self.weight = nn.Parameter(torch.zeros(classes, bands, 1, 1))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, image: Tensor, context: Context | None = None) -> Segmentation:
        """Return logits (B, K, H, W); the features are the image."""
        return Segmentation(F.conv2d(image, self.weight, self.bias), image)
