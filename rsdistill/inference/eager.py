"""A network as a plain loop runs it: float32, one plane after the other, nothing chosen; what backends are measured against."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsdistill.geo.windows import Window
from rsdistill.inference.backends import Backend
from rsdistill.inference.scores import Floats
from rsdistill.methods.base import upsample
from rsdistill.models.card import ModelCard
from rsdistill.models.network import Network


class EagerBackend(Backend):
    """A torch network on the processor, called as a first script would."""

    def __init__(self, network: Network, card: ModelCard) -> None:
        """Take ``network``, whose answers depend on the window alone, as it was loaded."""
        self.stride, self.classes = network.stride, len(card.classes)
        self._network = network
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))

    def __call__(self, images: NDArray[Any], valid: NDArray[np.bool_], windows: Sequence[Window]) -> Floats:
        """As the base class."""
        with torch.inference_mode():
            image = (torch.from_numpy(images).float() - self._mean) / self._std * torch.from_numpy(valid)[:, None]
            return upsample(self._network(image).logits, (images.shape[-2], images.shape[-1])).numpy()
