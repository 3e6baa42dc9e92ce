"""Numbers that are not finite, named: which term's gradient, at which step, on which tiles."""

from collections.abc import Iterable

import torch
from torch import Tensor

from rsdistill.batches import Batch
from rsdistill.data.dataset import BatchSource
from rsdistill.errors import DivergedError
from rsdistill.training.objectives import Objective

FEW = 3
"""Tiles of a step that are named."""


def diverged(what: str, step: int, source: BatchSource) -> DivergedError:
    """Return the error that says ``what`` was found at ``step``, and on which tiles."""
    tiles = source.tiles_of(step)
    scenes = source.reader.card.scenes
    named = ", ".join(f"{scenes[tile.scene].name} at row {tile.window.row} column {tile.window.col}" for tile in tiles[:FEW])
    more = f" and {len(tiles) - FEW} more" if len(tiles) > FEW else ""
    return DivergedError(f"{what} at step {step}, on {named}{more}", hint="use a smaller --lr, or --precision float32")


def broken_terms(objective: Objective, batch: Batch, step: int) -> list[str]:
    """Return the terms whose gradient is not finite on ``batch``: each is asked for alone, which is slow and done once all is lost."""
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    terms = {name: term for name, term in objective(batch, step).items() if term.requires_grad}
    gradients = {name: torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) for name, term in terms.items()}
    return [name for name, found in gradients.items() if not _finite(found)]


def _finite(tensors: Iterable[Tensor | None]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)
