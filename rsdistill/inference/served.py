"""The network as other programs run it: pixels divided by 255 in, class probabilities out, normalisation and softmax inside the graph.

Clients such as Deepness and GeoDeep divide whatever they read by 255 and take the answer for probabilities; a graph that leaves the
normalisation to metadata, or answers with logits, is silently wrong in one of them.
"""

import copy

import torch
from torch import Tensor, nn

from rsdistill.inference.scores import Floats
from rsdistill.methods.base import upsample
from rsdistill.models.card import ModelCard
from rsdistill.models.network import Network


class Served(nn.Module):
    """A network with everything that other programs leave out around it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, card: ModelCard) -> None:
        """Wrap ``network``, whose answers must depend on the tile alone."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, K, S, S) probabilities of (N, C, S, S) raw pixels divided by 255."""
        raw = image * 255.0
        logits: Tensor = self.network((raw - self.mean) / self.std).logits
        return upsample(logits, (image.shape[-2], image.shape[-1])).softmax(dim=1)


def probe(card: ModelCard, size: tuple[int, int], count: int, seed: int) -> Tensor:
    """Return ``count`` noisy tiles (N, C, *size) of the training pixels' mean and deviation, divided by 255."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(card.bands), *size, generator=generator)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
    return (mean + std * noise) / 255.0


def answer(served: nn.Module, image: Tensor) -> Floats:
    """Return what torch makes of ``image``."""
    with torch.inference_mode():
        return served(image).numpy()


def rounding(served: Served, image: Tensor) -> float:
    """Return how far torch's own probabilities of ``image`` are from those it finds in float64."""
    exact = answer(copy.deepcopy(served).double(), image.double())
    return float(abs(answer(served, image) - exact).max())
