"""How much context a window of the context needs around a tile for the tile's answer to be that of the whole context.

An encoder sees far beyond a cell, and at the border of a window it sees padding. How far that reaches into the answers depends on the
encoder and on what was learned: 128 context pixels are about enough for a ResNet-18, a MobileNetV2 needs more than twice as many. So it
is measured for each trained network, and kept in its card.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rsdistill.models.ginet import GINet

MARGINS = (32, 64, 96, 128, 192, 256, 384)
"""Margins that are tried, in context pixels: whole cells of the coarsest map."""

TOLERANCE = 1e-3
"""Change of a tile's logits, in units of their deviation, that is not worth a larger margin."""

_CELL = 32
_BEYOND = 128
_TILE = 256


def canvas_margin(network: GINet, *, tolerance: float = TOLERANCE) -> int:
    """Return the smallest of :data:`MARGINS` that keeps :func:`window_errors` within ``tolerance``, or the largest if none does.

    Args:
        network: trained, in eval mode, on any device.
        tolerance: see :data:`TOLERANCE`.
    """
    return next((margin for margin, error in window_errors(network) if error <= tolerance), MARGINS[-1])


def window_errors(network: GINet) -> Iterator[tuple[int, float]]:
    """Yield each margin, smallest first, and what it costs.

    That is the root mean square difference of a tile's logits between a window of the context with that margin and the whole context, in
    units of the logits' deviation. Tile and context are noise of all scales with the deviation of normalised images, the same in every
    call.
    """
    device = next(network.parameters()).device
    bands = next(parameter.shape[1] for parameter in network.local.encoder.parameters() if parameter.ndim == 4)
    ratio = network.args.context_ratio
    core = -(-_TILE // (ratio * _CELL)) * _CELL
    start = MARGINS[-1] + _BEYOND
    generator = torch.Generator().manual_seed(0)
    scene, tile = (_noise(bands, side, generator).to(device) for side in (core + 2 * start, _TILE))
    whole = _answer(network, tile, scene, start)
    for margin in MARGINS:
        window = scene[..., start - margin : start + core + margin, start - margin : start + core + margin].contiguous()
        yield margin, float((_answer(network, tile, window, margin) - whole).square().mean().sqrt() / whole.std())


def _answer(network: GINet, tile: Tensor, context: Tensor, place: int) -> Tensor:
    """Return the logits of ``tile``, whose upper left corner lies at ``place`` in both axes of ``context``."""
    side = _TILE / network.args.context_ratio
    box = torch.tensor([[place, place, place + side, place + side]], device=tile.device) / context.shape[-1]
    valid = torch.ones_like(context[:, 0], dtype=torch.bool)
    with torch.no_grad():
        canvas = network.encode_context(context, valid)
        return network.decode(tile, canvas, box, torch.zeros(1, dtype=torch.int64, device=tile.device)).logits


def _noise(bands: int, side: int, generator: torch.Generator) -> Tensor:
    """Return (1, bands, side, side) of unit deviation: white noise and coarser noise in equal parts."""
    layers = []
    for cell in (1, 4, 16, 64):
        count = -(-side // cell)
        coarse = torch.randn(1, bands, count, count, generator=generator)
        layers.append(F.interpolate(coarse, scale_factor=cell, mode="nearest")[..., :side, :side])
    return torch.stack(layers).sum(0) / len(layers) ** 0.5
