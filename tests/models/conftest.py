"""Cards, and networks whose every number matters: nothing is left at zero or one, where a mistake would not show."""

from collections.abc import Callable, Iterator

import pytest
import torch

from rsdistill.batches import Context
from rsdistill.models import Network, build_network
from rsdistill.models.card import ModelCard

LIGHT = "mobilenetv4_conv_small_035"
"""The lightest encoder at hand, with padded convolutions."""


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def card() -> Callable[..., ModelCard]:
    """Make a card of ``bands`` bands and ``classes`` classes."""

    def make(arch: str = "linear", bands: int = 3, classes: int = 2, **other: object) -> ModelCard:
        entries = [{"id": 10 + k, "name": f"class {k}", "color": "#102030"} for k in range(classes)]
        content = {"arch": arch, "classes": entries, "bands": range(1, bands + 1), "mean": [0.5] * bands, "std": [2.0] * bands}
        return ModelCard.model_validate(content | other)

    return make


@pytest.fixture
def lively() -> Callable[..., Network]:
    """Make a network in eval mode whose biases and zero-initialised layers have random values, and whose norms have seen images."""

    def make(arch: str, bands: int = 3, classes: int = 3, **args: object) -> Network:
        if arch in {"ginet", "local"}:
            args = {"encoder": LIGHT, "dim": 8} | args
        network = build_network(arch, args, bands, classes)
        generator = torch.Generator().manual_seed(1)
        context = Context(
            torch.randn(2, bands, 64, 64, generator=generator),
            torch.ones(2, 64, 64, dtype=torch.bool),
            torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.5, 0.3, 0.9, 0.7]]),
            torch.arange(2),
        )
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            network.train()
            for _ in range(20):
                network(torch.randn(2, bands, 64, 64, generator=generator), context)
        return network.eval()

    return make
