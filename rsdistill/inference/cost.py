"""What a network costs: its parameters, its multiplications, and how fast this machine answers with it."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsdistill.models.context import Canvas
from rsdistill.models.ginet import GINet
from rsdistill.models.network import Network

SIDE = 512
"""Side in pixels of the tile, and of the context image of a network that reads one."""
ROUNDS = 5
"""Tiles that are timed, after one that warms up."""


def cost(network: Network, bands: int) -> dict[str, float]:
    """Measure ``network``, which reads ``bands`` bands, on one tile at a time and as many threads as torch uses.

    Returns:
        ``parameters``; ``gmacs``, thousands of millions of multiply-accumulates of a tile of :data:`SIDE` pixels in convolutions and
        matrix products; ``gmacs_context``, the same of a context image, where the network reads one; ``tiles_per_second``, the median of
        some, with the context read beforehand.
    """
    network = network.eval()
    tile = torch.zeros(1, bands, SIDE, SIDE)
    found: dict[str, float] = {"parameters": sum(each.numel() for each in network.parameters())}
    if isinstance(network, GINet):
        found["gmacs_context"] = _gmacs(lambda: _canvas(network, tile))
    answer = _answering(network, tile)
    with torch.inference_mode():
        return found | {"gmacs": _gmacs(lambda: answer(tile)), "tiles_per_second": _speed(lambda: answer(tile))}


def _canvas(network: GINet, image: Tensor) -> Canvas:
    with torch.inference_mode():
        return network.encode_context(image, torch.ones_like(image[:, 0], dtype=torch.bool))


def _answering(network: Network, tile: Tensor) -> Callable[[Tensor], object]:
    """Return what segments a tile; a context, of the same pixels, has been read when it is called."""
    if not isinstance(network, GINet):
        return network
    canvas, box, index = _canvas(network, tile), torch.tensor([[0.0, 0.0, 0.125, 0.125]]), torch.zeros(1, dtype=torch.int64)
    return lambda pixels: network.decode(pixels, canvas, box, index)


def _gmacs(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2e9


def _speed(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS + 1):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return 1 / median(seconds[1:])
